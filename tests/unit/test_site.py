"""The checks of a site's variables: what an administrator may get wrong, and which line tells."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ptolemy.partitions import Partition, from_sinfo, from_variables, gpus_of, hosts, seconds
from ptolemy.site import PLACEHOLDER, Problem, check, where

CHECKOUT = Path(__file__).parents[2]
GROUPS = {"gateway": ["gw"], "compute": ["n1", "n2"], "all": ["gw", "n1", "n2"], "ungrouped": []}
PARTITIONS = {"gpu": Partition(8, 16, 7 * 86400), "cpu": Partition(), "later": Partition(None, None)}


def site(**changes: Any) -> dict[str, Any]:
    """A right site, with some of its variables changed."""
    right = {
        "slurm_managed": False,
        "ptolemy_user": "ptolemy",
        "ptolemy_uid": 6030,
        "ptolemy_models": {
            "demo": {
                "file": "demo-f16.gguf",
                "source": "/srv/demo-f16.gguf",
                "sha256": "0" * 64,
                "licence": "Apache-2.0",
                "notes": "random",
            }
        },
        "ptolemy_services": {
            "chat": {
                "model": "demo",
                "min": 2,
                "max": 2,
                "partition": "gpu",
                "gpus": 1,
                "servers_per_gpu": 4,
                "slots": 8,
                "context": 4096,
                "time_limit": "1-00:00:00",
                "cpus_per_gpu": 8,
                "memory_per_gpu": "32G",
                "flags": ["--cache-ram", "0"],
            }
        },
        "ptolemy_api_key": "a" * 40,
        "ptolemy_backend_key": "b" * 40,
        "haproxy_port": 8080,
        "haproxy_stats_bind": "127.0.0.1:8404",
        "ptolemyd_port_first": 20000,
        "ptolemyd_port_last": 29999,
    }
    return copy.deepcopy({**right, **changes})


def with_service(**changes: Any) -> dict[str, Any]:
    services = site()["ptolemy_services"]
    services["chat"].update(changes)
    return site(ptolemy_services=services)


def with_model(**changes: Any) -> dict[str, Any]:
    models = site()["ptolemy_models"]
    models["demo"].update(changes)
    return site(ptolemy_models=models)


def complaints(variables: dict[str, Any], groups: Any = GROUPS, partitions: Any = PARTITIONS, defined: Any = ()) -> dict[str, str]:
    return {problem.variable: problem.message for problem in check(variables, groups, partitions, defined)}


def test_a_right_site_has_no_problem() -> None:
    assert check(site(), GROUPS, PARTITIONS) == []


def test_everything_optional_may_be_set() -> None:
    given = with_service(sbatch_options=["--account=ai"], start_timeout=60, stop_grace=10, drain_before_end=600)
    assert check(given, GROUPS, PARTITIONS) == []


REQUIRED = sorted(site().keys())


@pytest.mark.parametrize("name", REQUIRED)
def test_each_variable_is_required(name: str) -> None:
    variables = site()
    del variables[name]
    # A missing catalogue also makes the services' model unknown.
    assert "is not set" in complaints(variables)[name]


@pytest.mark.parametrize("key", sorted(site()["ptolemy_services"]["chat"].keys() - {"flags"}))
def test_each_key_of_a_service_is_required(key: str) -> None:
    variables = site()
    del variables["ptolemy_services"]["chat"][key]
    assert complaints(variables) == {f"ptolemy_services.chat.{key}": "is not set"}


@pytest.mark.parametrize("key", ["file", "source", "sha256", "licence"])
def test_each_key_of_a_model_but_notes_is_required(key: str) -> None:
    variables = site()
    del variables["ptolemy_models"]["demo"][key]
    assert complaints(variables) == {f"ptolemy_models.demo.{key}": "is not set"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min", -1),
        ("max", "2"),
        ("min", True),
        ("gpus", 0),
        ("servers_per_gpu", 0),
        ("servers_per_gpu", 17),
        ("slots", 0),
        ("context", 255),
        ("cpus_per_gpu", 0),
        ("memory_per_gpu", "32 GB"),
        ("memory_per_gpu", 32),
        ("time_limit", "1 day"),
        ("time_limit", "UNLIMITED"),
        ("time_limit", "0"),
        ("time_limit", 86400),
        ("partition", "gpu,cpu"),
        ("flags", "--cache-ram 0"),
        ("flags", ["--cache-ram", 0]),
        ("flags", ["--port=8080"]),
        ("sbatch_options", ["--array=1-4"]),
        ("start_timeout", 0),
        ("drain_before_end", 70000),
    ],
)
def test_a_wrong_value_in_a_service_is_named(key: str, value: object) -> None:
    assert list(complaints(with_service(**{key: value}))) == [f"ptolemy_services.chat.{key}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", "demo.bin"),
        ("file", "sub/demo.gguf"),
        ("source", "demo.gguf"),
        ("source", "file://host/demo.gguf"),
        ("sha256", "0" * 63),
        ("sha256", "A" * 64),
        ("licence", " "),
    ],
)
def test_a_wrong_value_in_a_model_is_named(key: str, value: object) -> None:
    assert list(complaints(with_model(**{key: value}))) == [f"ptolemy_models.demo.{key}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slurm_managed", "yes"),
        ("ptolemy_user", "root"),
        ("ptolemy_user", "Pt olemy"),
        ("ptolemy_uid", 0),
        ("ptolemy_uid", "6030"),
        ("ptolemy_models", {}),
        ("ptolemy_services", {}),
        ("ptolemy_services", ["chat"]),
        ("haproxy_port", 0),
        ("haproxy_stats_bind", "8404"),
    ],
)
def test_a_wrong_value_of_a_variable_is_named(name: str, value: object) -> None:
    assert name in complaints(site(**{name: value}))


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("80G", "ptolemy_gpu_memory: must be a dictionary of partitions, as {gpu: 80G}"),
        ({"gpu": "80GB"}, "ptolemy_gpu_memory.gpu: must be an amount of memory in Slurm's notation, as 32G, not '80GB'"),
        ({"gpu": 80}, "ptolemy_gpu_memory.gpu: must be an amount of memory"),
        ({"gqu": "80G"}, "ptolemy_gpu_memory.gqu: Slurm has no partition 'gqu' (did you mean 'gpu'?)"),
    ],
)
def test_the_memory_of_gpus_is_by_partition(value: object, line: str) -> None:
    assert not check(site(ptolemy_gpu_memory={"gpu": "80G"}), GROUPS, PARTITIONS)
    (problem,) = check(site(ptolemy_gpu_memory=value), GROUPS, PARTITIONS)
    assert problem.line("x").startswith(line)


def test_an_unknown_model_is_named_with_the_likely_one() -> None:
    assert complaints(with_service(model="dmeo")) == {
        "ptolemy_services.chat.model": "no model 'dmeo' in ptolemy_models (did you mean 'demo'?)"
    }


def test_an_unknown_key_is_named_with_the_likely_one() -> None:
    assert complaints(with_service(target_lod=0.5)) == {"ptolemy_services.chat.target_lod": "unknown key (did you mean 'target_load'?)"}
    assert complaints(with_model(license="MIT")) == {"ptolemy_models.demo.license": "unknown key (did you mean 'licence'?)"}


def test_a_misspelt_variable_is_recognised() -> None:
    variables = site()
    del variables["ptolemy_services"]
    assert complaints(variables, defined=["ptolemy_servces", *variables]) == {
        "ptolemy_services": "is not set (did you mean 'ptolemy_servces'?)"
    }


@pytest.mark.parametrize("name", ["Chat", "-chat", "a b", "x" * 42, 7])
def test_a_name_that_the_control_plane_would_refuse_is_refused(name: object) -> None:
    service = site()["ptolemy_services"]["chat"]
    assert f"ptolemy_services.{name}" in complaints(site(ptolemy_services={name: service}))


def test_two_models_may_not_share_a_file() -> None:
    models = site()["ptolemy_models"]
    models["other"] = dict(models["demo"])
    assert complaints(site(ptolemy_models=models)) == {"ptolemy_models.other.file": "'demo-f16.gguf' is also the file of model 'demo'"}


@pytest.mark.parametrize("value", [PLACEHOLDER, f"{PLACEHOLDER}: sha256sum of the file"])
def test_a_placeholder_is_refused_wherever_it_stands(value: str) -> None:
    assert complaints(with_model(sha256=value)) == {"ptolemy_models.demo.sha256": "still holds the example's placeholder"}
    assert complaints(with_service(partition=value)) == {"ptolemy_services.chat.partition": "still holds the example's placeholder"}
    assert complaints(site(ptolemy_api_key=value)) == {"ptolemy_api_key": "still holds the example's placeholder"}


@pytest.mark.parametrize("key", ["short-key-of-19-char", "with space " + "x" * 20, 12345678901234567890, "", f"{PLACEHOLDER}-secret"])
def test_a_weak_key_is_refused_and_never_shown(key: object) -> None:
    key = key[:19] if key == "short-key-of-19-char" else key
    problems = check(site(ptolemy_api_key=key), GROUPS, PARTITIONS)
    assert [problem.variable for problem in problems] == ["ptolemy_api_key"]
    assert not key or str(key) not in problems[0].line("vault.yml")


def test_equal_keys_are_refused() -> None:
    assert list(complaints(site(ptolemy_backend_key="a" * 40))) == ["ptolemy_backend_key"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"haproxy_stats_bind": "127.0.0.1:8080"}, "haproxy_stats_bind"),
        ({"haproxy_port": 20500}, "haproxy_port"),
        ({"haproxy_stats_bind": "127.0.0.1:29999"}, "haproxy_stats_bind"),
        ({"ptolemyd_port_last": 32768}, "ptolemyd_port_last"),
        ({"ptolemyd_port_last": 20100}, "ptolemyd_port_last"),
        ({"ptolemyd_port_first": 80}, "ptolemyd_port_first"),
    ],
)
def test_ports_that_clash_are_named(changes: dict[str, Any], named: str) -> None:
    assert list(complaints(site(**changes))) == [named]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"partition": "gpuu"}, "partition"),
        ({"partition": "cpu"}, "partition"),
        ({"gpus": 9, "min": 1}, "gpus"),
        ({"min": 17, "max": 17}, "min"),
        ({"time_limit": "8-00:00:00"}, "time_limit"),
        ({"time_limit": "5:00"}, "time_limit"),
    ],
)
def test_what_slurm_could_never_run_is_named(changes: dict[str, Any], named: str) -> None:
    assert list(complaints(with_service(**changes))) == [f"ptolemy_services.chat.{named}"]


def test_the_gpus_of_all_services_of_a_partition_count() -> None:
    service = {**site()["ptolemy_services"]["chat"], "min": 9, "max": 9}
    assert list(complaints(site(ptolemy_services={"a": service, "b": service, "c": service}))) == ["ptolemy_services.b.min"]


def test_unknown_partitions_or_gpus_are_not_held_against_a_service() -> None:
    assert complaints(with_service(partition="nowhere"), partitions=None) == {}
    assert complaints(with_service(partition="later", gpus=16)) == {}


def test_groups_need_hosts_and_one_gateway() -> None:
    assert list(complaints(site(), groups={"all": []})) == ["group gateway", "group compute"]
    assert list(complaints(site(), groups={**GROUPS, "gateway": ["a", "b"]})) == ["group gateway"]
    assert complaints(site(), groups={"gateways": ["a"], "compute": ["n1"]})["group gateway"].endswith("(did you mean 'gateways'?)")


def test_a_managed_slurm_needs_its_own_variables_and_a_controller() -> None:
    managed = site(slurm_managed=True)
    assert list(complaints(managed)) == ["group slurm_controller", "slurm_cluster_name", "slurm_partitions"]
    given = {**managed, "slurm_cluster_name": "lab", "slurm_partitions": [{"name": "gpu"}]}
    assert complaints(given, groups={**GROUPS, "slurm_controller": ["gw"]}) == {}


def test_a_problem_is_one_line() -> None:
    line = Problem("a.b", "sinfo says:\n  no\tsuch file", "mend it").line("inventory/x.yml")
    assert line == "a.b: sinfo says: no such file — mend it in inventory/x.yml"


# ------------------------------------------------------------------------------------------------------------ partitions


def test_sinfo_is_read_whatever_the_gpus_are_called() -> None:
    output = "gpu* gpu:a100:8(S:0-1) 6 7-00:00:00\ngpu* gpu:4 2 7-00:00:00\ncpu (null) 10 infinite\nmixed gpu:a:2,gpu:b:1,shard:8 1 30:00\n"
    assert from_sinfo(output) == {
        "gpu": Partition(8, 56, 7 * 86400),
        "cpu": Partition(0, 0, None),
        "mixed": Partition(3, 3, 1800),
    }


@pytest.mark.parametrize("output", ["", "slurm_load_partitions: Unable to contact slurm controller\n", "gpu* gpu:8 many infinite\n"])
def test_what_sinfo_never_prints_is_an_error_and_not_an_empty_cluster(output: str) -> None:
    with pytest.raises(ValueError, match="sinfo printed"):
        from_sinfo(output)


@pytest.mark.parametrize(("gres", "count"), [("gpu:8", 8), ("(null)", 0), ("gpu:a100:8(S:0,1),gpu:v100:2", 10), ("gpumem:8", 0), ("", 0)])
def test_gpus_are_counted(gres: str, count: int) -> None:
    assert gpus_of(gres) == count


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("30", 1800), ("30:15", 1815), ("1:00:00", 3600), ("1-0", 86400), ("1-2:3", 93780), ("1-02:03:04", 93784), ("infinite", 0), ("", 0)],
)
def test_time_limits_are_read_as_slurm_does(limit: str, expected: int) -> None:
    assert seconds(limit) == expected


def test_lists_of_hosts_are_expanded() -> None:
    assert list(hosts("n[1-2,07],gw,r[1-2]n[3-4]")) == ["n1", "n2", "n07", "gw", "r1n3", "r1n4", "r2n3", "r2n4"]
    with pytest.raises(ValueError, match="no list of nodes"):
        list(hosts("n[a-b]"))


def test_declared_partitions_count_their_nodes_gpus() -> None:
    declared = [
        {"name": "all"},
        {"name": "few", "nodes": "n[1-2]", "options": {"MaxTime": "1:00:00"}},
        {"name": "none", "nodes": ["n3"]},
        {"name": "unseen", "nodes": ["n1", "elsewhere"]},
    ]
    assert from_variables(declared, {"n1": 8, "n2": 4, "n3": 0}) == {
        "all": Partition(8, 12),
        "few": Partition(8, 12, 3600),
        "none": Partition(0, 0),
        "unseen": Partition(None, None),
    }


# ----------------------------------------------------------------------------------------------------------------- files


def test_the_file_that_wins_is_named() -> None:
    files = {
        "i/group_vars/all/a.yml": "haproxy_port: 1\nptolemy_user: x\n",
        "i/group_vars/gateway.yml": "haproxy_port: 2\n",
        "i/group_vars/all/vault.yml.example": "ptolemy_user: y\nptolemy_api_key: z\n",
        "i/group_vars/all/b.yml": "nested:\n  ptolemy_uid: 1\n# ptolemy_uid: 2\n",
    }
    assert where("haproxy_port", files) == "i/group_vars/gateway.yml"
    assert where("ptolemy_user", files) == "i/group_vars/all/a.yml"
    assert where("ptolemy_api_key", files) == "i/group_vars/all/vault.yml.example"
    assert where("ptolemy_uid", files) is None


@pytest.mark.slow
def test_the_playbook_stops_with_a_line_for_each_mistake(tmp_path: Path) -> None:
    inventory = tmp_path / "lab"
    shutil.copytree(CHECKOUT / "inventory" / "lab", inventory)
    variables = inventory / "group_vars" / "all"
    (variables / "zz-mistakes.yml").write_text(
        "haproxy_stats_bind: 127.0.0.1:8080\nslurm_fake_gpus: 0\nslurm_gpus_per_node: 0\n", encoding="utf-8"
    )
    services, account = variables / "services.yml", variables / "ptolemy.yml"
    services.write_text(services.read_text(encoding="utf-8").replace("model: demo\n", "model: dmeo\n"), encoding="utf-8")
    account.write_text(account.read_text(encoding="utf-8").replace("ptolemy_uid:", "ptolemy_uidd:"), encoding="utf-8")

    environment = {**os.environ, "LAB_STATE_DIR": str(tmp_path / "state"), "ANSIBLE_FORCE_COLOR": "0"}
    argv = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), "playbooks/validate.yml", "--check"]
    done = subprocess.run(argv, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 2, done.stdout + done.stderr
    said = done.stdout + done.stderr
    for line in (
        f"ptolemy_uid: is not set (did you mean 'ptolemy_uidd'?) — set it in {variables}/\n",
        f"ptolemy_services.demo.model: no model 'dmeo' in ptolemy_models (did you mean 'demo'?) — set it in {variables}/services.yml\n",
        "ptolemy_services.demo.partition: no node of partition 'gpu' has a GPU (partitions with GPUs: none) — "
        f"set it in {variables}/services.yml\n",
        f"haproxy_stats_bind: port 8080 is also haproxy_port — set another port in {variables}/zz-mistakes.yml\n",
    ):
        assert line in said
    for secret in (tmp_path / "state").iterdir():
        assert secret.read_text(encoding="utf-8").strip() not in said
