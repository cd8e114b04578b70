"""``ptolemy-batch``: from the command line to a run, and its end told in words."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Optional, Sequence

import jsonschema

from .arguments import parser
from .display import Display
from .errors import BatchError, Interrupted, told_plainly
from .gateway import Gateway
from .labels import read_labels
from .prompts import PLAIN, Prompt
from .reading import Options, open_table
from .session import Plan, carry_out, ledger_path
from .settings import Settings, find_settings
from .sources import BatchFile, Source, TableSource, Verbatim
from .tasks import Classify, Extract, Task

DONE, SOME_FAILED, WRONG, STOPPED = 0, 1, 2, 130


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; returns its exit status: 0 all answered, 1 some rows failed, 2 an error, 130 stopped."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "evaluate":
            from .evaluate import evaluate

            return evaluate(arguments)
        given = find_settings(arguments.url, arguments.key_file, arguments.model)
        if arguments.command == "models":
            return _models(given, arguments.json)
        return _run(arguments, given)
    except BatchError as error:
        print(f"ptolemy-batch: {error}", file=sys.stderr)
        if getattr(arguments, "json", False):
            Display(json_events=True).event("error", message=str(error))
        return WRONG
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(
            f"ptolemy-batch: {str(stopped) or 'stopped'}; what was answered is recorded: run the same command again to go on",
            file=sys.stderr,
        )
        return STOPPED


def _run(arguments: argparse.Namespace, given: Settings) -> int:
    display = Display(arguments.json, arguments.quiet)
    # A batch file's bodies may each name a model of their own.
    by_body = arguments.command == "run" and not arguments.override_model
    gateway = Gateway(given.url, given.key, "" if by_body else given.model, arguments.timeout * 60.0)
    model = given.model
    if not model and not by_body:
        model = asyncio.run(_only_model(gateway))
    source, task = _job(arguments, model)
    if arguments.dry_run:
        from .preview import preview

        return preview(source, task, gateway, display)
    plan = Plan(
        source=source, task=task, out=arguments.out, limit=arguments.limit, sample=arguments.sample, seed=arguments.seed,
        retry_failed=arguments.retry_failed, restart=arguments.restart, overwrite=arguments.overwrite, tries=arguments.tries,
        patience=arguments.patience * 60.0, concurrency=arguments.concurrency, most=arguments.max_concurrency,
    )  # fmt: skip
    outcome = carry_out(plan, gateway, display)
    from .summary import tell

    tell(plan, outcome, ledger_path(plan.out), display)
    return SOME_FAILED if outcome.counts.failed else DONE


async def _only_model(gateway: Gateway) -> str:
    async with gateway:
        return str((await gateway.model(""))["id"])


def _job(arguments: argparse.Namespace, model: str) -> tuple[Source, Task]:
    parameters = dict(arguments.param)
    if arguments.command == "run":
        if parameters:
            raise BatchError("--param is not for run: the bodies are sent as they are")
        return BatchFile(arguments.input, model, arguments.override_model), Verbatim(model)
    if not arguments.text and not arguments.prompt:
        raise BatchError("say what to ask about: --text COLUMN, or a template over the columns with --prompt FILE")
    options = Options(arguments.encoding, arguments.delimiter, not arguments.no_quotes, arguments.sheet)
    table = open_table(arguments.input, options)
    source = PLAIN if arguments.prompt is None else _text(arguments.prompt, "read the template")
    prompt = Prompt(source, table.schema.names, arguments.text, str(arguments.prompt or "--text"))
    task: Task
    if arguments.command == "classify":
        task = Classify(
            model, read_labels(arguments.labels), many=arguments.multi, probabilities=not arguments.no_confidence,
            constraint=arguments.constraint, prefix=arguments.prefix, parameters=parameters,
        )  # fmt: skip
    else:
        instructions = _text(arguments.instructions, "read the instructions") if arguments.instructions else ""
        task = Extract(
            model, _schema(arguments.schema), instructions=instructions,
            max_tokens=arguments.max_tokens, prefix=arguments.prefix, parameters=parameters,
        )  # fmt: skip
    return TableSource(table, prompt, task, arguments.prefix), task


def _text(path: Path, doing: str) -> str:
    with told_plainly(path, doing):
        try:
            return path.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise BatchError(f"{path}: is not UTF-8: {error}") from error


def _schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(_text(path, "read the schema"))
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except ValueError as error:
        raise BatchError(f"{path}: not JSON: {error}") from error
    except jsonschema.SchemaError as error:
        raise BatchError(f"{path}: not a JSON schema: {error.message}") from error
    if not isinstance(schema, dict) or schema.get("type") != "object" or not schema.get("properties"):
        raise BatchError(f"{path}: must be of type 'object' with 'properties': each of them becomes a column")
    return schema


def _models(given: Settings, as_json: bool) -> int:
    async def ask() -> list[dict[str, Any]]:
        async with Gateway(given.url, given.key, "", 60) as gateway:
            return await gateway.models()

    models = asyncio.run(ask())
    if as_json:
        print(json.dumps(models, indent=2))
        return DONE
    for model in models:
        facts = [str(model.get("status", ""))]
        facts += [f"{model['context_length']} tokens a request"] if "context_length" in model else []
        print(f"{model['id']:24} {', '.join(filter(None, facts))}")
    return DONE
