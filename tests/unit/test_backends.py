"""The backends planner: what is added, drained and removed, and in which order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ptolemy.backends import ADD, DRAIN, READY, REMOVE, SEVER, plan
from values import endpoint, gateway, server


def verbs(result):
    return [str(change) for change in result]


def test_a_published_endpoint_is_added_with_an_id_of_its_own():
    result = plan([endpoint(1), endpoint(2)], gateway(server(3, id=1000)))
    added = [change for change in result if change.verb == ADD]
    assert [change.id for change in added] == [1001, 1002]
    assert verbs(result) == ["add svc_chat/j1r0p20000", "add svc_chat/j2r0p20000", "drain svc_chat/j3r0p20000"]


def test_what_is_in_step_changes_nothing():
    assert plan([endpoint(1)], gateway(server(1))) == ()


def test_a_busy_server_drains_and_is_removed_only_once_idle():
    busy = server(1, in_flight=3)
    assert verbs(plan([], gateway(busy))) == ["drain svc_chat/j1r0p20000"]
    assert verbs(plan([], gateway(replace(busy, admin="drain")))) == []
    assert verbs(plan([], gateway(replace(busy, admin="drain", in_flight=0)))) == ["remove svc_chat/j1r0p20000"]


def test_a_server_left_in_maintenance_by_a_killed_daemon_is_made_ready():
    assert verbs(plan([endpoint(1)], gateway(server(1, admin="maint", up=False)))) == ["ready svc_chat/j1r0p20000"]


def test_a_drained_server_that_is_wanted_again_is_made_ready():
    assert verbs(plan([endpoint(1)], gateway(server(1, admin="drain")))) == ["ready svc_chat/j1r0p20000"]


def test_a_server_that_points_elsewhere_is_taken_out_before_its_name_is_used_again():
    moved = endpoint(1, address="10.0.0.9")
    assert verbs(plan([moved], gateway(server(1)))) == ["drain svc_chat/j1r0p20000"]


def test_an_endpoint_without_a_backend_is_left_out():
    assert plan([endpoint(1, backend="svc_other")], gateway()) == ()


def test_requests_on_a_server_that_stays_down_are_cut_and_counted():
    frozen = server(1, up=False, in_flight=3, unchanged=30)
    assert verbs(plan([endpoint(1)], gateway(frozen))) == ["sever svc_chat/j1r0p20000 (3 requests cut)"]
    assert verbs(plan([endpoint(1)], gateway(replace(frozen, unchanged=29)))) == []
    assert verbs(plan([endpoint(1)], gateway(replace(frozen, up=True)))) == []


def test_hold_is_told_when_a_backend_gets_its_first_server_and_loses_its_last():
    asleep, awake = {"svc_chat": False}, {"svc_chat": True}
    assert verbs(plan([endpoint(1)], gateway(awake=asleep))) == ["add svc_chat/j1r0p20000", "wake svc_chat"]
    assert verbs(plan([endpoint(1)], gateway(server(1), awake=asleep))) == ["wake svc_chat"]
    assert verbs(plan([], gateway(awake={"svc_chat": None}))) == ["sleep svc_chat"]
    assert verbs(plan([endpoint(1)], gateway(server(1, listed=False), awake=awake))) == ["ready svc_chat/j1r0p20000"]
    assert verbs(plan([endpoint(1)], gateway(server(1), awake=awake))) == []
    assert verbs(plan([endpoint(1)], gateway(server(1, up=False), awake=awake))) == ["sleep svc_chat"]
    assert verbs(plan([], gateway(server(1), awake=awake))) == ["sleep svc_chat", "drain svc_chat/j1r0p20000"]


SERVERS = st.lists(
    st.builds(
        server,
        st.integers(1, 6),
        st.sampled_from([20000, 20001]),
        st.sampled_from(["svc_chat", "svc_code"]),
        admin=st.sampled_from(["ready", "drain", "maint"]),
        up=st.booleans(),
        in_flight=st.integers(0, 2),
        unchanged=st.sampled_from([0, 60]),
    ),
    unique_by=lambda made: (made.backend, made.name),
)
ENDPOINTS = st.lists(
    st.builds(endpoint, st.integers(1, 6), st.sampled_from([20000, 20001]), st.sampled_from(["svc_chat", "svc_code", "svc_gone"])),
    unique_by=lambda made: (made.backend, made.name),
)


@given(ENDPOINTS, SERVERS)
def test_whatever_is_seen_the_plan_is_ordered_safe_and_converges(wanted, servers):
    seen = gateway(*servers, backends=("svc_chat", "svc_code"))
    result = plan(wanted, seen)
    order = [(ADD, READY, DRAIN, SEVER, REMOVE).index(change.verb) for change in result]
    assert order == sorted(order)
    present = {(made.backend, made.name): made for made in servers}
    for change in result:
        if change.verb == REMOVE:
            assert not present[change.backend, change.name].in_flight
            assert present[change.backend, change.name].admin != "ready"

    for _ in range(4):
        seen = _apply(plan(wanted, seen), seen)
    kept = {(made.backend, made.name) for made in seen.servers if made.admin == "ready"}
    assert kept == {(made.backend, made.name) for made in wanted if made.backend in seen.queued}


def _apply(result, seen):
    servers = {(made.backend, made.name): replace(made, in_flight=0) for made in seen.servers}
    for change in result:
        key = (change.backend, change.name)
        if change.verb == ADD:
            made = change.endpoint
            assert change.id not in {other.id for other in servers.values() if other.backend == change.backend}
            servers[key] = server(backend=made.backend, name=made.name, address=made.address, port=made.port, id=change.id)
        elif change.verb == REMOVE:
            del servers[key]
        elif change.verb != SEVER:
            servers[key] = replace(servers[key], admin={READY: "ready", DRAIN: "drain"}[change.verb])
    return replace(seen, servers=tuple(servers.values()))
