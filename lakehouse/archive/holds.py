"""Legal holds: what no deletion, no expiry and no erasure passes.

A hold is in force when `place` returns, and the database alone decides: it is committed under the organization's
archive lock, which a delete batch holds from before it looks at holds until it ends. So a batch that runs is waited
for (it is short), and every later one sees the hold. The lake's copy follows (`mirror`); that it failed changes
nothing, and maintenance tries again. Placing and releasing are lines of the audit in the same transaction.

A database that was restored from an older copy gets its holds back from the lake (`restore_from_lake`); a release
that only the lake remembers frees nothing, for whoever can write to the lake must not end a hold.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive import mirror
from lakehouse.archive.installation import (
    ArchiveError,
    connect,
    connect_if_installed,
    install,
    lock_organization,
    note,
    table,
)
from lakehouse.archive.records import Hold, moment
from lakehouse.archive.scope import as_sql, check_scope, concerns, held, hot_column, hot_table
from lakehouse.failpoints import failpoint
from lakehouse.operator import operator
from schemas.errors import LakehouseError, Retry
from schemas.keys import postgres_key

if TYPE_CHECKING:
    from lakehouse.app import App

__all__ = [
    "KnownHolds",
    "Listed",
    "active",
    "all_holds",
    "concerns",
    "find_organization",
    "forgotten",
    "held",
    "holds_on",
    "list_holds",
    "mirror_holds",
    "place",
    "release",
    "restore_from_lake",
    "unknown_ids",
]

LOCK_SECONDS = 60
"""How long placing and releasing wait for a batch: much longer than one takes."""
LOOK_SECONDS = 10
"""How long is looked for ids that nobody knows."""
_COLUMNS = sql.SQL(
    "id, organization_id, table_name, row_keys, event_from, event_upto, reason, placed_by, placed_at, "
    "released_by, released_reason, released_at"
)


@dataclass(frozen=True)
class Listed:
    """A hold as people see it, and whether the lake knows it: None where there is no lake yet or it does not answer."""

    hold: Hold
    mirrored: bool | None
    error: LakehouseError | None = None
    forgotten: bool = False
    """Only the lake has it; the next run of the archive or of maintenance puts it back."""


def _ignore(error: LakehouseError) -> None:
    del error


def place(
    app: App,
    organization: str,
    *,
    reason: str,
    table_name: str | None = None,
    row_keys: Sequence[str] | None = None,
    event_from: datetime | None = None,
    event_upto: datetime | None = None,
    by: str | None = None,
    warn: Callable[[LakehouseError], None] = _ignore,
) -> Hold:
    """Place a hold and return it: it is in force. Waits for a batch that is running; makes the archive's schema.

    `row_keys`: key texts (`schemas.keys`) of one table. `event_from`, `event_upto` (exclusive) bound the contract's
    event time; a table that has none cannot be held by time, and is held whole by a range over all tables. `warn` is
    told where the lake's copy failed, which maintenance makes good.

    Raises:
        ArchiveError: the request is not valid, or the lock was not to be had; nothing is in force.
        SourceError: the hot database does not answer or refuses.
    """
    reason = _reason(reason, "a hold")
    check_scope(app, table_name, row_keys, event_from, event_upto)
    organization = find_organization(app, organization)
    keys = None if row_keys is None else sorted(set(row_keys))
    actor = operator(by)
    install(app)
    with connect(app) as connection, _locked(connection, organization, "no hold was placed"):
        hold = _one(
            connection.execute(
                sql.SQL(
                    "INSERT INTO {} (id, organization_id, table_name, row_keys, event_from, event_upto, reason, "
                    "placed_by) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING {}"
                ).format(table("holds"), _COLUMNS),
                [uuid.uuid4(), organization, table_name, keys, event_from, event_upto, reason, actor],
            )
        )
        note(
            connection,
            actor=actor,
            action="hold placed",
            organization=organization,
            subject=_subject(hold),
            reason=reason,
        )
    failpoint("archive.hold_placed")
    _follow(app, hold, warn)
    return hold


def release(
    app: App,
    hold_id: uuid.UUID | str,
    *,
    reason: str,
    by: str | None = None,
    warn: Callable[[LakehouseError], None] = _ignore,
) -> Hold:
    """Release a hold: from now on it stops nothing. The record stays; its tags in the lake go.

    Raises:
        ArchiveError: there is no such hold, it was released before, or no reason was given.
        SourceError: the hot database does not answer or refuses.
    """
    reason = _reason(reason, "a release")
    key = _hold_id(hold_id)
    actor = operator(by)
    with connect(app) as connection:
        found = _by_id(connection, key)
        with _locked(connection, found.organization, f"hold {key} was not released"):
            found = _by_id(connection, key)
            if found.released_at is not None:
                raise ArchiveError(
                    f"hold {key} was released already, by {found.released_by} at {found.released_at:%Y-%m-%d %H:%M}",
                    "There is nothing to do; `lakehouse hold list --all` shows it.",
                )
            hold = _one(
                connection.execute(
                    sql.SQL(
                        "UPDATE {} SET released_by = %s, released_reason = %s, released_at = clock_timestamp() "
                        "WHERE id = %s RETURNING {}"
                    ).format(table("holds"), _COLUMNS),
                    [actor, reason, key],
                )
            )
            note(
                connection,
                actor=actor,
                action="hold released",
                organization=hold.organization,
                subject=_subject(hold),
                reason=reason,
            )
    _follow(app, hold, warn)
    return hold


def active(connection: psycopg.Connection[Any], organization: str) -> list[Hold]:
    """The organization's holds that are in force, oldest first, as this transaction sees them."""
    return _all(
        connection.execute(
            sql.SQL(
                "SELECT {} FROM {} WHERE organization_id = %s AND released_at IS NULL ORDER BY placed_at, id"
            ).format(_COLUMNS, table("holds")),
            [organization],
        )
    )


