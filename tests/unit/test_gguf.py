"""Reading the header of a model's file: what it says, and every way in which it may be broken."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf as writer
import numpy as np
import pytest

from gguf_files import file, key, model, tensor, text
from ptolemy.errors import GgufError
from ptolemy.gguf import MOST_KEYS, read_header, read_model, shard_paths
from ptolemy.gguf_header import FILE_TYPES, TYPES

RELEASE = Path(__file__).parents[2] / "demo" / "release"
LARGE = 2**62


@pytest.fixture
def written(tmp_path):
    """Write bytes to a file and return its path."""

    def write(content: bytes, name: str = "model.gguf") -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


def test_the_demo_model_says_what_it_is():
    header = read_model([str(RELEASE / "ptolemy-demo-q4_0.gguf")])
    assert (header.architecture, header.name, header.quantisation) == ("llama", "Ptolemy demo", "Q4_0")
    assert (header.block_count, header.context_length, header.vocabulary) == (3, 2048, 1024)
    assert (header.head_counts, header.kv_head_counts) == ((3, 3, 3), (1, 1, 1))
    assert (header.key_length, header.value_length, header.feed_forward_lengths) == (32, 32, (192, 192, 192))
    assert (header.tokenizer, header.has_chat_template, header.split_count) == ("llama", True, 1)
    assert header.size == header.expected_size
    assert set(header.tensor_bytes) == {"Q4_0", "Q8_0", "F32"}


def test_it_reads_what_the_gguf_package_writes(tmp_path):
    path = tmp_path / "gemma.gguf"
    made = writer.GGUFWriter(path, "gemma3")
    made.add_name("é")
    made.add_file_type(writer.LlamaFileType.MOSTLY_Q4_K_M)
    made.add_block_count(3)
    made.add_embedding_length(256)
    made.add_head_count([4, 4, 2])
    made.add_head_count_kv([2, 2, 1])
    made.add_key_length(128)
    made.add_sliding_window(512)
    made.add_expert_count(8)
    made.add_expert_used_count(2)
    made.add_token_list(["a" * 5000, "b"])
    made.add_chat_template("x" * 10_000)
    made.add_tensor("token_embd.weight", np.zeros((100, 144), dtype=np.uint8), raw_dtype=writer.GGMLQuantizationType.Q4_K)
    made.add_tensor("norm.weight", np.zeros(7, dtype=np.float32))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    header = read_header(str(path))
    assert (header.name, header.quantisation, header.head_counts, header.kv_head_counts) == ("é", "Q4_K_M", (4, 4, 2), (2, 2, 1))
    assert (header.key_length, header.value_length, header.sliding_window) == (128, 64, 512)
    assert (header.expert_count, header.expert_used_count, header.has_chat_template) == (8, 2, True)
    assert (header.parameters, header.tensor_bytes, header.vocabulary) == (100 * 256 + 7, {"Q4_K": 14_400, "F32": 28}, 100)
    # The writer pads the last tensor, too; nothing asks for these bytes.
    assert 0 <= header.size - header.expected_size < 32


def test_types_are_those_of_the_gguf_package():
    # Its Q8_1 is not ggml's, whose blocks have 36 bytes; the file format's newest types may be missing from the package.
    theirs = {int(kind): (kind.name, *writer.GGML_QUANT_SIZES[kind]) for kind in writer.GGMLQuantizationType if kind.name != "Q8_1"}
    assert {number: TYPES[number] for number in theirs} == theirs
    for kind in writer.LlamaFileType:
        if kind.name != "GUESSED":
            assert FILE_TYPES[int(kind)] == kind.name.replace("MOSTLY_", "").replace("ALL_", "").replace("_MOE", "")


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_that_is_cut_off_anywhere_is_told(written, version):
    entries = [tensor("a", (32, 2), 8, 0), tensor("b", (3,), 0, 96)]
    keys = [key("general.architecture", "llama"), key("l", [1, 2]), key("t", ["x", "yz"]), key("f", 0.5, "f32")]
    whole = file(keys, entries, data=96 + 12, version=version)
    assert read_header(written(whole)).expected_size == len(whole)
    head = 24 + sum(map(len, keys + entries))
    for length in range(len(whole)):
        path = written(whole[:length])
        if length < head:
            with pytest.raises(GgufError, match=f"{path}: "):
                read_header(path)
        else:  # only data is missing
            header = read_header(path)
            assert header.size == length < header.expected_size == len(whole)
            assert header.tensors["b"].shape == (3,)


BROKEN = {
    "empty": (b"", "no GGUF file"),
    "an HTML page": (b"<!DOCTYPE html><html>", "no GGUF file: it begins with b'<!DO'"),
    "version 1": (file([], version=1), "GGUF version 1; known are 2 and 3"),
    "a version to come": (file([], version=4), "GGUF version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "too many keys": (file([], counts=(0, LARGE)), f"claims to hold {LARGE} keys"),
    "more keys than bytes": (file([], counts=(0, MOST_KEYS)), "cut off or broken"),
    "too many tensors": (file([], counts=(LARGE, 0)), f"claims to hold {LARGE} tensors"),
    "a long key": (file([struct.pack("<Q", LARGE) + b"x" * 40]), "a key has"),
    "a long text": (file([text("k") + struct.pack("<IQ", 8, LARGE)]), "cut off in k"),
    "a long list": (file([text("k") + struct.pack("<IIQ", 9, 10, LARGE)]), "cut off in k"),
    "a long list of texts": (file([text("k") + struct.pack("<IIQ", 9, 8, LARGE)]), f"{LARGE} texts in 'k'"),
    "a long text in a list": (file([text("k") + struct.pack("<IIQQ", 9, 8, 1, LARGE)]), "cut off in k"),
    "a list of lists": (file([text("k") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 20]), "type 9, which is unknown"),
    "an unknown value": (file([text("k") + struct.pack("<II", 77, 1)]), "type 77, which is unknown"),
    "no UTF-8": (file([text(b"\xff\xfe") + struct.pack("<II", 4, 1)]), "not UTF-8"),
    "a key twice": (file([key("k", 1), key("k", 1)]), "key 'k' comes twice"),
    "an odd alignment": (file([key("general.alignment", 24)]), "24, no power of 2"),
    "a tensor twice": (file([], [tensor("a", (1,), 0, 0), tensor("a", (1,), 0, 32)]), "tensor 'a' comes twice"),
    "a long name": (file([], [tensor("a" * 64, (1,), 0, 0)]), "64 bytes; 63 are the most"),
    "five dimensions": (file([], [tensor("a", (1, 1, 1, 1, 1), 0, 0)]), "5 dimensions"),
    "an unknown type": (file([], [tensor("a", (1,), 4, 0)]), "tensor 'a' is of type 4"),
    "half a block": (file([], [tensor("a", (48,), 8, 0)]), "rows of 48 values, which Q8_0 stores in blocks of 32"),
    "too large a tensor": (file([], [tensor("a", (2**32, 2**32), 0, 0)]), "too large to be true"),
    "overlapping tensors": (
        file([], [tensor("a", (32,), 0, 0), tensor("b", (1,), 0, 64)]),
        "tensor 'b' lies at 64 of the data, not at 128",
    ),
}


@pytest.mark.parametrize(("content", "wrong"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_told_with_its_name_and_what_is_wrong(written, content, wrong):
    path = written(content)
    with pytest.raises(GgufError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert wrong in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(GgufError, match="No such file"):
        read_header(str(tmp_path / "none.gguf"))


def test_a_large_tokenizer_takes_no_memory(written):
    tokens = [f"token{number}" for number in range(150_000)]
    keys = [
        key("tokenizer.ggml.tokens", tokens),
        key("tokenizer.ggml.token_type", [1] * len(tokens)),
        key("tokenizer.chat_template", "x" * 10**6),
    ]
    path = written(model(extra=keys, block_count=1))
    tracemalloc.start()
    header = read_header(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 300_000
    assert header.block_count == 1
    assert header.has_chat_template


def test_much_metadata_is_refused(written):
    # 2,000 lists of 4,096 bytes.
    path = written(file([key(f"k{number}", [1] * 1024) for number in range(2_000)]))
    with pytest.raises(GgufError, match="bytes of metadata"):
        read_header(path)


@pytest.mark.parametrize(
    ("numbers", "asked", "wrong"),
    [
        ({"block_count": "many"}, "block_count", "no whole number"),
        ({"block_count": 10**9}, "kv_head_counts", "1000000000 layers"),
        ({"block_count": 4, "attention__head_count_kv": [1, 2]}, "kv_head_counts", "one for each of 4 layers"),
    ],
)
def test_nonsense_is_told_where_it_is_asked_for(written, numbers, asked, wrong):
    header = read_header(written(model(**numbers)))
    with pytest.raises(GgufError, match=wrong):
        getattr(header, asked)


def shard(number: int, count: int, name: str, architecture: str = "") -> bytes:
    keys = [key("general.architecture", architecture)] if architecture else []
    return file([*keys, key("split.no", number), key("split.count", count)], [tensor(name, (8,), 0, 0)], data=32)


def test_shards_add_up_in_any_order(written):
    paths = [written(shard(0, 2, "a", "llama"), "a.gguf"), written(shard(1, 2, "b"), "b.gguf")]
    found = read_model(paths[::-1])
    assert (found.path, found.architecture, sorted(found.tensors)) == (paths[0], "llama", ["a", "b"])
    assert (found.parameters, found.tensor_bytes, found.size) == (16, {"F32": 64}, sum(Path(path).stat().st_size for path in paths))
    assert found.expected_size == found.size


@pytest.mark.parametrize(
    ("shards", "wrong"),
    [
        ([shard(0, 2, "a", "llama")], "one of 2 shards, but 1 files"),
        ([shard(0, 2, "a", "llama"), shard(0, 2, "b")], "shard 1 of 2, not 2 of 2"),
        ([shard(0, 2, "a", "llama"), shard(1, 3, "b")], "shard 2 of 3, not 2 of 2"),
        ([shard(0, 2, "a", "llama"), shard(1, 2, "a")], "tensor 'a' is in another shard"),
        ([shard(0, 2, "a"), shard(1, 2, "b")], "names no general.architecture"),
    ],
)
def test_shards_that_do_not_belong_together_are_told(written, shards, wrong):
    with pytest.raises(GgufError, match=wrong):
        read_model([written(content, f"{number}.gguf") for number, content in enumerate(shards)])


def test_the_names_of_shards():
    assert shard_paths("/m/a-00002-of-00003.gguf") == [f"/m/a-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert shard_paths("/m/a.gguf") == ["/m/a.gguf"]
    assert shard_paths("/m/a-00004-of-00003.gguf") == ["/m/a-00004-of-00003.gguf"]
