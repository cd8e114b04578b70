"""The record in a job's comment: it fits, it survives, and a forged one is nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptolemy.record import MAX_BYTES, STATES, Record, decode, encode

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,40}", fullmatch=True)
RECORDS = st.builds(
    Record,
    service=NAMES,
    revision=st.from_regex(r"[0-9a-f]{12}", fullmatch=True),
    restart=st.integers(0, 10_000),
    state=st.sampled_from(STATES),
    ports=st.sets(st.integers(1, 65535), max_size=128).map(lambda ports: tuple(sorted(ports))),
    slots=st.integers(0, 4096),
)


@given(RECORDS)
def test_a_record_survives_the_comment(record):
    comment = encode(record)
    assert decode(comment) == record
    assert "\n" not in comment


def test_eight_gpus_with_four_servers_on_scattered_ports_fit_uncut():
    ports = tuple(20000 + 16 * gpu + 3 * number + 1024 * (gpu % 3) for gpu in range(8) for number in range(4))
    record = Record("s" * 41, "0123456789ab", 99, "ready", tuple(sorted(ports)), 4096)
    assert len(encode(record)) <= MAX_BYTES
    assert decode(encode(record)) == record


@given(RECORDS, st.text(max_size=3000))
def test_a_reason_is_cut_to_fit_and_nothing_else_is(record, reason):
    failed = Record(**{**record.__dict__, "reason": reason})
    comment = encode(failed)
    assert len(comment.encode()) <= MAX_BYTES
    assert decode(comment).ports == record.ports


def test_a_record_that_cannot_fit_is_refused_rather_than_cut():
    with pytest.raises(ValueError, match="1024"):
        encode(Record("s", "0123456789ab", 0, "ready", tuple(range(1024, 2048, 3)), 1))


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "(null)",
        "hello",
        "[]",
        "{}",
        '{"v":2,"s":"a","r":"0123456789ab","n":0,"st":"ready"}',
        '{"v":1,"s":"../a","r":"0123456789ab","n":0,"st":"ready"}',
        '{"v":1,"s":"a","r":"short","n":0,"st":"ready"}',
        '{"v":1,"s":"a","r":"0123456789ab","n":true,"st":"ready"}',
        '{"v":1,"s":"a","r":"0123456789ab","n":-1,"st":"ready"}',
        '{"v":1,"s":"a","r":"0123456789ab","n":0,"st":"evil"}',
        '{"v":1,"s":"a","r":"0123456789ab","n":0,"st":"ready","p":"0"}',
        '{"v":1,"s":"a","r":"0123456789ab","n":0,"st":"ready","p":"70000"}',
        '{"v":1,"s":"a","r":"0123456789ab","n":0,"st":"ready","p":"1-65535"}',
        '{"v":1,"s":"a","r":"0123456789ab","n":0,"st":"ready","p":"9-8"}',
        '{"v":1,"s":"a","r":"0123456789ab","n":0,"st":"ready","p":"80,80"}',
        '{"v":1,"s":"a","r":"0123456789ab","n":0,"st":"ready","p":[80]}',
        '{"v":1,"s":"a","r":"0123456789ab","n":0,"st":"ready","k":"8"}',
        '{"v":1,"s":"a","r":"0123456789ab","n":0,"st":"ready","k":99999}',
    ],
)
def test_what_is_no_plausible_record_is_none(comment):
    assert decode(comment) is None


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_exception(text):
    decode(text)