def holds_on(app: App, organization: str, table_name: str) -> list[Hold]:
    """Holds in force on (some of) a table's rows: the database's, and those that only the lake remembers.

    For whatever removes from the lake. A database that never had the archive has no holds of its own.

    Raises:
        LakehouseError: the database or the lake does not answer: nothing may be removed then.
    """
    known = {hold.id: hold for hold in all_holds(app, organization)}
    lake = mirror.read_holds(app.lake(organization))
    found = [*known.values(), *(hold for key, hold in lake.items() if key not in known)]
    return [hold for hold in found if hold.released_at is None and concerns(hold, table_name)]


def all_holds(app: App, organization: str | None = None) -> list[Hold]:
    """Every hold that the database has, released ones too, oldest first; none where the archive was never set up.

    Raises:
        SourceError: the hot database does not answer.
    """
    with connect_if_installed(app) as connection:
        if connection is None:
            return []
        where = sql.SQL("WHERE organization_id = %(organization)s" if organization is not None else "")
        return _all(
            connection.execute(
                sql.SQL("SELECT {} FROM {} {} ORDER BY organization_id, placed_at, id").format(
                    _COLUMNS, table("holds"), where
                ),
                {"organization": organization},
            )
        )


def list_holds(app: App, organization: str | None = None, *, released: bool = False) -> list[Listed]:
    """Holds, with whether the lake has each. A lake that does not answer is named beside its holds.

    Of an organization that is named also those that only its lake remembers: the database was restored.

    Raises:
        SourceError: the hot database does not answer.
    """
    known = all_holds(app, organization)
    shown = [h for h in known if released or h.released_at is None]
    owners = [organization] if organization is not None else [h.organization for h in shown]
    lakes: dict[str, dict[uuid.UUID, Hold] | LakehouseError | None] = {}
    for owner in dict.fromkeys(owners):
        try:
            lake = app.lake(owner)
            lakes[owner] = None if lake.owner() is None else mirror.read_holds(lake)
        except LakehouseError as error:
            lakes[owner] = error
    listed = []
    for hold in shown:
        there = lakes[hold.organization]
        if isinstance(there, dict):
            listed.append(Listed(hold, mirror.mirrored(hold, there)))
        else:
            listed.append(Listed(hold, None, there))
    ids = {h.id for h in known}
    for there in lakes.values():
        forgotten = [h for h in there.values() if h.id not in ids] if isinstance(there, dict) else []
        listed += [Listed(h, True, forgotten=True) for h in forgotten if released or h.released_at is None]
    return listed


def forgotten(app: App, connection: psycopg.Connection[Any] | None, organization: str) -> list[Hold]:
    """Holds in force that the lake has and the database does not, which was restored: for who shows what is held.

    `connection`: None where the database has no archive at all. Nothing is put back (`restore_from_lake` does that).

    Raises:
        LakehouseError: the lake does not answer.
    """
    lake = {key: hold for key, hold in mirror.read_holds(app.lake(organization)).items() if hold.released_at is None}
    known = _known(connection, lake) if connection is not None and lake else set()
    return sorted((h for key, h in lake.items() if key not in known), key=lambda h: (h.placed_at, h.id))


