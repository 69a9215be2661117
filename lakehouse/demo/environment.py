"""The demo's world: a PostgreSQL server with the host's tables, an S3 server with a bucket, and settings for both."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from lakehouse.archive.seal import make_signing_key
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.settings import ExplicitSettings, Settings

BUCKET = "lake"
INSTALLATION = "demo"


@dataclass(frozen=True)
class World:
    """Running servers and how to reach them."""

    postgres: EmbeddedPostgres
    s3: EmbeddedS3
    hot_url: str
    signing_key: Path
    """Signs the archive's receipts."""
    key: str = field(repr=False, default_factory=lambda: secrets.token_hex(32))
    """Seals the destinations' credentials."""
    tombstone_key: str = field(repr=False, default_factory=lambda: secrets.token_hex(32))

    def variables(self) -> dict[str, str]:
        """The environment that points `lakehouse` (and nothing else) at this world."""
        return {
            "LAKEHOUSE_INSTALLATION": INSTALLATION,
            "LAKEHOUSE_SOURCE__URL": self.hot_url,
            "LAKEHOUSE_LAKE__WAREHOUSE": f"s3://{BUCKET}/warehouse",
            "LAKEHOUSE_LAKE__S3__ENDPOINT": self.s3.endpoint,
            "LAKEHOUSE_LAKE__S3__REGION": self.s3.region,
            "LAKEHOUSE_LAKE__S3__ACCESS_KEY_ID": self.s3.access_key,
            "LAKEHOUSE_LAKE__S3__SECRET_ACCESS_KEY": self.s3.secret_key,
            "LAKEHOUSE_SECRETS__KEYS": json.dumps({"v1": f"hex:{self.key}"}),
            "LAKEHOUSE_ARCHIVE__SIGNING_KEY_FILE": str(self.signing_key),
            "LAKEHOUSE_ARCHIVE__TOMBSTONE_KEYS": json.dumps({"t1": f"hex:{self.tombstone_key}"}),
            # Destinations are tenants' as a rule, and none of theirs may be on this machine; the demo's are.
            "LAKEHOUSE_EGRESS__ALLOW": json.dumps(["127.0.0.1", "localhost"]),
        }

    def settings(self, **changes: Any) -> Settings:
        """Settings for this world and no other: the demo must not reach what the caller's environment names."""
        return ExplicitSettings(**(settings_values(self.variables()) | changes))


def settings_values(variables: Mapping[str, str]) -> dict[str, Any]:
    """Nested settings from LAKEHOUSE_ variables, as `load_settings` takes them."""
    values: dict[str, Any] = {}
    for name, value in variables.items():
        *path, last = name.removeprefix("LAKEHOUSE_").lower().split("__")
        section = values
        for part in path:
            nested = section.setdefault(part, {})
            assert isinstance(nested, dict)  # noqa: S101 - built here
            section = nested
        # As environment variables: lists and dictionaries are written in JSON.
        section[last] = json.loads(value) if value.startswith(("[", "{")) else value
    return values


@contextmanager
def open_world() -> Iterator[World]:
    """Start both servers, make the bucket and the host's empty tables; stop everything at the end."""
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres())
        s3 = stack.enter_context(EmbeddedS3())
        s3.create_bucket(BUCKET)
        hot_url = postgres.create_database("hot")
        create_hot_tables(hot_url)
        signing_key = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lakehouse-demo-"))) / "receipts.pem"
        make_signing_key(signing_key)
        yield World(postgres, s3, hot_url, signing_key)


def create_hot_tables(url: str) -> None:
    """Make the host's tables in an empty database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((Path(__file__).parent / "hot.sql").read_bytes())
