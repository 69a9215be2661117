"""Fills a table of a destination from the lake's current state, in chunks, so that one that dies is gone on with.

What a chunk took, and how far that is, lies with the target (`federation.protocol.Filling`) and is shown to no
reader: a run that comes after one that died reads what is left. The state is read by ranges of days, each from the
lake as it is then, so a compaction or an expiry meanwhile changes nothing, and memory does not grow with the table.
What was landed when a run begins is taken last; then the target shows all of it at once, and it is compared before it
counts.

Failpoints: `fill.taken`, `fill.before_exchange`.
"""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert

from federation.protocol import Filling, OvertakenError, Receipt
from lakehouse.control.models import DestinationFilling
from lakehouse.deliver.ranges import LakeTable, open_lake_table, range_reader, state_order
from lakehouse.failpoints import failpoint
from schemas.lake_columns import SEQUENCE

if TYPE_CHECKING:
    import pyarrow as pa

    from federation.protocol import Adapter
    from lakehouse.app import App
    from schemas.contract import Contract

EXCHANGES = 3
"""So often a filling that a delivery overtook is brought further."""


@dataclass(frozen=True)
class Place:
    """Which table of which destination is filled. `check` is called before each chunk: a lease may be gone."""

    destination: uuid.UUID
    contract: Contract
    organization: str
    check: Callable[[], None] = lambda: None


def fill(app: App, adapter: Adapter, place: Place) -> tuple[Receipt, LakeTable]:
    """Fill a table anew, up to where the lake stands now; a filling that was begun before is gone on with.

    Raises:
        LakehouseError: what was there is there still, and what was taken is kept.
    """
    contract = place.contract
    lake = open_lake_table(app, contract, place.organization)
    now = adapter.filling(contract)
    if now is None or not _usable(now, adapter, lake):
        now = Filling(uuid.uuid4().hex, lake.sequence, contract.version, adapter.every_version)
        with range_reader(app, lake) as rows:
            now = dataclasses.replace(now, of=sum(n for _, n in rows.days(now.sequence, ())))
        begun = now
        now = adapter.take(contract, None, iter(()), lambda: begun)
        _note(app, place, now)
    now = _state(app, adapter, place, now)
    upto = lake.sequence
    for _ in range(EXCHANGES):
        now = _range(app, adapter, place, now, upto)
        failpoint("fill.before_exchange")
        place.check()
        lake = open_lake_table(app, contract, place.organization, at_least=now.sequence)
        try:
            receipt = adapter.replace(contract, now, lake.snapshot_id)
        except OvertakenError as error:
            overtaken = error
            upto = adapter.standing(contract)
            continue
        _forget(app, place)
        return receipt, lake
    raise overtaken


def _usable(now: Filling, adapter: Adapter, lake: LakeTable) -> bool:
    """What was taken is of this contract, as this destination is configured, and of this lake."""
    wanted = (lake.contract.version, adapter.every_version)
    return (now.contract, now.every_version) == wanted and now.sequence <= lake.sequence


def _state(app: App, adapter: Adapter, place: Place, now: Filling) -> Filling:
    """Take what is left of the state at `now.sequence`."""
    if now.whole:
        return now
    limit = app.settings.deliver.fill_rows
    with range_reader(app, open_lake_table(app, place.contract, place.organization, at_least=now.sequence)) as rows:
        slices = list(_slices(rows.days(now.sequence, now.reached), limit))
    for number, (begin, end) in enumerate(slices):
        lake = open_lake_table(app, place.contract, place.organization, at_least=now.sequence)
        with range_reader(app, lake) as rows:
            state = rows.state(now.sequence, now.reached, begin, end, every_version=now.every_version)
            after = functools.partial(_after_state, place.contract, number == len(slices) - 1)
            ended = False
            while not ended:
                now, ended = _chunk(app, adapter, place, now, state, after)
    return now


