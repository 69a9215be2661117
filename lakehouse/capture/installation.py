"""What the trigger method needs in the hot database: names, SQL, and whether it is all there.

Per hot table: a column `change_xid` with a default, an index on it, four triggers with a function each, and a
tombstone log in the schema `lakehouse_capture`. The functions that write the log run with their owner's rights and
a fixed search path, so whoever may delete a row can; nobody else gets a right to it. The triggers are ENABLE
ALWAYS: they fire for replicated and restored rows too, and DISABLE followed by ENABLE leaves another state behind.

`Installation.generation` is made from the catalog's own rows (oids and xmin of triggers and functions), so whatever
was dropped, replaced, disabled or enabled in between changes it, also by hand. It is read under the window's
snapshot: changing a trigger waits for every writer of the table, so two snapshots that see one generation have
nothing unseen between them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from lakehouse.capture.projection import base_type
from lakehouse.capture.source import HotTable, SourceError
from schemas.contract import CHANGE_XID, Column, Contract
from schemas.errors import Retry

SCHEMA = "lakehouse_capture"
PROGRESS = sql.Identifier(SCHEMA, "progress")
WHAT, NUMBER = "lakehouse_what", "lakehouse_number"
GONE, TRUNCATED = "D", "T"
# Row triggers fire in the order of their names: what another one changes is stamped too.
STAMP, MOVED, DELETED, EMPTIED = "zz_lakehouse_stamp", "lakehouse_moved", "lakehouse_gone", "lakehouse_truncated"
TRIGGERS = (STAMP, MOVED, DELETED, EMPTIED)
LEAST_SERVER = 130000
"""`xid8` and row triggers BEFORE on partitioned tables came with PostgreSQL 13."""


class NotPrepared(SourceError):
    """The hot table lacks what the trigger method needs; nothing was read."""

    retry = Retry.MANUAL


@dataclass(frozen=True)
class Definition:
    """A trigger and its function, as they must be. `mark`: an argument of the trigger that tells them from others."""

    trigger: str
    function: str
    body: str
    when: sql.Composable
    secured: bool
    mark: str


@dataclass(frozen=True)
class Installation:
    """What the catalog shows, under one snapshot; `raw` is the JSON of `state_query`."""

    raw: dict[str, Any]

    @property
    def partitioned(self) -> bool:
        return bool(self.raw["kind"] == "p")

    @property
    def column(self) -> str | None:
        """The type of `change_xid`."""
        return self.raw["column"][1] if self.raw["column"] else None

    @property
    def log(self) -> bool:
        return self.raw["log"] is not None

    @property
    def generation(self) -> str:
        """Changes with every change of the installation, whoever made it."""
        kept = [self.raw["column"], sorted(self.raw["triggers"]), self.raw["log"], self.raw["leaves"]]
        return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]

    def index_of(self, table: int) -> str | None:
        """The valid index that serves `change_xid >=` on this table or partition."""
        return next((i["name"] for i in self.raw["indexes"] if i["table"] == table and i["valid"]), None)


def slug(contract: Contract) -> str:
    """A name for the table's log and functions: readable, unique, short enough."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", contract.source_table)[:40]
    whole = json.dumps([contract.source_schema, contract.source_table])
    return f"{plain}_{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def log_table(contract: Contract) -> sql.Identifier:
    """The table's tombstone log."""
    return sql.Identifier(SCHEMA, f"{slug(contract)}_log")


def hot_table(contract: Contract) -> sql.Identifier:
    """The hot table, quoted."""
    return sql.Identifier(contract.source_schema, contract.source_table)


def index_name(contract: Contract) -> str:
    """As Prisma would name it."""
    name = f"{contract.source_table}_{CHANGE_XID}_idx"
    return name if len(name.encode()) <= 63 else f"{slug(contract)}_idx"


def identity_columns(contract: Contract) -> list[Column]:
    """What a tombstone tells: tenant, event time, key."""
    return [contract[n] for n in dict.fromkeys((contract.tenant, *contract.identity))]


