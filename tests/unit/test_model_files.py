"""The model files of a host: only a right file gets its name, whoever else is at it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import gguf_files
from model_server import Site, serve
from ptolemy import model_files
from ptolemy.catalogue import ModelFile
from ptolemy.download import FetchError
from ptolemy.model_files import Store, read_stamp, refuse, stamp_path

CHECKOUT = Path(__file__).parents[2]
DATA = gguf_files.model(tensors={"token_embd.weight": ((64, 16384), 0)}, context_length=2048, block_count=1, embedding_length=64)
SHA256 = hashlib.sha256(DATA).hexdigest()
BRING = """
import sys, time
from ptolemy.catalogue import ModelFile
from ptolemy.download import FetchError
from ptolemy.model_files import Store
folder, source, sha256, patience = sys.argv[1:]
try:
    store = Store(folder, deadline=time.monotonic() + float(patience))
    print("came" if store.bring(ModelFile("m.gguf", sha256, source)) else "was there")
except FetchError as error:
    print(error)
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "original.gguf"
    path.write_bytes(DATA)
    return path


def wanted(source, sha256=SHA256):
    return ModelFile("m.gguf", sha256, str(source))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def states(store, *files, **how):
    return [state.state for state in store.look(files, **how)]


def bring_in_a_process(folder, source, patience=20):
    argv = [sys.executable, "-c", BRING, str(folder), str(source), SHA256, str(patience)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "module_utils")}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["http", "file", "staged"])
def test_a_file_gets_its_name_whole_with_its_stamp_and_nothing_is_left_beside_it(folder, original, kind):
    with serve(Site(DATA)) as site:
        source = {"http": f"{site.url}/m.gguf", "file": f"file://{original}", "staged": str(original)}[kind]
        staged = str(folder / ".staged-m.gguf") if kind == "staged" else None
        if staged:
            Path(staged).write_bytes(DATA)
        assert Store(str(folder)).bring(wanted(source), staged=staged)
    assert (folder / "m.gguf").read_bytes() == DATA
    assert (folder / "m.gguf").stat().st_mode & 0o777 == 0o644
    assert names(folder) == [".m.gguf.sha256", "m.gguf"]
    assert read_stamp(str(folder / "m.gguf")) == SHA256


@pytest.mark.parametrize("kind", ["http", "file", "staged"])
def test_a_corrupted_byte_leaves_nothing(folder, original, kind):
    bad = DATA[:-1] + b"\1"
    original.write_bytes(bad)
    with serve(Site(bad)) as site:
        source = {"http": f"{site.url}/m.gguf", "file": f"file://{original}", "staged": str(original)}[kind]
        staged = str(folder / ".staged-m.gguf") if kind == "staged" else None
        if staged:
            Path(staged).write_bytes(bad)
        with pytest.raises(FetchError, match="the catalogue wants"):
            Store(str(folder)).bring(wanted(source), staged=staged)
    assert names(folder) == []


def test_two_processes_at_once_fetch_a_file_once(folder):
    with serve(Site(DATA, pause=threading.Event())) as site:
        first = bring_in_a_process(folder, f"{site.url}/m.gguf")
        until(lambda: site.requests)
        second = bring_in_a_process(folder, f"{site.url}/m.gguf")
        late = bring_in_a_process(folder, f"{site.url}/m.gguf", patience=0)
        assert "another process is bringing this file" in late.communicate(timeout=20)[0]
        assert second.poll() is None
        site.pause.set()
        assert [process.communicate(timeout=20)[0].strip() for process in (first, second)] == ["came", "was there"]
    assert (len(site.requests), (folder / "m.gguf").read_bytes() == DATA, names(folder)) == (1, True, [".m.gguf.sha256", "m.gguf"])


def test_a_killed_process_leaves_its_part_and_its_lock_to_the_next_one(folder):
    with serve(Site(DATA, pause=threading.Event())) as site:
        first = bring_in_a_process(folder, f"{site.url}/m.gguf")
        until(lambda: any(path.stat().st_size for path in folder.glob(".incoming-m.gguf")))
        second = bring_in_a_process(folder, f"{site.url}/m.gguf")
        time.sleep(0.3)
        first.kill()
        first.communicate()
        site.pause.set()
        assert second.communicate(timeout=20)[0].strip() == "came"
    assert site.asked[1].startswith("bytes=")
    assert (folder / "m.gguf").read_bytes() == DATA


