"""What it means that DuckDB cannot read a destination's files.

A file that is gone, or that cannot be decoded, is damage: somebody has to fill the destination anew. A storage that is
busy, cut the connection or does not answer says nothing about its files: they are asked again. One that refuses wants
other keys, and to fill anew would not help. Unknown errors of a file's content are damage, unknown answers a refusal:
both wait for a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    import duckdb

_STATUS = re.compile(r"\bHTTP (\d{3})\b")
_BUSY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_DAMAGE = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}


@contextmanager
def readable() -> Iterator[None]:
    """While the body reads a destination's files.

    Raises:
        LakehouseError: they cannot be read; TIMED where their storage could not be asked now.
    """
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        hint, retry = _meaning(error)
        said = str(error).splitlines()[0][:300]
        raise LakehouseError(f"the destination's files cannot be read: {said}", hint, retry=retry) from error


def _meaning(error: duckdb.Error) -> tuple[str, Retry]:
    """What to do, and who does it."""
    import duckdb

    if isinstance(error, duckdb.OutOfMemoryException | duckdb.InterruptException):
        return "The machine's fault, not theirs: see `lake.duckdb_memory`. It is tried again.", Retry.TIMED
    status = _status(error)
    asked = isinstance(error, duckdb.HTTPException) or "error for HTTP" in str(error)
    if asked and (status is None or status in _BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR):
        return "Their storage does not answer, or is too busy. It is tried again.", Retry.TIMED
    if asked and status not in _DAMAGE:
        return "Their storage refuses: check keys, rights, region and endpoint of the destination.", Retry.MANUAL
    return "A file is gone or damaged: run `lakehouse destinations resync` for it.", Retry.MANUAL


def _status(error: duckdb.Error) -> int | None:
    """The status that the storage answered; None where it gave none."""
    if status := getattr(error, "status_code", 0):
        return int(status)
    found = _STATUS.search(str(error).splitlines()[0])
    return int(found[1]) if found else None
