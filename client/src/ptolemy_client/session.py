"""One command from its input to its output, in steps that can each be repeated."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from . import provenance
from .display import Display
from .errors import BatchError, BusyError, Interrupted
from .gateway import Gateway
from .ledger import Counts, Ledger
from .pace import START, Pace
from .runner import Progress, Runner
from .sources import Source
from .tasks import Task
from .writing import check_writable

try:
    import uvloop
except ImportError:  # there is none for Windows
    uvloop = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Plan:
    """What the user wants done.

    Attributes:
        source, task, out: from where, what, to where.
        limit, sample, seed: restrict the run to the first rows, or to some chosen by chance.
        retry_failed: ask again what failed.
        restart: forget the ledger.
        overwrite: replace an output that is not this ledger's.
        tries, patience: see ``Runner``.
        concurrency: fixed; 0: by itself. most: the highest that it may choose.
    """

    source: Source
    task: Task
    out: Path
    limit: Optional[int]
    sample: Optional[int]
    seed: int
    retry_failed: bool
    restart: bool
    overwrite: bool
    tries: int
    patience: float
    concurrency: int
    most: int


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        counts: of the chosen rows.
        total: rows of the whole input.
        labels: how many rows have each label.
        progress: of this run alone.
        seconds: that asking took.
        errors: the most frequent ones.
    """

    counts: Counts
    total: int
    labels: Counter[str]
    progress: Progress
    seconds: float
    errors: list[tuple[str, int]]

    @property
    def partial(self) -> bool:
        """Whether only some rows were chosen."""
        return self.counts.rows < self.total


def ledger_path(out: Path) -> Path:
    """Where an output's ledger is."""
    return out.with_name(out.name + ".ledger")


def open_ledger(plan: Plan) -> Ledger:
    """The output's ledger, new or from an earlier run of the same command.

    Raises:
        BatchError: it belongs to another command, or the output is somebody else's.
    """
    path = ledger_path(plan.out)
    check_writable(plan.out)
    if plan.restart:
        # Opened first, so that another process that works on it is noticed.
        if path.exists():
            try:
                Ledger(path).close()
            except BusyError:
                raise
            except BatchError:
                pass  # broken, or of another version: that is why it is forgotten
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            path.with_name(name).unlink(missing_ok=True)
    elif not path.exists() and plan.out.exists() and not plan.overwrite:
        raise BatchError(
            f"{plan.out}: exists already, and not from an earlier run of this command: add --overwrite, or choose another name"
        )
    ledger = Ledger(path)
    facts = provenance.plain({"kind": plan.task.kind, **plan.task.facts, **plan.source.facts})
    known = ledger.meta("job")
    if known is not None and known != facts and not ledger.counts().asked:
        # Nothing was paid for yet: a mistake was mended before the first answer.
        ledger.note("indexed", None)
        known = None
    if known is not None and known != facts:
        differing = sorted(key for key in {*known, *facts} if known.get(key) != facts.get(key))
        ledger.close()
        raise BatchError(
            f"{path}: belongs to a run that differs in: {', '.join(differing)}."
            " Choose another output with -o, or add --restart to forget its answers"
        )
    if known is None:
        ledger.note("job", facts)
        ledger.note("created", time.time())
    return ledger


def index(plan: Plan, ledger: Ledger, display: Display) -> None:
    """Bring the rows into the ledger, if they are not there yet."""
    sha256 = provenance.file_sha256(plan.source.path)
    if ledger.meta("indexed") != sha256:
        display.step(f"reading {plan.source.path} ({plan.source.described})")
        ledger.index(plan.source.rows(), sha256)
    total = ledger.total()
    if not total:
        raise BatchError(f"{plan.source.path}: has no rows")
    if plan.sample is not None and plan.sample < total:
        ledger.choose(random.Random(plan.seed).sample(range(total), plan.sample))
    elif plan.limit is not None and plan.limit < total:
        ledger.choose(range(plan.limit))
    if plan.retry_failed:
        display.step(f"{ledger.forget_failed():,} failed requests are asked again")


async def ask(plan: Plan, ledger: Ledger, gateway: Gateway, slots: int, display: Display) -> tuple[Progress, float]:
    """Ask all that is pending; returns the progress and the seconds it took.

    Raises:
        BatchError: the run cannot go on.
        Interrupted: somebody stopped it.
    """
    counts = ledger.counts()
    pace = Pace(plan.concurrency or plan.most, slots or START, fixed=bool(plan.concurrency))
    runner = Runner(plan.task, gateway, ledger, pace, tries=plan.tries, patience=plan.patience, answered_before=bool(counts.answered))
    began = time.monotonic()
    if not counts.pending:
        return runner.progress, 0.0
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(runner.run())
    stopped: list[int] = []

    def stop(number: int) -> None:
        stopped.append(number)
        running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        with display.running(counts, runner.progress):
            while not running.done():
                await asyncio.wait([running], timeout=display.interval)
                display.update()
            running.result()
    except asyncio.CancelledError:
        if stopped:
            raise Interrupted(f"stopped by {signal.Signals(stopped[0]).name}") from None
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return runner.progress, time.monotonic() - began


def carry_out(plan: Plan, gateway: Gateway, display: Display) -> Outcome:
    """The whole run.

    Raises:
        BatchError, Interrupted: see the steps.
    """
    model = asyncio.run(_model(plan, gateway))
    ledger = open_ledger(plan)
    try:
        index(plan, ledger, display)
        started = time.time()
        run = uvloop.run if uvloop else asyncio.run
        progress, seconds, after = run(_asked(plan, ledger, gateway, int(model.get("slots") or 0), display))
        display.step(f"writing {plan.out}")
        rows, labels = plan.source.write(plan.out, ledger)
        counts = ledger.counts()
        if rows != counts.rows:
            raise BatchError(
                f"{plan.out}: has {rows:,} rows instead of {counts.rows:,}: this is a fault of ptolemy-batch, please report it"
            )
        total = ledger.total()
        times = {"created": ledger.meta("created"), "started": started, "finished": time.time(), "asking_seconds": round(seconds, 3)}
        page = provenance.page(plan, counts, total, labels, progress, times, gateway.url, model, after, ledger.meta("indexed"))
        provenance.save(plan.out, page)
        return Outcome(counts, total, labels, progress, seconds, ledger.errors(5) if counts.failed else [])
    finally:
        ledger.close()


async def _model(plan: Plan, gateway: Gateway) -> dict[str, Any]:
    """What the gateway says of the model: a wrong key or name is found before anything is read or written."""
    async with gateway:
        return await gateway.model(str(plan.task.facts["model"]))


async def _asked(plan: Plan, ledger: Ledger, gateway: Gateway, slots: int, display: Display) -> tuple[Progress, float, dict[str, Any]]:
    async with gateway:
        progress, seconds = await ask(plan, ledger, gateway, slots, display)
        return progress, seconds, await gateway.model(str(plan.task.facts["model"]))