def test_a_right_file_is_hashed_once_and_again_only_when_it_changed_or_when_asked(folder, monkeypatch):
    path, store, file = folder / "m.gguf", Store(str(folder)), wanted("/x")
    hashed = []
    real = model_files.digest_of
    monkeypatch.setattr(model_files, "digest_of", lambda path: hashed.append(path) or real(path))
    path.write_bytes(DATA)
    assert states(store, file, hashing=False) == ["unknown"]
    assert states(store, file, stamping=False) == ["right"]
    assert names(folder) == ["m.gguf"]
    assert states(store, file) == states(store, file) == ["right"]
    assert len(hashed) == 2
    changed = bytearray(DATA)
    changed[-1] ^= 1
    kept = path.stat()
    path.write_bytes(changed)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert states(store, file) == ["right"]  # the stamp notices no change that hides its time
    assert states(store, file, again=True) == ["wrong"]
    assert states(store, file) == ["wrong"]


def test_a_file_with_another_hash_stays_until_it_may_be_replaced_and_the_new_one_is_whole(folder, original):
    path, store, file = folder / "m.gguf", Store(str(folder)), wanted(f"file://{original}")
    path.write_bytes(b"old")
    with pytest.raises(FetchError, match=r"m\.gguf \(found [0-9a-f]{64}, wanted [0-9a-f]{64}\)\. Correct the catalogue, .* models_replace"):
        store.bring(file)
    with pytest.raises(FetchError):
        refuse(str(folder), [file], store.look([file]), replace=False)
    with pytest.raises(FetchError, match="the catalogue wants"):
        store.bring(replace(file, sha256="0" * 64), replace=True)
    assert path.read_bytes() == b"old"
    assert store.bring(file, replace=True)
    assert path.read_bytes() == DATA


def test_no_link_is_followed(folder, original, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / ".incoming-m.gguf").symlink_to(victim)
    with pytest.raises(FetchError, match="is a link; remove it"):
        Store(str(folder)).bring(wanted(f"file://{original}"))
    (folder / ".incoming-m.gguf").unlink()
    os.link(victim, folder / ".incoming-m.gguf")
    with pytest.raises(FetchError, match="has a second name"):
        Store(str(folder)).bring(wanted(f"file://{original}"))
    (folder / ".incoming-m.gguf").unlink()
    Path(stamp_path(str(folder / "m.gguf"))).symlink_to(victim)
    assert Store(str(folder)).bring(wanted(f"file://{original}"))
    assert victim.read_text() == "precious"


def test_the_hubs_token_goes_to_the_hub_only_and_the_headers_to_urls_only(folder):
    with serve(Site(DATA)) as hub, serve(Site(DATA)) as web:
        store = Store(str(folder), hf_endpoint=hub.url, hf_token="hf_abc", url_headers={"X-Key": "k"})
        store.bring(replace(wanted("hf://Qwen/Q-GGUF@refs%2Fpr%2F1/sub/m.gguf"), file="hub.gguf"))
        store.bring(replace(wanted(f"{web.url}/m.gguf"), file="web.gguf"))
    assert hub.requests[0][0] == "/Qwen/Q-GGUF/resolve/refs%2Fpr%2F1/sub/m.gguf"
    assert (hub.requests[0][1].get("authorization"), hub.requests[0][1].get("x-key")) == ("Bearer hf_abc", None)
    assert (web.requests[0][1].get("authorization"), web.requests[0][1].get("x-key")) == (None, "k")
    assert "hf_abc" not in repr(store)


def test_a_directory_that_is_not_there_is_told(tmp_path, original):
    store = Store(str(tmp_path / "none"))
    assert states(store, wanted("/x")) == ["absent"]
    with pytest.raises(FetchError, match="no such directory"):
        store.bring(wanted(f"file://{original}"))


@pytest.mark.slow
def test_the_module_brings_a_model_tells_its_header_and_keeps_its_token(folder):
    """Through Ansible itself, with the action plugin: check mode, a run in the background, a second run."""
    with serve(Site(DATA, token="hf_do_not_show")) as hub:
        given = {
            "name": "m",
            "file": "m.gguf",
            "source": "hf://a/b/m.gguf",
            "sha256": SHA256,
            "directory": str(folder),
            "hf_endpoint": hub.url,
            "hf_token": "hf_do_not_show",
        }
        said = []
        for flags in (["--check"], [], []):
            argv = [str(Path(sys.executable).parent / "ansible"), "localhost", "-i", "localhost,", "-c", "local", "--diff", "-vvv", *flags]
            argv += ["-e", f"ansible_python_interpreter={sys.executable}", "-m", "gguf_model", "-a", json.dumps(given)]
            environment = {**os.environ, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
            done = subprocess.run(argv, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            said.append(done.stdout)
    assert ["CHANGED =>" in text for text in said] == [True, True, False]
    assert '"header": null' in said[0]
    for text in ('"architecture": "llama"', '"context_length": 2048', '"parameters": 1048576', '"F32": 4194304', '"chat_template": false'):
        assert text in said[1]
        assert text in said[2]
    assert len(hub.requests) == 1
    assert not any("hf_do_not_show" in text.replace(json.dumps(given), "") for text in said)
