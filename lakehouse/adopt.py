"""`lakehouse lake adopt`: a person says that a lake goes on from a source, or under an installation, that is not the
one it was made from.

One table of one organization is adopted in one commit of its lake table: an empty snapshot with the owner's mark, the
record (who, why, before, after) and a cursor of a new fence whose position names the adopted source. Whoever else
still writes is fenced by it. Then the control tables follow: the record and the cursor, in one transaction. Dying in
between is mended by adopting again: the record that stands in the lake is taken over, not made twice. The next window
compares every row and every key; `adoptions.reconciled_at` is set once it landed, and archiving stays off until then.
Nothing is removed from history. An error of one table leaves the others adopted, and is said.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update

from catalog.lake import INSTALLATION_PROPERTY, Lake
from catalog.tables import open_table
from lakehouse.app import App
from lakehouse.capture.fence import Verdict, judge
from lakehouse.capture.position import Adoption, Position, Snapshot, SourceIdentity
from lakehouse.capture.source import SourceTableMissing, check_table, describe, identify
from lakehouse.control import models, store
from lakehouse.landing.cursor import LakeCursor, read_cursor
from lakehouse.landing.history import commit_adoption, read_history
from lakehouse.operator import operator
from lakehouse.outbox import tasks
from lakehouse.outbox.tasks import CAPTURE
from schemas.contract import Contract
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from pyiceberg.table import Table


class AdoptionError(LakehouseError):
    """An adoption was asked for that cannot be done; the message names what to do."""


@dataclass(frozen=True)
class Present:
    """The source as it stands now, for one table."""

    source: SourceIdentity
    snapshot: Snapshot


@dataclass(frozen=True)
class Difference:
    """One table of one organization that is not (only) ours to write: what it was made from, what there is now.

    `behind`: how many transactions the source is behind the lake; 0 where it is not. `unfinished`: the id of an
    adoption that stands in the lake, and not yet in the control tables.
    """

    organization: str
    table: str
    why: tuple[str, ...]
    before: dict[str, Any]
    after: dict[str, Any]
    behind: int
    cursor: LakeCursor
    present: Present
    installation: str
    unfinished: dict[str, Any] | None = None


@dataclass
class Differences:
    """What there is to adopt. `owner`: of the control tables, where that is another installation."""

    tables: list[Difference] = field(default_factory=list)
    namespaces: dict[str, str] = field(default_factory=dict)
    """Organizations whose namespace has another installation's mark, with that installation."""
    owner: str | None = None
    errors: dict[tuple[str, str], LakehouseError] = field(default_factory=dict)
    """By organization and table."""

    @property
    def nothing(self) -> bool:
        return not (self.tables or self.namespaces or self.owner)


def find_differences(app: App, organizations: Sequence[str] = (), tables: Sequence[str] = ()) -> Differences:
    """What `adopt` would take over; reads only. Default: every enrolled organization, and those of the host that
    have a namespace in the catalog; every table of a contract.

    Raises:
        LakehouseError: an organization or table that there is not; the control database or source does not answer.
    """
    from sqlalchemy import text

    contracts = [app.contract(t) for t in tables] if tables else list(app.contracts.values())
    with app.engine.connect() as connection:
        owner = connection.scalar(text("SELECT id FROM installation"))
    found = Differences(owner=owner if owner != app.settings.installation else None)
    chosen = _organizations(app, organizations)
    for organization in chosen:
        if (mark := app.lake(organization).owner()) != app.settings.installation:
            found.namespaces[organization] = mark or ""
    for contract in contracts:
        present = present_source(app, contract)
        if present is None:
            continue
        cursors = store.cursors(app.engine, contract.table)
        for organization in chosen:
            try:
                difference = _difference(app, contract, organization, cursors.get(organization), present)
            except LakehouseError as error:
                found.errors[organization, contract.table] = error
                continue
            if difference is not None:
                found.tables.append(difference)
    return found


def _organizations(app: App, wanted: Sequence[str]) -> list[str]:
    enrolled = set(app.enrolled())
    listed = set(app.source.organizations()) if app.settings.source.organizations_table else set()
    known = enrolled | {o for o in (listed | set(wanted)) - enrolled if app.lake(o).owner() is not None}
    if unknown := sorted(set(wanted) - known):
        raise AdoptionError(
            f"no lake for organization {', '.join(unknown)}",
            f"Neither the control tables nor the catalog know it; {len(known)} are known (`lakehouse status`).",
        )
    return sorted(wanted or known)


