"""The commands, as people use them, against a stub gateway."""

from __future__ import annotations

import csv
import json
import os
import stat
import subprocess

import pytest

TEXTS = ["train to Cologne", "paper", "train to Cologne", "", "pens, blue"]


def test_classify_gives_every_row_a_label_and_asks_equal_rows_once(site):
    site.write_rows(TEXTS)
    done = site.classify()
    rows = site.output()
    assert [row["text"] for row in rows] == TEXTS
    assert [row["ptolemy_status"] for row in rows] == ["ok", "ok", "ok", "empty", "ok"]
    assert rows[0]["ptolemy_label"] == rows[2]["ptolemy_label"] in {"travel", "office", "other"}
    assert rows[3]["ptolemy_label"] is None
    assert 0 < rows[0]["ptolemy_confidence"] <= 1
    assert sorted(site.asked()) == sorted({text for text in TEXTS if text})
    assert "4 answered, 0 failed, 1 empty" in done.stderr
    assert (site.path / "out.labels.png").read_bytes().startswith(b"\x89PNG")


def test_the_sidecar_says_what_made_the_output(site):
    site.write_rows(TEXTS)
    site.classify("--param", "temperature=0.5")
    facts = site.facts()
    assert facts["input"]["rows"] == 5
    assert facts["rows"] == {"answered": 4, "failed": 0, "empty": 1, "distinct_requests": 3, "asked_in_this_run": 3}
    assert facts["model"]["at_start"]["sha256"] == "5" * 64
    assert facts["request"]["parameters"]["temperature"] == 0.5
    assert facts["request"]["prompt"] == "{{ text }}"
    assert "trains, flights" in facts["request"]["system"]
    assert sum(facts["labels"].values()) == 4
    assert site.facts()["output"]["sha256"]


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.jsonl"])
def test_other_kinds_of_output(site, name):
    site.write_rows(['quo"te', "two\nlines", "carriage\rreturn"])
    site.run("classify", "data.csv", "--text", "text", "--labels", "labels.yml", "-o", name)
    with (site.path / name).open(newline="", encoding="utf-8") as file:
        if name == "out.jsonl":
            rows = [json.loads(line) for line in file]
        else:
            rows = list(csv.DictReader(file, delimiter="\t" if name == "out.tsv" else ","))
    assert [row["text"] for row in rows] == ['quo"te', "two\nlines", "carriage\rreturn"]
    assert {row["ptolemy_status"] for row in rows} == {"ok"}


def test_a_template_sees_all_columns(site):
    (site.path / "prompt.j2").write_text('Line {{ n }}: {{ row["text"] | upper }}{% if n == "1" %}!{% endif %}\n')
    site.write_rows(["a", "b"])
    site.run("classify", "data.csv", "--prompt", "prompt.j2", "--labels", "labels.yml", "-o", "out.parquet")
    assert sorted(site.asked()) == ["Line 0: A", "Line 1: B!"]


def test_several_labels(site):
    site.write_rows(["a"])
    site.classify("--multi")
    assert site.output()[0]["ptolemy_labels"] == []


def test_extract_fills_typed_columns(site):
    schema = {"type": "object", "properties": {"amount": {"type": "integer"}, "name": {"type": "string"}}, "required": ["amount"]}
    (site.path / "s.json").write_text(json.dumps(schema))
    site.write_rows(["abcdefg"])
    site.run("extract", "data.csv", "--text", "text", "--schema", "s.json", "-o", "out.parquet")
    assert (site.output()[0]["ptolemy_amount"], site.output()[0]["ptolemy_name"]) == (7, "abcde")


def batch_line(number: int, text: str, **more) -> str:
    body = {"messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": {**body, **more}}) + "\n"


