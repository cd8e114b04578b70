"""GGUF files with the shapes of real models, for bench/memory_fit.py: real headers, and weights that are all 0.

What llama-server allocates depends on shapes and types alone, so the data is a hole in the file that takes no space and no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

Kind = gguf.GGMLQuantizationType
ALIGNMENT = 32


@dataclass(frozen=True)
class Shape:
    """A model's sizes, in the words of its config.json.

    Attributes:
        kind: how most matrices are stored.
        output_kind: how the output matrix is, and the embedding if they are one.
        experts, used: 0 for a dense model; then ``feed_forward`` is an expert's.
        tied: the embedding is the output matrix, too.
        window: of the layers with a sliding window, by the architecture's own pattern.
        parts: how its layers differ from the llama family's: qk_norm, post_norms, qkv_bias, bias, sinks, fused, bert.
        file_type: as the file names it.
    """

    architecture: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    kind: Kind
    output_kind: Kind
    file_type: gguf.LlamaFileType
    context: int = 131072
    experts: int = 0
    used: int = 0
    tied: bool = False
    window: int = 0
    parts: frozenset[str] = field(default_factory=frozenset)


SHAPES: Mapping[str, Shape] = {
    # Llama 3.1 8B, 3.2 1B
    "llama-8b-q4_k": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, Kind.Q4_K, Kind.Q6_K, gguf.LlamaFileType.MOSTLY_Q4_K_M),
    "llama-1b-f16": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, Kind.F16, Kind.F16, gguf.LlamaFileType.MOSTLY_F16, tied=True),
    # Llama 3.3 70B
    "llama-70b-q4_k": Shape("llama", 80, 8192, 28672, 64, 8, 128, 128256, Kind.Q4_K, Kind.Q6_K, gguf.LlamaFileType.MOSTLY_Q4_K_M),
    # Qwen3 8B, 30B-A3B, Embedding 0.6B
    "qwen3-8b-q8_0": Shape(
        "qwen3",
        36,
        4096,
        12288,
        32,
        8,
        128,
        151936,
        Kind.Q8_0,
        Kind.Q8_0,
        gguf.LlamaFileType.MOSTLY_Q8_0,
        40960,
        parts=frozenset({"qk_norm"}),
    ),
    "qwen3-30b-a3b-q4_k": Shape(
        "qwen3moe",
        48,
        2048,
        768,
        32,
        4,
        128,
        151936,
        Kind.Q4_K,
        Kind.Q6_K,
        gguf.LlamaFileType.MOSTLY_Q4_K_M,
        40960,
        experts=128,
        used=8,
        parts=frozenset({"qk_norm"}),
    ),
    "qwen3-embedding-0.6b-f16": Shape(
        "qwen3",
        28,
        1024,
        3072,
        16,
        8,
        128,
        151669,
        Kind.F16,
        Kind.F16,
        gguf.LlamaFileType.MOSTLY_F16,
        32768,
        tied=True,
        parts=frozenset({"qk_norm"}),
    ),
    # Gemma 3 12B: five layers of six with a sliding window
    "gemma3-12b-q4_0": Shape(
        "gemma3",
        48,
        3840,
        15360,
        16,
        8,
        256,
        262208,
        Kind.Q4_0,
        Kind.Q6_K,
        gguf.LlamaFileType.MOSTLY_Q4_0,
        tied=True,
        window=1024,
        parts=frozenset({"qk_norm", "post_norms"}),
    ),
    # gpt-oss-20b: every second layer with a sliding window, experts in MXFP4
    "gpt-oss-20b-mxfp4": Shape(
        "gpt-oss",
        24,
        2880,
        2880,
        64,
        8,
        64,
        201088,
        Kind.Q8_0,
        Kind.Q8_0,
        gguf.LlamaFileType.MOSTLY_MXFP4_MOE,
        experts=32,
        used=4,
        window=128,
        parts=frozenset({"bias", "sinks"}),
    ),
    # BGE large
    "bge-large-f16": Shape(
        "bert",
        24,
        1024,
        4096,
        16,
        16,
        64,
        30522,
        Kind.F16,
        Kind.F16,
        gguf.LlamaFileType.MOSTLY_F16,
        512,
        tied=True,
        parts=frozenset({"bert"}),
    ),
}

# Looked at only once the formulas were fixed: Qwen 2.5 7B, Mistral Small 24B, Mixtral 8x7B, Gemma 2 9B, Phi 4.
HELD_OUT: Mapping[str, Shape] = {
    "qwen2.5-7b-q5_0": Shape(
        "qwen2",
        28,
        3584,
        18944,
        28,
        4,
        128,
        152064,
        Kind.Q5_0,
        Kind.Q8_0,
        gguf.LlamaFileType.MOSTLY_Q5_0,
        32768,
        parts=frozenset({"qkv_bias"}),
    ),
    "mistral-24b-q4_k": Shape("llama", 40, 5120, 32768, 32, 8, 128, 131072, Kind.Q4_K, Kind.Q6_K, gguf.LlamaFileType.MOSTLY_Q4_K_M, 32768),
    "mixtral-8x7b-q4_k": Shape(
        "llama", 32, 4096, 14336, 32, 8, 128, 32000, Kind.Q4_K, Kind.Q6_K, gguf.LlamaFileType.MOSTLY_Q4_K_M, 32768, experts=8, used=2
    ),
    "gemma2-9b-q8_0": Shape(
        "gemma2",
        42,
        3584,
        14336,
        16,
        8,
        256,
        256000,
        Kind.Q8_0,
        Kind.Q8_0,
        gguf.LlamaFileType.MOSTLY_Q8_0,
        8192,
        tied=True,
        window=4096,
        parts=frozenset({"post_norms"}),
    ),
    "phi4-14b-q4_k": Shape(
        "phi3",
        40,
        5120,
        17920,
        40,
        10,
        128,
        100352,
        Kind.Q4_K,
        Kind.Q6_K,
        gguf.LlamaFileType.MOSTLY_Q4_K_M,
        16384,
        parts=frozenset({"fused"}),
    ),
}
ALL: Mapping[str, Shape] = {**SHAPES, **HELD_OUT}


def ensure(folder: Path, name: str, tokens: bool = True) -> Path:
    """Write the model of that name of ``ALL``, unless it is there; return its path. Without ``tokens`` only its header can be read."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(path.with_suffix(".part"), name, ALL[name], _add_tokenizer if tokens else None)
        path.with_suffix(".part").rename(path)
    return path


