"""The demo's last part: an organization's old rows leave the hot database with proof, and one of them comes back.

In this order, as an operator and an auditor would: the plan, which refuses what an unindexed key makes dear; the
indexes that it names; a hold on one finding; the archive; its receipts, verified with the public key alone; a data file
altered by one value, and the refusal that names the column; the hold released, and the finding that it held archived,
recalled, and compared with what it was. Any step that ends otherwise is an error of the demo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive.evidence import Verified, verify
from lakehouse.archive.holds import place, release
from lakehouse.archive.installation import SCHEMA, table
from lakehouse.archive.plan import Plan, make_plan
from lakehouse.archive.policy import enable
from lakehouse.archive.proof import DIFFERS
from lakehouse.archive.run import Result, archive_all
from lakehouse.archive.seal import Sealer
from lakehouse.recall.register import TABLE_TARGET
from lakehouse.recall.request import make_request
from lakehouse.recall.run import Recalled, recall
from schemas.canonical import postgres_hash
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from pyiceberg.io import FileIO

    from lakehouse.app import App
    from lakehouse.demo.environment import World
    from schemas.contract import Contract

DAYS = 7
"""What the demo sets the organization's retention to; its data covers two weeks."""
WHO = "demo operator"


@dataclass
class RetentionReport:
    """What the last part did, for people and for `--report`."""

    organization: str
    days: int = DAYS
    refused: list[str] = field(default_factory=list)
    """What the first plan refused, and what it asked for."""
    planned: dict[str, int] = field(default_factory=dict)
    archived: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    slowest_batch_seconds: float = 0.0
    receipts: int = 0
    rows_proven_again: int = 0
    """By whoever has the lake and the public key."""
    tampered: str = ""
    held: str = ""
    recalled: str = ""

    @property
    def rows(self) -> int:
        return sum(self.archived.values())


def archive(app: App, world: World, organization: str, say: Callable[[str], None]) -> RetentionReport:
    """Run it for one organization, whose lake stands where its hot tables do.

    Raises:
        LakehouseError: a step ended otherwise than it must.
    """
    report = RetentionReport(organization)
    findings = app.contract("findings")
    with psycopg.connect(world.hot_url, autocommit=True) as hot:
        hot.execute("UPDATE organizations SET data_retention_days = %s WHERE id = %s", [DAYS, organization])
        say(f"the organization's retention is set to {DAYS} days; what would leave the hot database, and what stays:")
        # Of tables that retention applies to without being asked for by name.
        tables = [c.table for c in app.contracts.values() if c.retention == "applies"]
        first = make_plan(app, [organization], tables)
        report.refused = [r for t in first.tables for r in t.refusals]
        for refusal in report.refused:
            say(f"  refused: {refusal}")
        _make_indexes(hot, report.refused)
        _plan(report, make_plan(app, [organization], tables), say)
        key = _oldest_finding(hot, findings, organization)
        before = _hot_hash(hot, findings, key)
        hold = place(app, organization, reason="case 4711", table_name="findings", row_keys=[key], by=WHO)
        say(f"a legal hold is placed on finding {key}")
        enable(app, organization, reason=f"retention of {DAYS} days, order 17", by=WHO)
        _run(app, report, say)
        if _hot_hash(hot, findings, key) != before:
            raise LakehouseError(f"finding {key} was held, and is not as it was")
        _verify(app, report, say)
        release(app, hold.id, reason="case 4711 is closed", by=WHO)
        _tampered(app, report, key, say)
        _run(app, report, say)
        if _hot_hash(hot, findings, key) is not None:
            raise LakehouseError(f"finding {key} was not archived after its hold was released")
        report.held = key
        _recall(app, hot, report, findings, key, before, say)
    return report


def _make_indexes(hot: psycopg.Connection[Any], refusals: list[str]) -> None:
    for refusal in refusals:
        _, found, statement = refusal.partition("CREATE INDEX")
        if found:
            hot.execute((found + statement).encode())


def _plan(report: RetentionReport, plan: Plan, say: Callable[[str], None]) -> None:
    for t in plan.tables:
        if t.refusals:
            raise LakehouseError("\n".join(t.refusals))
        report.planned[t.table] = t.rows
        kept = ", ".join(f"{n:,} {why}" for why, n in t.kept.items())
        say(f"  {t.table:<20} {t.rows:>7,} of {t.hot_rows:>7,} rows would go" + (f"; kept: {kept}" if kept else ""))


def _run(app: App, report: RetentionReport, say: Callable[[str], None]) -> Result:
    result = archive_all(app, [report.organization])
    if result.first_error is not None:
        raise result.first_error
    for t in result.tables:
        if t.state != "done":
            raise LakehouseError(f"{t.table}: {t.state}: {t.detail}")
        report.archived[t.table] = report.archived.get(t.table, 0) + t.rows
        report.batches += t.batches
        report.slowest_batch_seconds = max(report.slowest_batch_seconds, round(t.slowest_batch_seconds, 3))
        for why, count in t.kept.items():
            report.kept[why] = report.kept.get(why, 0) + count
        if t.unproven:
            raise LakehouseError(f"{t.table}: the lake does not hold {t.unproven[0]}")
    rows, batches = sum(t.rows for t in result.tables), sum(t.batches for t in result.tables)
    say(f"archived {rows:,} rows in {batches} batches; {result.exported} receipts are in the lake")
    return result