def log_type(column: Column, hot: HotTable) -> str:
    """A tombstone's type for an identity column: never a type of the host's, which it may want to drop.

    Raises:
        NotPrepared: an event time whose type hides behind a domain.
    """
    simple = {"string": "text", "integer": "integer", "long": "bigint", "boolean": "boolean", "decimal": "numeric"}
    simple |= {"date": "date", "binary": "bytea"}
    if column.type.name in simple:
        return simple[column.type.name]
    actual = base_type(hot.columns[column.source].type)
    if actual not in ("timestamp without time zone", "timestamp with time zone"):
        raise NotPrepared(f"column {column.source} is {actual}: the trigger method needs a plain timestamp there")
    return actual


def definitions(contract: Contract, hot: HotTable) -> list[Definition]:
    """The triggers and functions, as this program makes them."""
    columns = identity_columns(contract)
    log = log_table(contract).as_string(None)
    names = ", ".join(sql.Identifier(c.source).as_string(None) for c in columns)

    def values(row: str) -> str:
        return ", ".join(f"{row}.{sql.Identifier(c.source).as_string(None)}::{log_type(c, hot)}" for c in columns)

    one = f"\nBEGIN\n    INSERT INTO {log} ({WHAT}, {names})\n    VALUES ('{GONE}', {values('OLD')});\n"
    many = f"\nBEGIN\n    INSERT INTO {log} ({WHAT}, {names})\n    SELECT '{GONE}', {values('gone')} FROM gone;\n"
    end = "    RETURN NULL;\nEND\n"
    moved = sql.SQL(" OR ").join(
        sql.SQL("({}) IS DISTINCT FROM ({})").format(_compared(c, "OLD"), _compared(c, "NEW")) for c in columns
    )
    # Row triggers reach statements that name a partition; a transition table of the parent does not see them.
    by_row = hot.kind == "p"
    plan: list[tuple[str, str, sql.Composable, str, bool]] = [
        (
            STAMP,
            "stamp",
            sql.SQL(
                "BEFORE INSERT OR UPDATE ON {} FOR EACH ROW "
                "WHEN (NEW.{} IS DISTINCT FROM pg_catalog.pg_current_xact_id())"
            ).format(hot_table(contract), sql.Identifier(CHANGE_XID)),
            f"\nBEGIN\n    NEW.{CHANGE_XID} := pg_catalog.pg_current_xact_id();\n    RETURN NEW;\nEND\n",
            False,
        ),
        (
            MOVED,
            "moved",
            sql.SQL("AFTER UPDATE ON {} FOR EACH ROW WHEN ({})").format(hot_table(contract), moved),
            one + end,
            True,
        ),
        (
            DELETED,
            "gone",
            sql.SQL(
                "AFTER DELETE ON {} FOR EACH ROW"
                if by_row
                else "AFTER DELETE ON {} REFERENCING OLD TABLE AS gone FOR EACH STATEMENT"
            ).format(hot_table(contract)),
            (one if by_row else many) + end,
            True,
        ),
        (
            EMPTIED,
            "truncated",
            sql.SQL("AFTER TRUNCATE ON {} FOR EACH STATEMENT").format(hot_table(contract)),
            f"\nBEGIN\n    INSERT INTO {log} ({WHAT}) VALUES ('{TRUNCATED}');\n{end}",
            True,
        ),
    ]
    return [
        Definition(
            trigger,
            f"{slug(contract)}_{suffix}",
            body,
            when,
            secured,
            hashlib.sha256(f"{when.as_string(None)}{body}{secured}".encode()).hexdigest()[:12],
        )
        for trigger, suffix, when, body, secured in plan
    ]


def _compared(column: Column, row: str) -> sql.Composable:
    value = sql.SQL(f"{row}.{{}}").format(sql.Identifier(column.source))
    # Text is another key as soon as a byte differs, whatever its collation or type calls equal.
    return sql.SQL('{}::text COLLATE "C"').format(value) if column.type.name == "string" else value


