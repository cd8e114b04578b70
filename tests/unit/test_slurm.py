"""The Slurm adapter: squeue's text becomes jobs, and what is no answer is an error, never an empty list."""

from __future__ import annotations

import os
import stat

import pytest

from ptolemy.errors import ChangeError, ObservationError
from ptolemy.slurm import Slurm, parse_jobs, parse_nodes

RECORD = '{"v":1,"s":"chat","r":"0123456789ab","n":0,"st":"ready","p":"20000","k":8}'


def line(number=7, state="RUNNING", uid=6030, host="n1", comment=RECORD, restart=0, end="2026-11-22T15:46:58", preempt="N/A"):
    start = "2026-11-22T14:46:58"
    columns = [number, state, uid, restart, host, "2026-11-22T14:46:50", start, end, preempt, "None", "ptolemy-chat", comment]
    return "".join(f"{column!s:<40}|" for column in columns) + "\n"


def test_a_line_of_squeue_becomes_a_job():
    (job,) = parse_jobs(line(), 6030)
    assert (job.id, job.state, job.host, job.name, job.end - job.start) == (7, "RUNNING", "n1", "ptolemy-chat", 3600)
    assert job.record.ports == (20000,)
    assert job.ready


def test_jobs_of_other_users_are_dropped_unread():
    assert parse_jobs(line(uid=1000) + line(8), 6030)[0].id == 8


def test_a_comment_with_bars_and_line_ends_hurts_only_itself():
    jobs = parse_jobs(line(1, comment="a|b\nc|d") + line(2), 6030)
    assert [(job.id, job.record is None) for job in jobs] == [(1, True), (2, False)]


def test_a_requeued_run_is_not_ready_with_the_comment_of_the_last():
    assert not parse_jobs(line(restart=1), 6030)[0].ready


def test_a_job_without_a_host_or_an_end_has_none():
    (job,) = parse_jobs(line(state="PENDING", host="n/a", end="N/A", comment="(null)"), 6030)
    assert (job.host, job.end, job.record) == ("", 0.0, None)


@pytest.mark.parametrize("text", ["nonsense\n", "12|RUNNING\n", line().replace("2026-11-22T14:46:58", "soon"), "oops\n" + line()])
def test_what_cannot_be_read_is_an_error(text):
    with pytest.raises(ObservationError, match="squeue printed"):
        parse_jobs(text, 6030)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Puts a small shell script in the place of a Slurm command."""

    def make(name, body):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return make


def test_no_jobs_is_an_empty_answer(command):
    command("squeue", "exit 0")
    assert Slurm(6030, 5).jobs() == []


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact"),
        ("echo 'squeue: error: Invalid user: 6030' >&2; exit 0", "Invalid user"),
        ("exec sleep 30", "no answer within 0.3 s"),
        ("echo garbage", "no job"),
    ],
    ids=["controller gone", "error with exit status 0", "hung", "garbage"],
)
def test_a_failed_squeue_is_never_an_empty_list(command, body, why):
    command("squeue", body)
    with pytest.raises(ObservationError, match=why):
        Slurm(6030, 0.3 if "sleep" in body else 5).jobs()


@pytest.mark.parametrize(
    ("scontrol", "believed"),
    [
        ("echo 'JobId=7 JobState=RUNNING Reason=None'", False),
        ("echo 'JobId=7 JobState=PENDING Reason=Resources'", False),
        ("echo 'JobId=7 JobState=COMPLETED Reason=None'", True),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", True),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", False),
        ("echo nonsense", False),
    ],
    ids=["running", "waiting", "ended", "forgotten", "controller gone", "garbage"],
)
def test_that_a_job_is_gone_is_believed_only_where_scontrol_agrees(command, scontrol, believed):
    command("squeue", "exit 0")
    command("sinfo", "exit 0")
    command("scontrol", scontrol)
    if believed:
        assert Slurm(6030, 5).jobs(expected={7}) == []
    else:
        with pytest.raises(ObservationError):
            Slurm(6030, 5).jobs(expected={7})


def test_nodes_that_get_no_new_jobs_are_closed():
    states = {
        "n1": "idle",
        "n2": "mixed",
        "n3": "draining",
        "n4": "drained*",
        "n5": "maint",
        "n6": "mixed@",
        "n7": "down*",
        "n8": "failing",
    }
    text = "".join(f"{name}|{name}.cluster|{partition}|{state}\n" for name, state in states.items() for partition in ("gpu", "high"))
    nodes = parse_nodes(text)
    assert [name for name, node in nodes.items() if node.closed] == ["n3", "n4", "n6", "n7", "n8"]
    assert (nodes["n1"].host, nodes["n1"].partitions) == ("n1.cluster", {"gpu", "high"})


def test_a_line_of_sinfo_that_cannot_be_read_is_an_error():
    with pytest.raises(ObservationError, match="no node"):
        parse_nodes("slurm_load_partitions: nonsense\n")


def test_a_job_that_is_being_preempted_is_not_ready():
    (job,) = parse_jobs(line(preempt="2026-11-22T15:00:00"), 6030)
    assert job.preempted
    assert not job.ready


def test_a_missing_program_is_an_error(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ObservationError, match="squeue could not be started"):
        Slurm(6030, 5).jobs()


def test_the_address_of_a_ready_job_is_that_of_its_node(command):
    command("squeue", f"cat <<'E'\n{line()}E")
    command("sinfo", "echo 'n1|127.0.0.7|gpu|mixed'; echo 'n2|127.0.0.8|gpu|idle'")
    assert Slurm(6030, 5).jobs()[0].address == "127.0.0.7"


def test_a_node_whose_name_has_no_address_gives_no_endpoint(command):
    command("squeue", f"cat <<'E'\n{line()}E")
    command("sinfo", "echo 'n1|no such name|gpu|mixed'")
    assert Slurm(6030, 5).jobs()[0].address == ""


def test_a_submitted_job_has_an_id_and_gets_nothing_of_our_environment(command, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/secret")
    command("sbatch", f"cat > {tmp_path}/script; env > {tmp_path}/env; echo '42;ptolemy'")
    assert Slurm(6030, 5).submit("#!/bin/bash\ntrue\n") == 42
    assert (tmp_path / "script").read_text() == "#!/bin/bash\ntrue\n"
    assert "NOTIFY_SOCKET" not in (tmp_path / "env").read_text()


def test_a_refused_submission_says_why(command):
    command("sbatch", "echo 'sbatch: error: invalid partition specified: gpuu' >&2; exit 1")
    with pytest.raises(ChangeError, match="invalid partition specified: gpuu"):
        Slurm(6030, 5).submit("")
