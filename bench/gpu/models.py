"""GGUF files of real shapes with random weights and a real tokenizer: they cost what the real model costs, and talk nonsense.

Blocks of quantised weights are written as they lie in the file, out of one pool of random ones, so that 5 GB take seconds and no
16 GB file comes before them. The rows of the tokens that end a text are 0, so that no answer ends early.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import numpy.typing as npt

from memory_models import ALIGNMENT, SHAPES, Kind, Shape, stored_bytes, tensors, write

SPREAD = 0.02  # standard deviation of a weight
POOL_BLOCKS = 1 << 18
# Llama 3's own, without tools and dates.
TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_8B, _1B = SHAPES["llama-8b-q4_k"], SHAPES["llama-1b-f16"]
MODELS: Mapping[str, Shape] = {
    "8b": _8B,
    "8b-q8_0": replace(_8B, kind=Kind.Q8_0, output_kind=Kind.Q8_0, file_type=gguf.LlamaFileType.MOSTLY_Q8_0),
    "8b-f16": replace(_8B, kind=Kind.F16, output_kind=Kind.F16, file_type=gguf.LlamaFileType.MOSTLY_F16),
    "1b": replace(_1B, kind=Kind.Q4_K, output_kind=Kind.Q6_K, file_type=gguf.LlamaFileType.MOSTLY_Q4_K_M),
    "moe-30b-a3b": SHAPES["qwen3-30b-a3b-q4_k"],
    # For a look without a GPU.
    "tiny": replace(_1B, layers=2, width=256, feed_forward=768, heads=4, kv_heads=2, kind=Kind.Q4_K, output_kind=Kind.Q6_K),
}


def ensure(folder: Path, name: str, vocabulary: Path) -> Path:
    """Write the model of that name of ``MODELS``, unless it is there; return its path.

    ``vocabulary`` is llama.cpp's models/ggml-vocab-llama-bpe.gguf.
    """
    path = folder / f"{name}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        _fill(part, MODELS[name], write(part, name, MODELS[name], _Tokenizer(vocabulary).add))
        part.rename(path)
    return path


def weights_bytes(shape: Shape) -> int:
    """What a decoder reads of its weights for one token: all but the embedding, and of the experts only those it uses."""
    total = 0.0
    for name, lengths, kind in tensors(shape):
        if name != "token_embd.weight" or shape.tied:
            total += stored_bytes(lengths, kind) * (shape.used / shape.experts if "_exps" in name else 1)
    return int(total)


class _Tokenizer:
    """Llama 3's 128,256 tokens, with unused ones after them where a model has more."""

    def __init__(self, vocabulary: Path) -> None:
        reader = gguf.GGUFReader(vocabulary)
        tokens = reader.fields["tokenizer.ggml.tokens"]
        self.tokens = [bytes(tokens.parts[place]) for place in tokens.data]
        self.kinds = [int(value) for value in reader.fields["tokenizer.ggml.token_type"].contents()]
        merges = reader.fields["tokenizer.ggml.merges"]
        self.merges = [bytes(merges.parts[place]) for place in merges.data]

    def add(self, writer: gguf.GGUFWriter, shape: Shape) -> None:
        more = shape.vocabulary - len(self.tokens)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(self.tokens + [f"<|unused_{number}|>".encode() for number in range(more)])
        writer.add_token_types(self.kinds + [gguf.TokenType.UNUSED] * more)
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.tokens.index(b"<|begin_of_text|>"))
        writer.add_eos_token_id(self.tokens.index(b"<|eot_id|>"))
        writer.add_chat_template(TEMPLATE)


def _fill(path: Path, shape: Shape, start: int) -> None:
    """Write the data of all tensors."""
    chance = np.random.default_rng(1)
    pools: dict[Kind, npt.NDArray[np.uint8]] = {}
    silent = range(128000, 128256)  # all of Llama 3's special tokens, those that end a text among them
    with path.open("r+b") as file:
        file.seek(start)
        for name, lengths, kind in tensors(shape):
            size = stored_bytes(lengths, kind)
            if kind is Kind.F32 and len(lengths) == 1:
                file.write(np.ones(lengths, np.float32).tobytes())
            else:
                pool = pools.setdefault(kind, _pool(kind, chance))
                _repeat(file, pool, size, int(chance.integers(len(pool))))
            end = file.tell()
            if name == "output.weight" or (shape.tied and name == "token_embd.weight"):
                row = size // lengths[1]
                for number in silent:
                    file.seek(end - size + number * row)
                    file.write(bytes(row))
                file.seek(end)
            file.seek(-end % ALIGNMENT, os.SEEK_CUR)


def _repeat(file: BinaryIO, pool: npt.NDArray[np.uint8], size: int, first: int) -> None:
    """As much of the pool as is asked for, from a block of it on and around."""
    while size:
        piece = pool[first : first + -(-size // pool.shape[1])].tobytes()[:size]
        file.write(piece)
        size, first = size - len(piece), 0


def _pool(kind: Kind, chance: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Random blocks, one a row, whose weights have mean 0 and the same spread."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if kind in (Kind.F32, Kind.F16):
        values = chance.standard_normal(POOL_BLOCKS * 32, np.float32) * SPREAD
        return values.astype(np.float32 if kind is Kind.F32 else np.float16).view(np.uint8).reshape(-1, size)
    blocks = chance.integers(256, size=(POOL_BLOCKS, size), dtype=np.uint8)
    if kind is Kind.Q4_K:
        # d, dmin, 12 bytes of eight scales and eight minima of 6 bits (all of them 4 here), 128 bytes of weights from 0 to 15
        scale = SPREAD / 4 / np.sqrt((16**2 - 1) / 12)
        blocks[:, :4] = np.array([scale, 7.5 * scale], np.float16).view(np.uint8)
        blocks[:, 4:16] = [4] * 8 + [0x44] * 4
    elif kind is Kind.Q6_K:
        # 192 bytes of weights from -32 to 31, 16 scales of 8 bits, d
        blocks[:, 192:208] = 1
        blocks[:, 208:] = np.array([SPREAD / np.sqrt((64**2 - 1) / 12)], np.float16).view(np.uint8)
    elif kind is Kind.Q8_0:
        # d, 32 weights from -128 to 127
        blocks[:, :2] = np.array([SPREAD / np.sqrt((256**2 - 1) / 12)], np.float16).view(np.uint8)
    else:
        raise ValueError(f"no random blocks of type {kind.name} (one block holds {block} weights)")
    return blocks


if __name__ == "__main__":
    print(ensure(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
