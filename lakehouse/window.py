"""Opens a window and reads what it brings for each group of organizations: deletes first, then new rows.

What the lake holds already is left out, and so is what the archive took: no delete is landed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lakehouse.archive.archived import Archived
from lakehouse.capture.protocol import CaptureMethod, Group, OpenWindow, Plan, WindowKind
from lakehouse.landing.held import KeyReconciliation, held_alive, held_content, held_versions, key_reconciliation
from schemas.errors import LakehouseError
from schemas.lake_columns import DELETE

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.table import Table

    from lakehouse.app import App
    from lakehouse.landing.cursor import LakeCursor
    from lakehouse.landing.staging import Stager
    from lakehouse.sync import LakeTables
    from schemas.contract import Contract


@contextmanager
def opened_window(
    method: CaptureMethod,
    contract: Contract,
    groups: Sequence[Group],
    tables: LakeTables,
    failures: dict[str, LakehouseError],
    reconcile: bool | None,
) -> Iterator[OpenWindow]:
    """Open the window; where all is read again, once more, after the lakes' `_archive` was opened.

    What is in the hot table although `_archive` has its tombstone came back, if the tombstone is older than the
    snapshot. One that is younger is of a row that was archived meanwhile.
    """
    done: set[str] = set()
    while True:
        with method.open_window(contract, groups, reconcile=reconcile) as window:
            again = {o for p in window.plans if p.kind is WindowKind.RECAPTURE for o in p.group.organizations} - done
            if not again:
                yield window
                return
        for organization in again:
            done.add(organization)
            try:
                tables.archive(organization)
            except LakehouseError as error:
                failures[organization] = error


def read_group(
    app: App,
    contract: Contract,
    window: OpenWindow,
    plan: Plan,
    tables: LakeTables,
    cursors: Mapping[str, LakeCursor],
    stager: Stager,
    failures: dict[str, LakehouseError],
    stack: ExitStack,
) -> KeyReconciliation | None:
    """Stage one group's share: deletes first, then new rows. Returns the keys, where they were compared.

    What is wrong with one organization's lake is in `failures`, and nothing of it is to be landed.

    Raises:
        SourceError: the source broke off, or refuses.
    """
    keys: KeyReconciliation | None = None
    held_by: dict[str, Table] = {}
    if plan.reconcile or plan.ask_lake or plan.kind is WindowKind.RECAPTURE:
        for organization in (o for o in plan.group.organizations if o not in failures):
            try:
                held_by[organization] = tables(organization)
            except LakehouseError as error:
                failures[organization] = error
    lakes = app.addresses_of(held_by)
    archived = Archived(contract, window.tombstones, tables.archive)
    if plan.reconcile:
        keys = stack.enter_context(key_reconciliation(contract, lakes, window.keys(plan), archived))
        for organization, table in held_by.items():
            try:
                stager.add(keys.deleted(organization, table, cursors[organization]), op=DELETE)
            except LakehouseError as error:
                failures[organization] = error
    stager.add(window.deletes(plan), op=DELETE)
    stager.add(_returned(app, contract, window, plan, tables, failures), op=DELETE)
    rows = window.rows(plan)
    if plan.kind is WindowKind.RECAPTURE:
        asked = held_content(contract, lakes, held_by, archived)
    elif plan.ask_lake:
        assert plan.lower is not None  # noqa: S101 - only a recapture reads every row
        asked = held_versions(contract, lakes, held_by, plan.lower)
    else:
        stager.add(rows)
        return keys
    with asked as held:
        failures |= held.failures
        stager.add(held.subtract(rows))
    return keys


def _returned(
    app: App,
    contract: Contract,
    window: OpenWindow,
    plan: Plan,
    tables: LakeTables,
    failures: dict[str, LakehouseError],
) -> Iterator[pa.RecordBatch]:
    """Archived rows that the lake still shows, and whose id is back under another event time."""
    found = list(window.returned(plan))
    if not any(batch.num_rows for batch in found):
        return
    for organization in plan.group.organizations:
        try:
            yield from held_alive(contract, app.addresses_of([organization]), organization, tables(organization), found)
        except LakehouseError as error:
            failures[organization] = error
