"""How results are printed: tables for people, JSON for programs.

Everything is redacted of secrets on its way out, except what a caller prints `verbatim`: rows of the lake itself,
and the demo's own throw-away addresses.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, TextIO
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table

from lakehouse.observe.redact import redact, redact_values
from schemas.errors import LakehouseError

LONGEST_DAYS = 36_500
"""Of a length of time that a person gives: added to a time, it is a time still."""
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]


def _width(stream: TextIO) -> int | None:
    # In a pipe or a log there is no window to fold rows for.
    return None if stream.isatty() else 200


class Output(Console):
    """A console that takes secrets out of every text before it is folded into lines."""

    def print(self, *objects: Any, verbatim: bool = False, **options: Any) -> None:
        super().print(*[redact(o) if isinstance(o, str) and not verbatim else o for o in objects], **options)


stdout = Output(highlight=False, width=_width(sys.stdout))
stderr = Output(stderr=True, highlight=False, width=_width(sys.stderr))


def print_json(value: Any, *, verbatim: bool = False) -> None:
    """One JSON document on stdout."""
    shown = value if verbatim else redact_values(value)
    default = _plain if verbatim else _redacted
    sys.stdout.write(json.dumps(shown, default=default, indent=2, ensure_ascii=False) + "\n")


def _redacted(value: Any) -> Any:
    return redact_values(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    raise TypeError(f"cannot print {type(value).__name__} as JSON")


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    numbers: Sequence[str] = (),
    verbatim: bool = False,
) -> Table:
    """A table for a terminal; `numbers` names the columns that are aligned to the right."""
    shown = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*[cell(value, verbatim=verbatim) for value in row])
    return shown


def cell(value: Any, *, verbatim: bool = False) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    text = str(value) if verbatim else redact(str(value))
    return text.replace("[", "\\[")


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    """Seconds as people read them."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def parse_duration(text: str, option: str) -> float:
    """Seconds from what a person writes: 500ms, 5s, 2m, 1h, 30d.

    Raises:
        LakehouseError: it is not a length of time above zero, or longer than any that is meant.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", text)
    seconds = float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0
    if seconds <= 0:
        raise LakehouseError(f"{option} {text}: not a length of time above zero", "Write 500ms, 5s, 2m, 1h or 30d.")
    if seconds > LONGEST_DAYS * 86400:
        raise LakehouseError(f"{option} {text}: longer than a hundred years", f"At most {LONGEST_DAYS}d.")
    return seconds


def parse_moment(text: str, option: str) -> datetime:
    """A time from what a person writes, ISO 8601; UTC unless it says otherwise.

    Raises:
        LakehouseError: it is not a time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise LakehouseError(
            f"{option} {text}: not a time", "Write 2026-01-31, 2026-01-31T12:00 or 2026-01-31T12:00:00+02:00."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def show(value: Callable[[], Any], *, as_json: bool, human: Callable[[], Any]) -> None:
    """Print either form; neither is computed unless it is wanted."""
    if as_json:
        print_json(value())
    else:
        human()
