"""One run of maintenance over one lake table: tag what is held, expire, sweep, remove, merge, measure.

Safe beside landings of other processes: every commit is made on top of what is there, and yields to whoever was
first. Who calls it holds the task `maintain:<table>`: two at once would do the same work twice, and no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from catalog.errors import lake_errors
from catalog.tables import open_record_table, open_table
from lakehouse.app import App
from lakehouse.archive import mirror
from lakehouse.archive.archive_table import ARCHIVE, open_archive
from lakehouse.archive.holds import KnownHolds
from lakehouse.control import store
from lakehouse.maintenance import garbage, statistics
from lakehouse.maintenance.compaction import compact, plan
from lakehouse.maintenance.expiry import expirable, expire
from lakehouse.maintenance.records import merge_records
from lakehouse.maintenance.references import References
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from catalog.lake import Lake, LakeAddress

SWEEPS = 6
"""A folder is listed as a whole so often in `orphan_hours`."""


@dataclass
class MaintenanceResult:
    """What one run did to one table of one organization; of a dry run, what it would do."""

    table: str
    organization: str
    state: str = "done"
    """done; no table; stopped: asked to; error"""
    snapshots_expired: int = 0
    files_merged: int = 0
    files_written: int = 0
    rows_merged: int = 0
    bytes_merged: int = 0
    orphans: int = 0
    """Files that nothing names, noted now."""
    orphan_bytes: int = 0
    files_removed: int = 0
    measured: statistics.Measured | None = None
    errors: list[LakehouseError] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """For an event or JSON."""
        kept = {k: v for k, v in vars(self).items() if k not in ("errors", "measured")}
        return kept | ({"measured": asdict(self.measured)} if self.measured else {})


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Kept:
    """A lake table that maintenance looks after. `contract`: its shape; None for a few small records of our own."""

    name: str
    contract: Contract | None
    open: Callable[[Lake], Table | None]


def kept(contract: Contract) -> Kept:
    """The lake table of a contract."""

    def opened(lake: Lake) -> Table | None:
        from pyiceberg.exceptions import NoSuchTableError

        lake.check()
        try:
            return open_table(lake, contract)
        except NoSuchTableError:
            return None

    return Kept(contract.table, contract, opened)


KEPT_ARCHIVE = Kept(ARCHIVE.table, ARCHIVE, open_archive)
KEPT_HOLDS = Kept(mirror.TABLE, None, lambda lake: open_record_table(lake, mirror.TABLE))


def maintained(app: App) -> dict[str, Kept]:
    """What maintenance looks after, by name: every contract's table, and the archive's own two."""
    own = {k.name: k for k in (KEPT_ARCHIVE, KEPT_HOLDS)}
    return {name: kept(contract) for name, contract in app.contracts.items()} | own


def maintain_all(
    app: App,
    table: Kept | Contract,
    organizations: Sequence[str] | None = None,
    *,
    should_stop: Callable[[], bool] = _never,
    dry_run: bool = False,
) -> list[MaintenanceResult]:
    """Maintain the table of every organization that has a lake (or of some); one's fault is its own (`errors`)."""
    results = []
    holds = KnownHolds(app)
    for organization in organizations or [lake.organization_id for lake in store.lakes(app.engine)]:
        if should_stop():
            break
        results.append(maintain_table(app, table, organization, should_stop=should_stop, dry_run=dry_run, holds=holds))
    return results


def maintain_table(
    app: App,
    table: Kept | Contract,
    organization: str,
    *,
    should_stop: Callable[[], bool] = _never,
    dry_run: bool = False,
    holds: KnownHolds | None = None,
) -> MaintenanceResult:
    """Bring one table back within its bounds and measure it. Idempotent; can be killed anywhere.

    Errors that are understood are in the result; a step's fault does not keep the others from running, unless the
    lake does not answer.
    """
    table = table if isinstance(table, Kept) else kept(table)
    result = MaintenanceResult(table.name, organization)
    with app.events.unit("maintenance", table=table.name, organization=organization) as event:
        _maintain(app, table, result, should_stop, dry_run, holds or KnownHolds(app))
        if result.errors:
            result.state = "error"
            event["error"] = result.errors[0].detail[:500]
        event.update(result.fields(), outcome=result.state)
    return result


