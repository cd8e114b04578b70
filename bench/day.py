"""A day of requests for the scaling simulation: a quiet night, office hours, a lecture, a batch. Seeded: the same for every peer."""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Sequence

HOUR = 3600.0
DAY = 24 * HOUR

NIGHT, OFFICE, LECTURE, BATCH = range(4)
CLASSES = ("night", "office hours", "lecture", "batch")

# Requests a second that the campus sends to the chat, by hour; between two lines it changes evenly.
CAMPUS = (
    (0, 0.5),
    (2, 0.15),
    (6, 0.15),
    (8, 5),
    (9, 11),
    (10, 14),
    (12, 13),
    (12.5, 8),
    (13.25, 13),
    (16, 12),
    (17.5, 5),
    (20, 2.5),
    (24, 0.5),
)
GUSTS = 0.15  # standard deviation of the logarithm of that rate around the line above, for minutes at a time
GUST_SECONDS = 180.0

LECTURE_AT, LECTURE_LASTS = 10.25 * HOUR, 1.5 * HOUR
STUDENTS, STUDENTS_START_WITHIN = 200, 60.0
THINKING = 25.0  # seconds between two messages of a student, on average
# Open WebUI turns a first message into 4 requests (answer, title, follow-ups, tags), a later one into 2.
FIRST_REQUESTS, LATER_REQUESTS = 4, 2
BACKGROUND_DELAY = 4.0  # seconds from the answer's request to those that follow it

BATCH_AT, BATCH_ROWS, BATCH_IN_FLIGHT = 14.5 * HOUR, 500_000, 1024


@dataclass
class Trace:
    """Requests in the order of their arrival; all three columns are equally long.

    Attributes:
        at: seconds since midnight.
        kind: an index of ``CLASSES``.
        work: how much of an average request's work it is.
        rows: further requests of a batch, each sent when one of its earlier ones is answered.
    """

    at: array[float] = field(default_factory=lambda: array("d"))
    kind: bytearray = field(default_factory=bytearray)
    work: array[float] = field(default_factory=lambda: array("d"))
    rows: int = 0


def work(dice: random.Random) -> float:
    """The length of an answer: on average 1, with a standard deviation of 0.7."""
    return dice.gammavariate(2.0, 0.5)


def chat(seed: int) -> Trace:
    """The campus and the lecture."""
    dice = random.Random(f"chat {seed}")
    found = [(at, NIGHT if not 7 * HOUR <= at < 19 * HOUR else OFFICE) for at in _campus(dice)]
    for _ in range(STUDENTS):
        found += [(at, LECTURE) for at in _student(dice)]
    trace = Trace()
    for at, kind in sorted(found):
        trace.at.append(at)
        trace.kind.append(kind)
        trace.work.append(work(dice))
    return trace


def batch(seed: int) -> Trace:
    """The rows that the batch client keeps in flight, from its first second on."""
    dice = random.Random(f"batch {seed}")
    trace = Trace(rows=BATCH_ROWS - BATCH_IN_FLIGHT)
    for _ in range(BATCH_IN_FLIGHT):
        trace.at.append(BATCH_AT)
        trace.kind.append(BATCH)
        trace.work.append(work(dice))
    return trace


def _campus(dice: random.Random) -> Sequence[float]:
    found = []
    second, gust = 0.0, 0.0
    keep = math.exp(-1.0 / GUST_SECONDS)
    while second < DAY:
        gust = keep * gust + GUSTS * math.sqrt(1 - keep * keep) * dice.gauss(0.0, 1.0)
        rate = campus_rate(second) * math.exp(gust)
        at = second + dice.expovariate(rate)
        while at < second + 1.0:
            found.append(at)
            at += dice.expovariate(rate)
        second += 1.0
    return found


def campus_rate(second: float) -> float:
    """The expected requests a second at this time of the day."""
    hour = second / HOUR
    index = min(bisect_right(CAMPUS, (hour, math.inf)), len(CAMPUS) - 1)
    (before, low), (after, high) = CAMPUS[index - 1], CAMPUS[index]
    return low + (high - low) * (hour - before) / (after - before)


def _student(dice: random.Random) -> Sequence[float]:
    found = []
    at, requests = LECTURE_AT + dice.uniform(0.0, STUDENTS_START_WITHIN), FIRST_REQUESTS
    while at < LECTURE_AT + LECTURE_LASTS:
        found += [at, *(at + BACKGROUND_DELAY * dice.uniform(0.5, 1.5) for _ in range(requests - 1))]
        at, requests = at + THINKING * dice.gammavariate(2.0, 0.5), LATER_REQUESTS
    return found
