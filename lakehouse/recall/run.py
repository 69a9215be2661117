"""One recall, from the request to its outcome.

The request is written down first. Then rows are chosen in the lake and go into the target, whole or not at all: into a
table in one transaction that also completes the record, into a file that gets its name once it is complete and on
record. What goes wrong is written down too. A process that dies leaves a request without an outcome and nothing else;
or, of a file, an outcome whose file may not be there: no row is handed out of which the record does not know.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import psycopg

from lakehouse.archive.installation import SCHEMA, connect, connect_if_installed, install
from lakehouse.failpoints import failpoint
from lakehouse.observe.events import describe
from lakehouse.recall import files, register, table
from lakehouse.recall.register import TABLE_TARGET, Recall
from lakehouse.recall.request import TARGETS, RecallError, Request, Target
from lakehouse.recall.select import Chosen, choose, open_lake_table, opening
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App

    Connection = psycopg.Connection[tuple[Any, ...]]

MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Recalled:
    """What a recall brought. Of a file: its SHA-256 and size; of a table: what was done to it, and until when."""

    id: uuid.UUID
    organization: str
    table: str
    target: str
    rows: int
    content_sha256: str
    snapshot_id: int
    contract: str
    missing: Mapping[str, str]
    """Ids that were not found, each with the reason."""
    changes: tuple[str, ...] = ()
    expires_at: datetime | None = None
    file_sha256: str | None = None
    bytes: int | None = None


class NothingFoundError(RecallError):
    """None of the ids is in the lake; nothing was written."""

    def __init__(self, missing: Mapping[str, str]) -> None:
        self.missing = missing
        super().__init__(
            "none of the ids is in the lake: "
            + "; ".join(f"{key}: {why}" for key, why in list(missing.items())[:20])
            + (f"; and {len(missing) - 20} more" if len(missing) > 20 else ""),
            "Nothing was written; the request is in `lakehouse recall list`.",
        )


def recall(
    app: App,
    request: Request,
    *,
    target: Target,
    output: str | None = None,
    expires: timedelta | None = None,
    reason: str,
    by: str,
) -> Recalled:
    """Bring rows back from the lake. `output`: a path or s3://, of a file; a name is made up where there is none.
    `expires`: after how long they leave a table again; as the settings say, unless given.

    Raises:
        NothingFoundError: ids were given, and none is in the lake.
        RecallError: it cannot be done as asked; nothing was written.
        LakehouseError: a database or the lake does not answer; nothing was written.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise RecallError("a recall needs a reason", 'Say why: --reason "request 4711 of the auditor".')
    if target not in TARGETS:
        raise RecallError(f"--to {target}: is none of {', '.join(TARGETS)}")
    if target == "table" and output is not None:
        raise RecallError("--output is for files", f"Rows of --to table go into the schema {SCHEMA}.")
    if target != "table" and expires is not None:
        raise RecallError("--expires is for --to table", "A file is yours: remove it when it has served.")
    install(app)
    with connect(app) as connection:
        identity = register.begin(connection, request, target=target, output=output, reason=reason, by=by)
        run = _Run(app, connection, request, identity, target, reason, by)
        with app.events.unit(
            "recall", organization=request.organization, table=request.contract.table, recall=str(identity)
        ) as event:
            try:
                done = run.to_table(expires) if target == "table" else run.to_file(output)
            except LakehouseError as error:
                _note_failure(connection, identity, describe(error))
                raise
            except BaseException as error:
                # Whoever asked is told what broke; the record, that something did.
                _note_failure(connection, identity, type(error).__name__)
                raise
            event.update(rows=done.rows, target=done.target, content_sha256=done.content_sha256)
    return done


def _note_failure(connection: Connection, identity: uuid.UUID, error: str) -> None:
    # Where the database itself broke off, the record stays as it is.
    with contextlib.suppress(psycopg.OperationalError):
        register.fail(connection, identity, error)


