"""What the header of a model's file says: values, as ``gguf`` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Mapping, Sequence, Tuple, Union

from .errors import GgufError

LONGEST_LIST = 4096  # values of a list that is kept: there are never so many layers
BIGGEST = 2**63

Number = Union[int, float, bool]
Value = Union[Number, str, Tuple[Number, ...]]

# ggml's types of tensors (ggml/src/ggml-common.h): number -> name, values in a block, bytes of a block.
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

# llama.cpp's kinds of files (LLAMA_FTYPE_*, include/llama.h), the values of general.file_type.
FILE_TYPES: Mapping[int, str] = {
    **dict(enumerate("F32 F16 Q4_0 Q4_1".split())),
    **dict(enumerate("Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS".split(), 7)),
    **dict(enumerate("Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16".split(), 21)),
    **dict(enumerate("TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0 Q2_0".split(), 36)),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        shape: values in each dimension, the length of a row first.
        type: ggml's name of how the values are stored, as ``Q4_K``.
        bytes: what its data takes, without padding.
    """

    shape: tuple[int, ...]
    type: str
    bytes: int

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        count = 1
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True)
class Header:
    """What a file, or all shards of a model, says of itself.

    Values that the file does not name are 0, empty or None, unless said otherwise; asking for one that is nonsense raises GgufError.

    Attributes:
        path: the file, or the first shard.
        version: of the format.
        metadata: its keys and values, without what is long: the tokenizer's lists and the chat template.
        long_keys: the keys whose values were skipped for that.
        tensors: by name.
        size: bytes of the file, or of all shards.
        expected_size: bytes that the tensors' places ask for; if ``size`` is less, the file is cut off.
    """

    path: str
    version: int
    metadata: Mapping[str, Value]
    long_keys: frozenset[str]
    tensors: Mapping[str, Tensor]
    size: int
    expected_size: int

    @property
    def architecture(self) -> str:
        """As llama.cpp names it: ``llama``, ``qwen3moe``. Empty in a shard that is not the first."""
        return self.text("general.architecture")

    @property
    def name(self) -> str:
        return self.text("general.name")

    @property
    def quantisation(self) -> str:
        """How the file says that it is quantised, as ``Q4_K_M``; else the type that most of its bytes have."""
        said = FILE_TYPES.get(self.number("general.file_type", -1, least=-1), "")
        return said or max(self.tensor_bytes, key=lambda kind: self.tensor_bytes[kind], default="")

    @cached_property
    def tensor_bytes(self) -> Mapping[str, int]:
        """Bytes of the tensors' data by type, without padding."""
        found: dict[str, int] = {}
        for tensor in self.tensors.values():
            found[tensor.type] = found.get(tensor.type, 0) + tensor.bytes
        return found

    @cached_property
    def parameters(self) -> int:
        """How many numbers the tensors hold."""
        return sum(tensor.values for tensor in self.tensors.values())

    @property
    def context_length(self) -> int:
        """Tokens that the model was trained for."""
        return self.own_number("context_length")

    @property
    def block_count(self) -> int:
        """Layers."""
        return self.own_number("block_count")

    @property
    def embedding_length(self) -> int:
        return self.own_number("embedding_length")

    @property
    def feed_forward_lengths(self) -> tuple[int, ...]:
        """Of each layer."""
        return self.per_layer("feed_forward_length")

    @property
    def head_counts(self) -> tuple[int, ...]:
        """Query heads of each layer."""
        return self.per_layer("attention.head_count")

    @property
    def kv_head_counts(self) -> tuple[int, ...]:
        """Key and value heads of each layer; as many as query heads where the file names none."""
        return self.per_layer("attention.head_count_kv", self.head_counts)

    @property
    def key_length(self) -> int:
        """Values of a key of one head; if the file names none, the embedding's length divided by the heads."""
        return self.own_number("attention.key_length", self._head_length)

    @property
    def value_length(self) -> int:
        """Values of a value of one head; if the file names none, as for ``key_length``."""
        return self.own_number("attention.value_length", self._head_length)

    @property
    def _head_length(self) -> int:
        heads = self.head_counts[:1] or (0,)
        return self.embedding_length // heads[0] if heads[0] else 0

    @property
    def sliding_window(self) -> int:
        """Tokens that a layer with a sliding window sees."""
        return self.own_number("attention.sliding_window")

    @property
    def expert_count(self) -> int:
        return self.own_number("expert_count")

    @property
    def expert_used_count(self) -> int:
        """Experts that one token uses."""
        return self.own_number("expert_used_count")

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows: by the embedding's shape, which decides, else by ``vocab_size``."""
        embedding = self.tensors.get("token_embd.weight")
        return embedding.shape[1] if embedding and len(embedding.shape) > 1 else self.own_number("vocab_size")

    @property
    def tokenizer(self) -> str:
        """The tokenizer's kind: ``gpt2``, ``llama``, ``bert``."""
        return self.text("tokenizer.ggml.model")

    @property
    def has_chat_template(self) -> bool:
        return "tokenizer.chat_template" in self.metadata or "tokenizer.chat_template" in self.long_keys

    @property
    def split_number(self) -> int:
        """Which shard this is, from 0."""
        return self.number("split.no")

    @property
    def split_count(self) -> int:
        """Shards of the model; 1 for a file that is whole."""
        return max(self.number("split.count"), 1)

    def text(self, key: str) -> str:
        """A text of the metadata; empty where there is none."""
        value = self.metadata.get(key, "")
        if not isinstance(value, str):
            raise GgufError(f"{self.path}: {key} is no text")
        return value

    def number(self, key: str, default: int = 0, least: int = 0) -> int:
        """A whole number of the metadata."""
        value = self.metadata.get(key, default)
        if type(value) is not int or not least <= value < BIGGEST:
            raise GgufError(f"{self.path}: {key} is no whole number from {least} on")
        return value

    def own_number(self, key: str, default: int = 0) -> int:
        """A whole number among the architecture's own keys."""
        return self.number(f"{self.architecture}.{key}", default)

    def per_layer(self, key: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        """Whole numbers, one for each layer, that the file gives as one for all or as a list."""
        name, layers = f"{self.architecture}.{key}", self.block_count
        if layers > LONGEST_LIST:
            raise GgufError(f"{self.path}: {layers} layers are too many to be true")
        value = self.metadata.get(name)
        if value is None:
            return tuple(default) or (0,) * layers
        values = value if isinstance(value, tuple) else (value,) * layers
        if len(values) < layers or any(type(it) is not int or not 0 <= it < BIGGEST for it in values):
            raise GgufError(f"{self.path}: {name} is no whole number, nor a list of one for each of {layers} layers")
        return tuple(int(it) for it in values[:layers])
