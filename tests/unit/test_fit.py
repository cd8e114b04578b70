"""Whether servers fit into a GPU: the formulas against what an H100 held, and what is told when they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.memory_models import ALL, ensure
from gguf_files import key, model
from ptolemy.fit import USABLE, bytes_of, most, problem, run_from, run_of
from ptolemy.gguf import read_header
from ptolemy.server_memory import GIB, MIB, Run, UncheckedError, need
from values import service

CHECKOUT = Path(__file__).parents[2]
ENTRIES = [json.loads(line) for line in (CHECKOUT / "bench" / "memory_fit.jsonl").read_text().splitlines()]
MEASURED = [entry for entry in ENTRIES if entry["device"] == "CUDA0"]
F16, F32 = 1, 0


@pytest.fixture(scope="session")
def header(tmp_path_factory):
    """The header of a model of the bench, by its name."""
    folder = tmp_path_factory.mktemp("models")
    return lambda name: read_header(str(ensure(folder, name, tokens=False)))


@pytest.fixture
def made(tmp_path):
    """The header of a small model of some architecture, with further keys."""

    def make(architecture: str = "llama", tensors: Any = None, extra: Any = (), **numbers: Any):
        sizes: dict[str, Any] = {"block_count": 4, "embedding_length": 256, "attention__head_count": 4, "feed_forward_length": 512}
        weights = tensors or {"token_embd.weight": ((256, 1000), F16), "output.weight": ((256, 1000), F16)}
        path = tmp_path / "small.gguf"
        path.write_bytes(model(architecture, weights, data=False, extra=extra, **{**sizes, **numbers}))
        return read_header(str(path))

    return make


# ---------------------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize("name", ALL)
def test_no_server_held_more_and_none_a_tenth_less(header, name):
    entries = [entry for entry in MEASURED if entry["case"]["model"] == name and not entry["problem"]]
    assert entries
    for entry in entries:
        case = entry["case"]
        said = need(header(name), run_from(case["slots"], case["context"], case["flags"]))
        assert 0.98 <= said.total / MIB / entry["process"] <= 1.10, case
        # llama-server rounds to a hundredth of a MiB, and a cache has no padding.
        assert said.cache / MIB == pytest.approx(entry["cache"], abs=0.01), case
        assert said.weights / MIB == pytest.approx(entry["model"], abs=0.2), case
        assert said.buffers / MIB - entry["compute"] >= -2.5, case


def test_a_cache_has_a_row_for_each_token_layer_and_slot(made):
    plain = made(attention__head_count_kv=2)
    # 2 heads of 64 values, keys and values, 2 bytes, 4 layers
    assert need(plain, Run(slots=3, context=1000)).cache == 2 * 64 * 2 * 2 * 4 * 3 * 1024
    assert need(plain, Run(3, 1000, unified=True)).cache == 2 * 64 * 2 * 2 * 4 * 3072
    assert need(plain, Run(1, 1024, cache_k="Q8_0", cache_v="Q4_0")).cache == (136 + 72) * 4 * 1024
    assert need(made(attention__head_count_kv=[2, 1, 1, 2]), Run(1, 256)).cache == (2 + 1 + 1 + 2) * 64 * 2 * 2 * 256


def test_a_layer_with_a_sliding_window_holds_the_window_and_one_step(made):
    gemma = made("gemma3", block_count=6, attention__sliding_window=512)
    row = 4 * 64 * 2 * 2
    assert need(gemma, Run(2, 8192)).cache == row * 2 * (8192 + 5 * 1024)
    assert need(gemma, Run(2, 8192, full_window=True)).cache == row * 2 * 6 * 8192
    # Shared by all slots, it needs a window for each.
    assert need(gemma, Run(2, 8192, unified=True)).cache == row * (16384 + 5 * 1536)
    assert need(gemma, Run(2, 256)).cache == row * 2 * 6 * 256
    listed = made("gemma3", block_count=4, attention__sliding_window=512, attention__sliding_window_pattern=[1, 1, 1, 0])
    assert need(listed, Run(1, 8192)).cache == row * (8192 + 3 * 1024)


def test_the_table_of_tokens_counts_if_it_is_the_output_matrix_too(made):
    table = {"token_embd.weight": ((256, 1000), F16)}
    assert need(made(tensors=table), Run(1, 256)).weights == 512_000
    assert need(made(), Run(1, 256)).weights == 512_000
    assert need(made("bert", tensors=table), Run(1, 256)).weights == 0


@pytest.mark.parametrize("architecture", ["mamba", "qwen3next", "deepseek2", "gemma3n", "t5", "something-new"])
def test_an_unknown_architecture_is_not_guessed_at(made, architecture):
    with pytest.raises(UncheckedError, match=architecture):
        need(made(architecture), Run(1, 256))


def test_a_key_that_changes_the_cache_is_not_overlooked(made):
    with pytest.raises(UncheckedError, match="shared_kv_layers"):
        need(made(extra=[key("llama.attention.shared_kv_layers", 2)]), Run(1, 256))


def test_a_header_without_sizes_is_not_divided_by(made):
    with pytest.raises(UncheckedError, match="how many layers"):
        need(made(attention__head_count=0), Run(1, 256))


# ------------------------------------------------------------------------------------------------------------- the flags


def test_flags_are_read_as_llama_server_reads_them():
    flags = "-ub 1024 --batch-size 4096 -ctk q8_0 --cache-type-v q5_1 -fa off -kvu --swa-full --cache-ram 0 --threads 1".split()
    assert run_from(8, 2048, flags) == Run(8, 2048, 4096, 1024, "Q8_0", "Q5_1", "off", unified=True, full_window=True)
    assert run_from(1, 256, ["-kvu", "-no-kvu", "-ub", "64", "-ub", "128"]) == Run(1, 256, ubatch=128)


def test_an_embedding_service_computes_the_logits_of_all_its_tokens(header):
    embed = service(kind="embedding", slots=4, context=2048)
    run = run_of(embed)
    assert (run.embedding, run.batch, run.ubatch) == (True, 2048, 2048)
    chat = replace(run, embedding=False)
    qwen = header("qwen3-embedding-0.6b-f16")
    assert need(qwen, run).buffers - need(qwen, chat).buffers > 900 * MIB


@pytest.mark.parametrize("flag", ["-ngl 10", "--n-cpu-moe 4", "-ot exps=CPU", "--model-draft x", "--spec-type ngram", "--lora x", "-nkvo"])
def test_a_flag_that_moves_memory_is_not_guessed_at(flag):
    with pytest.raises(UncheckedError, match=flag.split()[0]):
        run_from(1, 256, flag.split())


@pytest.mark.parametrize("flags", [["-ub", "many"], ["-ub"], ["-ctk", "q9"], ["-ctv"]])
def test_a_value_that_llama_server_would_refuse_is_not_guessed_at(flags):
    with pytest.raises(UncheckedError, match=flags[0]):
        run_from(1, 256, flags)


def test_a_model_that_sees_is_not_guessed_at():
    with pytest.raises(UncheckedError, match="mmproj"):
        run_of(replace(service(), mmproj_path="/m/eyes.gguf"))


# ------------------------------------------------------------------------------------------------------- what is told


def test_a_service_that_fits_has_no_problem(header):
    chat = service(slots=32, context=4096, flags=("-fa", "on"))
    assert problem(chat, header("llama-8b-q4_k"), 80 * GIB) is None
    assert problem(replace(chat, servers_per_gpu=4), header("llama-8b-q4_k"), 80 * GIB) is not None


def test_what_does_not_fit_is_told_with_its_numbers_and_with_what_fits(header):
    llama = header("llama-8b-q4_k")
    said = problem(service(slots=64, context=16384, flags=("-fa", "on")), llama, 80 * GIB)
    assert said is not None
    assert said.startswith("needs 133.1 GiB of a GPU's 80.0 GiB (weights 4.3 GiB, KV cache 128.0 GiB for 64 slots of 16384 tokens, ")
    assert said.endswith("x 1 server a GPU); the most that fits: 36 slots of 16384, or 64 slots of 9216 tokens")
    room = int(80 * GIB * USABLE)
    for fits, run in ((True, Run(36, 16384)), (False, Run(37, 16384)), (True, Run(64, 9216)), (False, Run(64, 9472))):
        assert (need(llama, run).total <= room) is fits


def test_a_model_that_is_too_large_leaves_no_slot(header):
    said = problem(service(slots=4, context=2048, servers_per_gpu=2), header("llama-70b-q4_k"), 40 * GIB)
    assert said is not None
    assert said.endswith("x 2 servers a GPU); not even one slot of 256 tokens fits")


def test_less_context_of_an_embedding_service_means_smaller_batches(header):
    embed = run_of(service(kind="embedding", slots=8, context=8192))
    qwen, room = header("qwen3-embedding-0.6b-f16"), 8 * GIB
    _, context = most(qwen, embed, room)
    assert context == 3584
    assert need(qwen, replace(embed, context=3584, batch=3584, ubatch=3584)).total <= room
    assert need(qwen, replace(embed, context=3584)).total > room


@pytest.mark.parametrize(("text", "size"), [("80G", 80 * GIB), ("81559M", 81559 * MIB), ("1T", 1024 * GIB), ("512", 512 * MIB)])
def test_an_amount_in_slurms_notation(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "80GB", "0G", "-1G", "1.5G", "G"])
def test_another_amount_is_refused(text):
    with pytest.raises(ValueError, match="Slurm's notation"):
        bytes_of(text)


# ----------------------------------------------------------------------------------------------------------- the module


@pytest.mark.slow
def test_the_module_stops_at_what_does_not_fit_and_warns_of_what_it_cannot_check(tmp_path):
    for name in ("llama-8b-q4_k", "bge-large-f16"):
        ensure(tmp_path, name, tokens=False)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    entry = {"min": 1, "max": 1, "partition": "gpu", "slots": 64, "context": 16384, "flags": ["-fa", "on"]}
    services = {
        "chat": {**entry, "model": "llama-8b-q4_k"},
        "embed": {**entry, "model": "bge-large-f16", "kind": "embedding", "slots": 4, "context": 512},
        "scavenger": {**entry, "model": "bge-large-f16", "opportunistic": 1, "opportunistic_partition": "other"},
        "broken": {**entry, "model": "broken"},
        "gone": {**entry, "model": "gone"},
    }
    arguments = {
        "services": services,
        "models": {name: {"file": f"{name}.gguf"} for name in ("llama-8b-q4_k", "bge-large-f16", "broken", "gone")},
        "models_dir": str(tmp_path),
        "gpu_memory": {"gpu": "80G"},
    }
    argv = [str(Path(sys.executable).parent / "ansible"), "localhost", "-i", "localhost,", "-c", "local", "-m", "ptolemy_fit"]
    argv += ["-e", f"ansible_python_interpreter={sys.executable}", "-a", json.dumps(arguments)]
    environment = {
        **os.environ,
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
    }
    done = subprocess.run(argv, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    answer = json.loads((done.stdout + done.stderr).split("=>", 1)[1].strip().split("\n}", 1)[0] + "\n}")
    assert done.returncode != 0
    lines = answer["msg"].splitlines()
    assert "ptolemy_services.chat: needs 133.1 GiB of a GPU's 80.0 GiB" in answer["msg"]
    assert [line.split(":")[0] for line in lines[:2]] == ["ptolemy_services.broken", "ptolemy_services.chat"]
    assert answer["needs"]["embed"]["total"] < 2 * GIB
    assert answer["unchecked"]["gone"] == f"{tmp_path}/gone.gguf is not there yet"
    assert "ptolemy_gpu_memory for partition other" in answer["unchecked"]["scavenger"]
