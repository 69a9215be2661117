"""The archive's own schema in the hot database: policies, holds, batches, tombstones, recalls and their audit.

In the hot database and not with the control tables, because a tombstone commits with the delete that it stands for.
Nothing here refers to a table of the host, so that no cascade of the host's takes a tombstone or a hold with it.
Versions only grow, each in one transaction under an advisory lock; a schema newer than this program is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.capture.source import SESSION, SourceError
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    from lakehouse.app import App

SCHEMA = "lakehouse_archive"
_LOCK = 0x61726368  # "arch"

VERSIONS: tuple[str, ...] = (
    """
    CREATE TABLE policies (
        organization_id text PRIMARY KEY,
        enabled boolean NOT NULL,
        optional_tables text[] NOT NULL DEFAULT '{}',
        waived_by text,
        waived_reason text,
        changed_by text NOT NULL,
        reason text NOT NULL,
        changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    COMMENT ON TABLE policies IS 'Whether an organization''s old rows leave the hot database. No row: they do not.';

    CREATE TABLE holds (
        id uuid PRIMARY KEY,
        organization_id text NOT NULL,
        table_name text,
        row_keys text[],
        event_from timestamptz,
        event_upto timestamptz,
        reason text NOT NULL,
        placed_by text NOT NULL,
        placed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        released_by text,
        released_reason text,
        released_at timestamptz,
        CHECK (row_keys IS NULL OR table_name IS NOT NULL)
    );
    CREATE INDEX ON holds (organization_id) WHERE released_at IS NULL;
    COMMENT ON TABLE holds IS 'Legal holds; a null table, key list or bound means all. event_upto is exclusive.';

    CREATE TABLE batches (
        organization_id text NOT NULL,
        number bigint NOT NULL,
        id uuid NOT NULL UNIQUE,
        table_name text NOT NULL,
        row_count integer NOT NULL,
        receipt text NOT NULL,
        chain text NOT NULL,
        created_at timestamptz NOT NULL,
        exported_at timestamptz,
        PRIMARY KEY (organization_id, number)
    );
    CREATE INDEX ON batches (organization_id, number) WHERE exported_at IS NULL;
    COMMENT ON TABLE batches IS 'One delete transaction each; receipt is a JWS, chain hashes it and all before it.';

    CREATE TABLE cold_storage_archive (
        organization_id text NOT NULL,
        table_name text NOT NULL,
        row_key text NOT NULL,
        event_time timestamptz,
        sequence bigint NOT NULL,
        batch bigint NOT NULL,
        delivered_to text[] NOT NULL,
        snapshot_id bigint NOT NULL,
        keyed_hash text NOT NULL,
        hash_key text NOT NULL,
        contract_version text NOT NULL,
        policy text NOT NULL,
        operator text NOT NULL,
        archived_at timestamptz NOT NULL,
        xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
        PRIMARY KEY (organization_id, table_name, row_key, batch)
    );
    CREATE INDEX ON cold_storage_archive (organization_id, batch);
    COMMENT ON TABLE cold_storage_archive IS 'Tombstones: which row left, when, under which policy and proof.';

    CREATE TABLE recalls (
        id uuid PRIMARY KEY,
        organization_id text NOT NULL,
        table_name text NOT NULL,
        request jsonb NOT NULL,
        reason text NOT NULL,
        requested_by text NOT NULL,
        requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        target text NOT NULL,
        row_count bigint,
        content_sha256 text,
        snapshot_id bigint,
        finished_at timestamptz,
        error text,
        expires_at timestamptz,
        removed_at timestamptz
    );
    COMMENT ON TABLE recalls IS 'Who asked for which rows back, why, and what was returned. Never deleted.';

    CREATE TABLE audit (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        actor text NOT NULL,
        action text NOT NULL,
        organization_id text NOT NULL,
        subject jsonb NOT NULL,
        reason text NOT NULL
    );
    COMMENT ON TABLE audit IS 'What people decided: enable, disable, hold, release, recall, erase. Never deleted.';
    """,
    """
    CREATE TABLE lake_retention (
        organization_id text PRIMARY KEY,
        years integer NOT NULL CHECK (years > 0),
        changed_by text NOT NULL,
        reason text NOT NULL,
        changed_at timestamptz NOT NULL
    );
    COMMENT ON TABLE lake_retention IS 'After how many years an organization''s rows leave the lake. No row: never.';
    """,
)
"""One script a version, run once each with the schema as the search path."""


class ArchiveError(LakehouseError):
    """The archive cannot do what was asked; nothing was deleted."""


@contextmanager
def connect(app: App) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection to the hot database as the archive's user, in autocommit mode, at this program's version.

    Raises:
        ArchiveError: the schema is not there, or newer than this program.
        SourceError: the database does not answer or refuses.
    """
    with connect_if_installed(app) as connection:
        if connection is None:
            raise ArchiveError(
                "the archive was never set up in this database",
                "Run `lakehouse archive enable --organization …` once; it makes the schema lakehouse_archive.",
            )
        yield connection


@contextmanager
def connect_if_installed(app: App) -> Iterator[psycopg.Connection[tuple[Any, ...]] | None]:
    """As `connect`; None where the archive was never set up in this database."""
    with connect_anyway(app) as (connection, installed):
        yield connection if installed else None


@contextmanager
def connect_anyway(app: App) -> Iterator[tuple[psycopg.Connection[tuple[Any, ...]], bool]]:
    """As `connect`, to look at the host's tables also where the archive was never set up; and whether it was."""
    with _open(app) as connection:
        version = _version(connection)
        if version is not None:
            _check(version)
        yield connection, version is not None


def is_installed(connection: psycopg.Connection[Any]) -> bool:
    """Whether the hot database has the archive's schema at all."""
    return _version(connection) is not None


def install(app: App) -> None:
    """Make or upgrade the schema, and grant capture's user what it must read. Idempotent.

    Raises:
        ArchiveError: no right to make it (the statement is in the hint), or it is newer than this program.
    """
    with _open(app) as connection:
        if _version(connection) == len(VERSIONS):
            return
        try:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
                _upgrade(connection, app)
        except psycopg.errors.InsufficientPrivilege as error:
            raise ArchiveError(
                f"the archive's schema cannot be made: {error.diag.message_primary}",
                f"Once, as a privileged user: CREATE SCHEMA {SCHEMA} AUTHORIZATION the user of LAKEHOUSE_ARCHIVE__URL.",
            ) from error


def _upgrade(connection: psycopg.Connection[Any], app: App) -> None:
    schema = sql.Identifier(SCHEMA)
    if connection.execute("SELECT to_regnamespace(%s)", [SCHEMA]).fetchone() == (None,):
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    connection.execute(sql.SQL("SET LOCAL search_path = {}").format(schema))
    connection.execute("CREATE TABLE IF NOT EXISTS version (number integer NOT NULL)")
    row = connection.execute("SELECT max(number) FROM version").fetchone()
    done = row[0] if row and row[0] is not None else 0
    _check(done)
    for number, script in enumerate(VERSIONS[done:], start=done + 1):
        connection.execute(script.encode())
        connection.execute("INSERT INTO version (number) VALUES (%s)", [number])
    reader = _user(app.settings.source.url.get_secret_value())
    own = connection.execute("SELECT current_user").fetchone()
    if reader is not None and own != (reader,):
        # Windows ask which vanished keys the archive took.
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, sql.Identifier(reader)))
        connection.execute(
            sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(schema, sql.Identifier(reader))
        )