def test_run_answers_an_openai_batch_file_line_by_line(site):
    (site.path / "in.jsonl").write_text(batch_line(1, "one") + batch_line(2, "POISON") + batch_line(3, "one"))
    site.run("run", "in.jsonl", "-o", "out.jsonl", "--tries", "1", status=1)
    found = [json.loads(line) for line in (site.path / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in found] == ["r1", "r2", "r3"]
    assert found[0]["response"]["body"]["choices"][0]["message"]["content"] == "ONE"
    assert found[1]["response"] is None
    assert found[1]["error"]["message"].startswith("HTTP 500")
    assert site.asked() == ["one", "one"]  # each line is a request of its own


def test_a_batch_files_bodies_name_their_own_models(site):
    (site.path / "in.jsonl").write_text(batch_line(1, "one") + batch_line(2, "two", model="other"))
    for arguments, services in ((), ["stub", "other"]), (("--override-model", "--restart"), ["stub", "stub"]):
        site.run("run", "in.jsonl", "-o", "out.jsonl", *arguments)
        found = [json.loads(line) for line in (site.path / "out.jsonl").read_text().splitlines()]
        assert [line["response"]["body"]["model"] for line in found] == services


def test_a_custom_id_that_comes_twice_is_named(site):
    (site.path / "in.jsonl").write_text(batch_line(1, "one") + batch_line(1, "two"))
    done = site.run("run", "in.jsonl", "-o", "out.jsonl", status=2)
    assert "in.jsonl, line 2: the custom_id 'r1' stands in line 1, too" in done.stderr


def test_a_poisonous_row_is_given_up_and_the_others_are_answered(site):
    site.write_rows(["a", "POISON", "b"])
    done = site.classify("--tries", "2", status=1)
    rows = site.output()
    assert [row["ptolemy_status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["ptolemy_error"] == "HTTP 500: it broke"
    assert "--retry-failed" in done.stderr
    site.write_rows(["a", "POISON", "b"])
    again = site.classify("--tries", "1", "--retry-failed", status=1)
    assert "1 failed requests are asked again" in again.stderr
    assert sorted(site.asked()) == ["a", "b"]


def test_a_mistake_that_fails_every_row_stops_the_run(make_site):
    site = make_site("--broken", "1")
    site.write_rows([str(number) for number in range(500)])
    done = site.classify("--tries", "1", status=2)
    assert "the first 20 requests all failed" in done.stderr
    assert not (site.path / "out.parquet").exists()


def test_refusals_slow_the_run_down_and_fail_no_row(make_site):
    site = make_site("--refuse", "0.3", "--delay", "0.005")
    site.write_rows([str(number) for number in range(300)])
    site.classify("--tries", "1")
    assert sorted(site.asked()) == sorted(str(number) for number in range(300))


def test_a_sample_is_asked_first_and_not_again(site):
    site.write_rows([str(number) for number in range(200)])
    done = site.classify("--sample", "20", "--seed", "3")
    rows = site.output()
    numbers = [int(row["n"]) for row in rows]
    assert len(rows) == 20
    assert numbers == sorted(numbers)
    assert numbers != list(range(20))
    assert "all 200 rows would take about" in done.stderr
    assert len(site.asked()) == 20
    site.classify()
    assert len(site.output()) == 200
    assert sorted(site.asked(), key=int) == [str(number) for number in range(200)]


def test_a_limit_takes_the_first_rows(site):
    site.write_rows([str(number) for number in range(10)])
    site.classify("--limit", "3")
    assert [row["text"] for row in site.output()] == ["0", "1", "2"]


def test_a_dry_run_shows_three_prompts_and_asks_nothing(site):
    site.write_rows(["a", "b", "a", "c", "d", ""])
    done = site.classify("--dry-run")
    assert "[user] c" in done.stderr
    assert "[user] d" not in done.stderr
    assert "6 rows" in done.stderr
    assert "4 distinct requests" in done.stderr
    assert not site.log.exists() or site.asked() == []
    assert not (site.path / "out.parquet.ledger").exists()


def test_json_events_are_lines_for_programs(site):
    site.write_rows(["a", "b"])
    events = [json.loads(line) for line in site.classify("--json").stdout.splitlines()]
    assert {event["event"] for event in events} >= {"step", "progress", "summary"}
    assert events[-1]["event"] == "summary"
    assert (events[-1]["answered"], events[-1]["rows"]) == (2, 2)


def test_another_prompt_does_not_mix_with_old_answers(site):
    site.write_rows(["a"])
    site.classify()
    (site.path / "labels.yml").write_text("[yes please, no thanks]")
    done = site.classify(status=2)
    assert "differs in: labels, parameters, system" in done.stderr
    site.classify("--restart")
    assert site.output()[0]["ptolemy_label"] in {"yes please", "no thanks"}


def test_an_output_of_somebody_else_is_not_replaced(site):
    site.write_rows(["a"])
    (site.path / "out.parquet").write_text("precious")
    assert "--overwrite" in site.classify(status=2).stderr
    assert (site.path / "out.parquet").read_text() == "precious"
    site.classify("--overwrite")
    assert len(site.output()) == 1


def test_a_corrected_input_costs_only_what_is_new(site):
    site.write_rows(["a", "b"])
    site.classify()
    site.write_rows(["a", "c", "b"])
    site.classify()
    assert sorted(site.asked()) == ["a", "b", "c"]
    assert [row["text"] for row in site.output()] == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "txt"), "there is no column 'txt'. The columns are: 'n', 'text'"),
        (("--model", "gpt-9"), "the model 'gpt-9' is unknown, or your key may not use it. Known to your key: stub"),
        (("--url", "http://127.0.0.1:9"), "the gateway cannot be reached"),
        (("--url", "localhost:1"), "must begin with http:// or https://"),
        (("-o", "nowhere/out.csv"), "nowhere/out.csv: cannot write the output: there is no such file or directory"),
        (("-o", "out.doc"), "cannot write .doc"),
        (("--labels", "nothing.yml"), "nothing.yml: cannot read the labels"),
        (("--encoding", "utf-99"), "--encoding"),
        (("--prefix", ""), "already has a column 'status'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_error(site, arguments, message):
    (site.path / "data.csv").write_text("n,text\n1,a\n")
    if arguments[0] == "--prefix":
        (site.path / "data.csv").write_text("n,text,status\n1,a,x\n")
    done = site.classify(*arguments, status=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_wrong_key_is_said_to_be_wrong(site):
    site.write_rows(["a"])
    (site.path / "wrong").write_text("wrong")
    (site.path / "wrong").chmod(0o600)
    assert "the key is not accepted" in site.classify("--key-file", "wrong", status=2).stderr


def test_settings_come_from_the_users_file_which_only_the_user_may_read(site):
    site.write_rows(["a"])
    own = site.path / "config" / "ptolemy" / "client.yml"
    own.parent.mkdir(parents=True)
    own.write_text(f"url: {site.url}\nkey: {(site.path / 'key').read_text()}\nmodel: stub\n")
    own.chmod(0o644)
    for name in ("PTOLEMY_URL", "PTOLEMY_MODEL"):
        del site.environment[name]
    command = ["classify", "data.csv", "--text", "text", "--labels", "labels.yml", "-o", "out.parquet"]
    site.argv = lambda *arguments: [*type(site).argv(site, "evaluate")[:-1], *arguments]  # without --key-file
    assert f"chmod 600 {own}" in site.run(*command, status=2).stderr
    own.chmod(stat.S_IRUSR | stat.S_IWUSR)
    site.run(*command)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk_is_said_to_be_full_and_the_run_goes_on_later(site):
    small = site.path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(small)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this machine may not mount")
    try:
        site.write_rows([f"row {number} {'x' * 100}" for number in range(5000)])
        command = ["classify", "data.csv", "--text", "text", "--labels", "labels.yml", "-o", "small/out.parquet"]
        assert "disk is full" in site.run(*command, status=2).stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        site.run(*command)
        assert len(site.output("small/out.parquet")) == 5000
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_evaluate_compares_with_the_truth(site):
    lines = ["text,truth,ptolemy_label", "a,x,x", "b,x,y", "c,y,y", "d,y,", "e,,x"]
    (site.path / "out.csv").write_text("\n".join(lines) + "\n")
    done = site.run("evaluate", "out.csv", "--truth", "truth", "--json")
    found = json.loads(done.stdout)
    assert (found["rows"], found["unjudged"], found["accuracy"]) == (4, 1, 0.5)
    assert found["labels"]["x"] == {"truth": 2, "given": 1, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert found["labels"]["y"]["precision"] == 0.5
    assert (site.path / "out.confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "accuracy 0.5000 over 4 rows" in site.run("evaluate", "out.csv", "--truth", "truth").stdout
    assert "The columns are" in site.run("evaluate", "out.csv", "--truth", "thruth", status=2).stderr


def test_models_lists_what_the_key_may_use(site):
    assert "2048 tokens" in site.run("models").stdout


def test_a_mistake_mended_before_the_first_answer_leaves_no_trace(make_site):
    site = make_site("--broken", "1")
    site.write_rows([str(number) for number in range(30)])
    site.classify("--tries", "1", status=2)
    done = site.classify("--tries", "1", "--param", "temperature=1", status=2)
    assert "the first 20 requests all failed" in done.stderr