def _range(app: App, adapter: Adapter, place: Place, now: Filling, upto: int) -> Filling:
    """Take what was landed since, up to a `_sequence`."""
    if now.sequence >= upto:
        return now
    with range_reader(app, open_lake_table(app, place.contract, place.organization, at_least=upto)) as rows:
        landed = rows(now.sequence, upto)
        ended = False
        while not ended:
            now, ended = _chunk(app, adapter, place, now, landed, functools.partial(_after_range, upto))
    return now


def _chunk(
    app: App,
    adapter: Adapter,
    place: Place,
    before: Filling,
    rows: Iterator[pa.RecordBatch],
    after: Callable[[Filling, _Chunk], Filling],
) -> tuple[Filling, bool]:
    """Take one chunk; how far it is then, and whether the rows are at an end."""
    place.check()
    chunk = _Chunk(rows, app.settings.deliver.fill_rows)
    now = adapter.take(place.contract, before, iter(chunk), lambda: after(before, chunk))
    _note(app, place, now)
    failpoint("fill.taken")
    return now, chunk.ended


class _Chunk:
    """Batches until there are more than so many rows; remembers the last row."""

    def __init__(self, rows: Iterator[pa.RecordBatch], limit: int) -> None:
        self._rows = rows
        self._limit = limit
        self.rows = 0
        self.last: pa.RecordBatch | None = None
        self.ended = False

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._rows:
            if batch.num_rows:
                self.rows += batch.num_rows
                self.last = batch.slice(batch.num_rows - 1)
                yield batch
            if self.rows > self._limit:
                return
        self.ended = True

    def place(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The last row's values, as text that DuckDB reads."""
        assert self.last is not None  # noqa: S101 - asked only where there was a row
        return tuple(str(self.last.column(n)[0].as_py()) for n in names)


def _after_state(contract: Contract, last: bool, before: Filling, chunk: _Chunk) -> Filling:
    now = dataclasses.replace(before, rows=before.rows + chunk.rows)
    if chunk.ended and last:
        return dataclasses.replace(now, reached=(), whole=True)
    order = state_order(contract, every_version=before.every_version)
    return dataclasses.replace(now, reached=chunk.place(order)) if chunk.rows else now


def _after_range(upto: int, before: Filling, chunk: _Chunk) -> Filling:
    reached = upto if chunk.ended else int(chunk.place((SEQUENCE,))[0])
    return dataclasses.replace(before, rows=before.rows + chunk.rows, sequence=reached)


def _slices(days: list[tuple[str | None, int]], limit: int) -> Iterator[tuple[str | None, str | None]]:
    """[begin, end) of ranges of days with at most so many versions, or of one day that has more."""
    begin, count = None, 0
    for day, versions in days:
        if count and count + versions > limit:
            yield begin, day
            begin, count = day, 0
        count += versions
    yield begin, None


def _note(app: App, place: Place, now: Filling) -> None:
    """How far it is, for whoever looks; and an event."""
    values = {"sequence": now.sequence, "row_count": now.rows, "of_rows": now.of, "updated_at": func.clock_timestamp()}
    row = insert(DestinationFilling).values(
        destination_id=place.destination,
        organization_id=place.organization,
        table_name=place.contract.table,
        reached=now.reached[0] if now.reached else None,
        **values,
    )
    changed = {**values, "reached": row.excluded.reached}
    keys = ["destination_id", "organization_id", "table_name"]
    with app.engine.begin() as connection:
        connection.execute(row.on_conflict_do_update(index_elements=keys, set_=changed))
    app.events.emit(
        "resync_progress",
        destination=str(place.destination),
        table=place.contract.table,
        organization=place.organization,
        rows=now.rows,
        of=now.of,
        reached=now.reached[0] if now.reached else None,
    )


def _forget(app: App, place: Place) -> None:
    row = DestinationFilling
    with app.engine.begin() as connection:
        connection.execute(
            delete(row).where(
                row.destination_id == place.destination,
                row.organization_id == place.organization,
                row.table_name == place.contract.table,
            )
        )
