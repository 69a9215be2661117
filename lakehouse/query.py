"""SQL over the lake, with DuckDB: an organization's tables as views of the latest state, now or as of a time.

Each organization is a schema (its namespace, and its label where the host has one): `events` is the latest
state, `events_history` every version with the lake's own columns. Only tables that the statement names are
opened. `--as-of` reads versions by `_captured_at`, so it does not depend on which snapshots were kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from catalog.tables import open_table
from lakehouse.app import App
from lakehouse.control import store
from lakehouse.duck import connect, lake_relation, literal, quoted
from schemas.contract import Contract
from schemas.errors import LakehouseError
from schemas.lake_columns import CAPTURED_AT, arrow_schema
from schemas.views import latest_view_sql

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


RESERVED = frozenset({"main", "temp", "system", "memory", "information_schema", "pg_catalog"})
"""Schemas and catalogs of DuckDB's own, which no organization's slug takes over."""


@dataclass(frozen=True)
class Tenant:
    """An organization as a query knows it."""

    organization: str
    label: str | None
    namespace: str
    prefixes: tuple[str, ...]
    """Names besides the namespace that can stand before a table in SQL."""

    @property
    def names(self) -> list[str]:
        return [n for n in (self.namespace, self.label, self.organization) if n]


def tenants(app: App) -> list[Tenant]:
    """Every organization that has a lake, with the label that the host knows it by where that can be read."""
    lakes = store.lakes(app.engine)
    try:
        labels = app.source.organizations()
    except LakehouseError:
        # Labels are a comfort: the lake can be queried when the hot database is down.
        labels = {}
    # A label is what the host's users type: one that is also an id, a namespace or another's label names nobody.
    # Cases are folded, as DuckDB folds them.
    names = [(lake.organization_id, lake.namespace, labels.get(lake.organization_id)) for lake in lakes]
    fixed = {name.casefold() for organization, namespace, _ in names for name in (organization, namespace)}
    namespaces = {namespace for _, namespace, _ in names}
    taken = Counter(label.casefold() for _, _, label in names if label)
    ids = Counter(organization.casefold() for organization, _, _ in names)

    def usable(organization: str, label: str | None) -> bool:
        folded = label.casefold() if label else ""
        return label == organization or (bool(folded) and folded not in fixed and taken[folded] == 1)

    return [
        Tenant(
            organization,
            label if usable(organization, label) else None,
            namespace,
            # Ids that differ in nothing but case cannot both be schemas; their namespaces can.
            tuple(
                name
                for name in (organization if ids[organization.casefold()] == 1 else None, label)
                if name
                and usable(organization, name) | (name == organization)
                and name.casefold() not in RESERVED | namespaces
            ),
        )
        for organization, namespace, label in names
    ]


def find_tenant(known: list[Tenant], name: str) -> Tenant:
    """An organization by its id, label or namespace.

    Raises:
        LakehouseError: there is none.
    """
    # An id is itself before anybody's namespace or label is looked at.
    by_id = {tenant.organization: tenant for tenant in known}
    if name in by_id:
        return by_id[name]
    for tenant in known:
        if name in tenant.names:
            return tenant
    raise LakehouseError(
        f"no organization {name!r} in the lake",
        f"There are: {', '.join(t.label or t.organization for t in known) or 'none; run `lakehouse init`'}",
    )


def run_query(app: App, query: str, *, organization: str | None = None, as_of: datetime | None = None) -> pa.Table:
    """Run one statement and return its result.

    `organization`: whose tables have no prefix; needed unless there is only one, or every table is prefixed.

    Raises:
        LakehouseError: an unknown organization, a table that is not in the lake, or DuckDB's own message.
    """
    import duckdb

    if not query.strip(" ;\n\t"):
        raise LakehouseError("the query is empty", f"Tables: {', '.join(sorted(app.contracts))}.")
    with session(app, query, organization=organization, as_of=as_of) as connection:
        try:
            return connection.execute(query).to_arrow_table()
        except duckdb.Error as error:
            raise LakehouseError(f"the query fails: {error}", _hint(app, organization)) from error


@contextmanager
def session(
    app: App, query: str, *, organization: str | None = None, as_of: datetime | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection with the views that the statement can name."""
    known = tenants(app)
    default = find_tenant(known, organization) if organization else known[0] if len(known) == 1 else None
    words = {word.lower() for word in re.findall(r"\w+", query)}
    quoted_text = query.lower()
    # Schemas of other lakes than those that the statement can name are not made, nor are their keys needed.
    spoken = [
        tenant.organization
        for tenant in known
        if tenant is default
        or any(n.lower().replace('"', '""') in quoted_text for n in (tenant.namespace, *tenant.prefixes))
    ]
    with connect(app.addresses_of(spoken), private=True) as connection:
        for tenant in known:
            spelled = {n: n.lower().replace('"', '""') for n in (tenant.namespace, *tenant.prefixes)}
            named = [n for n, text in spelled.items() if text in quoted_text]
            if tenant is not default and not named:
                continue
            schemas = list(dict.fromkeys([tenant.namespace, *named]))
            for schema in schemas:
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")
            for contract in app.contracts.values():
                if contract.table in words or f"{contract.table}_history" in words or "information_schema" in words:
                    _views(app, connection, tenant, schemas, contract, as_of)
        if default is not None:
            connection.execute(f"SET search_path = {literal(default.namespace + ',main')}")
        yield connection


def _views(
    app: App,
    connection: duckdb.DuckDBPyConnection,
    tenant: Tenant,
    schemas: list[str],
    contract: Contract,
    as_of: datetime | None,
) -> None:
    from pyiceberg.exceptions import NoSuchTableError

    lake = app.lake(tenant.organization)
    lake.check()
    try:
        table = open_table(lake, contract)
    except NoSuchTableError:
        # A provisional table, or one that was not backfilled: DuckDB says that it is not there.
        return
    if table.current_snapshot() is None:
        empty = f"empty_{contract.table}"
        connection.register(empty, arrow_schema(contract).empty_table())
        relation = quoted(empty)
    else:
        relation = lake_relation(table.metadata_location)
    limit = f"TIMESTAMPTZ {literal(as_of.astimezone(UTC).isoformat())}" if as_of else None
    history = f"SELECT * FROM {relation}" + (f" WHERE {CAPTURED_AT} <= {limit}" if limit else "")
    latest = latest_view_sql(contract, relation=relation, as_of=limit)
    for schema in schemas:
        connection.execute(f"CREATE VIEW {quoted(schema)}.{quoted(contract.table)} AS {latest}")
        connection.execute(f"CREATE VIEW {quoted(schema)}.{quoted(contract.table + '_history')} AS {history}")


def _hint(app: App, organization: str | None) -> str:
    if organization is None and len(store.lakes(app.engine)) > 1:
        return "Say whose tables: --organization ID or slug, or write the organization before the table's name."
    return f"Tables: {', '.join(sorted(app.contracts))}; each also as <table>_history."