def present_source(app: App, contract: Contract) -> Present | None:
    """Who the source is now; None where it has no such table."""
    with app.source.catalog() as catalog:
        try:
            hot = describe(catalog, contract)
        except SourceTableMissing:
            return None
        check_table(contract, hot)
        row = catalog.execute("SELECT pg_current_snapshot()::text").fetchone()
        assert row is not None  # noqa: S101 - the query has no FROM
        return Present(identify(catalog, hot, app.settings.source.address), Snapshot.parse(row[0]))


def _difference(
    app: App, contract: Contract, organization: str, control: LakeCursor | None, present: Present
) -> Difference | None:
    table, installation = _open(app, contract, organization)
    standing = read_cursor(table) if table is not None else None
    if standing is not None and not standing.complete:
        raise AdoptionError(
            f"{contract.table} of {organization}: a backfill is between two parts", "Finish it: `lakehouse backfill`."
        )
    # The lake is the truth; the copy counts where it is of the same landing: windows without rows moved it on.
    cursor = control if control and (standing is None or standing.fence == control.fence) else standing
    if cursor is None:
        return None
    judgement = judge(cursor.position, present.source, present.snapshot)
    why = []
    if installation != app.settings.installation:
        why.append(f"the lake is installation {installation!r}'s, ours is {app.settings.installation!r}")
    if judgement.verdict is Verdict.REFUSE:
        why.append(judgement.detail)
    unfinished = None
    if table is not None and standing is not None and standing.position.adoption and not why:
        # In the lake already: this program, or its predecessor, died before the control tables knew.
        records = [c for c in read_history(table).changes if c.get("id") == standing.position.adoption.id]
        if records and not _recorded(app, records[0]["id"]):
            unfinished = records[0]
            why.append("an adoption stands in the lake, and not in the control tables")
    if not why:
        return None
    position = cursor.position
    return Difference(
        organization=organization,
        table=contract.table,
        why=tuple(why),
        before=_described(installation, position.source, position.xmax),
        after=_described(app.settings.installation, present.source, present.snapshot.xmax),
        behind=max(0, position.xmax - present.snapshot.xmax),
        cursor=cursor,
        present=present,
        installation=installation,
        unfinished=unfinished,
    )


def _described(installation: str, source: SourceIdentity, xmax: int) -> dict[str, Any]:
    return {"installation": installation, "source": dataclasses.asdict(source), "next_transaction": xmax}


def _recorded(app: App, adoption: str) -> bool:
    with app.engine.connect() as connection:
        found = connection.scalar(select(func.count()).where(models.Adoption.id == uuid.UUID(adoption)))
    return bool(found)


def _open(app: App, contract: Contract, organization: str) -> tuple[Table | None, str]:
    """The lake table, whoever's installation it is, and that installation; the organization's mark is checked."""
    from pyiceberg.exceptions import NoSuchTableError

    lake = app.lake(organization)
    ours = app.settings.installation
    try:
        raw = lake.catalog.load_table((lake.namespace, contract.table))
    except NoSuchTableError:
        return None, lake.owner() or ours
    mark = raw.properties.get(INSTALLATION_PROPERTY, "")
    return open_table(Lake(lake.catalog, lake.address, organization, mark), contract), mark


