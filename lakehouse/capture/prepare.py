"""`lakehouse source prepare`: puts what the trigger method needs into the hot database, or takes it out again.

Invariants: everything but the index is one short transaction per table, which waits for its lock only so long
(a waiting ALTER TABLE would make every query behind it wait) and is tried again a few times; the index is built
CONCURRENTLY; what is there already is left alone, so that it can be killed at any statement and run again. What an
interrupted build left behind is dropped and made again.

When it fails the table is as it was, or lacks only its index; windows say what is missing and land nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from lakehouse.capture import installation
from lakehouse.capture.installation import (
    LEAST_SERVER,
    NUMBER,
    PROGRESS,
    SCHEMA,
    TRIGGERS,
    WHAT,
    Installation,
    hot_table,
    log_table,
    slug,
)
from lakehouse.capture.source import HotTable, Source, SourceError, describe
from lakehouse.failpoints import failpoint
from schemas.contract import CHANGE_XID, Contract
from schemas.errors import Retry

INDEX_WAIT = "10min"
"""Building an index waits for open transactions, but nobody waits for it."""


@dataclass(frozen=True)
class Step:
    """Statements that belong together. In one transaction, or each on its own where PostgreSQL wants that."""

    name: str
    statements: tuple[str, ...]
    together: bool = True


@dataclass
class Work:
    """What one table needs (or needs undone), and what became of it."""

    table: str
    source: str
    steps: list[Step] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What was missing before."""
    absent: bool = False
    done: bool = False


def work_for(connection: psycopg.Connection[Any], contract: Contract, reader: str) -> Work:
    """What `--apply` would do now for a table; nothing to do has no steps.

    Raises:
        SourceError: the table is not there, or cannot be captured by triggers at all.
    """
    hot, found = look(connection, contract)
    if never := list(installation.unsupported(contract, hot, found)):
        raise SourceError("\n".join(f"{contract.source_name}: {n}" for n in never), retry=Retry.NEVER)
    work = Work(contract.table, contract.source_name, faults=installation.faults(contract, hot, found))
    log_wrong = not found.log or found.raw["log_columns"] != installation.log_columns(contract, hot)
    triggers_wrong = found.column is None or bool(installation.trigger_faults(contract, hot, found))
    if log_wrong or triggers_wrong or not found.raw["progress"] or found.raw["default"] is None:
        work.steps.append(Step("column, log, triggers", tuple(_install(contract, hot, found, reader, anew=log_wrong))))
    elif missing := _missing_grants(connection, contract, reader):
        work.steps.append(Step("grants", tuple(missing)))
    if index := list(_index(contract, found)):
        work.steps.append(Step("index", tuple(index), together=False))
    return work


def removal_of(connection: psycopg.Connection[Any], contract: Contract) -> Work:
    """What `--remove` would do now for a table."""
    hot, found = look(connection, contract)
    del hot
    work = Work(contract.table, contract.source_name)
    hot_name, schema = hot_table(contract), sql.Identifier(SCHEMA)
    functions = [f"{slug(contract)}_{suffix}" for suffix in ("stamp", "moved", "gone", "truncated")]
    ours = found.column == "xid8"
    if not (ours or found.log or found.raw["triggers"] or found.raw["progress"]):
        return work
    items: list[sql.Composable] = [sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(hot_name)]
    items += [sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(t), hot_name) for t in TRIGGERS]
    if ours:
        items.append(sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(hot_name, sql.Identifier(CHANGE_XID)))
    if found.raw["progress"] or found.log:
        items += [sql.SQL("DROP FUNCTION IF EXISTS {}.{}()").format(schema, sql.Identifier(f)) for f in functions]
        items.append(sql.SQL("DROP TABLE IF EXISTS {}").format(log_table(contract)))
    if found.raw["progress"]:
        items.append(sql.SQL("DELETE FROM {} WHERE log = {}").format(PROGRESS, sql.Literal(f"{slug(contract)}_log")))
        # The last table takes the schema with it. It fails, and undoes nothing, where another one has a log there.
        items.append(
            sql.SQL(
                "DO $lakehouse$ BEGIN IF NOT EXISTS (SELECT FROM {p}) THEN DROP TABLE {p}; DROP SCHEMA {s}; "
                "END IF; END $lakehouse$"
            ).format(p=PROGRESS, s=schema)
        )
    work.steps.append(Step("removal", tuple(i.as_string(connection) for i in items)))
    return work


def look(connection: psycopg.Connection[Any], contract: Contract) -> tuple[HotTable, Installation]:
    """The hot table and what of the installation is there.

    Raises:
        SourceTableMissing: there is no such table.
    """
    hot = describe(connection, contract)
    row = connection.execute(installation.state_query(contract)).fetchone()
    assert row is not None  # noqa: S101 - `describe` has found the table
    return hot, installation.parse_state(row[0])


