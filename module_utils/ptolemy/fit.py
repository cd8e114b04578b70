"""Whether a service's llama-servers fit into a GPU, and what would; pure functions over ``server_memory``."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Callable, Iterator, Optional, Sequence

from .config import EMBEDDING, Service
from .gguf_header import Header
from .server_memory import CELLS, GIB, TYPE_SIZES, Run, UncheckedError, need

# Of a GPU's memory, what programs cannot get (0.6 % of an H100), and what the formulas may be wrong by.
USABLE = 0.98

# Flags that put memory elsewhere or need more of it, by their beginnings.
NOT_CHECKED = (
    "-md --model-draft -hfd -hfrd --hf-repo-draft --spec- --mtp --dflash --draft -mm --mmproj --lora --control-vector -ngl --gpu-layers"
    " --n-gpu-layers -ot --override-tensor -cmoe --cpu-moe -ncmoe --n-cpu-moe -nkvo --no-kv-offload -sm --split-mode -ts --tensor-split"
    " -mg --main-gpu -dev --device --rpc -bs --backend-sampling --no-op-offload --fit --override-kv -fim --fim- --vision-".split()
)


def run_of(service: Service) -> Run:
    """How the service's llama-servers are run, from its arguments.

    Raises:
        UncheckedError: a flag changes what lies on the GPU, or has no value that llama-server would take.
    """
    if service.mmproj_path:
        raise UncheckedError("its projector (mmproj) takes memory for images, of which the check knows nothing")
    return run_from(service.slots, service.context, service.arguments, service.kind == EMBEDDING)


def run_from(slots: int, context: int, arguments: Sequence[str], embedding: bool = False) -> Run:
    """The same of plain values.

    Raises:
        UncheckedError: as in ``run_of``.
    """
    run = Run(slots, context, embedding=embedding)
    rest = iter(arguments)
    for flag in rest:
        if flag in ("-b", "--batch-size"):
            run = replace(run, batch=_whole(flag, rest))
        elif flag in ("-ub", "--ubatch-size"):
            run = replace(run, ubatch=_whole(flag, rest))
        elif flag in ("-ctk", "--cache-type-k"):
            run = replace(run, cache_k=_type(flag, rest))
        elif flag in ("-ctv", "--cache-type-v"):
            run = replace(run, cache_v=_type(flag, rest))
        elif flag in ("-fa", "--flash-attn"):
            word = next(rest, "").lower()
            words = {"on": "on", "enabled": "on", "1": "on", "off": "off", "disabled": "off", "0": "off", "auto": "auto", "-1": "auto"}
            run = replace(run, flash=words.get(word, "auto"))
        elif flag in ("-kvu", "--kv-unified"):
            run = replace(run, unified=True)
        elif flag in ("-no-kvu", "--no-kv-unified"):
            run = replace(run, unified=False)
        elif flag == "--swa-full":
            run = replace(run, full_window=True)
        elif flag in ("--embedding", "--embeddings", "--rerank", "--reranking"):
            run = replace(run, embedding=True)
        elif flag in NOT_CHECKED or flag.startswith(tuple(begin for begin in NOT_CHECKED if begin.startswith("--"))):
            raise UncheckedError(f"the flag {flag} changes what lies on the GPU")
    return run


def _whole(flag: str, rest: Iterator[str]) -> int:
    word = next(rest, "")
    if not word.isdigit() or int(word) < 1:
        raise UncheckedError(f"{flag} {word or '(nothing)'} is no number of tokens")
    return int(word)


def _type(flag: str, rest: Iterator[str]) -> str:
    word = next(rest, "").upper()
    if word not in TYPE_SIZES:
        raise UncheckedError(f"{flag} {word or '(nothing)'} is no type that is known")
    return word


def most(header: Header, run: Run, room: int) -> tuple[int, int]:
    """The most slots of that context, and the most context for that many slots, with which one server fits into ``room`` bytes.

    0 is "none"; a context is a multiple of 256.
    """

    def fits(changed: Run) -> bool:
        return need(header, changed).total <= room

    slots = _last(run.slots, lambda number: fits(replace(run, slots=number)))
    steps = _last(run.context // CELLS, lambda number: fits(_with_context(run, number * CELLS)))
    return slots, steps * CELLS


def _with_context(run: Run, context: int) -> Run:
    """An embedding service's batches follow its context, see Service.arguments."""
    if run.embedding and run.ubatch == run.batch == run.context:
        return replace(run, context=context, batch=context, ubatch=context)
    return replace(run, context=context)


def _last(high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to ``high`` that fits, 0 if none does: whatever fits, less fits too."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def bytes_of(memory: str) -> int:
    """Bytes of an amount in Slurm's notation: ``80G``, ``81559M``; a plain number is MiB.

    Raises:
        ValueError: it is none.
    """
    shape = re.fullmatch(r"([1-9]\d*)([KMGT]?)", memory)
    if not shape:
        raise ValueError(f"{memory!r} is no amount of memory in Slurm's notation, as 80G")
    return int(shape[1]) * int(1024 ** ("KMGT".index(shape[2] or "M") + 1))


def problem(service: Service, header: Header, memory: int) -> Optional[str]:
    """What is wrong, in one sentence, if the service's servers do not fit into a GPU with that many bytes; else None.

    Raises:
        UncheckedError, GgufError: as in ``need``.
    """
    run = run_of(service)
    found = need(header, run)
    room = int(memory * USABLE) // service.servers_per_gpu
    if found.total <= room:
        return None
    slots, context = most(header, run, room)
    choices = [f"{slots} slots of {run.context}"] if slots else []
    choices += [f"{run.slots} slots of {context} tokens"] if context else []
    fits = f"the most that fits: {', or '.join(choices)}" if choices else "not even one slot of 256 tokens fits"
    servers = service.servers_per_gpu
    return (
        f"needs {_gib(found.total * servers)} of a GPU's {_gib(memory)} (weights {_gib(found.weights)}, KV cache {_gib(found.cache)} for"
        f" {run.slots} slots of {run.context} tokens, buffers {_gib(found.buffers)}, CUDA {_gib(found.driver)}, x {servers}"
        f" server{'s' if servers > 1 else ''} a GPU); {fits}"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
