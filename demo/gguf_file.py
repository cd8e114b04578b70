"""The demo model as a GGUF file: F16, or quantised by gguf's own Q8_0 and Q4_0, which need no build of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

import gguf
import numpy as np
import numpy.typing as npt

from demo.conversations import CHAT_TEMPLATE
from demo.shape import Shape
from demo.tokenizer import BEGIN, END, SPECIAL, UNKNOWN, Tokenizer

Kind = gguf.GGMLQuantizationType
# A file's type, and how it stores the embedding, which is the output matrix too: in Q4_0 more finely than the rest.
TYPES: Mapping[str, tuple[Kind, Kind, gguf.LlamaFileType]] = {
    "f16": (Kind.F16, Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (Kind.Q8_0, Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Kind.Q4_0, Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
EMBEDDING = "token_embd.weight"


def write_model(path: Path, shape: Shape, tokenizer: Tokenizer, weights: Mapping[str, npt.NDArray[Any]], name: str) -> None:
    """Write the file of type ``name`` (a key of `TYPES`). Vectors stay F32, as llama.cpp wants them."""
    kind, embedding, file_type = TYPES[name]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Ptolemy demo")
    writer.add_description("Sorts accounting descriptions into categories; trained from scratch on synthetic rows.")
    writer.add_license("Apache-2.0")
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    _add_tokenizer(writer, tokenizer)
    for tensor, values in weights.items():
        if values.ndim < 2:
            writer.add_tensor(tensor, values.astype(np.float32))
        else:
            stored = embedding if tensor == EMBEDDING else kind
            writer.add_tensor(tensor, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    end = tokenizer.pieces.index(END)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokenizer.pieces)
    writer.add_token_scores(tokenizer.scores)
    writer.add_token_types([_type(tokenizer, number) for number in range(len(tokenizer.pieces))])
    writer.add_bos_token_id(tokenizer.pieces.index(BEGIN))
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_unk_token_id(tokenizer.pieces.index(UNKNOWN))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _type(tokenizer: Tokenizer, number: int) -> gguf.TokenType:
    piece = tokenizer.pieces[number]
    if piece == UNKNOWN:
        return gguf.TokenType.UNKNOWN
    if piece in SPECIAL:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if tokenizer.is_byte(number) else gguf.TokenType.NORMAL


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file that `write_model` wrote."""
    pieces = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    return Tokenizer(pieces[len(Tokenizer([]).pieces) :])
