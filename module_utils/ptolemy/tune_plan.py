"""Which setting of a service's llama-servers to measure next, and which to choose: pure functions of what was measured so far.

The present setting comes first. Then what docs/performance.md found best, and from the best one so far a step in each direction, until
no step is left or the time is needed for the end: the best one and the present one once more, for longer, beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

FOUND_BEST = (4, 32)  # servers on a GPU and slots of each
LEAST_GAIN = 1.05  # times the present requests a second: less is what two measurements of one setting may differ by
SEARCH, FINAL = "search", "final"
CACHE_RAM, UNIFIED = "--cache-ram", "--kv-unified"
_CACHE_RAM = ("-cram", CACHE_RAM)
_UNIFIED = ("-kvu", UNIFIED, "-no-kvu", "--no-kv-unified")


@dataclass(frozen=True)
class Setting:
    """How the llama-servers of one GPU are run.

    Attributes:
        servers: how many share it.
        slots: sequences that each decodes at once.
        flags: further arguments.
    """

    servers: int
    slots: int
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As docs/performance.md writes it, with those flags that the search may change."""
        words = [f"{self.servers} x {self.slots}"]
        if value_of(self.flags, _CACHE_RAM) == "0":
            words.append(f"{CACHE_RAM} 0")
        if set(self.flags) & set(_UNIFIED[:2]):
            words.append(UNIFIED)
        return ", ".join(words)

    def values(self) -> dict[str, Any]:
        """By the keys of ``ptolemy_services``."""
        return {"servers_per_gpu": self.servers, "slots": self.slots, "flags": list(self.flags)}


@dataclass(frozen=True)
class Result:
    """What a closed loop saw in its window, in which all slots were busy.

    Attributes:
        requests, tokens: answers and their tokens, a second.
        first: seconds to the first token, p50 and p99; of an answer that is not streamed, to its end.
        between: seconds between two tokens of a stream, on average, p50 and p99.
        errors: requests that failed.
        error: the first one's.
    """

    requests: float
    tokens: float
    first: tuple[float, float] = (0.0, 0.0)
    between: tuple[float, float] = (0.0, 0.0)
    errors: int = 0
    error: str = ""


@dataclass(frozen=True)
class Trial:
    """A setting that was tried.

    Attributes:
        setting: that.
        phase: ``search`` or ``final``.
        seconds: that it took, start and end of the servers included.
        result: None where its servers did not start, or gave no answer.
        failure: why.
    """

    setting: Setting
    phase: str
    seconds: float
    result: Optional[Result] = None
    failure: str = ""


@dataclass(frozen=True)
class Space:
    """What may be tried.

    Attributes:
        present: the service's setting.
        servers, slots: the values of each, ascending.
        most: slots of all servers together.
        fits: whether a setting fits into the GPU.
        first, between: seconds that p99 of the first token, and of the time between tokens, may reach; 0 for no bound.
    """

    present: Setting
    servers: Sequence[int] = (1, 2, 4, 8)
    slots: Sequence[int] = (8, 16, 32, 48, 64)
    most: int = 512
    fits: Callable[[Setting], bool] = lambda setting: True
    first: float = 0.0
    between: float = 0.0

    def allows(self, setting: Setting) -> bool:
        return setting == self.present or (setting.servers * setting.slots <= self.most and self.fits(setting))

    def keeps(self, result: Result) -> bool:
        """Whether a result is within the bounds."""
        return not (self.first and result.first[1] > self.first) and not (self.between and result.between[1] > self.between)

    def rank(self, trial: Trial) -> tuple[bool, bool, float]:
        """The better, the greater: without errors, within the bounds, requests a second."""
        if trial.result is None:
            return (False, False, 0.0)
        return (not trial.result.errors, self.keeps(trial.result), trial.result.requests)


def next_trial(space: Space, trials: Sequence[Trial], remaining: float, longer: float = 0.0) -> Optional[tuple[Setting, str]]:
    """What to measure next, and in which phase; None where all is done.

    Args:
        space: what may be tried.
        trials: what was, in order.
        remaining: seconds.
        longer: seconds that a trial of the end takes more than one of the search.
    """
    searched = [trial for trial in trials if trial.phase == SEARCH]
    if not searched:
        return space.present, SEARCH
    if searched[0].result is None:
        return None  # there would be nothing to compare with
    longest = max(trial.seconds for trial in searched)
    best = max(searched, key=space.rank)
    finals = [trial for trial in trials if trial.phase == FINAL]
    # Both of the end, and no trial that would run into it.
    if not finals and remaining >= 3 * longest + 2 * longer:
        tried = {trial.setting for trial in searched}
        for setting in (*seeds(space), *neighbours(space, best.setting)):
            if setting not in tried and space.allows(setting):
                return setting, SEARCH
    if best.setting == space.present or best.result is None:
        return None
    # The present one last, as it was first: what changed meanwhile is seen.
    left = [setting for setting in (best.setting, space.present) if setting not in {trial.setting for trial in finals}]
    return (left[0], FINAL) if left else None