def _known(connection: psycopg.Connection[Any], ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    rows = connection.execute(sql.SQL("SELECT id FROM {} WHERE id = ANY(%s)").format(table("holds")), [list(ids)])
    return {key for (key,) in rows}


def restore_from_lake(app: App, organization: str) -> list[Hold]:
    """Put back the holds that the lake has and the database forgot, released ones too; returns those put back.

    Each is a line of the audit. A hold that the database has stays as it is there.

    Raises:
        ArchiveError: the archive was never set up.
        LakehouseError: the lake or the database does not answer: no row may be deleted then.
    """
    lake = mirror.read_holds(app.lake(organization))
    if not lake:
        return []
    with connect(app) as connection:
        if _known(connection, lake) == lake.keys():
            return []
        restored = []
        with _locked(connection, organization, "holds of the lake were not put back"):
            for hold in sorted(lake.values(), key=lambda h: (h.placed_at, h.id)):
                made = connection.execute(
                    sql.SQL(
                        "INSERT INTO {} ({}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) "
                        "ON CONFLICT (id) DO NOTHING RETURNING id"
                    ).format(table("holds"), _COLUMNS),
                    [
                        hold.id, organization, hold.table, None if hold.row_keys is None else list(hold.row_keys),
                        hold.event_from, hold.event_upto, hold.reason, hold.placed_by, hold.placed_at,
                        hold.released_by, hold.released_reason, hold.released_at,
                    ],
                ).fetchone()  # fmt: skip
                if made is None:
                    continue
                restored.append(hold)
                note(
                    connection,
                    actor="lakehouse",
                    action="hold restored",
                    organization=organization,
                    subject=_subject(hold),
                    reason="the lake has it, and the database had forgotten it",
                )
        return restored


def mirror_holds(app: App) -> tuple[int, list[LakehouseError]]:
    """For maintenance: put back what the database forgot, write what lakes lack. Returns the rows written, and errors.

    One organization's fault is its own. Nothing happens where the archive was never set up.

    Raises:
        SourceError: the hot database does not answer.
    """
    from lakehouse.control import store

    with connect_if_installed(app) as connection:
        if connection is None:
            return 0, []
    known: dict[str, list[Hold]] = {}
    for hold in all_holds(app):
        known.setdefault(hold.organization, []).append(hold)
    written = 0
    errors: list[LakehouseError] = []
    for organization in sorted({lake.organization_id for lake in store.lakes(app.engine)} | known.keys()):
        try:
            lake = app.lake(organization)
            if lake.owner() is not None:
                restore_from_lake(app, organization)
                written += mirror.write_holds(lake, known.get(organization, []))
        except LakehouseError as error:
            errors.append(error)
    return written, errors


class KnownHolds:
    """The database's holds, read once: what one run of maintenance goes by."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._read: list[Hold] | LakehouseError | None = None

    def on(self, organization: str, table_name: str) -> list[Hold]:
        """All that concern a table of an organization, released ones too.

        Raises:
            SourceError: the hot database does not answer; it is not asked again.
        """
        if self._read is None:
            try:
                self._read = all_holds(self._app)
            except LakehouseError as error:
                self._read = error
        if isinstance(self._read, LakehouseError):
            raise self._read
        return [h for h in self._read if h.organization == organization and concerns(h, table_name)]


def unknown_ids(app: App, hold: Hold) -> list[str] | None:
    """Ids of a hold that no hot row and no tombstone has: mistyped, or long deleted. They are held all the same.

    None: it could not be found out, for lack of a right or an index, or because there is no such table yet.

    Raises:
        SourceError: the hot database does not answer.
    """
    if hold.table is None or hold.row_keys is None:
        return []
    contract = app.contract(hold.table)
    query = sql.SQL(
        "SELECT _k FROM unnest(%s::text[]) AS _k WHERE NOT EXISTS (SELECT FROM {archived} AS _t "
        "WHERE _t.organization_id = %s AND _t.table_name = %s AND _t.row_key = _k) "
        "AND _k NOT IN (SELECT {key} FROM {hot} AS t WHERE {key} = ANY(%s) AND {tenant}::text = %s)"
    ).format(
        archived=table("cold_storage_archive"),
        key=as_sql(postgres_key(contract, "t")),
        hot=hot_table(contract),
        tenant=hot_column(contract, contract.tenant, "t"),
    )
    keys = list(hold.row_keys)
    with connect(app) as connection:
        connection.execute(sql.SQL("SET statement_timeout = {}").format(sql.Literal(f"{LOOK_SECONDS}s")))
        try:
            found = connection.execute(query, [keys, hold.organization, hold.table, keys, hold.organization]).fetchall()
        except (psycopg.errors.ProgrammingError, psycopg.errors.QueryCanceled):
            return None
    return [row[0] for row in found]


def find_organization(app: App, name: str) -> str:
    """An organization's id by its id or label: of the host's list, or of a lake whose organization the host deleted.

    Raises:
        ArchiveError: there is none, or the label is several organizations'.
        LakehouseError: neither database answers.
    """
    from lakehouse.control import store

    listed = app.source.organizations() if app.settings.source.organizations_table is not None else {}
    if name in listed:
        return name
    labelled = [organization for organization, label in listed.items() if label == name]
    if len(labelled) == 1:
        return labelled[0]
    if labelled:
        raise ArchiveError(
            f"{len(labelled)} organizations are called {name!r}", f"Name it by id: {', '.join(labelled)}"
        )
    if name in {lake.organization_id for lake in store.lakes(app.engine)}:
        return name
    raise ArchiveError(
        f"no organization {name!r}: neither the host lists it, nor has it a lake",
        "Name it by its id or slug; `lakehouse status` shows those that have a lake.",
    )


@contextmanager
def _locked(connection: psycopg.Connection[Any], organization: str, otherwise: str) -> Iterator[None]:
    """A transaction under the organization's archive lock; `otherwise`: what did not happen without it."""
    try:
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{LOCK_SECONDS}s")))
            lock_organization(connection, organization)
            yield
    except psycopg.errors.LockNotAvailable as error:
        raise ArchiveError(
            f"another program has held the archive's lock of {organization} for {LOCK_SECONDS} s: {otherwise}",
            "Look for a session `lakehouse archive` in pg_stat_activity, and try again.",
            retry=Retry.TIMED,
        ) from error


def _follow(app: App, hold: Hold, warn: Callable[[LakehouseError], None]) -> None:
    """Bring the lake after the database, as far as it answers."""
    from pyiceberg.exceptions import NoSuchTableError

    from catalog.tables import open_table

    try:
        lake = app.lake(hold.organization)
        if lake.owner() is None:
            return
        mirror.write_holds(lake, [hold])
    except LakehouseError as error:
        warn(error)
        return
    for contract in app.contracts.values():
        if not concerns(hold, contract.table):
            continue
        try:
            mirror.tag_table(open_table(lake, contract), [hold])
        except NoSuchTableError:
            # It gets its tag when it is there, by maintenance.
            continue
        except LakehouseError as error:
            warn(error)


def _reason(reason: str, what: str) -> str:
    text = " ".join(reason.split())
    if not text:
        raise ArchiveError(f"{what} needs a reason", 'Say why: --reason "litigation 2026-114".')
    return text


def _hold_id(text: uuid.UUID | str) -> uuid.UUID:
    try:
        return text if isinstance(text, uuid.UUID) else uuid.UUID(text)
    except ValueError as error:
        raise ArchiveError(f"{text}: not the id of a hold", "`lakehouse hold list` shows them.") from error


def _by_id(connection: psycopg.Connection[Any], key: uuid.UUID) -> Hold:
    found = _all(connection.execute(sql.SQL("SELECT {} FROM {} WHERE id = %s").format(_COLUMNS, table("holds")), [key]))
    if not found:
        raise ArchiveError(f"no hold {key}", "`lakehouse hold list --all` shows every one there was.")
    return found[0]


def _one(cursor: psycopg.Cursor[Any]) -> Hold:
    return _all(cursor)[0]


def _all(cursor: psycopg.Cursor[Any]) -> list[Hold]:
    return [
        Hold(row[0], row[1], row[2], None if row[3] is None else tuple(row[3]), *row[4:]) for row in cursor.fetchall()
    ]


def _subject(hold: Hold) -> dict[str, Any]:
    return {
        "hold": str(hold.id),
        "table": hold.table,
        "ids": None if hold.row_keys is None else list(hold.row_keys),
        "from": moment(hold.event_from),
        "to": moment(hold.event_upto),
    }
