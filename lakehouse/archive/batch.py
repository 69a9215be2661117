"""The one transaction in which rows leave the hot database: what was proven is looked at again, then goes.

In this order: the organization's archive lock, which holds and policies take too; the policy; the table as it is now,
under a lock that keeps it so; the retention, and the cutoff by the database's clock; the rows, locked in their order,
those that others hold left out; then, in a statement of its own that sees what was committed until they were locked,
each row's version, content, age, holds and referring rows. Who passes gets a tombstone; batch, signed receipt and
tombstones are written; then the rows are deleted, and as many must go as there are tombstones. Anything else rolls all
of it back. The lake is not touched here, so no lock waits for storage.

READ COMMITTED on purpose: the look after the lock must see what the lock waited for. The transaction is bounded: waits
for locks, each statement, and the pauses between statements have limits, so a program that hangs lets the rows go.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive import age
from lakehouse.archive.candidates import EVENT, HASH, KEY, XMIN, key_names
from lakehouse.archive.durable import Backing
from lakehouse.archive.gate import Gate, inspect
from lakehouse.archive.holds import held
from lakehouse.archive.installation import ArchiveError, lock_organization, table
from lakehouse.archive.policy import Policy, PolicyOff, read_policy
from lakehouse.archive.proof import FILE, LANDED_AT, SEQUENCE_OF, Proven
from lakehouse.archive.records import (
    FIRST_CHAIN,
    Receipt,
    Tombstone,
    chain_after,
    content_digest,
    lines_digest,
    moment,
    tombstone_lines,
)
from lakehouse.archive.scope import as_sql
from lakehouse.archive.seal import Sealer
from lakehouse.failpoints import failpoint
from schemas.canonical import postgres_hash
from schemas.contract import Contract
from schemas.errors import Retry

if TYPE_CHECKING:
    from lakehouse.app import App

LOCKED = "locked by another"
GONE = "gone meanwhile"
CHANGED = "changed since it was proven"
NOT_OLD = "not old any more"
HELD = "held"
REFERRED = "referred to by "
"""Followed by who refers; rows that refer to each other within a table and cannot all go, too."""
METHOD = "sha-256 of the canonical row, computed by DuckDB from the lake's data files and by PostgreSQL under the lock"
LOCK_TIMEOUT, STATEMENT_TIMEOUT, IDLE_TIMEOUT = "5s", "60s", "30s"


@dataclass
class Batch:
    """What one transaction did. Without rows nothing was written, and there is no number."""

    organization: str
    table: str
    rows: int = 0
    number: int | None = None
    id: uuid.UUID | None = None
    receipt: str | None = None
    kept: Counter[str] = field(default_factory=Counter)
    """How many rows of the proof stayed, by reason."""
    seconds: float = 0.0
    """From BEGIN to the end of COMMIT."""


def delete_batch(
    app: App,
    connection: psycopg.Connection[Any],
    contract: Contract,
    organization: str,
    proof: Proven | Prepared,
    sealer: Sealer,
) -> Batch:
    """Delete what was proven and still is as it was, in one transaction; the rest stays and is counted by reason.

    `connection`: of the archive's user, in autocommit mode; a temporary table stays with it for the next batch.

    Raises:
        PolicyOff, RetentionRefused, TableRefused: nothing of this organization or table may go now.
        ArchiveError: a lock was not to be had in time, or a delete took other rows than it should. In every case
            nothing was deleted, unless the connection broke off at the COMMIT: then the database alone knows.
    """
    prepared = proof if isinstance(proof, Prepared) else Prepared(proof, sealer)
    run = _Run(app, connection, contract, organization, prepared, sealer)
    began = time.monotonic()
    try:
        run.prepare()
        began = time.monotonic()
        with connection.transaction():
            run.transact()
            failpoint("archive.before_commit")
    except _NothingToDo:
        pass
    except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected) as error:
        raise ArchiveError(
            f"{contract.source_name}: organization {organization}: {error.diag.message_primary}; nothing was deleted",
            "Another session holds a lock that the batch needs, or the server is slow. It is tried again.",
            retry=Retry.TIMED,
        ) from error
    except psycopg.OperationalError:
        # It broke off: whose connection it is says so.
        raise
    except psycopg.DatabaseError as error:
        raise ArchiveError(
            f"{contract.source_name}: organization {organization}: the database refused: "
            f"{error.diag.message_primary or error}; nothing was deleted",
            "A foreign key, trigger or missing right of the host stands against it; `lakehouse archive plan` names "
            "triggers.",
            retry=Retry.TIMED if isinstance(error, psycopg.IntegrityError) else Retry.MANUAL,
        ) from error
    else:
        failpoint("archive.after_commit")
    run.batch.seconds = time.monotonic() - began
    return run.batch


class _NothingToDo(Exception):
    """Rolls the transaction back; nobody's error."""