def seeds(space: Space) -> Iterator[Setting]:
    """The settings that were best elsewhere, as near as the space comes to them."""
    servers, slots = (min(values, key=lambda value: (abs(value - wish), value)) for values, wish in zip(_axes(space), FOUND_BEST))
    once = replace(space.present, flags=without_cache(space.present.flags))
    yield replace(once, servers=servers, slots=slots)
    yield replace(once, servers=servers, slots=slots, flags=unified(once.flags, True))


def neighbours(space: Space, setting: Setting) -> Iterator[Setting]:
    """A step from a setting in each direction: servers, slots, flags."""
    servers, slots = _axes(space)
    for value in _beside(servers, setting.servers):
        yield replace(setting, servers=value)
    for value in _beside(slots, setting.slots):
        yield replace(setting, slots=value)
    yield replace(setting, flags=without_cache(setting.flags))
    yield replace(setting, flags=unified(setting.flags, UNIFIED not in setting.flags and "-kvu" not in setting.flags))


@dataclass(frozen=True)
class Choice:
    """What came out.

    Attributes:
        trial: of the setting to take.
        present: the measurement of the present one that it is compared with.
        reason: one sentence.
    """

    trial: Trial
    present: Trial
    reason: str


def choose(space: Space, trials: Sequence[Trial]) -> Optional[Choice]:
    """The setting to take: the best one of the search where it was better at the end, too; else the present one. None: nothing is known."""
    by_phase = {phase: [trial for trial in trials if trial.phase == phase] for phase in (SEARCH, FINAL)}
    measured = [trial for trial in (*by_phase[FINAL], *by_phase[SEARCH]) if trial.setting == space.present and trial.result]
    if not measured:
        return None
    present = measured[0]
    rivals = [trial for trial in by_phase[FINAL] if trial.setting != space.present]
    if len(trials) == 1:
        return Choice(present, present, "there was no time to try another one; set more tune_minutes")
    if rivals and present.phase != FINAL:
        return Choice(present, present, "the end was cut short")
    if not rivals:
        return Choice(present, present, "nothing that was tried is better than the present setting")
    rival = rivals[0]
    if rival.result is None or space.rank(rival)[:2] < space.rank(present)[:2]:
        return Choice(present, present, f"{rival.setting} failed, or was beyond the bounds, when it was measured again")
    if space.rank(rival)[:2] > space.rank(present)[:2]:
        return Choice(rival, present, "the present setting has errors, or is beyond the bounds, and this one is not")
    ratio = space.rank(rival)[2] / space.rank(present)[2]
    if ratio < LEAST_GAIN:
        return Choice(
            present, present, f"{rival.setting} gave {ratio:.2f} times as much when both were measured again; {LEAST_GAIN} is the least"
        )
    return Choice(rival, present, f"{ratio:.2f} times the requests of the present setting, both measured again at the end")


def without_cache(flags: Sequence[str]) -> tuple[str, ...]:
    """The flags with ``--cache-ram 0``: no prompt is copied into the host's memory when its slot gets another one."""
    if value_of(flags, _CACHE_RAM) == "0":
        return tuple(flags)
    kept, rest = [], iter(flags)
    for flag in rest:
        if flag in _CACHE_RAM:
            next(rest, None)
        else:
            kept.append(flag)
    return (*kept, CACHE_RAM, "0")


def unified(flags: Sequence[str], wanted: bool) -> tuple[str, ...]:
    """The flags with one cache for all slots, or with one for each."""
    return (*(flag for flag in flags if flag not in _UNIFIED), *((UNIFIED,) if wanted else ()))


def value_of(flags: Sequence[str], names: Sequence[str]) -> str:
    """The value of the last flag of these names; empty where there is none."""
    found = [value for flag, value in zip(flags, flags[1:]) if flag in names]
    return found[-1] if found else ""


def _beside(values: Sequence[int], here: int) -> list[int]:
    """The next larger value, and the next smaller one."""
    return [*[value for value in values if value > here][:1], *[value for value in values if value < here][-1:]]


def _axes(space: Space) -> tuple[list[int], list[int]]:
    """The values of servers and slots, with the present ones."""
    return sorted({*space.servers, space.present.servers}), sorted({*space.slots, space.present.slots})


def setting_of(values: Mapping[str, Any]) -> Setting:
    """The inverse of ``Setting.values``."""
    return Setting(int(values.get("servers_per_gpu", 1)), int(values["slots"]), tuple(values.get("flags", ())))
