"""A node's cache of models: filled once by whoever comes first, bounded, and never emptied under a job that serves from it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptolemy import model_cache
from ptolemy.model_cache import Cache, CacheError, StoppedError, WrongModelError, size_of

CHECKOUT = Path(__file__).parents[2]
MB = 1 << 20
JOB = """
import json, sys, time
from ptolemy import model_cache
folder, size, source, files, pause, serve = json.loads(sys.argv[1])
copies, real = [], model_cache.Cache._copy
def copy(self, *given):
    print("copying", flush=True)
    time.sleep(pause)
    real(self, *given)
model_cache.Cache._copy = copy
try:
    print(model_cache.Cache(folder, size, say=lambda line: None).take(source, files).directory, flush=True)
except model_cache.CacheError as error:
    print(error, flush=True)
time.sleep(serve)
"""


@pytest.fixture
def cache_dir(tmp_path):
    path = tmp_path / "cache"
    path.mkdir()
    return path


@pytest.fixture
def models(tmp_path):
    """Makes a model of so many MB: (its directory, sha256 by name)."""

    def make(name, *sizes):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        files = {}
        for number, size in enumerate(sizes or (1,)):
            data = os.urandom(16) + bytes(size * MB - 16)
            (folder / f"{name}-{number}.gguf").write_bytes(data)
            files[f"{name}-{number}.gguf"] = hashlib.sha256(data).hexdigest()
        return str(folder), files

    return make


@pytest.fixture
def job(cache_dir):
    """Starts jobs in processes of their own, and ends them."""
    running = []

    def start(model, size=10 * MB, pause=0.0, serve=60.0):
        given = json.dumps([str(cache_dir), size, *model, pause, serve])
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "module_utils")}
        running.append(subprocess.Popen([sys.executable, "-c", JOB, given], stdout=subprocess.PIPE, text=True, env=environment))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def place(job):
    """Where a job found its model, and whether it copied it."""
    lines = [job.stdout.readline().strip()]
    while lines[-1] == "copying":
        lines.append(job.stdout.readline().strip())
    return lines[-1], "copying" in lines


def whole(cache_dir):
    return sorted(path.name for path in cache_dir.iterdir() if path.is_dir())


def take(cache_dir, model, size=10 * MB, **how):
    cached = Cache(str(cache_dir), size, say=lambda line: None, **how).take(*model)
    os.close(cached.lock)  # as the end of its job does
    return cached.directory


def test_a_model_is_copied_once_with_all_its_files(cache_dir, models):
    source, files = models("large", 2, 1)
    first = take(cache_dir, (source, files))
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(first).glob("*.gguf")} == files
    for name in files:
        (Path(source) / name).unlink()
    assert take(cache_dir, (source, files)) == first


def test_jobs_that_start_at_once_copy_a_model_once(cache_dir, models, job):
    model = models("m")
    jobs = [job(model, pause=0.5) for _ in range(4)]
    found = [place(one) for one in jobs]
    assert len({directory for directory, _ in found}) == 1
    assert [copied for _, copied in found].count(True) == 1


def test_a_killed_job_leaves_its_copy_to_the_next_one(cache_dir, models, job):
    model = models("m")
    first = job(model, pause=60)
    assert first.stdout.readline() == "copying\n"
    second = job(model)
    time.sleep(0.3)
    first.send_signal(signal.SIGKILL)
    directory, copied = place(second)
    assert copied
    assert whole(cache_dir) == [os.path.basename(directory)]


def test_the_least_recently_used_model_goes_and_one_that_is_served_stays(cache_dir, models, job):
    served, old, new = models("served", 4), models("old", 4), models("new", 4)
    directory, _ = place(job(served))
    take(cache_dir, old)
    os.utime(f"{directory}.lock", (1, 1))
    kept = take(cache_dir, new)
    assert whole(cache_dir) == sorted(map(os.path.basename, (directory, kept)))
    with pytest.raises(CacheError, match="no room"):
        take(cache_dir, models("third", 7))
    assert os.path.basename(directory) in whole(cache_dir)


def test_two_jobs_with_different_models_never_count_on_the_same_room(cache_dir, models, job):
    jobs = [job(models(name, 6), pause=1.0) for name in ("a", "b")]
    found = [place(one)[0] for one in jobs]
    assert sum("no room" in line for line in found) == 1
    assert len(whole(cache_dir)) == 1


def test_a_model_that_is_too_large_removes_nothing(cache_dir, models):
    kept = take(cache_dir, models("m"))
    with pytest.raises(CacheError, match="no room"):
        take(cache_dir, models("huge", 11))
    assert whole(cache_dir) == [os.path.basename(kept)]


def test_a_corrupted_byte_is_never_served(cache_dir, models):
    source, files = models("m")
    name = next(iter(files))
    data = bytearray((Path(source) / name).read_bytes())
    data[-1] ^= 1
    (Path(source) / name).write_bytes(data)
    with pytest.raises(WrongModelError, match=r"its sha256 is .*, the catalogue wants"):
        take(cache_dir, (source, files))
    assert whole(cache_dir) == []


def test_a_copy_that_somebody_changed_is_made_anew(cache_dir, models):
    source, files = models("m")
    name = next(iter(files))
    copy = Path(take(cache_dir, (source, files))) / name
    copy.write_bytes(b"other")
    assert take(cache_dir, (source, files)) == str(copy.parent)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == files[name]


def test_a_job_that_is_told_to_end_leaves_nothing_half_done(cache_dir, models):
    answers = iter([True] * 3 + [False] * 9)
    with pytest.raises(StoppedError):
        take(cache_dir, models("m", 9), going=lambda: next(answers))
    assert whole(cache_dir) == []


def test_a_cache_that_fails_is_told_and_the_model_is_served_from_where_it_lies(tmp_path, models):
    source, files = models("m")
    name, digest = next(iter(files.items()))
    spec = {"model_path": f"{source}/{name}", "model_files": [f"{digest}  {name}"], "cache_dir": str(tmp_path / "none"), "cache_size": "1G"}
    said = []
    assert model_cache.take(spec, lambda: True, said.append) == spec
    assert "No such file or directory" in said[0]
    (tmp_path / "none").mkdir()
    assert model_cache.take(spec, lambda: True, said.append)["model_path"].startswith(f"{tmp_path}/none/")
    assert model_cache.take({"model_path": "/m.gguf", "cache_dir": ""}, lambda: True, said.append)["model_path"] == "/m.gguf"


def test_sizes_are_read():
    assert (size_of("800G"), size_of("2T")) == (800 * 10**9, 2 * 10**12)
    with pytest.raises(CacheError, match="models_cache_size"):
        size_of("800 GB")
