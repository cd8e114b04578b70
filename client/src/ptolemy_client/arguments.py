"""The command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import __version__


def parser() -> argparse.ArgumentParser:
    """The parser of ``ptolemy-batch``; each command sets ``command``."""
    made = argparse.ArgumentParser(prog="ptolemy-batch", description="Ask a model about each row of a table, and account for every row.")
    made.add_argument("--version", action="version", version=f"ptolemy-batch {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    classify = commands.add_parser("classify", help="give each row one of your labels, or several")
    _table(classify)
    classify.add_argument("--labels", type=Path, required=True, metavar="YAML", help="names of the labels, with descriptions")
    classify.add_argument("--multi", action="store_true", help="any number of labels for each row")
    classify.add_argument("--no-confidence", action="store_true", help="do not ask for probabilities")
    classify.add_argument("--constraint", choices=("grammar", "json_schema"), default="grammar", help="what keeps the model to the labels")
    _run(classify)

    extract = commands.add_parser("extract", help="fill the fields of a JSON schema from each row")
    _table(extract)
    extract.add_argument("--schema", type=Path, required=True, metavar="JSON", help="a JSON schema with the fields as properties")
    extract.add_argument("--instructions", type=Path, metavar="FILE", help="what the model is told before the schema")
    extract.add_argument("--max-tokens", type=_positive, default=512, metavar="N", help="the longest answer (512)")
    _run(extract)

    run = commands.add_parser("run", help="send a file in OpenAI's batch format")
    run.add_argument("input", type=Path, metavar="REQUESTS.jsonl")
    run.add_argument("--override-model", action="store_true", help="use --model also where a body names another one")
    _run(run)

    evaluate = commands.add_parser("evaluate", help="compare an output with the truth")
    evaluate.add_argument("output", type=Path, metavar="OUT", help="what classify wrote")
    evaluate.add_argument("--truth", required=True, metavar="COLUMN", help="the column with the right label")
    evaluate.add_argument("--predicted", metavar="COLUMN", help="the column to judge (ptolemy_label)")
    evaluate.add_argument("--png", type=Path, metavar="FILE", help="where the confusion matrix goes (OUT.confusion.png)")
    evaluate.add_argument("--json", action="store_true", help="print the result as JSON")

    models = commands.add_parser("models", help="list what the gateway serves to your key")
    _gateway(models)
    models.add_argument("--json", action="store_true", help="print the gateway's own words")
    return made


def _gateway(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("the gateway (also in ~/.config/ptolemy/client.yml, or PTOLEMY_URL, PTOLEMY_API_KEY, PTOLEMY_MODEL)")
    group.add_argument("--url", help="address, as https://llm.example.org")
    group.add_argument("--key-file", type=Path, metavar="FILE", help="file with your key, readable by you alone")
    group.add_argument("--model", help="the service to ask")


def _table(made: argparse.ArgumentParser) -> None:
    made.add_argument("input", type=Path, metavar="DATA", help=".csv, .tsv, .xlsx, .parquet or .jsonl")
    made.add_argument("--text", default="", metavar="COLUMN", help="the column to ask about; rows where it is empty are not asked")
    made.add_argument("--prompt", type=Path, metavar="FILE", help="Jinja2 template over all columns (default: the text alone)")
    made.add_argument("--prefix", default="ptolemy_", metavar="WORD", help="how the new columns' names begin (ptolemy_)")
    group = made.add_argument_group("how the input is read (detected otherwise)")
    group.add_argument("--encoding", help="as utf-8, cp1252, utf-16")
    group.add_argument("--delimiter", type=_delimiter, help="one character, or 'tab'")
    group.add_argument("--no-quotes", action="store_true", help="quotation marks are letters like others")
    group.add_argument("--sheet", help="of a workbook (the first one)")


def _run(made: argparse.ArgumentParser) -> None:
    made.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help=".parquet, .csv, .tsv or .jsonl")
    _gateway(made)
    some = made.add_argument_group("try it first").add_mutually_exclusive_group()
    some.add_argument("--dry-run", action="store_true", help="show three prompts, their tokens, and how many rows differ; ask nothing")
    some.add_argument("--sample", type=_positive, metavar="N", help="only N rows chosen by chance, and an estimate of the time for all")
    some.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="another number is another sample (0)")
    group = made.add_argument_group("a run that was there before")
    group.add_argument("--retry-failed", action="store_true", help="ask again what failed")
    group.add_argument("--restart", action="store_true", help="forget all answers that this output has so far")
    group.add_argument("--overwrite", action="store_true", help="replace an output that another program wrote")
    group = made.add_argument_group("asking")
    group.add_argument("--param", type=_parameter, action="append", default=[], metavar="NAME=JSON", help="into each request; null removes")
    group.add_argument("--tries", type=_positive, default=4, metavar="N", help="failures after which a row is given up (4)")
    group.add_argument("--patience", type=_positive, default=30, metavar="MIN", help="minutes without any answer before the run stops (30)")
    group.add_argument("--timeout", type=_positive, default=60, metavar="MIN", help="minutes that one answer may take, queue included (60)")
    group.add_argument("--concurrency", type=_positive, default=0, metavar="N", help="requests at once (found by itself)")
    group.add_argument("--max-concurrency", type=_positive, default=1024, metavar="N", help="at most so many (1024)")
    group = made.add_argument_group("what is shown")
    group.add_argument("--json", action="store_true", help="events as JSON lines on standard output")
    group.add_argument("--quiet", action="store_true", help="only errors")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _delimiter(text: str) -> str:
    found = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(found) != 1:
        raise argparse.ArgumentTypeError("must be one character, or 'tab'")
    return found


def _parameter(text: str) -> tuple[str, Any]:
    name, mark, value = text.partition("=")
    if not mark or not name or name in {"model", "messages", "stream"}:
        raise argparse.ArgumentTypeError("must be NAME=JSON, as temperature=0.2; not model, messages or stream")
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is not JSON ({error}); put a string into double quotes") from error
