"""What a run found, and the numbers that come from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from crowd import Crowd
from latency import Sample
from rates import Rate
from tables import percentile


@dataclass
class Results:
    """All measurements of one run.

    Attributes:
        rates: by "unstreamed" or "streamed", then by name: one for each round.
        latency: by number of streams, then by name: all rounds together.
        crowds: by name: one for each try, in order.
        versions: what was measured.
        load: of the machine before the run, as processes that wanted a core.
    """

    rates: dict[str, dict[str, list[Rate]]] = field(default_factory=dict)
    latency: dict[int, dict[str, Sample]] = field(default_factory=dict)
    crowds: dict[str, list[Crowd]] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    load: float = 0.0


def per_second(rates: Sequence[Rate]) -> float:
    """Whole answers a second, median of the rounds."""
    return statistics.median(rate.requests / rate.seconds for rate in rates)


def ratio(ours: Sequence[Rate], theirs: Sequence[Rate]) -> float:
    """Requests/s in parts of a peer's, median over the rounds of what was measured side by side."""
    pairs = [(one.requests / one.seconds, other.requests / other.seconds) for one, other in zip(ours, theirs)]
    return statistics.median(mine / peer if peer else math.inf for mine, peer in pairs)


def cpu_per_thousand(rates: Sequence[Rate]) -> float:
    """CPU seconds of the proxy for 1,000 requests."""
    requests = sum(rate.requests for rate in rates)
    return 1000 * sum(rate.cpu for rate in rates) / requests if requests else math.inf


def added(proxy: Sequence[float], direct: Sequence[float], share: float) -> float:
    """By how much a percentile is above the one without a proxy, in milliseconds."""
    return percentile(proxy, share) - percentile(direct, share)