def state_query(contract: Contract) -> sql.Composed:
    """One row of one text column: the installation as JSON; no row where the table is missing."""
    return sql.SQL(
        """
        SELECT jsonb_build_object(
            'table', c.oid::bigint, 'kind', c.relkind::text,
            'server', current_setting('server_version_num')::int,
            'owner', c.relowner::regrole::text, 'owned', pg_has_role(c.relowner, 'USAGE'),
            'children', (SELECT count(*) FROM pg_inherits WHERE inhparent = c.oid AND c.relkind = 'r'),
            'column', (SELECT jsonb_build_array(attnum, format_type(atttypid, atttypmod)) FROM pg_attribute
                       WHERE attrelid = c.oid AND attname = {column} AND NOT attisdropped),
            'default', (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d JOIN pg_attribute a
                        ON a.attrelid = d.adrelid AND a.attnum = d.adnum
                        WHERE a.attrelid = c.oid AND a.attname = {column}),
            'leaves', (SELECT jsonb_agg(jsonb_build_array(l.oid::bigint, l.relfilenode::bigint) ORDER BY l.oid)
                       FROM pg_class l WHERE c.relkind = 'p'
                       AND l.oid IN (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf)),
            'partitions', (SELECT jsonb_agg(jsonb_build_array(l.oid::bigint, n.nspname, l.relname, p.isleaf,
                                            p.parentrelid::oid::bigint) ORDER BY p.level DESC, l.oid)
                           FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid
                           JOIN pg_namespace n ON n.oid = l.relnamespace WHERE c.relkind = 'p' AND p.level > 0),
            'triggers', coalesce((
                SELECT jsonb_agg(jsonb_build_array(t.tgrelid::bigint, t.tgname, t.oid::bigint, t.xmin::text,
                       t.tgenabled::text, encode(t.tgargs, 'hex'), p.oid::bigint, p.xmin::text, p.prosrc, p.prosecdef))
                FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                WHERE t.tgname = ANY({triggers}::text[])
                AND (t.tgrelid = c.oid OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))), '[]'),
            'indexes', coalesce((
                SELECT jsonb_agg(jsonb_build_object('table', i.indrelid::bigint, 'name', x.relname,
                       'schema', n.nspname, 'valid', i.indisvalid AND i.indisready,
                       'attached', EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = x.oid)))
                FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND a.attname = {column}
                WHERE (i.indrelid = c.oid OR i.indrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))
                AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) = {predicate})), '[]'),
            'log', (SELECT jsonb_build_array(l.oid::bigint, l.relfilenode::bigint) FROM pg_class l
                    WHERE l.relname = {log} AND l.relnamespace = s.oid),
            'log_columns', (SELECT jsonb_object_agg(attname, format_type(atttypid, atttypmod)) FROM pg_attribute a
                            JOIN pg_class l ON l.oid = a.attrelid WHERE l.relname = {log} AND l.relnamespace = s.oid
                            AND attnum > 0 AND NOT attisdropped),
            'progress', EXISTS (SELECT FROM pg_class WHERE relname = 'progress' AND relnamespace = s.oid),
            'readable', (SELECT has_schema_privilege(s.oid, 'USAGE') AND has_table_privilege(l.oid, 'SELECT')
                         FROM pg_class l WHERE l.relname = {log} AND l.relnamespace = s.oid)
        )::text
        FROM pg_class c JOIN pg_namespace h ON h.oid = c.relnamespace
        LEFT JOIN pg_namespace s ON s.nspname = {schema}
        WHERE h.nspname = {hot_schema} AND c.relname = {hot}
        """
    ).format(
        column=sql.Literal(CHANGE_XID),
        triggers=sql.Literal("{" + ",".join(TRIGGERS) + "}"),
        predicate=sql.Literal(f"({CHANGE_XID} IS NOT NULL)"),
        log=sql.Literal(f"{slug(contract)}_log"),
        schema=sql.Literal(SCHEMA),
        hot_schema=sql.Literal(contract.source_schema),
        hot=sql.Literal(contract.source_table),
    )


