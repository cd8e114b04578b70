"""Quantising a model with a small stand-in for llama-quantize: names, entries, and nothing half done under a final name."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gguf_files
from ptolemy import quantize
from ptolemy.catalogue import files
from ptolemy.errors import ConfigError, PtolemyError
from ptolemy.model_files import write_stamp
from ptolemy.quantize import entries, kinds, renamed

CHECKOUT = Path(__file__).parents[2]
F16, Q8_0, Q5_K_M = 1, 7, 17  # LLAMA_FTYPE_*
# Copies a file of the wanted type, and counts.
PROGRAM = """#!/bin/sh
echo "$3" >> "$(dirname "$0")/runs"
echo "[   1/   1] token_embd.weight"
[ -e "$(dirname "$0")/broken" ] && { head -c 100 "$(dirname "$0")/$3" > "$2"; echo "out of memory"; exit 1; }
cat "$(dirname "$0")/$3" > "$2"
"""


def made(kind):
    return gguf_files.model(tensors={"t": ((64, 64), 0)}, extra=[gguf_files.key("general.file_type", kind)])


@pytest.fixture
def spec(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    (models / "Demo-F16.gguf").write_bytes(made(F16))
    for kind, number in {"Q8_0": Q8_0, "Q5_K_M": Q5_K_M}.items():
        (tmp_path / kind).write_bytes(made(number))
    program = tmp_path / "llama-quantize"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    entry = {"file": "Demo-F16.gguf", "source": "/x", "sha256": "0" * 64, "licence": "MIT"}
    return {"model": "demo", "entry": entry, "types": "Q8_0,q5_k_m", "directory": str(models), "program": str(program), "threads": 2}


def names(spec):
    return sorted(os.listdir(spec["directory"]))


def runs(spec):
    return (Path(spec["program"]).parent / "runs").read_text().split()


def test_the_entries_are_right_ones_of_the_catalogue_and_a_second_run_makes_nothing(spec):
    found = entries(spec)
    assert list(found) == ["demo-q8_0", "demo-q5_k_m"]
    (file,) = files(found["demo-q8_0"])
    assert (file.file, file.source) == ("Demo-Q8_0.gguf", f"file://{spec['directory']}/Demo-Q8_0.gguf")
    assert file.sha256 == hashlib.sha256(made(Q8_0)).hexdigest()
    assert found["demo-q5_k_m"]["licence"] == "MIT"
    notes = [f".Demo-{kind}.gguf.{ending}" for kind in ("Q5_K_M", "Q8_0") for ending in ("json", "sha256")]
    assert names(spec) == [*notes, "Demo-F16.gguf", "Demo-Q5_K_M.gguf", "Demo-Q8_0.gguf"]
    assert entries(spec) == found
    assert runs(spec) == ["Q8_0", "Q5_K_M"]


def test_a_failure_says_why_and_leaves_nothing(spec):
    broken = Path(spec["program"]).parent / "broken"
    broken.touch()
    with pytest.raises(PtolemyError, match=r"llama-quantize failed with 1: .*out of memory"):
        entries(spec)
    assert names(spec) == ["Demo-F16.gguf"]
    broken.unlink()
    assert len(entries(spec)) == 2


def test_what_is_not_what_was_asked_for_gets_no_name(spec):
    (Path(spec["program"]).parent / "Q8_0").write_bytes(made(Q5_K_M))
    with pytest.raises(PtolemyError, match=r"is Q5_K_M .* not a whole Q8_0"):
        entries(spec)
    assert names(spec) == ["Demo-F16.gguf"]


@pytest.mark.parametrize("other", ["model", "file"])
def test_what_was_made_of_another_model_is_not_taken(spec, other):
    entries(spec)
    if other == "model":
        spec["entry"]["sha256"] = "1" * 64
    else:  # somebody fetched one of that name
        (Path(spec["directory"]) / "Demo-Q8_0.gguf").write_bytes(made(Q8_0) + b"x")
    with pytest.raises(PtolemyError, match=r"Demo-Q8_0\.gguf: was not made of .*Demo-F16\.gguf .*; leave Q8_0 out, or remove it"):
        entries(spec)
    assert runs(spec) == ["Q8_0", "Q5_K_M"]
    (Path(spec["directory"]) / "Demo-Q8_0.gguf").unlink()
    spec["types"] = "Q8_0"
    assert list(entries(spec)) == ["demo-q8_0"]


def test_a_model_that_the_catalogue_no_longer_has_is_not_quantised(spec):
    write_stamp(f"{spec['directory']}/Demo-F16.gguf", "0" * 64)
    spec["entry"]["sha256"] = ["1" * 64, "2" * 64]
    with pytest.raises(PtolemyError, match=r"Demo-F16\.gguf: is not what the catalogue has; run site\.yml"):
        entries(spec)


def test_a_quantised_model_is_not_quantised_again(spec):
    (Path(spec["directory"]) / "Demo-F16.gguf").write_bytes(made(Q8_0))
    with pytest.raises(PtolemyError, match=r"is quantised already \(Q8_0\)"):
        entries(spec)


def test_types_are_checked_before_anything_runs():
    assert kinds("q8_0, Q5_K_M") == ["Q8_0", "Q5_K_M"]
    with pytest.raises(ConfigError, match="types: Q9; known are"):
        kinds("Q8_0,Q9")
    with pytest.raises(ConfigError, match="types: none"):
        kinds(" ")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Qwen3-8B-F16.gguf", "Qwen3-8B-Q8_0.gguf"),
        ("qwen3-8b-bf16.gguf", "qwen3-8b-q8_0.gguf"),
        ("Large.BF16-00001-of-00003.gguf", "Large.Q8_0.gguf"),
        ("qwen3-8b", "qwen3-8b-q8_0"),
        ("qwen3-8b-f16", "qwen3-8b-q8_0"),
    ],
)
def test_names_follow_the_models(name, other):
    assert renamed(name, "Q8_0") == other


def test_the_command_prints_the_entries_alone_on_standard_output(spec):
    environment = {**os.environ, "PYTHONPATH": str(Path(quantize.__file__).parents[1])}
    argv = [sys.executable, "-m", "ptolemy", "quantize"]
    done = subprocess.run(argv, input=json.dumps(spec), env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)) == ["demo-q8_0", "demo-q5_k_m"]
    assert "making Q8_0" in done.stderr
    done = subprocess.run(argv, input="{}", env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