def write(path: Path, name: str, shape: Shape, add_tokenizer: Callable[[gguf.GGUFWriter, Shape], None] | None) -> int:
    """Write the header, and a hole for the data. Returns where the data begins: ``tensors`` in order, each at a multiple of ALIGNMENT."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(name)
    writer.add_file_type(shape.file_type)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    if "bert" in shape.parts:
        writer.add_feed_forward_length(shape.feed_forward)
        writer.add_layer_norm_eps(1e-5)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.CLS)
        writer.add_token_type_count(2)
    else:
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
        writer.add_rope_dimension_count(shape.head)
        writer.add_rope_freq_base(500000.0)
        writer.add_layer_norm_rms_eps(1e-5)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
        writer.add_expert_feed_forward_length(shape.feed_forward)
        writer.add_feed_forward_length(shape.feed_forward)
    elif "bert" not in shape.parts:
        writer.add_feed_forward_length(shape.feed_forward)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if add_tokenizer:
        add_tokenizer(writer, shape)
    size = 0
    for tensor, dimensions, kind in tensors(shape):
        count = stored_bytes(dimensions, kind)
        # gguf names the rows' length last.
        writer.add_tensor_info(tensor, dimensions[::-1], np.dtype(np.float32), count, raw_dtype=kind)
        size += -(-count // ALIGNMENT) * ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // ALIGNMENT) * ALIGNMENT
    with path.open("r+b") as file:
        file.truncate(start + size)
    return start


def stored_bytes(dimensions: tuple[int, ...], kind: Kind) -> int:
    """What a tensor takes in the file."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(dimensions)) // block * block_bytes