def _verify(app: App, report: RetentionReport, say: Callable[[str], None]) -> None:
    found: Verified = verify(app, report.organization, [Sealer(app).public_key], chain=True)
    if not found.sound:
        raise LakehouseError(f"receipts: {found.faults[0]}")
    report.receipts, report.rows_proven_again = found.signatures, found.contents
    say(
        f"{found.signatures} receipts verified with the public key: {found.contents:,} rows are in the lake with the "
        "content that was signed; the chain has no gap"
    )


def _tampered(app: App, report: RetentionReport, key: str, say: Callable[[str], None]) -> None:
    """Alter one value of one data file: the row stays hot, and the column is named. Then the file is put back."""
    io, path, original = _file_with(app, report.organization, key)
    _write(io, path, _altered(original, key))
    try:
        result = archive_all(app, [report.organization], ["findings"])
        named = [u for t in result.tables for u in t.unproven if u.row_key == key and u.reason == DIFFERS]
        if sum(t.rows for t in result.tables) or not named or named[0].columns != ("title",):
            raise LakehouseError(f"a file was altered, and finding {key} was not kept for it: {result}")
    finally:
        _write(io, path, original)
    report.tampered = f"{key}: {DIFFERS}: {', '.join(named[0].columns)}"
    say(f"one value of a data file was altered: finding {key} is not deleted, it {DIFFERS} in {named[0].columns[0]}")


def _file_with(app: App, organization: str, key: str) -> tuple[FileIO, str, bytes]:
    """Where the newest version of a finding is: the way to its data file, its path and its bytes."""
    import pyarrow.parquet as pq

    lake = app.lake(organization)
    table = lake.catalog.load_table((lake.namespace, "findings"))
    newest: tuple[int, str, bytes] | None = None
    for task in table.scan(row_filter=f"id == '{key}'").plan_files():
        with table.io.new_input(task.file.file_path).open() as stream:
            data = stream.read()
        rows = pq.read_table(BytesIO(data), columns=["id", "_sequence"]).to_pylist()
        found = max((r["_sequence"] for r in rows if r["id"] == key), default=None)
        if found is not None and (newest is None or found > newest[0]):
            newest = (found, task.file.file_path, data)
    if newest is None:
        raise LakehouseError(f"finding {key} is in no data file")
    return table.io, newest[1], newest[2]


def _write(io: FileIO, path: str, data: bytes) -> None:
    with io.new_output(path).create(overwrite=True) as stream:
        stream.write(data)


def _altered(data: bytes, key: str) -> bytes:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(BytesIO(data))
    place = table.schema.get_field_index("title")
    titles = pc.if_else(pc.equal(table["id"], key), pa.scalar("somebody was here"), table["title"])
    out = BytesIO()
    pq.write_table(table.set_column(place, table.schema.field(place), titles), out, compression="zstd")
    return out.getvalue()


def _recall(
    app: App,
    hot: psycopg.Connection[Any],
    report: RetentionReport,
    findings: Contract,
    key: str,
    before: str | None,
    say: Callable[[str], None],
) -> None:
    request = make_request(report.organization, findings, ids=[key])
    done: Recalled = recall(app, request, target="table", reason="question of the auditor", by=WHO)
    name = done.target.removeprefix(TABLE_TARGET)
    row = hot.execute(
        sql.SQL("SELECT {} FROM {} AS r WHERE id = %s").format(
            sql.SQL(postgres_hash(findings, alias="r")), table(name)
        ),
        [key],
    ).fetchone()
    if row is None or row[0] != before:
        raise LakehouseError(f"finding {key} came back otherwise than it was")
    report.recalled = f"{key} into {SCHEMA}.{name}"
    say(f"finding {key} is recalled into {SCHEMA}.{name}, and equals what it was in every value")


def _oldest_finding(hot: psycopg.Connection[Any], findings: Contract, organization: str) -> str:
    """A finding that is old, resolved, and that nobody refers to."""
    row = hot.execute(
        sql.SQL(
            "SELECT id FROM {} f WHERE organization_id = %s AND status = 'RESOLVED' "
            "AND greatest(detected_at, resolved_at) < LOCALTIMESTAMP - make_interval(days => %s) "
            "AND NOT EXISTS (SELECT FROM agent_proposals p WHERE p.finding_id = f.id) "
            "AND NOT EXISTS (SELECT FROM risk_exceptions r WHERE r.finding_id = f.id) "
            "AND NOT EXISTS (SELECT FROM workflow_deliveries w WHERE w.finding_id = f.id) ORDER BY id LIMIT 1"
        ).format(sql.Identifier(findings.source_schema, findings.source_table)),
        [organization, DAYS + 1],
    ).fetchone()
    if row is None:
        raise LakehouseError("no finding of the demo is old enough to be archived", "Run it with more --rows.")
    return str(row[0])


def _hot_hash(hot: psycopg.Connection[Any], findings: Contract, key: str) -> str | None:
    row = hot.execute(
        sql.SQL("SELECT {} FROM {} AS t WHERE id = %s").format(
            sql.SQL(postgres_hash(findings, alias="t")), sql.Identifier(findings.source_schema, findings.source_table)
        ),
        [key],
    ).fetchone()
    return None if row is None else str(row[0])
