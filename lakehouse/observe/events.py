"""Wide events: one JSON line for each unit of work, when it ends."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from lakehouse.observe.redact import redact, redact_values
from schemas.errors import LakehouseError

Sink = Callable[[dict[str, Any]], None]
"""Takes one finished event; called from any thread."""


class Events:
    """Hands finished events to its sinks; without any it costs nothing."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = list(sinks)

    def add(self, sink: Sink) -> None:
        """Hand events to this one too."""
        self._sinks.append(sink)

    def emit(self, kind: str, **fields: Any) -> None:
        """An event that has no duration of its own. `kind`: window, landing, delivery, maintenance, lease, …"""
        event = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **redact_values(fields)}
        for sink in self._sinks:
            sink(event)

    @contextmanager
    def unit(self, kind: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Measure a unit of work; the body adds fields to what is yielded. An error is noted and raised on."""
        began = time.monotonic()
        known = dict(fields)
        try:
            yield known
        except BaseException as error:
            known |= {"outcome": "error", "error": describe(error)}
            raise
        finally:
            known.setdefault("outcome", "ok")
            self.emit(kind, **known, milliseconds=round((time.monotonic() - began) * 1000, 1))


def describe(error: BaseException) -> str:
    """An error in one line of at most 500 characters, without secrets: fit to be stored and shown."""
    text = error.detail if isinstance(error, LakehouseError) else f"{type(error).__name__}: {error}"
    return " ".join(redact(text).split())[:500]


_LOCK = threading.Lock()


def json_lines(event: dict[str, Any]) -> None:
    """A sink: one line on stderr."""
    line = json.dumps(event, default=str, ensure_ascii=False)
    with _LOCK:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