def _user(url: str) -> str | None:
    from psycopg.conninfo import conninfo_to_dict

    user = conninfo_to_dict(url).get("user")
    return str(user) if user is not None else None


def _version(connection: psycopg.Connection[Any]) -> int | None:
    found = connection.execute("SELECT to_regclass(%s)", [f"{SCHEMA}.version"]).fetchone()
    if found is None or found[0] is None:
        return None
    row = connection.execute(sql.SQL("SELECT max(number) FROM {}").format(sql.Identifier(SCHEMA, "version"))).fetchone()
    return row[0] if row else None


def _check(version: int) -> None:
    if version > len(VERSIONS):
        raise ArchiveError(
            f"schema {SCHEMA} is at version {version}, this program knows {len(VERSIONS)}",
            "Upgrade this program; it leaves the newer schema alone.",
            retry=Retry.NEVER,
        )


@contextmanager
def _open(app: App) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    settings = app.settings
    url = (settings.archive.url or settings.source.url).get_secret_value()
    options = SESSION | {"lock_timeout": f"{settings.source.lock_timeout_seconds}s"}
    try:
        connection = psycopg.connect(
            url,
            autocommit=True,
            application_name="lakehouse archive",
            connect_timeout=10,
            options=" ".join(f"-c{name}={value}" for name, value in options.items()),
        )
    except psycopg.OperationalError as error:
        raise _broke_off(error) from error
    try:
        with connection:
            yield connection
    except psycopg.errors.InsufficientPrivilege as error:
        raise ArchiveError(
            f"the archive's user may not do this: {error.diag.message_primary}",
            "Set LAKEHOUSE_ARCHIVE__URL to the user that owns the schema lakehouse_archive. It was undone.",
        ) from error
    except psycopg.OperationalError as error:
        raise _broke_off(error) from error


def _broke_off(error: Exception) -> SourceError:
    return SourceError(
        f"the hot database does not answer the archive: {' '.join(str(error).split())[:400]}",
        "Check LAKEHOUSE_ARCHIVE__URL (LAKEHOUSE_SOURCE__URL where that is not set). What was not committed is undone.",
        retry=Retry.TIMED,
    )


def table(name: str) -> sql.Identifier:
    """One of the archive's own tables, as SQL."""
    return sql.Identifier(SCHEMA, name)


def lock_organization(connection: psycopg.Connection[Any], organization: str) -> None:
    """Within a transaction: wait for, and take, the organization's archive lock until the transaction ends.

    A delete batch, `hold place`, `hold release`, `archive enable` and `archive disable` take it: none of them can
    happen in the middle of another.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"lakehouse archive {organization}"])


def note(
    connection: psycopg.Connection[Any],
    *,
    actor: str,
    action: str,
    organization: str,
    subject: dict[str, Any],
    reason: str,
) -> None:
    """Add a line to the audit, within the caller's transaction."""
    from psycopg.types.json import Jsonb

    connection.execute(
        sql.SQL("INSERT INTO {} (actor, action, organization_id, subject, reason) VALUES (%s, %s, %s, %s, %s)").format(
            table("audit")
        ),
        [actor, action, organization, Jsonb(subject), reason],
    )
