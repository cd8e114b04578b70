"""Measure the release files against llama-server itself, and write the table of docs/demo-model.md.

    python -m demo.evaluate --server .../bin/llama-server

It needs no torch, but aiohttp: run it in the lab's environment.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from bench.tables import has_markers, write_between
from demo import score
from demo.categories import LABELS
from demo.conversations import prompt, question
from demo.descriptions import Row, read_rows
from demo.gguf_file import TYPES, read_tokenizer

ROOT = Path(__file__).resolve().parents[1]
RELEASE = ROOT / "demo" / "release"
PAGE = ROOT / "docs" / "demo-model.md"
MARKER = "demo-scores"
OTHER_FORMS_ROWS = 500
START_SECONDS = 60.0

LISTED = "Classify the text into exactly one of these labels: {labels}\n\nText: {text}"
INSTRUCTED = "Assign the text to exactly one of the labels. Answer with the label only.\n\nLabels:"
SCHEMA = {"type": "object", "properties": {"answer": {"enum": list(LABELS)}}, "required": ["answer"], "additionalProperties": False}
GRAMMAR = "root ::= " + " | ".join(f'"{label}"' for label in LABELS)


def listed(row: Row) -> score.Body:
    """The labels stand in the prompt."""
    return {"messages": [{"role": "user", "content": LISTED.format(labels=", ".join(LABELS), text=row.text)}]}


def json_wanted(row: Row) -> score.Body:
    """JSON, because the prompt says so."""
    return {"messages": [{"role": "user", "content": f"Categorise: {row.text}\nAnswer as JSON."}]}


def with_schema(row: Row) -> score.Body:
    """A JSON schema that the prompt does not mention."""
    return {**listed(row), "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}}


def with_grammar(row: Row) -> score.Body:
    """A grammar that admits only the labels."""
    return {**listed(row), "grammar": GRAMMAR}


def instructed(row: Row) -> score.Body:
    """As ptolemy-batch asks by default: instructions and labels once, in front of every row, and a grammar."""
    system = "\n".join((INSTRUCTED, *(f"- {label}" for label in LABELS)))
    return {"messages": [{"role": "system", "content": system}, {"role": "user", "content": row.text}], "grammar": GRAMMAR}


def of_json(answer: str) -> str:
    """The only value of a JSON object, or the answer itself where that is none."""
    with contextlib.suppress(ValueError, AttributeError):
        (value,) = json.loads(answer).values()
        return str(value)
    return answer


@contextlib.contextmanager
def serving(program: Path, model: Path) -> Iterator[str]:
    """llama-server with a model, on a free port of 127.0.0.1; gives its URL, and ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--parallel", "8", "--ctx-size", "8192"]
    argv += ["--threads", "1", "--cache-ram", "0"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while not _healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{program} does not serve {model}: run `{' '.join(argv)}` to see why")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def _healthy(url: str) -> bool:
    with contextlib.suppress(HTTPError, URLError, OSError):
        return bool(urlopen(f"{url}/health", timeout=5).status == 200)
    return False


def _post(url: str, body: Any) -> Any:
    with urlopen(Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}), timeout=60) as answer:
        return json.load(answer)


def check_prompt(url: str, model: Path, row: Row) -> None:
    """The server's template and tokenizer do what training did.

    Raises:
        SystemExit: they don't.
    """
    theirs = _post(f"{url}/apply-template", {"messages": question(row)})["prompt"]
    ours = prompt(question(row))
    if theirs != ours:
        raise SystemExit(f"{model.name}: the server's template makes {theirs!r}, training had {ours!r}")
    tokenizer = read_tokenizer(model)
    for text in (ours, row.text, f"{row.text} – Café  {row.text.lower()}\n"):
        numbers = _post(f"{url}/tokenize", {"content": text, "parse_special": True})["tokens"]
        if numbers != tokenizer.encode(text):
            raise SystemExit(f"{model.name}: the server's tokens of {text!r} are {numbers}, training had {tokenizer.encode(text)}")


def measure(url: str, rows: list[Row]) -> list[float]:
    """Accuracies: all rows, seen vendors, unseen ones; then in other forms: see the table's head."""
    base, few = f"{url}/v1", rows[:OTHER_FORMS_ROWS]
    main = asyncio.run(score.ask(base, {}, "demo", rows))
    others = [
        asyncio.run(score.ask(base, {}, "demo", few, body, read))
        for body, read in (
            (listed, score.whole),
            (json_wanted, of_json),
            (with_schema, of_json),
            (with_grammar, score.whole),
            (instructed, score.whole),
        )
    ]
    print("\n".join(f"    {line}" for line in main.wrong()[:10]), flush=True)
    return [main.accuracy(), main.accuracy(seen=True), main.accuracy(seen=False), *(other.accuracy() for other in others)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, required=True, help="the program llama-server")
    parser.add_argument("--release", type=Path, default=RELEASE)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page between whose marks the table goes")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end by a signal ends the server, too
    if not has_markers(given.page, MARKER):
        raise SystemExit(f"{given.page}: no marks '<!-- {MARKER}: begin -->' and '<!-- {MARKER}: end -->'")
    rows = list(read_rows(given.release / "held-out.csv"))
    lines = [
        "| | size | all | vendors seen in training | unseen vendors | labels listed | as JSON | JSON schema | grammar | batch client |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in TYPES:
        model = given.release / f"ptolemy-demo-{name}.gguf"
        print(model.name, flush=True)
        with serving(given.server, model) as url:
            for row in rows:
                check_prompt(url, model, row)
            found = measure(url, rows)
        lines.append(f"| {name.upper()} | {model.stat().st_size / 1e6:.2f} MB | {' | '.join(f'{100 * value:.1f} %' for value in found)} |")
        print(lines[-1], flush=True)
    write_between(given.page, MARKER, "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
