"""What must hold of a hot table before any row of it may go; read from the database's catalog.

Asked for the plan, and again in each transaction that deletes, under a lock that keeps the table as it is. A column
that the contract neither exports nor lists would be destroyed "with proof"; a foreign key without an index makes one
delete read a whole table; without a unique key a delete may take rows that nobody proved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from lakehouse.archive import age
from lakehouse.archive.foreign_keys import Reference, read_references
from lakehouse.archive.installation import ArchiveError
from lakehouse.capture import installation as capture
from lakehouse.capture.source import HotTable, check_table, describe
from schemas.contract import Contract
from schemas.errors import ContractViolation


class TableRefused(ArchiveError):
    """No row of this table may be archived as things are; every reason is named."""


@dataclass(frozen=True)
class Gate:
    """One hot table as the archive sees it now."""

    contract: Contract
    hot: HotTable
    references: tuple[Reference, ...]
    refusals: tuple[str, ...]
    """Why no row may go; each says what to do."""
    notes: tuple[str, ...]
    """What fires when a row is deleted, and is not ours; states that the contract does not know."""

    @property
    def others(self) -> tuple[Reference, ...]:
        """References from other tables."""
        return tuple(r for r in self.references if not r.own)

    @property
    def own(self) -> tuple[Reference, ...]:
        """References of the table to itself."""
        return tuple(r for r in self.references if r.own)

    def check(self) -> None:
        """Raises TableRefused if no row may go."""
        if self.refusals:
            raise TableRefused(
                "\n".join(self.refusals), "Nothing was deleted. `lakehouse archive plan` shows all of it."
            )


def inspect(connection: psycopg.Connection[Any], contract: Contract) -> Gate:
    """Look at one table.

    Raises:
        SourceTableMissing: there is none.
    """
    hot = describe(connection, contract)
    refusals: list[str] = []
    if (fault := age.fault(contract)) is not None:
        refusals.append(fault)
    try:
        check_table(contract, hot)
    except ContractViolation as error:
        refusals += error.detail.splitlines()
    name = contract.source_name
    if unknown := contract.unknown_columns(hot.columns):
        refusals.append(
            f"{name}: column{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}: the contract neither exports nor "
            "lists it, so the lake would not hold what a delete destroys. Add it to `columns` in a new version of the "
            "contract, or to `not_exported` with a reason"
        )
    keys = [contract[k].source for k in contract.primary_key if contract[k].source in hot.columns]
    row = connection.execute(_FACTS, {"table": hot.oid, "keys": keys, "ours": list(capture.TRIGGERS)}).fetchone()
    assert row is not None  # noqa: S101 - the query has no FROM
    unique, children, may_delete, may_lock, triggers, rules = row
    if not unique:
        refusals.append(
            f"{name}: no unique index on the contract's key ({', '.join(keys)}): a delete by key could take rows that "
            "nobody proved"
        )
    if children:
        refusals.append(f"{name}: {children} inherits from it, and may have columns that the contract does not know")
    if not may_delete:
        refusals.append(f"{name}: no right to delete: GRANT DELETE ON {name} to the user of LAKEHOUSE_ARCHIVE__URL")
    elif not may_lock:
        refusals.append(
            f"{name}: no right to lock rows: GRANT UPDATE ({keys[0] if keys else 'id'}) ON {name} "
            "to the user of LAKEHOUSE_ARCHIVE__URL; nothing is updated"
        )
    references = read_references(connection, hot)
    for reference in references:
        refusals += reference.refusals()
    notes = [f"trigger {t} of {name} fires at each delete" for t in triggers or ()]
    notes += [f"rule {r} of {name} rewrites deletes" for r in rules or ()]
    notes += _unknown_states(contract, hot)
    return Gate(contract, hot, references, tuple(refusals), tuple(notes))


def _unknown_states(contract: Contract, hot: HotTable) -> list[str]:
    """Labels of the state's type that the contract was written without."""
    if (states := contract.states) is None or (column := hot.columns.get(contract[states.column].source)) is None:
        return []
    unknown = sorted({label for _, label in column.labels} - set(states.known))
    if not unknown:
        return []
    return [
        f"{contract.source_name}.{column.name} may be {', '.join(unknown)}, which the contract does not know: such "
        "rows stay. Say in a new version of the contract what it means (`states`)"
    ]


_FACTS = """
    SELECT
        -- Unique in the whole table, whatever part of the key it is on; not deferrable, without a predicate.
        EXISTS (
            SELECT FROM pg_index i WHERE i.indrelid = %(table)s AND i.indisunique AND i.indimmediate
            AND i.indisvalid AND i.indpred IS NULL AND NOT EXISTS (
                SELECT FROM generate_series(0, i.indnkeyatts - 1) AS at LEFT JOIN pg_attribute a
                ON a.attrelid = i.indrelid AND a.attnum = i.indkey[at] AND a.attnotnull
                WHERE a.attname IS NULL OR a.attname <> ALL(%(keys)s::text[]))),
        (SELECT min(h.inhrelid::regclass::text) FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhparent
         WHERE h.inhparent = %(table)s AND c.relkind = 'r'),
        has_table_privilege(%(table)s::oid, 'DELETE'),
        has_any_column_privilege(%(table)s::oid, 'UPDATE'),
        -- Bit 3 of tgtype: fires at DELETE. A key's own triggers are internal.
        (SELECT array_agg(DISTINCT t.tgname::text ORDER BY t.tgname::text) FROM pg_trigger t
         WHERE (t.tgrelid = %(table)s OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(%(table)s::oid::regclass)))
         AND NOT t.tgisinternal AND t.tgtype & 8 <> 0 AND t.tgenabled <> 'D' AND t.tgname <> ALL(%(ours)s::text[])),
        (SELECT array_agg(r.rulename::text ORDER BY r.rulename) FROM pg_rewrite r
         WHERE r.ev_class = %(table)s AND r.ev_type = '4' AND r.ev_enabled <> 'D')
"""
