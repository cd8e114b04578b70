"""The GPU memory that a llama-server takes, from the header of its model's file and how it is run.

Pure functions. The formulas follow llama.cpp b11312, as each one's docstring names, and were measured against llama-server on an H100
(bench/memory_fit.py, docs/benchmarks.md). What is not known to follow them is not guessed: it raises ``UncheckedError``.

A server takes
    weights   the tensors that lie on the GPU
    cache     keys and values of all tokens of all slots
    buffers   what one step computes: ``--ubatch-size`` tokens at once
    driver    what CUDA, its libraries and the kernels hold, and what they take while they run
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

from .errors import PtolemyError
from .gguf_header import TYPES, Header

GIB, MIB = 2**30, 2**20
CELLS = 256  # llama.cpp rounds the tokens of a slot up to a multiple of it: llama_context, GGML_PAD(n_ctx, 256)
F32, F16 = 4, 2  # bytes
# Measured with driver 580 and CUDA 13.0: 600 MiB, and 96 more where cuBLAS is used.
DRIVER = 700 * MIB
# Rows of an embedding's width that are alive at once, beside what a formula names: the layer's input, its norm, the residual.
LIVE_ROWS, LIVE_ROWS_EXPERTS = 4, 5

# llama_model::create_memory (src/llama-model.cpp): architectures with one plain cache of all layers,
PLAIN = frozenset(
    "llama mistral3 qwen2 qwen2moe qwen3 qwen3moe phi2 phi3 phimoe gemma starcoder2 stablelm internlm2 granite granitemoe olmo olmoe"
    " command-r glm4 glm4moe exaone smollm3 seed_oss ernie4_5 ernie4_5-moe hunyuan-dense hunyuan-moe nemotron arcee minicpm baichuan"
    " falcon dots1 bailingmoe bailingmoe2 xverse orion".split()
)
# those where all layers but each n-th have a sliding window (load_swa_pattern in src/models), with n,
WINDOWED: Mapping[str, int] = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "olmo2": 4}
WINDOW_UNSAID: Mapping[str, int] = {"gemma2": 4096}
# and those without a cache.
ENCODERS = frozenset("bert nomic-bert nomic-bert-moe jina-bert-v2 modern-bert gemma-embedding".split())
# Keys of an architecture that change the cache in ways that are not modelled here.
STRANGE_KEYS = ("attention.key_length_mla", "attention.key_length_swa", "attention.shared_kv_layers", "ssm.state_size")
# Head lengths that CUDA's flash attention takes (ggml-cuda/fattn.cu); with another one `auto` means off.
FLASH_HEADS = frozenset({40, 64, 72, 80, 96, 112, 128, 192, 256, 512, 576})
# Tensors that stay in the host's memory: LLM_TENSOR_LAYER_INPUT in src/llama-arch.cpp. (Of the token embedding, see ``weights``.)
INPUTS = ("position_embd.weight", "token_types.weight", "per_layer_token_embd.weight", "token_embd_norm.weight", "token_embd_norm.bias")


class UncheckedError(PtolemyError):
    """What a server takes is not known; the message says why."""


@dataclass(frozen=True)
class Run:
    """How a llama-server is run, as far as memory goes.

    Attributes:
        slots: sequences decoded at once.
        context: tokens of each.
        batch, ubatch: ``--batch-size`` and ``--ubatch-size``, with llama-server's defaults.
        cache_k, cache_v: types of the cache's keys and values, by ggml's names.
        flash: ``on``, ``off`` or ``auto``.
        unified: all slots share one cache.
        full_window: ``--swa-full``.
        embedding: it answers embeddings.
    """

    slots: int
    context: int
    batch: int = 2048
    ubatch: int = 512
    cache_k: str = "F16"
    cache_v: str = "F16"
    flash: str = "auto"
    unified: bool = False
    full_window: bool = False
    embedding: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes of GPU memory of one llama-server."""

    weights: int
    cache: int
    buffers: int
    driver: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.buffers + self.driver


TYPE_SIZES = {name: (values, size) for name, values, size in TYPES.values()}


