"""A golden set: questions with known answers, sent to a replica directly, before clients reach it."""

from __future__ import annotations

import concurrent.futures
import json
import math
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from .errors import ConfigError, PtolemyError

MOST_TOKENS = 256  # of an answer, unless a case says otherwise
SHOWN = 5  # wrong answers that a report shows
_CALLED = {str: "a text", list: "a list", dict: "a dictionary"}
ANSWERS = ("expect", "matches", "json")
KEYS = ("ask", "messages", "max_tokens", *ANSWERS)


@dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
        messages: the chat, in OpenAI's notation.
        expect: the whole answer, but for case and white space around it; None where another check holds.
        matches: a regular expression that the answer must contain; None likewise.
        json: keys and values that the answer, a JSON object, must have; None likewise.
        max_tokens: of the answer.
    """

    messages: Sequence[Mapping[str, Any]]
    expect: str | None = None
    matches: str | None = None
    json: Mapping[str, Any] | None = None
    max_tokens: int = MOST_TOKENS

    def right(self, answer: str) -> bool:
        """Whether an answer is right. One without a check need only say something."""
        if self.expect is not None:
            return answer.strip().casefold() == self.expect.strip().casefold()
        if self.matches is not None:
            return re.search(self.matches, answer) is not None
        if self.json is None:
            return bool(answer.strip())
        try:
            found = json.loads(answer)
        except ValueError:
            return False
        return isinstance(found, dict) and all(key in found and found[key] == value for key, value in self.json.items())

    @property
    def wanted(self) -> str:
        """The right answer, for people."""
        return next((repr(value) for value in (self.expect, self.matches, self.json) if value is not None), "an answer")


@dataclass(frozen=True)
class Report:
    """How a replica did.

    Attributes:
        asked: how many questions.
        right: how many of them were answered as they should be.
        seconds: how long each answer took, sorted.
        wrong: one sentence for each of the first few answers that were not right.
    """

    asked: int
    right: int
    seconds: Sequence[float]
    wrong: Sequence[str]

    @property
    def score(self) -> float:
        """The share of right answers."""
        return self.right / self.asked

    @property
    def latency(self) -> float:
        """Seconds within which 95 of 100 answers came (nearest rank)."""
        return self.seconds[max(math.ceil(0.95 * len(self.seconds)) - 1, 0)]


SMOKE = Case(({"role": "user", "content": "Hello"},), max_tokens=16)


def cases(given: Any, where: str) -> list[Case]:
    """Check and read the questions.

    Args:
        given: a list of dictionaries: ``ask`` (text) or ``messages``, one of ``ANSWERS``, and ``max_tokens`` if need be.
        where: the variable that holds them, for the messages.

    Raises:
        ConfigError: they are not of that form.
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ConfigError(f"{where}: must be a list of questions, each with ask and one of {', '.join(ANSWERS)}")
    return [_case(entry, f"{where}[{number}]") for number, entry in enumerate(given)]


def _case(given: Any, where: str) -> Case:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: must be a dictionary with ask and one of {', '.join(ANSWERS)}")
    for key in given:
        if key not in KEYS:
            raise ConfigError(f"{where}.{key}: unknown key; known are {', '.join(KEYS)}")
    if ("ask" in given) == ("messages" in given):
        raise ConfigError(f"{where}: needs either ask (a text) or messages (a chat)")
    if sum(key in given for key in ANSWERS) != 1:
        raise ConfigError(f"{where}: needs one of {', '.join(ANSWERS)}")
    for key, kind in (("ask", str), ("messages", list), ("expect", str), ("matches", str), ("json", dict)):
        if not isinstance(given.get(key, kind()), kind):
            raise ConfigError(f"{where}.{key}: must be {_CALLED[kind]}")
    try:
        re.compile(given.get("matches", ""))
    except re.error as error:
        raise ConfigError(f"{where}.matches: is no regular expression ({error})") from error
    tokens = given.get("max_tokens", MOST_TOKENS)
    if type(tokens) is not int or tokens < 1:
        raise ConfigError(f"{where}.max_tokens: must be a whole number, 1 or more")
    messages = given.get("messages") or [{"role": "user", "content": given["ask"]}]
    return Case(messages, given.get("expect"), given.get("matches"), given.get("json"), tokens)


def examine(url: str, key: str, service: str, questions: Sequence[Case], at_once: int, timeout: float) -> Report:
    """Ask an endpoint all questions.

    Args:
        url: of the endpoint, as ``http://10.0.0.1:20000``.
        key: the service's backend key.
        service: its name, by which the endpoint answers.
        questions: at least one.
        at_once: how many may be under way: the endpoint's slots, so that none waits.
        timeout: seconds for one answer.

    Raises:
        PtolemyError: the endpoint answered a question with an error, or not in time.
    """

    def ask(case: Case) -> tuple[float, str]:
        began = time.monotonic()
        body = {"model": service, "messages": list(case.messages), "temperature": 0, "max_tokens": case.max_tokens}
        answer = _post(f"{url}/v1/chat/completions", key, body, timeout)
        return time.monotonic() - began, str(answer["choices"][0]["message"].get("content") or "")

    with concurrent.futures.ThreadPoolExecutor(max_workers=at_once) as pool:
        answers = list(pool.map(ask, questions))
    wrong = [(case, answer) for case, (_, answer) in zip(questions, answers) if not case.right(answer)]
    shown = [f"{case.messages[-1].get('content')!r}: wanted {case.wanted}, got {answer[:120]!r}" for case, answer in wrong[:SHOWN]]
    return Report(len(questions), len(questions) - len(wrong), sorted(seconds for seconds, _ in answers), shown)


def embed(url: str, key: str, service: str, timeout: float) -> int:
    """Ask an embedding endpoint for one vector. Returns its length. Raises PtolemyError as ``examine``."""
    answer = _post(f"{url}/v1/embeddings", key, {"model": service, "input": "Hello"}, timeout)
    return len(answer["data"][0]["embedding"])


def paint(url: str, key: str, timeout: float) -> None:
    """Ask a ComfyUI for a picture that needs no model. Raises PtolemyError as ``examine``."""
    image = {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}}
    saved = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "golden"}}
    prompt, deadline = _post(f"{url}/prompt", key, {"prompt": {"1": image, "2": saved}}, timeout)["prompt_id"], time.monotonic() + timeout
    while True:
        told = _post(f"{url}/history/{prompt}", key, None, timeout)
        if told:
            break
        if time.monotonic() > deadline:
            raise PtolemyError(f"{url} painted nothing within {timeout:g} s")
        time.sleep(0.2)
    if not told[prompt]["outputs"]:
        raise PtolemyError(f"{url} painted nothing: {told[prompt].get('status')}")


def _post(url: str, key: str, body: Mapping[str, Any] | None, timeout: float) -> Any:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)  # noqa: S310 - http, see `Trial.endpoints`
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a site's http_proxy does not lead to its own nodes
    try:
        with opener.open(request, timeout=timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise PtolemyError(f"{url} answered {error.code}: {error.read(300).decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise PtolemyError(f"{url} gave no answer: {error}") from error