def parse_state(text: str) -> Installation:
    """The answer of `state_query`."""
    return Installation(json.loads(text))


def unsupported(contract: Contract, hot: HotTable, found: Installation) -> Iterator[str]:
    """Why the table can never be captured by triggers, as it is."""
    if found.raw["server"] < LEAST_SERVER:
        yield "the trigger method needs PostgreSQL 13 or later"
    if found.raw["children"]:
        yield "it has inheritance children, which its triggers do not reach: capture it by xmin"
    if found.column not in (None, "xid8"):
        yield f"it has a column {CHANGE_XID} of its own, of type {found.column}: capture it by xmin"
    for column in identity_columns(contract):
        if hot.columns[column.source].generated.startswith("v"):
            yield f"column {column.source} is virtual, which triggers do not see: capture it by xmin"


def faults(contract: Contract, hot: HotTable, found: Installation) -> list[str]:
    """What is missing, changed or switched off; empty where windows can be taken."""
    problems = list(unsupported(contract, hot, found))
    if problems:
        return problems
    if found.column is None:
        return [f"column {CHANGE_XID} is missing"]
    problems += trigger_faults(contract, hot, found)
    if not (found.log and found.raw["progress"]):
        problems.append("the tombstone log is missing")
    elif found.raw["log_columns"] != log_columns(contract, hot):
        problems.append("the tombstone log is of another contract")
    elif not found.raw["readable"]:
        problems.append("no right to read the tombstone log")
    if found.index_of(found.raw["table"]) is None:
        left = any(i["table"] == found.raw["table"] for i in found.raw["indexes"])
        problems.append(f"the index on {CHANGE_XID} is {'not valid' if left else 'missing'}")
    return problems


def trigger_faults(contract: Contract, hot: HotTable, found: Installation) -> list[str]:
    """Triggers that are missing, not the ones that we make, or do not always fire."""
    problems = []
    wanted = {d.trigger: d for d in definitions(contract, hot)}
    present = {t[1] for t in found.raw["triggers"] if t[0] == found.raw["table"]}
    problems += [f"trigger {name} is missing" for name in wanted if name not in present]
    for _, name, _, _, enabled, arguments, _, _, body, secured in found.raw["triggers"]:
        expected = wanted[name]
        if enabled == "D":
            problems.append(f"trigger {name} is disabled")
        elif enabled != "A":
            problems.append(f"trigger {name} was disabled and enabled again, or does not always fire")
        if body != expected.body or secured != expected.secured or bytes.fromhex(arguments) != _argument(expected):
            problems.append(f"trigger {name} or its function is not the one that this program makes")
    return list(dict.fromkeys(problems))


def _argument(definition: Definition) -> bytes:
    return definition.mark.encode() + b"\0"


def log_columns(contract: Contract, hot: HotTable) -> dict[str, str]:
    """The log's columns by name, as `format_type` writes them."""
    own = {NUMBER: "bigint", CHANGE_XID: "xid8", WHAT: '"char"'}
    return own | {c.source: log_type(c, hot) for c in identity_columns(contract)}


def require(contract: Contract, hot: HotTable, found: Installation) -> None:
    """Check that windows can be taken.

    Raises:
        NotPrepared: with everything that is not as it must be.
    """
    problems = faults(contract, hot, found)
    if not problems:
        return
    never = list(unsupported(contract, hot, found))
    raise NotPrepared(
        "\n".join(f"{contract.source_name}: {p}" for p in problems),
        "Set its method to xmin (LAKEHOUSE_CAPTURE__METHODS)."
        if never
        else f"Run `lakehouse source prepare --apply --table {contract.table}` as the table's owner. "
        "Nothing was landed, nothing is lost: the next window compares keys.",
        retry=Retry.MANUAL,
    )
