"""Downloads from a web server with the faults of real ones: resumed, bounded, hashed, and discreet about tokens."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random

import pytest

from model_server import Site, serve
from ptolemy import download
from ptolemy.download import Download, FetchError, noted

DATA = random.Random(1).randbytes(5 << 20)
SHA256 = hashlib.sha256(DATA).hexdigest()
HALF = len(DATA) // 2


class Target:
    """Downloads into a part, and keeps the pauses that were made."""

    def __init__(self, folder):
        self.path = str(folder / ".incoming-m.gguf")
        self.pauses = []
        self.meanwhile = lambda: None  # what happens in a pause

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.meanwhile()

    def fetch(self, url, headers=None, sha256=SHA256):
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT)
        with open(self.path, "r+b", buffering=0, opener=lambda *_: descriptor) as stream:
            Download(url, sha256, headers, sleep=self.sleep).into(stream)
        return self

    @property
    def content(self):
        with open(self.path, "rb") as file:
            return file.read()


@pytest.fixture
def site():
    with serve(Site(DATA)) as running:
        yield running


@pytest.fixture
def target(tmp_path):
    return Target(tmp_path)


def test_a_connection_that_breaks_is_resumed_where_it_ended(site, target):
    site.cuts = [HALF, 1000]
    assert target.fetch(f"{site.url}/m.gguf").content == DATA
    assert site.asked == ["", f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert [headers.get("if-range") for _, headers in site.requests] == [None, '"one"', '"one"']
    assert len(target.pauses) == 2


def test_an_interrupted_run_is_resumed_by_the_next_one(site, target):
    def interrupt():
        raise KeyboardInterrupt

    site.cuts, target.meanwhile = [HALF], interrupt
    with pytest.raises(KeyboardInterrupt):
        target.fetch(f"{site.url}/m.gguf")
    assert target.content == DATA[:HALF]
    target.meanwhile = lambda: None
    assert target.fetch(f"{site.url}/m.gguf").content == DATA
    assert site.asked == ["", f"bytes={HALF}-"]


def test_a_server_without_ranges_starts_over(site, target):
    site.cuts, site.ranges = [HALF], False
    assert target.fetch(f"{site.url}/m.gguf").content == DATA


def test_a_server_without_ranges_that_always_breaks_does_not_go_on_for_ever(site, target):
    site.cuts, site.ranges = [HALF] * 100, False
    with pytest.raises(FetchError, match="begun anew 5 times"):
        target.fetch(f"{site.url}/m.gguf")
    assert len(site.requests) <= 7


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changes_between_two_answers_is_fetched_anew(site, target, honest):
    """One server honours If-Range, the other one sends the rest of the new file with its ETag."""
    site.data, site.cuts, site.if_range = bytes(len(DATA)), [HALF], honest

    def change():
        site.data, site.etag = DATA, '"two"'

    target.meanwhile = change
    assert target.fetch(f"{site.url}/m.gguf").content == DATA


def test_a_change_that_no_header_tells_is_found_by_the_hash_and_fetched_anew(site, target):
    site.data, site.cuts, site.etag = bytes(len(DATA)), [HALF], ""

    def change():
        site.data = DATA

    target.meanwhile = change
    assert target.fetch(f"{site.url}/m.gguf").content == DATA
    assert site.asked == ["", f"bytes={HALF}-", ""]


def test_a_corrupted_byte_is_found_and_nothing_is_kept(site, target):
    site.data = DATA[:HALF] + bytes([DATA[HALF] ^ 1]) + DATA[HALF + 1 :]
    with pytest.raises(FetchError, match=r"its sha256 is [0-9a-f]{64} .* the catalogue wants [0-9a-f]{64}; nothing was installed"):
        target.fetch(f"{site.url}/m.gguf")
    assert (target.content, noted(target.path), len(site.requests)) == (b"", {}, 1)


def test_a_corrupted_part_on_the_disk_is_found_and_fetched_anew(site, target):
    site.cuts = [HALF] + [0] * 20
    with pytest.raises(FetchError, match=rf"{HALF} of {len(DATA)} bytes are kept: run the playbook again"):
        target.fetch(f"{site.url}/m.gguf")
    with open(target.path, "r+b") as part:
        part.write(b"\0" * 100)
    site.cuts = []
    assert target.fetch(f"{site.url}/m.gguf").content == DATA


def test_the_part_of_another_file_is_not_resumed(site, target):
    with open(target.path, "wb") as part:
        part.write(b"x" * 1000)
    assert target.fetch(f"{site.url}/m.gguf").content == DATA
    assert site.asked == [""]


def test_a_busy_server_is_asked_again_with_longer_and_longer_pauses_but_not_for_ever(site, target):
    site.statuses = [503, 429]
    assert target.fetch(f"{site.url}/m.gguf").content == DATA
    assert target.pauses == [2.0, 4.0]
    site.statuses = [503] * 100
    os.unlink(target.path)
    with pytest.raises(FetchError, match="the server answers 503"):
        target.fetch(f"{site.url}/m.gguf")
    assert len(site.requests) < 3 + download.ATTEMPTS


def test_a_server_that_is_not_there_is_told_soon(site, target):
    with pytest.raises(FetchError, match=r"http://127\.0\.0\.1:9/m\.gguf: Connection refused"):
        target.fetch("http://127.0.0.1:9/m.gguf?token=secret")
    assert sum(target.pauses) < 20


@pytest.mark.parametrize(("status", "hint"), [(401, "models_hf_token"), (403, "models_hf_token"), (404, "correct the source")])
def test_what_asking_again_cannot_mend_is_told_at_once(site, target, status, hint):
    site.statuses = [status]
    with pytest.raises(FetchError, match=hint) as told:
        target.fetch(f"{site.url}/m.gguf?token=secret")
    assert (target.pauses, "secret" in str(told.value)) == ([], False)


def test_an_address_that_is_none_is_told_at_once(target):
    with pytest.raises(FetchError, match=r"unknown url type.*; correct the source, or models_hf_endpoint"):
        target.fetch("huggingface.co/o/n/m.gguf")
    assert target.pauses == []


def test_a_token_stays_with_its_host(site, target):
    with serve(Site(token="hf_abc")) as hub:
        hub.redirect = f"{site.url}/elsewhere"
        assert target.fetch(f"{hub.url}/m.gguf", {"Authorization": "Bearer hf_abc"}).content == DATA
        assert hub.requests[0][1]["authorization"] == "Bearer hf_abc"
    assert site.requests[0][0] == "/elsewhere"
    assert not any("hf_abc" in str(headers) for _, headers in site.requests)


def test_a_token_goes_along_to_another_path_of_its_host(site, target):
    site.token, site.redirect = "hf_abc", "/renamed"
    with pytest.raises(FetchError):  # a loop, but each round was let in
        target.fetch(f"{site.url}/m.gguf", {"Authorization": "Bearer hf_abc"})
    assert [headers["authorization"] for path, headers in site.requests if path == "/renamed"][:1] == ["Bearer hf_abc"]


def test_a_redirect_to_a_local_file_is_not_followed(site, target):
    site.redirect = "file:///etc/passwd"
    with pytest.raises(FetchError):
        target.fetch(f"{site.url}/m.gguf")
    assert target.content == b""


def test_a_full_disk_is_told_before_the_download_and_the_part_stays(site, target, monkeypatch):
    site.cuts = [HALF] + [0] * 20
    with pytest.raises(FetchError):
        target.fetch(f"{site.url}/m.gguf")
    site.cuts = []
    monkeypatch.setattr(download, "free", lambda path: download.SPARE + 1000)
    with pytest.raises(FetchError, match=rf"no room .* {HALF} are there and kept.* Make room or set models_dir"):
        target.fetch(f"{site.url}/m.gguf")
    assert target.content == DATA[:HALF]


def test_a_disk_that_fills_up_meanwhile_is_told_once(site, target, monkeypatch):
    class Disk(io.FileIO):
        def write(self, data):
            if self.tell() >= HALF:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data[:1000])  # as a file system may do

    monkeypatch.setattr(download, "BLOCK", 1 << 16)
    with Disk(target.path, "w+") as stream, pytest.raises(FetchError, match=r"no room .* Make room or set models_dir"):
        Download(f"{site.url}/m.gguf", SHA256, sleep=target.sleep).into(stream)
    assert target.pauses == []
    assert target.content == DATA[: len(target.content)]
    assert len(target.content) >= HALF
    assert target.fetch(f"{site.url}/m.gguf").content == DATA
