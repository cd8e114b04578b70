"""Asks what the ledger holds, at the pace that the gateway allows, and records what comes back."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Optional

import orjson

from .errors import BatchError
from .gateway import UNREACHABLE, Gateway, Reply, check_access
from .ledger import ANSWERED, FAILED, Answer, Ledger, Request
from .pace import Pace
from .tasks import AnswerError, Task

PAGE = 1000  # requests read from the ledger at once
COMMIT_EVERY = 0.3  # seconds: what a kill -9 costs at most
FULL_BUFFER = 20_000  # answers not yet recorded: a slow disk then slows down the asking
FIRST_FAILURES = 20  # all failed and nothing answered yet: the mistake is not in the rows
BACKOFF, LONGEST_BACKOFF = 1.0, 60.0
LEAST_HOLD = 0.1  # seconds, whatever Retry-After says
REFUSALS_PER_TRY = 10  # a refusal says little about the row


@dataclass
class Item:
    """A request under way: how often it failed, how often it was refused."""

    request: Request
    failed: int = 0
    refused: int = 0


@dataclass
class Progress:
    """What a run has done so far; read by whoever shows it.

    Attributes:
        rows, requests: answered in this run, failed ones too.
        failed: rows that were given up.
        retries: requests sent again.
        tokens_in, tokens_out: of this run's answers.
        active: requests under way; limit: how many there may be.
        problem: what went wrong last, and is being tried again.
        cached: prompt tokens that the server had in its cache.
    """

    rows: int = 0
    requests: int = 0
    failed: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0
    active: int = 0
    limit: int = 0
    problem: str = ""
    replicas: set[str] = field(default_factory=set)


class Runner:
    """One run over all pending requests of a ledger.

    Args:
        task, gateway, ledger, pace: what to ask, whom, from where, how fast.
        tries: failures after which a request is given up.
        patience: seconds without any answer after which the run stops.
        answered_before: whether any request of this ledger was ever answered.
    """

    def __init__(
        self, task: Task, gateway: Gateway, ledger: Ledger, pace: Pace, *, tries: int, patience: float, answered_before: bool
    ) -> None:
        self._task, self._gateway, self._ledger, self._pace = task, gateway, ledger, pace
        self._tries, self._patience = tries, patience
        self.progress = Progress()
        self._proven = answered_before
        self._ready: deque[Item] = deque()
        self._waiting = 0  # for their back-off to end
        self._asking = 0  # workers that have an item
        self._after, self._exhausted, self._filling = 0, False, False
        self._buffer: list[Answer] = []
        self._early: list[Answer] = []  # failures before anything was answered
        self._over = asyncio.Event()
        self._error: Optional[BaseException] = None
        self._tasks: set[asyncio.Task[None]] = set()
        # One thread: the ledger's writes never stall the event loop, and never meet.
        self._disk = ThreadPoolExecutor(1, "ledger")

    async def run(self) -> None:
        """Ask everything; returns when each request has an answer or was given up.

        Raises:
            BatchError: nothing more can be asked, or recorded. What was answered is recorded.
        """
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        committing = asyncio.create_task(self._commit_often())
        try:
            self._go_on()
            await self._over.wait()
            if self._error:
                raise self._error
            self._buffer += self._early
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            committing.cancel()
            await asyncio.gather(committing, return_exceptions=True)
            try:
                # In the same thread, behind a commit that may still be under way.
                await loop.run_in_executor(self._disk, self._commit)
            finally:
                self._disk.shutdown()

    def _go_on(self) -> None:
        """Read ahead, start workers, or see that all is done."""
        if self._error:
            self._over.set()
            return
        if not self._exhausted and not self._filling and len(self._ready) < PAGE and len(self._buffer) < FULL_BUFFER:
            self._filling = True
            self._start(self._fill())
        progress = self.progress
        progress.limit = self._pace.limit
        while progress.active < progress.limit and len(self._ready) > progress.active - self._asking:
            progress.active += 1
            self._start(self._work())
        if self._exhausted and not self._ready and not self._waiting and not progress.active and not self._filling:
            self._over.set()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._stop(task.exception())
        elif not self._over.is_set():
            self._go_on()

    def _stop(self, error: Optional[BaseException]) -> None:
        self._error = self._error or error
        self._over.set()

    async def _fill(self) -> None:
        found = await asyncio.get_running_loop().run_in_executor(self._disk, self._ledger.page, self._after, PAGE)
        if found:
            self._after = found[-1].id
            self._ready.extend(map(Item, found))
        self._exhausted = len(found) < PAGE
        self._filling = False

    async def _work(self) -> None:
        """One of the workers: asks one request after the other, while there are not too many workers."""
        loop = asyncio.get_running_loop()
        progress, pace = self.progress, self._pace
        try:
            while self._ready and progress.active <= pace.limit and not self._over.is_set():
                wait = pace.held(loop.time())
                if wait:
                    # Looked at again soon: an answer ends the hold.
                    await asyncio.sleep(min(wait, 0.05) * (1 + random.random()))
                    self._check_patience(loop.time())
                    continue
                item = self._ready.popleft()
                self._asking += 1
                try:
                    path, body = self._task.request(item.request.body)
                    reply = await self._gateway.ask(path, body)
                finally:
                    self._asking -= 1
                self._judge(item, reply, loop.time())
                if progress.active < pace.limit or (len(self._ready) < PAGE and not self._exhausted and not self._filling):
                    self._go_on()
        finally:
            progress.active -= 1

    def _judge(self, item: Item, reply: Reply, now: float) -> None:
        """Decide what an answer means for its row, and for the run."""
        if reply.status == 200:
            try:
                answer = orjson.loads(reply.body)
                kept = self._task.read(answer)
            except (AnswerError, KeyError, IndexError, TypeError, ValueError) as error:
                explained = str(error) if isinstance(error, AnswerError) else f"unexpected answer ({type(error).__name__}: {error})"
                self._pace.answered(now, reply.queue, reply.seconds)
                self._failed(item, explained)
                return
            self._heard, self._proven = now, True
            self._pace.answered(now, reply.queue, reply.seconds)
            usage = answer.get("usage") or {}
            used, made = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            self.progress.cached += int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            self._settle(Answer(item.request.id, ANSWERED, kept, None, item.failed + 1, used, made), item)
            return
        if reply.status in {429, 503, UNREACHABLE}:
            self._refused(item, reply, now)
            return
        try:
            check_access(reply, self._gateway.url)
        except BatchError as error:
            self._stop(error)
            return
        explained = f"HTTP {reply.status}: {reply.message()}"
        # What is wrong with the request itself stays wrong.
        self._failed(item, explained, final=400 <= reply.status < 500 and reply.status not in {408, 409, 425})

    def _refused(self, item: Item, reply: Reply, now: float) -> None:
        item.refused += 1
        reason = "no connection" if reply.status == UNREACHABLE else f"HTTP {reply.status}"
        self.progress.problem = f"{reason}: {reply.message()}"
        backoff = min(BACKOFF * 2 ** min(item.refused - 1, 6), LONGEST_BACKOFF)
        retry_after = backoff if reply.retry_after is None else max(reply.retry_after, LEAST_HOLD)
        self._pace.refused(now, retry_after, reply.seconds)
        # Others are being answered: so it may be this row that brings its servers down. A 429 is never a row's fault.
        if reply.status != 429 and item.refused >= REFUSALS_PER_TRY * self._tries and self._heard > now - LONGEST_BACKOFF:
            self._settle(Answer(item.request.id, FAILED, None, self.progress.problem, item.refused, 0, 0), item)
            return
        self._check_patience(now)
        self._again(item, 0.0 if reply.status == 429 else retry_after)

    def _check_patience(self, now: float) -> None:
        if now - self._heard > self._patience:
            minutes = self._patience / 60
            self._stop(
                BatchError(
                    f"{self._gateway.url}: nothing was answered for {minutes:.0f} minutes ({self.progress.problem}). What was answered is"
                    " recorded: run the same command again to go on"
                )
            )

    def _failed(self, item: Item, explained: str, final: bool = False) -> None:
        item.failed += 1
        self.progress.problem = explained
        if final or item.failed >= self._tries:
            self._settle(Answer(item.request.id, FAILED, None, explained, item.failed, 0, 0), item)
        else:
            self._again(item, min(BACKOFF * 2 ** (item.failed - 1), LONGEST_BACKOFF))

    def _again(self, item: Item, delay: float) -> None:
        """Send it again after a delay, spread by chance so that not all come at once."""
        self.progress.retries += 1
        self._waiting += 1
        asyncio.get_running_loop().call_later(delay * (0.5 + random.random()), self._requeue, item)

    def _requeue(self, item: Item) -> None:
        self._waiting -= 1
        self._ready.appendleft(item)
        if not self._over.is_set():
            self._go_on()

    def _settle(self, answer: Answer, item: Item) -> None:
        progress = self.progress
        progress.requests += 1
        progress.rows += item.request.copies
        progress.tokens_in += answer.tokens_in
        progress.tokens_out += answer.tokens_out
        if answer.state == ANSWERED:
            self._buffer.append(answer)
            if self._early:
                self._buffer += self._early
                self._early = []
            return
        progress.failed += item.request.copies
        if self._proven:
            self._buffer.append(answer)
            return
        self._early.append(answer)
        if len(self._early) >= FIRST_FAILURES:
            self._stop(BatchError(f"the first {FIRST_FAILURES} requests all failed, so the run was stopped; the last one: {answer.error}"))

    async def _commit_often(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(COMMIT_EVERY)
            try:
                await loop.run_in_executor(self._disk, self._commit)
            except BatchError as error:
                self._stop(error)
                return
            self._go_on()

    def _commit(self) -> None:
        """Record what is there; only in the disk's thread. Answers that come meanwhile stay for the next time."""
        count = len(self._buffer)
        if count:
            self._ledger.record(self._buffer[:count])
            del self._buffer[:count]