def _install(contract: Contract, hot: HotTable, found: Installation, reader: str, *, anew: bool) -> Iterator[str]:
    """Everything but the index. The hot table is locked last and for milliseconds."""
    schema, log, table = sql.Identifier(SCHEMA), log_table(contract), hot_table(contract)
    column = sql.Identifier(CHANGE_XID)
    key = sql.Literal(f"{slug(contract)}_log")

    def text(template: str, **names: sql.Composable) -> str:
        return sql.SQL(template).format(**names).as_string(None)

    yield text("CREATE SCHEMA IF NOT EXISTS {schema}", schema=schema)
    yield text(
        "CREATE TABLE IF NOT EXISTS {progress} (log text PRIMARY KEY, pruned_below xid8 NOT NULL)", progress=PROGRESS
    )
    if anew:
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(c.source), sql.SQL(installation.log_type(c, hot)))
            for c in installation.identity_columns(contract)
        )
        yield text("DROP TABLE IF EXISTS {log}", log=log)
        yield text(
            "CREATE TABLE {log} ({number} bigint GENERATED ALWAYS AS IDENTITY, "
            '{column} xid8 NOT NULL DEFAULT pg_current_xact_id(), {what} "char" NOT NULL, {columns}, '
            "PRIMARY KEY ({column}, {number}))",
            log=log,
            number=sql.Identifier(NUMBER),
            column=column,
            what=sql.Identifier(WHAT),
            columns=columns,
        )
    yield text(
        "INSERT INTO {progress} VALUES ({key}, '0') ON CONFLICT (log) DO UPDATE SET pruned_below = '0'"
        if anew
        else "INSERT INTO {progress} VALUES ({key}, '0') ON CONFLICT (log) DO NOTHING",
        progress=PROGRESS,
        key=key,
    )
    yield from grants(contract, reader)
    definitions = installation.definitions(contract, hot)
    for d in definitions:
        function = sql.Identifier(SCHEMA, d.function)
        secured = " SECURITY DEFINER SET search_path = pg_catalog, pg_temp" if d.secured else ""
        yield text(
            f"CREATE OR REPLACE FUNCTION {{function}}() RETURNS trigger LANGUAGE plpgsql{secured} "
            f"AS $lakehouse$" + d.body.replace("{", "{{").replace("}", "}}") + "$lakehouse$",
            function=function,
        )
        yield text("REVOKE ALL ON FUNCTION {function}() FROM PUBLIC", function=function)
    # From here on nobody writes: who did has committed, and is found by the next window's exact read.
    yield text("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE", table=table)
    if found.column is None:
        yield text("ALTER TABLE {table} ADD COLUMN {column} xid8", table=table, column=column)
    # A second statement: given at once, every old row would get the value.
    yield text(
        "ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT pg_catalog.pg_current_xact_id()",
        table=table,
        column=column,
    )
    partitions = [sql.Identifier(p[1], p[2]) for p in found.raw["partitions"] or ()]
    for d in definitions:
        trigger = sql.Identifier(d.trigger)
        yield text("DROP TRIGGER IF EXISTS {trigger} ON {table}", trigger=trigger, table=table)
        yield text(
            "CREATE TRIGGER {trigger} {when} EXECUTE FUNCTION {function}({mark})",
            trigger=trigger,
            when=d.when,
            function=sql.Identifier(SCHEMA, d.function),
            mark=sql.Literal(d.mark),
        )
        for each in (table, *(partitions if d.trigger != installation.EMPTIED else ())):
            yield text("ALTER TABLE {each} ENABLE ALWAYS TRIGGER {trigger}", each=each, trigger=trigger)


def grants(contract: Contract, reader: str) -> list[str]:
    """What the program's own user needs: to read tombstones, and to prune them."""
    role = sql.Identifier(reader)
    return [
        sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(SCHEMA), role).as_string(None),
        sql.SQL("GRANT SELECT, DELETE ON {} TO {}").format(log_table(contract), role).as_string(None),
        sql.SQL("GRANT SELECT, UPDATE ON {} TO {}").format(PROGRESS, role).as_string(None),
    ]


