"""How results are written: aligned columns, JSON or names, on stdout, in full when nobody looks at a terminal."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import click

from jobqueue.printable import plain, terminal_lines

_GAP: Final = "  "
# In a cell of which there is nothing to tell.
UNKNOWN: Final = "-"
_AGES: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_COLOURS: Final = {
    "RUNNING": "cyan",
    "PREPARING": "cyan",
    "FINALIZING": "cyan",
    "SUCCEEDED": "green",
    "ok": "green",
    "FAILED": "red",
    "FAIL": "red",
    "CANCELLED": "yellow",
    "warn": "yellow",
}


class Format(StrEnum):
    """What `-o` takes."""

    TABLE = "table"
    JSON = "json"
    NAME = "name"


format_option: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = click.option(
    "-o",
    "--format",
    "form",
    type=click.Choice([form.value for form in Format]),
    default=Format.TABLE.value,
    show_default=True,
    help="How to write the result.",
)


def write_rows(form: str, *, rows: Sequence[Mapping[str, str]], objects: Sequence[Any], name: str) -> None:
    """Write several things.

    Args:
        form: a `Format`.
        rows: the cells of each by column, for the table; the same columns in each.
        objects: each as JSON values.
        name: the column that alone is written for `-o name`.
    """
    if form == Format.JSON:
        write_json(list(objects))
    elif form == Format.NAME:
        for row in rows:
            click.echo(plain(row[name]))
    elif rows:
        _write_table(rows)


def write_json(value: Any) -> None:
    """Write JSON, indented, keys as they come."""
    click.echo(to_json(value, indent=2))


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON that drives no terminal: what is no letter to be seen is written as its number."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(letter if letter == "\n" or letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)


def write_output(line: str, *, err: bool = False) -> None:
    """Write a line that an experiment has printed: into a file or a pipe as it is, onto a terminal what can be read.

    There colours go, what it would write over comes on a line of its own, and whatever else would drive the terminal
    becomes a question mark.
    """
    if not (sys.stderr if err else sys.stdout).isatty():
        click.echo(line, err=err, color=True)
        return
    for part in terminal_lines(line):
        click.echo(part, err=err)


def write_fields(fields: Mapping[str, str]) -> None:
    """Write one thing as `NAME  value` lines; empty values are left out, further lines of a value are indented."""
    shown = {name: value for name, value in fields.items() if value}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        first, *further = value.splitlines()
        click.echo(f"{click.style(name.ljust(width), bold=True)}{_GAP}{colour(plain(first))}")
        for line in further:
            click.echo(f"{'':{width}}{_GAP}{plain(line)}")


def write_left_out(lines: Sequence[str]) -> None:
    """Write on stderr which outputs were asked for and are not there, and why."""
    for line in lines:
        click.echo(f"{click.style('left out:', fg='yellow')} {plain(line)}", err=True)


def colour(text: str) -> str:
    """Return a text in the colour of its first word, if that is a state or a verdict."""
    word = text.split(maxsplit=1)[0] if text.strip() else ""
    return click.style(text, fg=_COLOURS[word]) if word in _COLOURS else text


def describe_age(since: datetime, *, now: datetime | None = None) -> str:
    """Return how long ago an instant was, to one unit: `5m`."""
    return describe_span((now or datetime.now(UTC)) - since)


def describe_span(span: timedelta) -> str:
    """Return a duration to one unit: `42s`, `5m`, `3h`, `2d`."""
    seconds = max(0, int(span.total_seconds()))
    unit, size = next(((unit, size) for unit, size in _AGES if seconds >= 2 * size), _AGES[-1])
    return f"{seconds // size}{unit}"


def write_instant(instant: datetime | None) -> str:
    """Return an instant as RFC 3339 in UTC, to the second; empty for None."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if instant else ""


def _write_table(rows: Sequence[Mapping[str, str]]) -> None:
    limit = shutil.get_terminal_size().columns if _is_terminal() else None
    columns = list(rows[0])
    widths = _measure(rows, columns)
    if limit is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > limit:
        columns = [column for column in columns if any(row[column] != UNKNOWN for row in rows)]  # to make room
        widths = _measure(rows, columns)
    cells = [columns, *([plain(row[column]) for column in columns] for row in rows)]
    for number, line in enumerate(cells):
        text = _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        text = text if limit is None or len(text) <= limit else f"{text[: limit - 1]}…"
        click.echo(click.style(text, bold=True) if number == 0 else _coloured(text, line))


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _measure(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> list[int]:
    return [max(len(column), *(len(plain(row[column])) for row in rows)) for column in columns]


def _coloured(text: str, cells: Sequence[str]) -> str:
    for cell in cells:
        if cell in _COLOURS:
            return text.replace(cell, colour(cell), 1)
    return text
