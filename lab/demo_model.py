"""Make the lab's demo model: a GGUF file with random weights, a real tokenizer and a chat template.

The vocabulary (Llama 3's, 128,256 tokens) comes out of llama.cpp's own tree, inside the pinned sdist that the lab
builds llama-server from, so nothing more is downloaded. The weights are pseudo-random and exact: bytes of SHAKE-256,
read as signed integers and scaled by powers of two, so every machine writes the same file and one sha256 pins it.

Random weights would end an answer at any moment, or print half a character. So one dimension of the hidden state is
constant, and the output matrix uses it to push down every token that is not a plain word: the model babbles words,
always as many as it was asked for. Only `max_tokens` (or the server's --predict) ends an answer. Where a request offers
tools, it calls one of them: a second dimension makes that call's first token certain. And where a grammar takes no word but
an end, it mostly ends: nine calls in ten are the only one.

    python lab/demo_model.py --sdist llama_cpp_python-0.3.36.tar.gz --out demo-tools-f16.gguf
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

VOCABULARY = "vendor/llama.cpp/models/ggml-vocab-llama-bpe.gguf"
SEED = "ptolemy demo model 1"

LAYERS = 2
WIDTH = 64
HEADS = 2
FEED_FORWARD = 128
CONTEXT = 32768
CONSTANT = 2.0  # the first dimension of every embedding; no layer writes to it
PENALTY = -16.0  # its weight in the logit of a token that is not a plain word
END_OF_TURN = "<|eot_id|>"

# A space and lower-case ASCII letters ("\u0120" is how byte-level BPE writes a space).
WORD = re.compile("\u0120[a-z]{2,}")

# Three of the vocabulary's reserved tokens: the chat template ends a prompt that offers tools with the first, the others embrace a call.
TOOLS, CALL, CALLED = "<|tools|>", "<|function|>", "<|/function|>"
ENDS = (CALLED, END_OF_TURN)
RESERVED = {f"<|reserved_special_token_{number}|>": token for number, token in enumerate((TOOLS, CALL, CALLED))}
CERTAIN = 16.0  # TOOLS in the second dimension of the embedding, which no layer writes to either, and the weight of that in CALL's logit

# Llama 3's marks. Tools as many models have them: listed in front, called in marked JSON, which llama-server writes a grammar for.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if tools %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nTools:' }}"
    "{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}"
    "{{- '<|eot_id|>' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] or '') | trim }}"
    "{%- for call in message['tool_calls'] or [] %}"
    "{{- '<|function|>{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
    "{{- (call['function']['arguments'] | tojson) + '}<|/function|>' }}"
    "{%- endfor %}"
    "{{- '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{%- if tools and messages[-1]['role'] != 'tool' %}{{- '<|tools|>' }}{%- endif %}"
    "{%- endif %}"
)

F16 = npt.NDArray[np.float16]


def uniform(name: str, rows: int, columns: int, scale: float) -> F16:
    """A matrix of exact multiples of scale/128 in [-scale, scale); scale is a power of two."""
    stream = hashlib.shake_256(f"{SEED}: {name}".encode()).digest(rows * columns)
    return (np.frombuffer(stream, dtype=np.int8).reshape(rows, columns).astype(np.float16) * np.float16(scale / 128)).astype(np.float16)


def read_vocabulary(sdist: Path) -> dict[str, Any]:
    """The tokenizer's fields of the vocabulary-only GGUF inside the sdist."""
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(sdist) as archive:
        member = next((m for m in archive if m.name.endswith(VOCABULARY)), None)
        stream = archive.extractfile(member) if member else None
        if stream is None:
            raise SystemExit(f"{sdist}: no {VOCABULARY} inside; this needs the llama-cpp-python sdist")
        path = Path(scratch, "vocabulary.gguf")
        path.write_bytes(stream.read())
        fields = gguf.GGUFReader(path).fields
        return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}


def output_matrix(tokens: list[str]) -> F16:
    matrix = uniform("output", len(tokens), WIDTH, 0.5)
    matrix[:, :2] = 0.0
    for token, row in zip(tokens, matrix):
        if not WORD.fullmatch(token):
            row[0] = PENALTY / 4 if token in ENDS else PENALTY
    matrix[tokens.index(CALL), 1] = CERTAIN
    return matrix


def add_tokenizer(writer: gguf.GGUFWriter, fields: dict[str, Any], tokens: list[str]) -> None:
    writer.add_tokenizer_model(str(fields["tokenizer.ggml.model"]))
    writer.add_tokenizer_pre(str(fields["tokenizer.ggml.pre"]))
    writer.add_token_list(tokens)
    writer.add_token_types(fields["tokenizer.ggml.token_type"])
    writer.add_token_merges(fields["tokenizer.ggml.merges"])
    writer.add_bos_token_id(fields["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(tokens.index(END_OF_TURN))
    writer.add_eot_token_id(tokens.index(END_OF_TURN))
    writer.add_add_bos_token(False)  # the chat template writes it
    writer.add_chat_template(CHAT_TEMPLATE)


def add_tensors(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    ones = np.ones(WIDTH, dtype=np.float32)

    embedding = uniform("token_embd", len(tokens), WIDTH, 1.0)
    embedding[:, 0] = CONSTANT
    embedding[:, 1] = 0.0
    embedding[tokens.index(TOOLS), 1] = CERTAIN
    writer.add_tensor("token_embd.weight", embedding)
    for layer in range(LAYERS):
        shapes = {
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH, WIDTH),
            "attn_v": (WIDTH, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (FEED_FORWARD, WIDTH),
            "ffn_up": (FEED_FORWARD, WIDTH),
            "ffn_down": (WIDTH, FEED_FORWARD),
        }
        for part, (rows, columns) in shapes.items():
            name = f"blk.{layer}.{part}"
            weights = uniform(name, rows, columns, 0.25)
            if part in ("attn_output", "ffn_down"):
                weights[:2, :] = 0.0  # what a layer adds leaves these two dimensions alone
            writer.add_tensor(f"{name}.weight", weights)
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output_matrix(tokens))


def write_model(fields: dict[str, Any], path: Path) -> None:
    tokens = [RESERVED.get(token, token) for token in map(str, fields["tokenizer.ggml.tokens"])]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Ptolemy demo")
    writer.add_description("Random weights over a real tokenizer: it loads, it answers, and it knows nothing.")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    add_tokenizer(writer, fields, tokens)
    add_tensors(writer, tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the lab's demo model (random weights, real tokenizer).")
    parser.add_argument("--sdist", type=Path, required=True, help="llama_cpp_python-*.tar.gz")
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    options = parser.parse_args(arguments)

    # Written beside its place and renamed: an interrupted run leaves no half model under the final name.
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_name(f".{options.out.name}.{os.getpid()}")
    try:
        write_model(read_vocabulary(options.sdist), partial)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        os.replace(partial, options.out)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{digest}  {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
