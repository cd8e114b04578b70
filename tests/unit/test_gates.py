"""How many batch requests run beside people who chat."""

from __future__ import annotations

import pytest

from ptolemy.gates import FIRST, QUIET, Chat, listen, widths
from ptolemy.gateway import Gate, Gateway
from values import service


def wanted(slots, chat, width=99, share=0.75, now=1000.0):
    demo = service("demo", batch_share=share)
    gateway = Gateway(1, {}, {}, (), {}, {"svc_demo": Gate(width, 0, 0, 0, 0)})
    return widths({"demo": demo}, gateway, {"svc_demo": slots}, {"demo": chat}, now).get("demo")


def test_nobody_chats_and_the_batch_has_every_slot():
    assert wanted(64, Chat()) == 64
    assert wanted(64, Chat(at=1000 - QUIET)) == 64


@pytest.mark.parametrize(("slots", "share", "width"), [(64, 0.75, 48), (8, 0.75, 6), (2, 0.75, 1), (1, 0.75, 1), (64, 1.0, 64)])
def test_somebody_chats_and_slots_are_left_but_never_all(slots, share, width):
    assert wanted(slots, Chat(at=999), share=share) == width


def test_a_gate_is_never_shut_even_without_a_slot():
    assert wanted(0, Chat(at=999)) == FIRST


def test_what_is_right_is_left_alone():
    assert wanted(64, Chat(), width=64) is None


def test_a_chat_is_seen_while_it_runs_and_when_it_came_and_went_between_two_looks():
    seen = listen(Chat(), arrived=5, present=1, now=10.0)
    assert listen(seen, arrived=5, present=1, now=20.0).at == 20
    assert listen(seen, arrived=6, present=0, now=20.0).at == 20
    assert listen(seen, arrived=5, present=0, now=20.0).at == 10
    assert listen(seen, arrived=0, present=0, now=20.0) == Chat(10.0, 0), "another HAProxy counts from 0"