def need(header: Header, run: Run) -> Need:
    """What one llama-server takes of its GPU.

    Raises:
        UncheckedError: the architecture, or something that the file says of it, is not known here.
        GgufError: the header holds nonsense.
    """
    architecture = header.architecture
    if architecture not in PLAIN and architecture not in WINDOWED and architecture not in ENCODERS:
        raise UncheckedError(f"the architecture {architecture!r} is not known to keep its cache in a way that is")
    for key in STRANGE_KEYS:
        if f"{architecture}.{key}" in header.metadata:
            raise UncheckedError(f"the model has {architecture}.{key}, of which the check knows nothing")
    layout = _Layout(header, run)
    return Need(_weights(header), layout.cache(), layout.buffers(), DRIVER + layout.pool())


def _weights(header: Header) -> int:
    """All tensors but those of the input.

    The embedding of the tokens is input, too, but a model without a matrix of its own for the output has a copy of it on the GPU
    (load_arch_tensors in src/models: TENSOR_DUPLICATED).
    """
    skipped = set(INPUTS)
    if header.architecture in ENCODERS or "output.weight" in header.tensors:
        skipped.add("token_embd.weight")
    return sum(tensor.bytes for name, tensor in header.tensors.items() if name not in skipped)


class _Layout:
    """The numbers that several formulas share."""

    def __init__(self, header: Header, run: Run) -> None:
        self._header = header
        self._run = run
        encoder = header.architecture in ENCODERS
        heads, lengths = header.head_counts, (header.key_length, header.value_length)
        if not header.block_count or not header.embedding_length or not heads or not all(lengths):
            raise UncheckedError(f"{header.path} does not say how many layers, heads or values it has")
        self._heads = max(heads)
        self._flash = run.flash == "on" or (run.flash == "auto" and header.key_length in FLASH_HEADS)
        # llama_context: a slot's tokens are rounded up, and so is the sum.
        total = _up(run.slots * run.context, CELLS)
        self._streams = 1 if run.unified else run.slots
        self._cells = total if run.unified else _up(total // run.slots, CELLS)
        all_cells = self._cells * self._streams
        batch = run.batch if encoder else min(run.batch, all_cells)
        ubatch = min(batch, run.ubatch)
        # llama_context::sched_reserve and graph_reserve: one step of as many tokens, the same number for each slot.
        self._tokens = _up(min(all_cells, ubatch), run.slots)
        self._ubatch = ubatch
        # server_output_limits (tools/server/server-context.cpp): chats need the logits of one token of each slot.
        self._outputs = self._tokens if run.embedding else min(self._tokens, run.slots)
        self._windowed = self._windows()

    def _windows(self) -> tuple[bool, ...]:
        """Of each layer that has a cache, whether it has a sliding window."""
        header = self._header
        layers = header.block_count - header.own_number("nextn_predict_layers")
        if header.architecture in ENCODERS:
            return ()
        every = WINDOWED.get(header.architecture, 0)
        if not every or not self._window:
            return (False,) * layers
        pattern = header.metadata.get(f"{header.architecture}.attention.sliding_window_pattern", every)
        if isinstance(pattern, tuple):
            return tuple(bool(it) for it in pattern[:layers])
        every = int(pattern) if type(pattern) is int and pattern > 0 else every
        return tuple(number % every < every - 1 for number in range(layers))

    @property
    def _window(self) -> int:
        return self._header.sliding_window or WINDOW_UNSAID.get(self._header.architecture, 0)

    @property
    def _window_cells(self) -> int:
        """llama_kv_cache_iswa (src/llama-kv-cache-iswa.cpp): a window and one step's tokens, never more than the context."""
        if self._run.full_window:
            return self._cells
        return _up(min(self._cells, self._window * (self._run.slots if self._run.unified else 1) + self._ubatch), CELLS)

    def _rows(self, layer: int) -> tuple[int, int]:
        """Bytes of one token's keys and values in one layer."""
        header = self._header
        heads = header.kv_head_counts[layer]
        return _row(self._run.cache_k, heads * header.key_length), _row(self._run.cache_v, heads * header.value_length)

    def cache(self) -> int:
        """llama_kv_cache (src/llama-kv-cache.cpp): a row of keys and one of values for each cell, layer and slot."""
        return sum(
            sum(self._rows(layer)) * (self._window_cells if windowed else self._cells) * self._streams
            for layer, windowed in enumerate(self._windowed)
        )

    def _mask(self, cells: int, size: int) -> int:
        """build_attn_inp_kq_mask (src/llama-graph.cpp): for each token of a step, which cells it sees."""
        return cells * self._tokens * size

    def buffers(self) -> int:
        """The compute buffer: the tensors of one step that are alive at once, where that is most (src/llama-graph.cpp).

        ggml's allocator gives a tensor's place to the next one as soon as nobody reads it any more, so the largest of the graph's parts
        counts: attention, feed-forward, output.
        """
        size = F16 if self._flash else F32
        if self._windowed:
            masks = self._mask(self._cells, size) if not all(self._windowed) else 0
            masks += self._mask(self._window_cells, size) if any(self._windowed) else 0
        else:
            masks = self._mask(self._tokens, size) * (2 if self._window else 1)
        return masks + max(self._attention(), self._feed_forward(), self._output())

    def _attention(self) -> int:
        """build_attn_mha: flash attention keeps F16 copies of a cache of another type, else there are scores of all heads."""
        header, tokens = self._header, self._tokens
        queries = self._heads * header.key_length * tokens * F32
        keys = max(header.kv_head_counts) * header.key_length
        values = max(header.kv_head_counts) * header.value_length
        live = LIVE_ROWS * self._row + queries + (keys + values) * tokens * F32
        if not self._flash:
            cells = self._cells if self._windowed else tokens
            return live + self._heads * cells * tokens * F32 + 2 * self._expert_row
        if not self._windowed:  # keys and values of the step itself, cast
            return live + queries + (keys + values) * tokens * F16
        # ggml_cuda_flash_attn_ext_get_alloc_size (ggml-cuda/fattn.cu)
        copied = keys * (self._run.cache_k != "F16") + values * (self._run.cache_v != "F16")
        return live + queries + copied * self._cells * self._streams * F16

    def _feed_forward(self) -> int:
        """build_ffn, build_moe_ffn: gate, up and their product at once; of experts, those that a token uses, and then their sums' parts."""
        header, tokens = self._header, self._tokens
        wide = max(header.feed_forward_lengths, default=0)
        gated = any(
            name.endswith("ffn_gate.weight") or (name.endswith("ffn_up.weight") and tensor.shape[1:2] == (2 * wide,))  # gate and up in one
            for name, tensor in header.tensors.items()
        )
        dense = wide * tokens * F32 * (3 if gated else 1)
        if not self._expert_row:
            return dense + LIVE_ROWS * self._row
        down = self._row * header.expert_used_count
        # The experts' output goes where gate and up were, if it fits there.
        experts = 3 * self._expert_row + (down if down > 2 * self._expert_row else 0)
        return experts + LIVE_ROWS_EXPERTS * self._row

    def _output(self) -> int:
        if self._header.architecture in ENCODERS:
            return 0
        return self._header.vocabulary * self._outputs * F32 + 2 * self._row

    def pool(self) -> int:
        """What CUDA's matrix products take while they run, beside the compute buffer; the largest one counts, as each gives it back.

        ggml_cuda_op_mul_mat_cublas (ggml-cuda/ggml-cuda.cu): a product with F16 weights has its input and its output in F16, too; and so
        have the scores without flash attention. mmq.cu: a quantised one has its input in Q8_1.
        """
        largest = 0
        used = max(self._header.expert_used_count, 1)
        for name, tensor in self._header.tensors.items():
            if len(tensor.shape) < 2 or name in INPUTS:
                continue
            output = name in ("output.weight", "token_embd.weight")
            if output and self._header.architecture in ENCODERS:
                continue
            tokens = self._outputs if output else self._tokens * (used if len(tensor.shape) > 2 else 1)
            row, rows = tensor.shape[:2]
            values = row + rows if tensor.type in ("F16", "BF16", "F32") else 0
            largest = max(largest, tokens * (values * F16 if values else _row("Q8_1", _up(row, 512))))
        if not self._flash:
            cells = self._cells if self._windowed else self._tokens
            largest = max(largest, self._heads * (cells + self._header.key_length) * self._tokens * F16)
        return largest

    @property
    def _row(self) -> int:
        """Bytes of one step's tokens as wide as the embedding."""
        return self._header.embedding_length * self._tokens * F32

    @property
    def _expert_row(self) -> int:
        """Bytes of one step's tokens as wide as the experts that each uses; 0 in a dense model."""
        header = self._header
        wide = max(header.per_layer("expert_feed_forward_length"), default=0) or max(header.feed_forward_lengths, default=0)
        return header.expert_used_count * wide * self._tokens * F32 if header.expert_count else 0


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _row(kind: str, values: int) -> int:
    block, size = TYPE_SIZES[kind]
    return -(-values // block) * size