class Prepared:
    """What was proven, as the transaction needs it: everything that can be computed before anything is locked."""

    def __init__(self, proof: Proven, sealer: Sealer) -> None:
        self.proof = proof
        columns = {name: proof.rows[name].to_pylist() for name in proof.rows.column_names}
        self.keys: list[str] = columns[KEY]
        self.hashes: list[str] = columns[HASH]
        self.sequences: list[int] = columns[SEQUENCE_OF]
        self.files: list[str] = columns[FILE]
        events = [_moment(value) for value in columns[EVENT]]
        self.events = [moment(event) for event in events]
        self.keyed = [sealer.keyed_hash(h)[0] for h in self.hashes]
        self.hash_key = sealer.hash_key_version
        self.order = sorted(range(len(self.keys)), key=lambda n: self.keys[n].encode())
        """Of the keys' bytes: how receipts count rows."""
        names = key_names(proof.contract)
        self.rows: list[list[Any]] = [
            *(columns[name] for name in names),
            self.keys,
            events,
            self.hashes,
            columns[XMIN],
            self.sequences,
            columns[LANDED_AT],
            self.keyed,
        ]


class _Run:
    def __init__(
        self,
        app: App,
        connection: psycopg.Connection[Any],
        contract: Contract,
        organization: str,
        prepared: Prepared,
        sealer: Sealer,
    ) -> None:
        self.app = app
        self.connection = connection
        self.contract = contract
        self.organization = organization
        self.prepared = prepared
        self.proof = prepared.proof
        self.sealer = sealer
        self.batch = Batch(organization, contract.table)
        self.name = f"lakehouse_proven_{len(contract.primary_key)}"
        self.proven = sql.Identifier("pg_temp", self.name)

    def prepare(self) -> None:
        """Bring what was proven to the server, into a temporary table that the session keeps."""
        names = key_names(self.contract)
        found = self.connection.execute("SELECT to_regclass(%s)", [f"pg_temp.{self.name}"]).fetchone()
        fresh = found == (None,)
        if fresh:
            self.connection.execute(
                sql.SQL(
                    "CREATE TEMP TABLE {} (n integer, {}, row_key text, event_time timestamptz, row_hash text, "
                    "hot_xmin bigint, sequence bigint, landed_at timestamptz, keyed_hash text, PRIMARY KEY ({}))"
                ).format(
                    sql.Identifier(self.name),
                    sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(n)) for n in names),
                    sql.SQL(", ").join(map(sql.Identifier, names)),
                )
            )
        else:
            self.connection.execute(sql.SQL("TRUNCATE {}").format(self.proven))
        copy_in = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(self.proven)
        text, number, time_ = "text", "int8", "timestamptz"
        with self.connection.cursor() as cursor, cursor.copy(copy_in) as copy:
            copy.set_types(["int4", *[text] * len(names), text, time_, text, number, number, time_, text])
            for row in zip(range(len(self.prepared.keys)), *self.prepared.rows, strict=True):
                copy.write_row(row)
        if fresh:
            # The next batches are alike.
            self.connection.execute(sql.SQL("ANALYZE {}").format(self.proven))

    def transact(self) -> None:
        self._bound()
        lock_organization(self.connection, self.organization)
        policy = read_policy(self.connection, self.organization)
        if policy is None or not policy.covers(self.contract):
            raise PolicyOff(
                f"{self.contract.table}: archiving is not enabled for organization {self.organization}",
                "`lakehouse archive enable --organization …` turns it on.",
            )
        waiver = self.proof.backing.waiver
        if waiver is not None and waiver.standing and waiver != policy.waiver:
            raise PolicyOff(
                f"{self.contract.table}: that organization {self.organization} needs no destination was taken back",
                "The next run asks for a destination's receipt.",
            )
        self.connection.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(self._hot()))
        gate = inspect(self.connection, self.contract)
        gate.check()
        retention = age.read_retention(self.connection, self.app.settings.source, self.organization)
        locked = self._lock(gate)
        failpoint("archive.locked")
        going = self._without_referred(gate, self._look(gate, retention.cutoff, locked))
        if not going:
            raise _NothingToDo
        self._write(going, f"{age.RETENTION_COLUMN} {retention.days}", policy, retention.now)
        failpoint("archive.tombstones_written")
        gone = self._delete(gate, going)
        if gone != len(going):
            raise ArchiveError(
                f"{self.contract.source_name}: organization {self.organization}: {gone} rows would have been deleted, "
                f"{len(going)} were proven and locked: nothing was deleted",
                "A trigger or rule of the host interferes with deletes; `lakehouse archive plan` names them.",
                retry=Retry.MANUAL,
            )
        self.batch.rows = gone

    def _delete(self, gate: Gate, going: Sequence[int]) -> int:
        """Delete them; how many rows the database says that were. A key of one column needs no join."""
        if len(self.contract.primary_key) > 1:
            which = sql.SQL("USING {} AS p WHERE p.n = ANY(%s::int[]) AND {}").format(self.proven, self._join(gate))
            chosen: list[Any] = list(going)
        else:
            (key,) = self.contract.primary_key
            kind = sql.SQL(gate.hot.columns[self.contract[key].source].type)
            named = sql.Identifier("t", self.contract[key].source)
            which = sql.SQL("WHERE {} = ANY(%s::text[]::{}[])").format(named, kind)
            which += sql.SQL(" AND ") + self._mine(gate)
            column = self.prepared.rows[0]
            chosen = [column[n] for n in going]
        query = sql.SQL("DELETE FROM {} AS t ").format(self._hot()) + which
        return self.connection.execute(query, [chosen]).rowcount

    def _bound(self) -> None:
        # Whatever the database's default is.
        self.connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        for name, value in (
            ("lock_timeout", LOCK_TIMEOUT),
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
            # A batch is small beside its tables, and every index that it needs was looked for.
            ("enable_hashjoin", "off"),
            ("enable_mergejoin", "off"),
            ("enable_seqscan", "off"),
        ):
            self.connection.execute("SELECT set_config(%s, %s, true)", [name, value])

    def _lock(self, gate: Gate) -> set[int]:
        rows = self.connection.execute(
            sql.SQL("SELECT p.n FROM {} AS p JOIN {} AS t ON {} ORDER BY p.n FOR UPDATE OF t SKIP LOCKED").format(
                self.proven, self._hot(), self._join(gate)
            )
        ).fetchall()
        return {n for (n,) in rows}

    def _look(self, gate: Gate, cutoff: datetime, locked: set[int]) -> list[int]:
        """Who may go, of those that are locked: a fresh statement, so it sees what was committed until then."""
        contract = self.contract
        reasons: list[tuple[sql.Composable, str]] = [
            (
                sql.SQL("{} IS DISTINCT FROM p.row_hash OR t.xmin::text::bigint <> p.hot_xmin").format(
                    as_sql(postgres_hash(contract, alias="t"))
                ),
                CHANGED,
            ),
            (
                sql.SQL("({} AND NOT {} AND (NOT {} OR p.landed_at < {})) IS NOT TRUE").format(
                    age.past(contract, cutoff), age.in_use(contract), age.since_landing(contract), sql.Literal(cutoff)
                ),
                NOT_OLD,
            ),
            (held(contract, "t"), HELD),
            *((r.condition(), f"{REFERRED}{r.child}") for r in gate.others),
        ]
        whens = sql.SQL(" ").join(
            sql.SQL("WHEN {} THEN {}").format(condition, sql.Literal(n)) for n, (condition, _) in enumerate(reasons)
        )
        rows = self.connection.execute(
            sql.SQL("SELECT p.n, CASE {} END FROM {} AS p JOIN {} AS t ON {}").format(
                whens, self.proven, self._hot(), self._join(gate)
            ),
            [],
        ).fetchall()
        found = dict(rows)
        going = []
        for n in range(len(self.prepared.keys)):
            if n not in found:
                self.batch.kept[GONE] += 1
            elif n not in locked:
                self.batch.kept[LOCKED] += 1
            elif (reason := found[n]) is not None:
                self.batch.kept[reasons[reason][1]] += 1
            else:
                going.append(n)
        return going

    def _without_referred(self, gate: Gate, going: list[int]) -> list[int]:
        """Without rows that a row of the same table which stays refers to, and those that these refer to, and so on.

        What is left goes in one statement, at whose end no reference is left open.
        """
        if not gate.own or not going:
            return going
        names = key_names(self.contract)
        kinds = gate.hot.key_types(self.contract)
        columns = [self.contract[k].source for k in self.contract.primary_key]

        def same(row: str, proven: str) -> sql.Composable:
            return sql.SQL(" AND ").join(
                sql.SQL("{} = {}::{}").format(sql.Identifier(row, c), sql.Identifier(proven, n), sql.SQL(kinds[k]))
                for c, n, k in zip(columns, names, self.contract.primary_key, strict=True)
            )

        def refers(child: str, parent: str) -> sql.Composable:
            ways = [
                sql.SQL(" AND ").join(
                    sql.SQL("{} = {}").format(sql.Identifier(child, mine), sql.Identifier(parent, theirs))
                    for mine, theirs in zip(r.columns, r.target, strict=True)
                )
                for r in gate.own
            ]
            return sql.SQL("({})").format(sql.SQL(" OR ").join(sql.SQL("({})").format(w) for w in ways))

        rows = self.connection.execute(
            sql.SQL(
                "WITH RECURSIVE stays AS ("
                "SELECT p.n FROM {proven} AS p JOIN {hot} AS t ON {p_t} WHERE p.n = ANY(%(going)s::int[]) AND EXISTS ("
                "SELECT FROM {hot} AS c WHERE {c_t} AND NOT EXISTS ("
                "SELECT FROM {proven} AS q WHERE q.n = ANY(%(going)s::int[]) AND {q_c})) "
                "UNION "
                "SELECT p.n FROM stays AS s JOIN {proven} AS q ON q.n = s.n JOIN {hot} AS c ON {q_c} "
                "JOIN {hot} AS t ON {c_t} JOIN {proven} AS p ON {p_t} WHERE p.n = ANY(%(going)s::int[])"
                ") SELECT n FROM stays"
            ).format(proven=self.proven, hot=self._hot(), p_t=same("t", "p"), q_c=same("c", "q"), c_t=refers("c", "t")),
            {"going": going},
        ).fetchall()
        staying = {n for (n,) in rows}
        if staying:
            self.batch.kept[f"{REFERRED}{gate.own[0].child}"] += len(staying)
        return [n for n in going if n not in staying]

    def _chain(self) -> tuple[int, str]:
        row = self.connection.execute(
            sql.SQL("SELECT number, chain FROM {} WHERE organization_id = %s ORDER BY number DESC LIMIT 1").format(
                table("batches")
            ),
            [self.organization],
        ).fetchone()
        return (row[0] + 1, row[1]) if row else (1, FIRST_CHAIN)

    def _write(self, going: Sequence[int], policy: str, allowed: Policy, now: datetime) -> None:
        """Batch, receipt and tombstones; the rows of the latter go from the temporary table, not over the wire."""
        ready, backing = self.prepared, self.proof.backing
        number, previous = self._chain()
        shared = Tombstone(
            organization=self.organization,
            table=self.contract.table,
            row_key="",
            event_time=None,
            sequence=0,
            batch=number,
            delivered_to=(),
            snapshot_id=self.proof.snapshot_id,
            keyed_hash="",
            hash_key=ready.hash_key,
            contract_version=self.contract.version,
            policy=policy,
            operator=allowed.changed_by,
            archived_at=now,
        )
        gone = set(going)
        order = [n for n in ready.order if n in gone]
        rows = (
            (ready.keys[n], ready.events[n], ready.sequences[n], backing.holding(ready.sequences[n]), ready.keyed[n])
            for n in order
        )
        receipt = Receipt(
            installation=self.app.settings.installation,
            organization=self.organization,
            table=self.contract.table,
            contract_version=self.contract.version,
            batch=uuid.uuid4(),
            number=number,
            previous=previous,
            rows=len(going),
            content_sha256=content_digest((ready.keys[n], ready.hashes[n]) for n in order),
            tombstones_sha256=lines_digest(tombstone_lines(shared, rows)),
            lake_table=self.proof.lake_table,
            snapshot_id=self.proof.snapshot_id,
            files=tuple(sorted({ready.files[n] for n in going})),
            destinations=backing.receipt(),
            policy=policy,
            operator=allowed.changed_by,
            method=METHOD,
            software=f"lakehouse {version('lakehouse')}",
            archived_at=now,
        )
        sealed = self.sealer.seal(receipt)
        self.connection.execute(
            sql.SQL(
                "INSERT INTO {} (organization_id, number, id, table_name, row_count, receipt, chain, created_at) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
            ).format(table("batches")),
            [
                self.organization,
                number,
                receipt.batch,
                self.contract.table,
                receipt.rows,
                sealed,
                chain_after(previous, sealed),
                now,
            ],
        )
        self.connection.execute(
            sql.SQL(
                "INSERT INTO {} (organization_id, table_name, row_key, event_time, sequence, batch, delivered_to, "
                "snapshot_id, keyed_hash, hash_key, contract_version, policy, operator, archived_at) "
                "SELECT %(organization)s, %(table)s, p.row_key, p.event_time, p.sequence, %(batch)s, {}, "
                "%(snapshot)s, p.keyed_hash, %(hash_key)s, %(version)s, %(policy)s, %(operator)s, %(now)s "
                "FROM {} AS p WHERE p.n = ANY(%(going)s::int[])"
            ).format(table("cold_storage_archive"), _holding(backing), self.proven),
            {
                "organization": shared.organization,
                "table": shared.table,
                "batch": number,
                "snapshot": shared.snapshot_id,
                "hash_key": shared.hash_key,
                "version": shared.contract_version,
                "policy": policy,
                "operator": shared.operator,
                "now": now,
                "going": list(going),
            },
        )
        self.batch.number, self.batch.id, self.batch.receipt = number, receipt.batch, sealed

    def _hot(self) -> sql.Identifier:
        return sql.Identifier(self.contract.source_schema, self.contract.source_table)

    def _join(self, gate: Gate) -> sql.Composable:
        """The row `t` of the hot table is the proven row `p`, and this organization's."""
        kinds = gate.hot.key_types(self.contract)
        terms = [
            sql.SQL("{} = {}::{}").format(
                sql.Identifier("t", self.contract[k].source), sql.Identifier("p", name), sql.SQL(kinds[k])
            )
            for k, name in zip(self.contract.primary_key, key_names(self.contract), strict=True)
        ]
        return sql.SQL(" AND ").join([*terms, self._mine(gate)])

    def _mine(self, gate: Gate) -> sql.Composable:
        tenant = self.contract[self.contract.tenant].source
        return sql.SQL("{} = {}::{}").format(
            sql.Identifier("t", tenant), sql.Literal(self.organization), sql.SQL(gate.hot.columns[tenant].type)
        )


def _holding(backing: Backing) -> sql.Composable:
    """As `Backing.holding`, over the temporary table."""
    labels = sql.SQL(", ").join(
        sql.SQL("CASE WHEN p.sequence <= {} THEN {}::text END").format(sql.Literal(d.sequence), sql.Literal(d.label))
        for d in backing.destinations
    )
    return sql.SQL("array_remove(ARRAY[{}]::text[], NULL)").format(labels)


def _moment(value: datetime | date | None) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    return datetime(value.year, value.month, value.day, tzinfo=UTC)
