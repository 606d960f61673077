"""The output of ``baselinedb``, as text and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.execution import Outcome
from agentdb.adoption.obstacles import OLD_COLUMNS, AdoptionRefusedError
from agentdb.adoption.plan import Findings, Plan
from agentdb.adoption.shapes import Kind
from agentdb.wording import counted

JSON_FORMAT = 1

_ENGINES = {
    "sqlite": "SQLite",
    "postgresql": "PostgreSQL",
    "cockroachdb": "CockroachDB",
}
_FORMATS = {
    "server": "2026-02-19T20:53:16.123Z",
    "sqlite": "2026-02-19 20:53:16",
    "postgresql": "2026-02-19 20:53:16.123456+00",
    "datestyle": "another DateStyle",
}


def describe_findings(findings: Findings) -> list[str]:
    """Return the findings as lines."""
    place = findings.place
    if findings.size is not None:
        place = f"file {place}, {_bytes(findings.size)}"
    lines = [
        f"Found: {_ENGINES[findings.engine]} {findings.version.split()[0]}, {place}",
        f"Shape: {findings.shape.description}",
    ]
    for name in OLD_COLUMNS:
        lines += _describe_table(findings, name)
    if findings.other_rows:
        tables = ", ".join(
            f"{name} ({counted(rows, 'row')})"
            for name, rows in findings.other_rows.items()
        )
        lines.append(f"  other tables, which stay as they are: {tables}")
    return lines


def _describe_table(findings: Findings, name: str) -> Iterator[str]:
    width = max(map(len, OLD_COLUMNS))
    content = findings.contents.get(name)
    if content is None:
        if findings.shape.tables and not findings.shape.problems:
            yield f"  {name:<{width}}  no table"
        return
    yield f"  {name:<{width}}  {counted(content.rows, 'row')}"
    for column, counts in content.formats.items():
        formats = [f"{counts[key]:,} as {_FORMATS[key]}" for key in sorted(counts)]
        if formats:
            yield f"  {'':<{width}}  {column}: {', '.join(formats)}"


def describe_plan(
    connection: BaseDatabaseWrapper, findings: Findings, plan: Plan
) -> list[str]:
    """Return the plan as a numbered list, or that there is nothing to do."""
    lines = [f"Note: {note}" for note in plan.notes]
    if plan.refusals:
        return lines
    if not plan.actions:
        if findings.shape.kind is Kind.EMPTY:
            return [
                *lines,
                "Nothing to adopt. Run 'agentdb migrate' to create the tables.",
            ]
        return [*lines, "Nothing to do."]
    lines.append("To do:")
    lines += [f"  {number}. {action}" for number, action in enumerate(plan.actions, 1)]
    if findings.engine == "postgresql":
        lines.append("All of it is one transaction. For a backup before it, run:")
        lines.append(f"  {dump_command(connection)}")
    return lines


def dump_command(connection: BaseDatabaseWrapper) -> str:
    """Return the ``pg_dump`` command for the database, without a password."""
    settings = connection.settings_dict
    options = settings["OPTIONS"]
    name, service = settings["NAME"] or "", options.get("service")
    words = ["pg_dump", "--format=custom", f"--file={name or service}.dump"]
    database = name
    # pg_dump has no option for a service, which may also name the database.
    if service:
        database = f"postgresql:///{quote(name, safe='')}?service={quote(service)}"
    for option, value in (
        ("--host", settings["HOST"] or options.get("host")),
        ("--port", settings["PORT"] or options.get("port")),
        ("--username", settings["USER"] or options.get("user")),
        ("--dbname", database),
    ):
        if value:
            words.append(f"{option}={value}")
    return shlex.join(words)


def describe_outcome(outcome: Outcome) -> list[str]:
    """Return what was done."""
    rows = sum(content.rows for content in outcome.findings.contents.values())
    lines = []
    if outcome.backup is not None:
        lines.append(f"Backup: {outcome.backup}")
    lines.append(
        f"Adopted: all {counted(rows, 'row')} are there and equal, and the schema is what the models say."
    )
    return lines


def as_json(outcome: Outcome, *, checked: bool) -> dict[str, Any]:
    """Return the report as a JSON object, which docs/adoption.md describes."""
    findings, plan = outcome.findings, outcome.plan
    if plan.refusals:
        result = "refused"
    elif not plan.actions:
        result = "nothing to do"
    else:
        result = "to do" if checked else "adopted"
    return {
        "format": JSON_FORMAT,
        "result": result,
        "engine": findings.engine,
        "version": findings.version,
        "place": findings.place,
        "size_bytes": findings.size,
        "shape": findings.shape.kind.value,
        "description": findings.shape.description,
        "recorded": list(findings.shape.recorded),
        "tables": {
            name: {
                "rows": content.rows,
                "timestamps": {
                    column: dict(sorted(counts.items()))
                    for column, counts in content.formats.items()
                },
                "checksum": outcome.checksums.get(name),
            }
            for name, content in findings.contents.items()
        },
        "other_tables": dict(findings.other_rows),
        "notes": list(plan.notes),
        "actions": list(plan.actions),
        "refusals": [
            {**refusal._asdict(), "rows": [row._asdict() for row in refusal.rows]}
            for refusal in plan.refusals
        ],
        "backup": None if outcome.backup is None else str(outcome.backup),
    }


def error_as_json(error: Exception) -> dict[str, Any]:
    """Return the report for a database that could not be read, or an adoption that was rolled back."""
    result = "refused" if isinstance(error, AdoptionRefusedError) else "error"
    return {"format": JSON_FORMAT, "result": result, "error": str(error)}


_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def _bytes(number: int) -> str:
    power = min(max(number.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{number / 1024**power:.{min(power, 1)}f} {_UNITS[power]}"
