"""The GPU benchmark's own arithmetic, and that its page says what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "bench" / name) for name in ("gpu", "gateway", "")]

import gguf  # noqa: E402

import ceiling  # noqa: E402
import engines  # noqa: E402
import models  # noqa: E402
import performance  # noqa: E402
from client import Answer  # noqa: E402
from loads import LOADS, Load, Prompts  # noqa: E402
from traffic import read  # noqa: E402

WORDS = ["able", "about", "above"]
RESULTS = ROOT / "bench" / "gpu" / "measured.jsonl"


def words(body):
    return [len(message["content"].split()) for message in json.loads(body)["messages"]]


def test_a_prompt_has_as_many_words_as_leave_room_for_the_template():
    # <begin>, a header of four, the words, <end>; the header of the answer: four.
    body, tokens = Prompts(LOADS["chat"], WORDS, "demo").next(0, 7)
    assert (words(body), tokens) == ([390], 400)
    assert json.loads(body)["max_tokens"] == 7
    # The system's message and the header after it are shared: 1 + 4 + n + 1 + 4.
    body, tokens = Prompts(LOADS["short"], WORDS, "demo").next(0, 16)
    assert (words(body), tokens) == ([90, 55], 160)


def test_prompts_share_their_beginning_and_nothing_else():
    prompts = Prompts(LOADS["short"], [f"w{number}" for number in range(1000)], "demo")
    (one, _), (two, _) = prompts.next(0, 16), prompts.next(1, 16)
    first, second = (json.loads(body)["messages"] for body in (one, two))
    assert first[0] == second[0] and first[1] != second[1]


def test_a_conversation_grows_by_a_turn_and_begins_anew_after_its_last():
    load = Load(0, 40, 8, True, 512, "a talk", turns=3, more=10)
    prompts = Prompts(load, WORDS, "demo")
    seen = [prompts.next(5, 8) for _ in range(4)]
    assert [tokens for _, tokens in seen] == [40, 68, 96, 40]
    assert [len(words(body)) for body, _ in seen] == [1, 3, 5, 1]
    for body, tokens in seen:
        assert tokens == 1 + sum(count + 5 for count in words(body)) + 4


def test_the_ceiling_is_a_requests_own_tokens_and_its_answer_each_at_its_best():
    rows = [
        {"pp": 60, "tg": 16, "speed_pp": 1000.0, "speed_tg": 9999.0},
        {"pp": 60, "tg": 16, "speed_pp": 6000.0, "speed_tg": 9999.0},
        {"pp": 1560, "tg": 16, "speed_pp": 9000.0, "speed_tg": 400.0},
        {"pp": 1560, "tg": 16, "speed_pp": 9000.0, "speed_tg": 800.0},
    ]
    assert ceiling.per_second(rows, LOADS["classify"]) == pytest.approx(1 / (60 / 6000 + 16 / 800))
    assert ceiling.per_second(rows, LOADS["chat"]) == 0


def test_a_setup_is_read_and_an_unknown_word_is_named():
    setup = engines.parse("a b, c: servers=2 slots=8 mps gateway=conversation more=-ub,1024 env=A=B=C")
    assert (setup.name, setup.servers, setup.slots, setup.mps, setup.gateway) == ("a b, c", 2, 8, True, "conversation")
    assert setup.flags == (*engines.FLAGS, "-ub", "1024") and setup.environment == {"A": "B=C"}
    assert engines.parse("d: plain slots=0").flags == ()
    assert engines.parse("f: slurm").slurm
    with pytest.raises(ValueError, match="gateway=nginx"):
        engines.parse("e: gateway=nginx")


def stream(*pieces):
    """An answer whose pieces came a microsecond apart."""
    return Answer(0, [(1000 * number, piece) for number, piece in enumerate(pieces, 1)])


def test_a_streams_tokens_have_the_times_at_which_their_last_byte_came():
    def chunk(text):
        data = f"data: {text}\n\n".encode()
        return f"{len(data):x}\r\n".encode() + data + b"\r\n"

    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
    role, one, two = (chunk(json.dumps({"choices": [{"delta": {"content": text}}]})) for text in (None, "a", "b"))
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    last = chunk(json.dumps({"choices": [], "usage": usage}))
    reply = read(stream(head, role, one + two[:20], two[20:], last, b"0\r\n\r\n"), streamed=True)
    assert reply.marks == (3000, 4000)
    assert (reply.first, reply.ended) == (3000, 6000)
    assert (reply.prompt, reply.cached, reply.generated) == (9, 4, 2)
    with pytest.raises(ValueError, match="too long"):
        read(stream(b'HTTP/1.1 400 Bad Request\r\nContent-Length: 10\r\n\r\n"too long"'), streamed=True)


@pytest.mark.parametrize("kind", [models.Kind.Q4_K, models.Kind.Q6_K, models.Kind.Q8_0, models.Kind.F16])
def test_random_blocks_are_weights_of_the_wanted_spread(kind):
    pool = models._pool(kind, np.random.default_rng(3))[: 1 << 12]
    values = gguf.quants.dequantize(pool, kind)
    assert abs(float(values.mean())) < 0.05 * models.SPREAD
    assert float(values.std()) == pytest.approx(models.SPREAD, rel=0.05)


def test_the_page_is_made_of_the_committed_measurements(tmp_path):
    page = tmp_path / "performance.md"
    written = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    page.write_text(written, encoding="utf-8")
    performance.write(page, RESULTS)
    assert page.read_text(encoding="utf-8") == written
    assert (tmp_path / performance.PLOT).read_text() == (ROOT / "docs" / performance.PLOT).read_text()


def test_a_default_on_the_same_card_counts_before_others():
    def row(machine, rate, **setup):
        return {"model": "8b", "machine": machine, "per_second": rate, "setup": {"gpus": 1, "plain": False, "slots": 32, **setup}}

    rows = [row("A", 10.0, plain=True, slots=64), row("B", 20.0, plain=True, slots=64), row("B", 99.0, plain=True, slots=0)]
    assert performance.base(rows, row("B", 50.0)) == 20.0
    assert performance.base(rows, row("C", 50.0)) == 15.0