def _add_tokenizer(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """As many tokens as the model has, of a kind that needs no merges."""
    count = shape.vocabulary
    if "bert" in shape.parts:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(special + [f"\u2581t{number}" for number in range(count - len(special))])
        writer.add_token_types([gguf.TokenType.CONTROL] * len(special) + [gguf.TokenType.NORMAL] * (count - len(special)))
        writer.add_pad_token_id(0)
        writer.add_unk_token_id(1)
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(3)
        writer.add_sep_token_id(3)
        writer.add_mask_token_id(4)
        return
    special = ["<unk>", "<s>", "</s>"]
    octets = [f"<0x{number:02X}>" for number in range(256)]
    rest = [f"t{number}" for number in range(count - len(special) - len(octets))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(special + octets + rest)
    writer.add_token_scores([0.0] * count)
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_token_types(kinds + [gguf.TokenType.BYTE] * len(octets) + [gguf.TokenType.NORMAL] * len(rest))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], Kind]]:
    """Name, lengths with that of a row first, and type of each tensor."""
    width, kind, plain = shape.width, shape.kind, Kind.F32
    bert = "bert" in shape.parts
    yield "token_embd.weight", (width, shape.vocabulary), shape.output_kind if shape.tied else kind
    if bert:
        yield "token_types.weight", (width, 2), plain
        yield "position_embd.weight", (width, shape.context), kind
        yield "token_embd_norm.weight", (width,), plain
        yield "token_embd_norm.bias", (width,), plain
    else:
        yield "output_norm.weight", (width,), plain
    if not shape.tied:
        yield "output.weight", (width, shape.vocabulary), shape.output_kind
    for number in range(shape.layers):
        yield from ((f"blk.{number}.{name}", lengths, stored) for name, lengths, stored in _layer(shape, number))


def _layer(shape: Shape, number: int) -> Iterator[tuple[str, tuple[int, ...], Kind]]:
    width, wide, kind, plain, parts = shape.width, shape.feed_forward, shape.kind, Kind.F32, shape.parts
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    # As llama.cpp's Q4_K_M does: half of the values' and of the down matrices in Q6_K.
    finer = Kind.Q6_K if kind is Kind.Q4_K and number % 2 == 0 else kind
    biased = bool(parts & {"bias", "bert"})
    fused = "fused" in parts
    if fused:
        matrices = [("attn_qkv", width, queries + 2 * keys, kind)]
    else:
        matrices = [("attn_q", width, queries, kind), ("attn_k", width, keys, kind), ("attn_v", width, keys, finer)]
    matrices += [("attn_output", queries, width, kind)]
    if not shape.experts:
        matrices += [("ffn_up", width, 2 * wide if fused else wide, kind), ("ffn_down", wide, width, finer)]
        if not parts & {"bert", "fused"}:
            matrices += [("ffn_gate", width, wide, kind)]
    for name, row, rows, stored in matrices:
        yield f"{name}.weight", (row, rows), stored
        if biased or ("qkv_bias" in parts and name in ("attn_q", "attn_k", "attn_v")):
            yield f"{name}.bias", (rows,), plain
    norms = ["attn_output_norm", "layer_output_norm"] if "bert" in parts else ["attn_norm"]
    norms += ["post_attention_norm"] if parts & {"post_norms", "sinks"} else []
    norms += ["post_ffw_norm"] if "post_norms" in parts else []
    norms += [] if parts & {"bert", "sinks"} else ["ffn_norm"]
    for name in norms:
        yield f"{name}.weight", (width,), plain
        if "bert" in parts:
            yield f"{name}.bias", (width,), plain
    if "qk_norm" in parts:
        yield "attn_q_norm.weight", (shape.head,), plain
        yield "attn_k_norm.weight", (shape.head,), plain
    if "sinks" in parts:
        yield "attn_sinks.weight", (shape.heads,), plain
    if shape.experts:
        stored = Kind.MXFP4 if "sinks" in parts else kind
        experts = [("ffn_gate_exps", width, wide, stored), ("ffn_up_exps", width, wide, stored)]
        experts += [("ffn_down_exps", wide, width, stored if "sinks" in parts else finer)]
        yield "ffn_gate_inp.weight", (width, shape.experts), plain
        if "bias" in parts:
            yield "ffn_gate_inp.bias", (shape.experts,), plain
        for name, row, rows, how in experts:
            yield f"{name}.weight", (row, rows, shape.experts), how
            if "bias" in parts:
                yield f"{name}.bias", (rows, shape.experts), plain