def _missing_grants(connection: psycopg.Connection[Any], contract: Contract, reader: str) -> list[str]:
    row = connection.execute(
        "SELECT bool_and(has_schema_privilege(%(r)s, l.relnamespace, 'USAGE') AND CASE WHEN l.relname = 'progress' "
        "THEN has_table_privilege(%(r)s, l.oid, 'SELECT') AND has_table_privilege(%(r)s, l.oid, 'UPDATE') "
        "ELSE has_table_privilege(%(r)s, l.oid, 'SELECT') AND has_table_privilege(%(r)s, l.oid, 'DELETE') END) "
        "FROM pg_class l JOIN pg_namespace n ON n.oid = l.relnamespace "
        "WHERE n.nspname = %(s)s AND l.relname IN ('progress', %(l)s)",
        {"r": reader, "s": SCHEMA, "l": f"{slug(contract)}_log"},
    ).fetchone()
    return [] if row is not None and row[0] else grants(contract, reader)


def _index(contract: Contract, found: Installation) -> Iterator[str]:
    """Statements that leave a valid index, each on its own; of a partitioned table leaf by leaf, then attached."""
    if found.index_of(found.raw["table"]) is not None:
        return
    table, name = hot_table(contract), installation.index_name(contract)
    if not found.partitioned:
        for left in (i for i in found.raw["indexes"] if not i["valid"]):
            yield _text("DROP INDEX CONCURRENTLY IF EXISTS {}", sql.Identifier(left["schema"], left["name"]))
        yield _create("CREATE INDEX CONCURRENTLY {} ON {} ({}) WHERE {} IS NOT NULL", name, table)
        return
    top = next((i for i in found.raw["indexes"] if i["table"] == found.raw["table"]), None)
    names = {found.raw["table"]: (contract.source_schema, top["name"] if top else name)}
    if top is None:
        yield _create("CREATE INDEX {} ON ONLY {} ({}) WHERE {} IS NOT NULL", name, table)
    # Deepest first in the catalog's answer; parents must have their index before a child's can be attached.
    for oid, schema, relation, leaf, _ in reversed(found.raw["partitions"] or []):
        own = [i for i in found.raw["indexes"] if i["table"] == oid]
        usable = next((i for i in own if i["valid"] or not leaf), None)
        names[oid] = (schema, usable["name"] if usable else f"{slug(contract)[-8:]}_{oid}_{CHANGE_XID}_idx")
        if usable is not None:
            continue
        for left in own:
            yield _text("DROP INDEX CONCURRENTLY IF EXISTS {}", sql.Identifier(left["schema"], left["name"]))
        template = "CREATE INDEX CONCURRENTLY {} ON {}" if leaf else "CREATE INDEX {} ON ONLY {}"
        yield _create(template + " ({}) WHERE {} IS NOT NULL", names[oid][1], sql.Identifier(schema, relation))
    attached = {(i["schema"], i["name"]) for i in found.raw["indexes"] if i["attached"]}
    for oid, _, _, _, parent in found.raw["partitions"] or []:
        if names[oid] not in attached:
            yield _text(
                "ALTER INDEX {} ATTACH PARTITION {}", sql.Identifier(*names[parent]), sql.Identifier(*names[oid])
            )


def _text(template: str, *names: sql.Composable) -> str:
    return sql.SQL(template).format(*names).as_string(None)


def _create(template: str, name: str, table: sql.Identifier) -> str:
    return _text(template, sql.Identifier(name), table, sql.Identifier(CHANGE_XID), sql.Identifier(CHANGE_XID))


def script(work: Work, lock_seconds: float) -> str:
    """A table's steps as psql runs them."""
    lines = [f"-- {work.source}"]
    if not work.steps:
        lines.append("-- nothing to do")
    for step in work.steps:
        if step.together:
            wait = f"SET LOCAL lock_timeout = '{round(lock_seconds * 1000)}ms';"
            lines += ["BEGIN;", wait, *(f"{s};" for s in step.statements), "COMMIT;"]
        else:
            lines += [f"SET lock_timeout = '{INDEX_WAIT}';", *(f"{s};" for s in step.statements)]
            lines.append("RESET lock_timeout;")
    return "\n".join(lines) + "\n"


def prisma_lines(contract: Contract) -> str:
    """What the host's Prisma schema must say of the table, or the next migration drops the column.

    Source: prisma.io/docs, "Unsupported database features"; partial indexes are a preview feature since 7.4,
    older versions look past them.
    """
    name = installation.index_name(contract)
    return (
        f'// In the model with @@map("{contract.source_table}"):\n'
        f'  changeXid Unsupported("xid8")? @default(dbgenerated("pg_current_xact_id()")) @map("{CHANGE_XID}")\n'
        '  // Only with Prisma 7.4 or later and previewFeatures = ["partialIndexes"] in the generator; an older one\n'
        "  // neither sees nor drops a partial index, and must not have this line:\n"
        f'  @@index([changeXid], map: "{name}", where: raw("({CHANGE_XID} IS NOT NULL)"))\n'
    )