def _maintain(
    app: App,
    table: Kept,
    result: MaintenanceResult,
    should_stop: Callable[[], bool],
    dry_run: bool,
    holds: KnownHolds,
) -> None:
    try:
        lake = app.lake(result.organization)
        opened = table.open(lake)
    except LakehouseError as error:
        result.errors.append(error)
        return
    if opened is None:
        result.state = "no table"
        return
    run = _Run(app, table, result, References(opened), lake.address, should_stop, holds)
    steps = [run.preview] if dry_run else [run.hold, run.expire, run.sweep, run.remove, run.merge, run.measure]
    for step in steps:
        if should_stop() and step != run.measure:
            result.state = "stopped"
            continue
        try:
            step()
        except LakehouseError as error:
            result.errors.append(error)
            if error.retry is Retry.TIMED:
                # It does not answer: the other steps would wait for it too.
                return


class _Run:
    def __init__(
        self,
        app: App,
        table: Kept,
        result: MaintenanceResult,
        references: References,
        address: LakeAddress,
        should_stop: Callable[[], bool],
        holds: KnownHolds,
    ) -> None:
        self.app = app
        self.engine = app.engine
        self.settings = app.settings.maintenance
        self.name = table.name
        self.contract = table.contract
        self.result = result
        self.references = references
        self.address = address
        self.should_stop = should_stop
        self.holds = holds
        self.held = False
        """The table's tags are those of its holds."""
        self.now = app.clock()
        self.swept_at = statistics.last_sweep(app.engine, result.organization, table.name)

    @property
    def table(self) -> Table:
        return self.references.table

    def hold(self) -> None:
        try:
            holds = self.holds.on(self.result.organization, self.name)
        except LakehouseError as error:
            # Only expiry waits for it: the other steps need no hot database.
            self.result.errors.append(error)
            return
        mirror.tag_table(self.table, holds)
        self.held = True

    def expire(self) -> None:
        if not self.held:
            # A hold that nobody could look up may want one of these snapshots.
            return
        self.result.snapshots_expired = expire(
            self.engine, self.references, self.result.organization, self.name, self.settings, self.now
        )

    def sweep(self) -> None:
        every = timedelta(hours=self.settings.orphan_hours / SWEEPS)
        if self.swept_at is not None and self.swept_at <= self.now < self.swept_at + every:
            return
        self.result.orphans, self.result.orphan_bytes = garbage.sweep(
            self.engine,
            self.references,
            self.result.organization,
            self.name,
            oldest=self.now - timedelta(hours=self.settings.orphan_hours),
            now=self.now,
        )
        self.swept_at = self.now

    def remove(self) -> None:
        self.result.files_removed = garbage.remove(
            self.engine,
            self.references,
            self.result.organization,
            self.name,
            noted_before=self.now - timedelta(minutes=self.settings.grace_minutes),
        )

    def merge(self) -> None:
        self._refresh()
        if self.contract is None:
            self.result.files_merged, self.result.files_written = merge_records(self.references)
            return
        groups = plan(self.references.live(), self.settings, self.now)
        done = compact(self.references, self.contract, self.result.organization, self.address, groups, self.should_stop)
        garbage.note(self.engine, self.result.organization, self.name, done.unused, garbage.ORPHAN, self.now)
        self.result.files_merged, self.result.files_written = done.files, done.into
        self.result.rows_merged, self.result.bytes_merged = done.rows, done.bytes

    def measure(self) -> None:
        if self.contract is None:
            return
        self._refresh()
        measured = statistics.measure(
            self.engine,
            self.references,
            self.contract,
            self.result.organization,
            self.address,
            self.settings,
            self.now,
            self.swept_at,
        )
        statistics.save(self.engine, self.result.organization, self.name, measured)
        self.result.measured = measured

    def preview(self) -> None:
        """What a run would do now; changes nothing."""
        of = (self.result.organization, self.name)
        self.result.snapshots_expired = len(expirable(self.table, self.settings, self.now))
        groups = plan(self.references.live(), self.settings, self.now) if self.contract else []
        self.result.files_merged = sum(len(g.files) for g in groups)
        self.result.files_written = len(groups)
        self.result.rows_merged = sum(g.rows for g in groups)
        self.result.bytes_merged = sum(g.bytes for g in groups)
        found = garbage.orphans(
            self.engine, self.references, *of, oldest=self.now - timedelta(hours=self.settings.orphan_hours)
        )
        self.result.orphans, self.result.orphan_bytes = len(found), sum(f.bytes for f, _ in found)
        self.result.files_removed = garbage.due_count(
            self.engine, *of, self.now - timedelta(minutes=self.settings.grace_minutes)
        )

    def _refresh(self) -> None:
        with lake_errors(".".join(self.table.name())):
            self.table.refresh()
