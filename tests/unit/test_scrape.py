"""Where Prometheus finds llama-servers, and the keys with which it asks them."""

from __future__ import annotations

import grp
import json
import os
from pathlib import Path

import pytest

from ptolemy import exporter, scrape
from ptolemy.__main__ import main
from ptolemy.config import Canary, Service
from ptolemy.errors import ConfigError
from ptolemy.failures import Failure
from ptolemy.keys import backend_key
from statuses import BOTH, CHAT, seen
from values import gateway, job, record, server, service

GROUP = grp.getgrgid(os.getegid()).gr_name
SECRET = "the site's backend key"


def test_a_target_is_each_server_with_its_replica_node_and_gpu() -> None:
    jobs = [job(7, CHAT, record=record(CHAT, ports=(20000, 20017)))]
    there = gateway(server(7), server(7, port=20017, up=False))
    assert scrape.targets(seen(jobs, there), "chat", 20000) == [
        {"targets": ["10.0.0.1:20000"], "labels": {"service": "chat", "replica": "7", "node": "n1", "gpu": "0"}},
        {"targets": ["10.0.0.1:20017"], "labels": {"service": "chat", "replica": "7", "node": "n1", "gpu": "1"}},
    ]


def test_what_haproxy_has_not_got_or_no_replica_publishes_is_no_target() -> None:
    jobs = [job(7, CHAT, record=record(CHAT, ports=(20000, 20016)))]
    there = gateway(server(7), server(9, port=20032))
    assert [it["targets"] for it in scrape.targets(seen(jobs, there), "chat", 20000) or ()] == [["10.0.0.1:20000"]]


def test_a_service_without_servers_has_no_targets_and_one_that_is_not_there_is_unknown() -> None:
    assert scrape.targets(seen(), "chat", 20000) == []
    assert scrape.targets(seen(), "chats", 20000) is None


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """The file of the site's key, and the directory of the services'."""
    (tmp_path / "backend.key").write_text(SECRET + "\n")
    (tmp_path / "keys").mkdir()
    return tmp_path / "backend.key", tmp_path / "keys"


def write(places: tuple[Path, Path], *names: str, group: str = GROUP) -> list[str]:
    return write_keys(places, *map(service, names), group=group)


def write_keys(places: tuple[Path, Path], *services: Service, group: str = GROUP) -> list[str]:
    return list(scrape.write_keys({it.name: it for it in services}, str(places[0]), str(places[1]), group))


def test_each_service_has_a_key_that_only_the_group_may_read(places: tuple[Path, Path]) -> None:
    told = write(places, "chat", "embed")
    assert [Path(line.partition(":")[0]).name for line in told] == ["chat.key", "embed.key"]
    assert (places[1] / "chat.key").read_text() == backend_key("chat", SECRET)
    assert {path.stat().st_mode & 0o777 for path in places[1].iterdir()} == {0o640}
    assert not [line for line in told if SECRET in line or backend_key("chat", SECRET) in line]


def test_a_second_run_changes_nothing_and_a_new_secret_or_mode_is_mended(places: tuple[Path, Path]) -> None:
    write(places, "chat", "embed")
    assert write(places, "chat", "embed") == []
    (places[1] / "chat.key").chmod(0o644)
    assert len(write(places, "chat", "embed")) == 1
    places[0].write_text("another one of the site")
    assert len(write(places, "chat", "embed")) == 2
    assert (places[1] / "embed.key").read_text() == backend_key("embed", "another one of the site")


def test_the_key_of_a_service_that_is_gone_is_removed_and_other_files_stay(places: tuple[Path, Path]) -> None:
    write(places, "chat", "embed")
    (places[1] / "README").write_text("")
    assert write(places, "chat") == [f"{places[1]}/embed.key: removed"]
    assert sorted(os.listdir(places[1])) == ["README", "chat.key"]


def test_a_service_of_pictures_has_no_metrics_to_ask_for_and_its_key_is_not_written(places: tuple[Path, Path]) -> None:
    (places[1] / "draw.key").write_text("of an earlier version")
    told = write_keys(places, service("chat"), service("draw", kind="comfyui"))
    assert told == [f"{places[1]}/chat.key: written", f"{places[1]}/draw.key: removed"]


@pytest.mark.parametrize(
    ("group", "secret", "words"), [("no-such-group", SECRET, "no such group"), (GROUP, " \n", "is empty"), (GROUP, None, "backend.key")]
)
def test_what_is_missing_is_named(places: tuple[Path, Path], group: str, secret: str | None, words: str) -> None:
    places[0].unlink() if secret is None else places[0].write_text(secret)
    with pytest.raises(ConfigError, match=words):
        write(places, "chat", group=group)


def test_the_command_prints_names_and_no_keys(places: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    services = tmp_path / "services.json"
    services.write_text(json.dumps({"site": {"user": "p", "uid": 1}, "services": {}}))
    (places[1] / "chat.key").write_text("old")
    given = ["--services", str(services), "--backend-key", str(places[0]), "--into", str(places[1]), "--group", GROUP]
    assert main(["scrape-keys", *given]) == 0
    assert capsys.readouterr().out == f"{places[1]}/chat.key: removed\n"


def lines(**fields: object) -> list[str]:
    return list(exporter.metrics(seen(**fields)))  # type: ignore[arg-type]


def test_replicas_are_counted_by_state_and_gpus_by_node() -> None:
    told = lines(jobs=[*BOTH[0], job(3, CHAT, slurm="PENDING"), job(4, CHAT, state="starting")], there=BOTH[1])
    for state, count in (("waiting", 1), ("starting", 1), ("ready", 2), ("draining", 0), ("failed", 0)):
        assert f'ptolemy_replicas{{service="chat",state="{state}"}} {count}' in told
    assert 'ptolemy_gpus{service="chat",node="n1"} 3' in told


def test_failures_count_until_a_replica_serves() -> None:
    failed = [Failure(number, CHAT.revision, "n1", 1200.0 + number, "words") for number in (1, 2, 3)]
    assert 'ptolemy_replica_failures{service="chat"} 3' in lines(failures=failed)
    over = [Failure(it.job_id, it.revision, it.node, it.at, it.reason, over=True) for it in failed]
    assert 'ptolemy_replica_failures{service="chat"} 0' in lines(failures=over)


def test_a_rollout_is_told_with_its_age_and_share_and_its_canary_is_not_outdated() -> None:
    new = service(size=2, model="demo-q4", model_sha256="1" * 64)
    old = service(size=2, model="demo-q2", model_sha256="2" * 64)
    told = lines(
        jobs=[job(1, CHAT), job(2, new), job(3, old)], there=BOTH[1], canary=Canary(new, asked_at=1100.0, share=0.1, shared_at=1200.0)
    )
    assert 'ptolemy_rollout_start_timestamp_seconds{service="chat"} 1100.0' in told
    assert 'ptolemy_rollout_share{service="chat"} 0.1' in told
    assert 'ptolemy_rollout_failures{service="chat"} 0' in told
    assert 'ptolemy_replicas_outdated{service="chat"} 1' in told
    assert not [line for line in lines() if line.startswith("ptolemy_rollout")]