def owner_source(source: Source, url: str | None = None) -> Source:
    """The hot database as its tables' owner: `url`, the setting `source.owner_url`, or the source's own user."""
    from pydantic import SecretStr

    secret = SecretStr(url) if url else source.settings.owner_url
    return source if secret is None else Source(source.settings.model_copy(update={"url": secret}))


def reader_of(source: Source) -> str:
    """The user that captures.

    Raises:
        SourceError: the database does not answer.
    """
    with source.catalog() as connection:
        row = connection.execute("SELECT current_user::text").fetchone()
    assert row is not None  # noqa: S101 - the query has no FROM
    name: str = row[0]
    return name


def run(
    connection: psycopg.Connection[Any], contract: Contract, work: Work, *, lock_seconds: float, attempts: int
) -> None:
    """Do a table's work.

    Raises:
        SourceError: no right to it, or the table stayed locked; what was committed stays, run it again.
    """
    _, found = look(connection, contract)
    if work.steps and not found.raw["owned"]:
        raise SourceError(
            f"{contract.source_name}: only its owner ({found.raw['owner']}) may prepare it, not {connection.info.user}",
            "Give the owner's connection: LAKEHOUSE_SOURCE__OWNER_URL, or --url; or hand the output of --print on.",
            retry=Retry.MANUAL,
        )
    for step in work.steps:
        _retried(connection, contract, step, lock_seconds, attempts)
    work.done = True


def _retried(
    connection: psycopg.Connection[Any], contract: Contract, step: Step, lock_seconds: float, attempts: int
) -> None:
    busy = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
    for attempt in range(1, attempts + 1):
        try:
            _once(connection, step, lock_seconds)
        except busy as error:
            if attempt == attempts:
                raise SourceError(
                    f"{contract.source_name}: locked by others, {attempts} times for {lock_seconds:g} s "
                    f"({step.name}): {_holders(connection, contract)}",
                    "Run it again at a quieter time, or with a longer --lock-timeout. Nothing is half done.",
                    retry=Retry.TIMED,
                ) from error
            # Whoever queued behind us goes first.
            threading.Event().wait(min(lock_seconds, 1.0))
        except psycopg.errors.InsufficientPrivilege as error:
            raise SourceError(
                f"{contract.source_name}: {error.diag.message_primary}",
                f"GRANT CREATE ON DATABASE to the table's owner, so that it may make the schema {SCHEMA}.",
                retry=Retry.MANUAL,
            ) from error
        except psycopg.errors.DependentObjectsStillExist as error:
            raise SourceError(
                f"{contract.source_name}: {error.diag.message_primary}: {error.diag.message_detail}",
                "Something of the host's was built on it: drop that first.",
                retry=Retry.MANUAL,
            ) from error
        else:
            return


def _once(connection: psycopg.Connection[Any], step: Step, lock_seconds: float) -> None:
    if not step.together:
        connection.execute(f"SET lock_timeout = '{INDEX_WAIT}'")
        for statement in step.statements:
            connection.execute(statement.encode())
            failpoint("prepare.statement")
        return
    with connection.transaction():
        connection.execute(f"SET LOCAL lock_timeout = '{round(lock_seconds * 1000)}ms'")
        for statement in step.statements:
            connection.execute(statement.encode())
            failpoint("prepare.statement")


def _holders(connection: psycopg.Connection[Any], contract: Contract) -> str:
    rows = connection.execute(
        "SELECT DISTINCT coalesce(l.pid::text, 'a prepared transaction') "
        "|| coalesce(' (' || nullif(a.application_name, '') || ')', '') "
        "FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) "
        "WHERE l.relation = %s::regclass AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() LIMIT 5",
        [hot_table(contract).as_string(None)],
    ).fetchall()
    return "held by process " + ", ".join(r[0] for r in rows) if rows else "it is free again"


@contextmanager
def alone(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Only one program prepares a database at a time; a killed one's server process may still be building an index.

    Raises:
        SourceError: another one is at work.
    """
    version = connection.info.server_version
    if version < LEAST_SERVER:
        raise SourceError(f"the server is of version {version // 10000}", "The trigger method needs 13 or later.")
    key = "hashtextextended('lakehouse source prepare', 0)"
    row = connection.execute(f"SELECT pg_try_advisory_lock({key})").fetchone()
    if row is None or not row[0]:
        raise SourceError(
            "another `lakehouse source prepare` is at work on this database",
            "If it was killed, its index is still being built (pg_stat_progress_create_index): run it again after.",
            retry=Retry.TIMED,
        )
    try:
        yield
    finally:
        connection.execute(f"SELECT pg_advisory_unlock({key})")