class _Run:
    def __init__(
        self,
        app: App,
        connection: Connection,
        request: Request,
        identity: uuid.UUID,
        target: Target,
        reason: str,
        by: str,
    ) -> None:
        self.app = app
        self.connection = connection
        self.request = request
        self.id = identity
        self.target = target
        self.reason = reason
        self.by = by
        self.at = app.clock()

    def to_table(self, expires: timedelta | None) -> Recalled:
        until = self.at + (timedelta(days=self.app.settings.archive.recall_days) if expires is None else expires)
        with self._chosen() as chosen:
            with self.connection.transaction():
                filled = table.fill(self.connection, chosen, self.id, self.at)
                self._check_found(chosen, filled.rows)
                done = self._done(
                    chosen, f"{TABLE_TARGET}{filled.table}", filled.rows, filled.content_sha256,
                    changes=filled.changes, expires_at=until,
                )  # fmt: skip
                self._finish(done)
            return done

    def to_file(self, output: str | None) -> Recalled:
        name = output or f"{self.request.contract.table}-{self.id}.{self.target}"
        place = files.place_of(self.app, name)
        place.check()
        with self._chosen() as chosen, place.draft() as file:
            written = files.write(chosen, self.target, file)
            self._check_found(chosen, written.rows)
            done = self._done(
                chosen, f"{self.target} {place.name}", written.rows, written.content_sha256,
                file_sha256=written.sha256, bytes=written.bytes,
            )  # fmt: skip
            # First, for what is handed out cannot be taken back; where publishing fails, the caller notes that.
            self._finish(done)
            failpoint("recall.recorded")
            place.publish(files.manifest_text(self._manifest(done)))
        return done

    @contextlib.contextmanager
    def _chosen(self) -> Iterator[Chosen]:
        tombstones = register.tombstoned(self.connection, self.request)
        address = self.app.address_of(self.request.organization)
        with (
            opening(address, self.request, tombstones) as engine,
            choose(open_lake_table(self.app, self.request), self.request, tombstones, engine) as chosen,
        ):
            yield chosen

    def _check_found(self, chosen: Chosen, rows: int) -> None:
        if self.request.ids and not rows:
            raise NothingFoundError(chosen.missing)

    def _done(self, chosen: Chosen, target: str, rows: int, digest: str, **more: Any) -> Recalled:
        return Recalled(
            id=self.id,
            organization=self.request.organization,
            table=self.request.contract.table,
            target=target,
            rows=rows,
            content_sha256=digest,
            snapshot_id=chosen.lake.snapshot_id,
            contract=self.request.contract.version,
            missing=chosen.missing,
            **more,
        )

    def _finish(self, done: Recalled) -> None:
        more: dict[str, Any] = {"contract": done.contract, "missing": dict(done.missing)}
        if done.file_sha256 is not None:
            more |= {"file_sha256": done.file_sha256, "bytes": done.bytes}
        register.finish(
            self.connection,
            self.id,
            target=done.target,
            rows=done.rows,
            content_sha256=done.content_sha256,
            snapshot_id=done.snapshot_id,
            expires_at=done.expires_at,
            more=more,
        )

    def _manifest(self, done: Recalled) -> dict[str, Any]:
        return {
            "v": MANIFEST_VERSION,
            "recall": str(done.id),
            "installation": self.app.settings.installation,
            "organization": done.organization,
            "table": done.table,
            "request": self.request.to_json(),
            "reason": self.reason,
            "by": self.by,
            "at": self.at.astimezone(UTC).isoformat(),
            "snapshot_id": done.snapshot_id,
            "contract": done.contract,
            "rows": done.rows,
            "content_sha256": done.content_sha256,
            "missing": dict(done.missing),
            "format": self.target,
            "sha256": done.file_sha256,
            "bytes": done.bytes,
            "software": f"lakehouse {version('lakehouse')}",
        }


def recalls(app: App, organization: str | None = None) -> list[Recall]:
    """Every recall (of one organization), newest first; none where nothing was ever recalled."""
    with connect_if_installed(app) as connection:
        return register.recalls(connection, organization) if connection is not None else []


def remove_recall(app: App, identity: str, *, by: str, reason: str) -> Recall:
    """Remove what a recall put into a table, before its time.

    Raises:
        RecallError: there is no such recall, its rows are gone, or it is a file.
    """
    with connect(app) as connection:
        found = register.find(connection, identity)
        if found.removed_at is not None:
            raise RecallError(f"recall {found.id}: its rows are gone since {found.removed_at:%Y-%m-%d %H:%M:%S} UTC")
        if found.state != "done" or found.recalled_table is None:
            what = f"it is a file, {found.target}" if found.state == "done" else f"it is {found.state}"
            raise RecallError(f"recall {found.id}: nothing of it is in a table: {what}")
        _remove(app, connection, found, by=by, reason=reason)
        table.drop_empty(connection)
        return register.find(connection, found.id)


def expire_recalls(app: App) -> dict[str, int]:
    """Remove recalled rows whose time is over, and recalled tables that are empty; how many, where any. Idempotent."""
    with connect_if_installed(app) as connection:
        if connection is None:
            return {}
        over = register.expired(connection, app.clock())
        for found in over:
            _remove(app, connection, found, by=MAINTENANCE, reason="its time is over")
        dropped = table.drop_empty(connection)
    done = {"recalls_expired": len(over), "recalled_tables_dropped": len(dropped)}
    return {what: count for what, count in done.items() if count}


MAINTENANCE = "lakehouse maintenance"


def _remove(app: App, connection: Connection, found: Recall, *, by: str, reason: str) -> None:
    assert found.recalled_table is not None  # noqa: S101 - asked by the callers
    with connection.transaction():
        table.remove_rows(connection, found.recalled_table, found.id)
        register.removed(connection, found, at=app.clock(), by=by, reason=reason)