def adopt_tables(app: App, found: Differences, reason: str) -> dict[tuple[str, str], LakehouseError]:
    """Adopt what was found, for a reason; errors by organization and table, the others are done.

    Raises:
        AdoptionError: no reason was given. Nothing was changed.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise AdoptionError("an adoption needs a reason", 'Say why: --reason "restored after the outage of 3 March".')
    who = operator()
    errors: dict[tuple[str, str], LakehouseError] = {}
    # The namespace first: from here on the former owner is refused at every table of it.
    for organization in found.namespaces:
        app.lake(organization).take_over()
        app.enrol(organization)
    for table in dict.fromkeys(d.table for d in found.tables):
        owner, seconds = app.leases.owner, app.settings.work.lease_seconds
        task = tasks.claim_named(app.engine, owner, seconds, CAPTURE, table)
        try:
            with app.leases.holding(*([task.lease] if task else ())):
                for difference in (d for d in found.tables if d.table == table):
                    key = difference.organization, table
                    with app.events.unit("adoption", organization=difference.organization, table=table, reason=reason):
                        try:
                            if task is None:
                                raise AdoptionError(f"{table}: another program works on it", "Try again in a moment.")
                            _adopt(app, app.contract(table), difference, reason, who)
                        except LakehouseError as error:
                            errors[key] = error
        finally:
            if task is not None:
                tasks.finish(app.engine, task.lease)
    if found.owner is not None and not errors:
        with app.engine.begin() as connection:
            connection.execute(update(models.Installation).values(id=app.settings.installation))
    return errors


def _adopt(app: App, contract: Contract, difference: Difference, reason: str, who: str) -> None:
    organization = difference.organization
    table, _ = _open(app, contract, organization)
    record = difference.unfinished
    if record is not None:
        assert table is not None  # noqa: S101 - that is where the record was found
        standing = read_cursor(table)
        snapshot = table.current_snapshot()
        assert standing is not None  # noqa: S101
        assert snapshot is not None  # noqa: S101
        store.record_adoption(
            app.engine,
            organization,
            contract.table,
            record,
            standing,
            snapshot_id=snapshot.snapshot_id,
            now=app.clock(),
        )
        return
    now, ours = app.clock(), app.settings.installation
    record = {
        "kind": "adoption",
        "id": str(uuid.uuid4()),
        "reason": reason,
        "by": who,
        "at": now.isoformat(),
        "sequence": difference.cursor.sequence,
        "before": difference.before,
        "after": difference.after,
    }
    present = difference.present
    cursor = dataclasses.replace(
        difference.cursor,
        position=dataclasses.replace(
            difference.cursor.position, adoption=Adoption(record["id"], present.source, present.snapshot.xmax)
        ),
    )
    snapshot_id = None
    # Where nothing ever landed and the owner stays, the lake has nothing to protect, and nothing to remember.
    if table is not None and (table.current_snapshot() is not None or difference.installation != ours):
        marks = {INSTALLATION_PROPERTY: ours}
        cursor, snapshot_id = commit_adoption(table, cursor, present.source, record, marks)
    store.record_adoption(app.engine, organization, contract.table, record, cursor, snapshot_id=snapshot_id, now=now)


def note_reconciled(app: App, tables: Iterable[str]) -> None:
    """Set `reconciled_at` of adoptions whose comparing window has landed: the cursor has left the adopted position."""
    adoption, cursor = models.Adoption, models.Cursor
    landed = (
        select(cursor.organization_id)
        .where(
            cursor.organization_id == adoption.organization_id,
            cursor.table_name == adoption.table_name,
            cursor.position["adoption"].astext.is_(None),
        )
        .exists()
    )
    with app.engine.begin() as connection:
        connection.execute(
            update(adoption)
            .where(adoption.reconciled_at.is_(None), adoption.table_name.in_(list(tables)), landed)
            .values(reconciled_at=app.clock())
        )


def unreconciled(app: App, organization: str, table: str) -> bool:
    """Whether the table was adopted, and no window has compared every row since."""
    note_reconciled(app, [table])
    adoption = models.Adoption
    with app.engine.connect() as connection:
        pending = connection.scalar(
            select(func.count()).where(
                adoption.organization_id == organization,
                adoption.table_name == table,
                adoption.reconciled_at.is_(None),
            )
        )
    return bool(pending)


def archiving_allowed(app: App, organization: str, table: str) -> bool:
    """Whether hot rows of the table may be archived: the source is the lake's, and every adoption is reconciled.

    False too where nothing has landed yet. Opens the source.

    Raises:
        LakehouseError: the source or the control database does not answer.
    """
    cursor = store.cursors(app.engine, table).get(organization)
    if unreconciled(app, organization, table) or cursor is None:
        return False
    present = present_source(app, app.contract(table))
    return present is not None and _is_same(cursor.position, present)


def _is_same(position: Position, present: Present) -> bool:
    return judge(position, present.source, present.snapshot).verdict is Verdict.SAME
