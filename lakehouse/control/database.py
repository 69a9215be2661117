"""Opens the control database and keeps its schema up to date.

One SQLAlchemy engine per process; every connection has the control schema as its search path, so that no
statement names it. Migrations run under an advisory lock: two `lakehouse init` at once are one.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lakehouse.settings import Settings, sqlalchemy_url
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_LOCK = 0x6C616B65  # "lake"
_REVISION = re.compile(r'^(revision|down_revision)(?:: [^=]+)? = "([^"]+)"$', re.M)


class ControlError(LakehouseError):
    """The control database is not there, refuses, or holds another version or installation."""


def control_broke_off(what: str, error: Exception) -> ControlError:
    """Our error for a control database that broke off in the middle of work."""
    text = str(getattr(error, "orig", error)).strip().splitlines()
    return ControlError(
        f"{what}: the control database broke off: {text[-1] if text else type(error).__name__}",
        "Nothing was lost: the next round asks the lake what landed.",
        retry=Retry.TIMED,
    )


def open_engine(settings: Settings) -> Engine:
    """An engine for the control tables; does not connect yet."""
    from sqlalchemy import create_engine

    return create_engine(
        sqlalchemy_url(settings.control_url),
        connect_args={
            "options": f"-csearch_path={settings.control.schema_name} -ctimezone=UTC",
            "application_name": "lakehouse control",
            "connect_timeout": 10,
        },
        pool_pre_ping=True,
    )


def connect(settings: Settings, *, any_owner: bool = False) -> Engine:
    """An engine whose database answers, is migrated to this version, and belongs to this installation.

    `any_owner` leaves the last out: for who is about to take it over.

    Raises:
        ControlError: with what to do.
    """
    from sqlalchemy import text

    engine = _answering(settings)
    wanted = newest_revision()
    with engine.connect() as connection:
        version = _revision(connection)
        if version is None:
            raise ControlError(
                f"schema {settings.control.schema_name!r}: there are no control tables",
                "Run `lakehouse init`.",
            )
        if version != wanted:
            raise ControlError(
                f"schema {settings.control.schema_name!r} is at version {version}, this program wants {wanted}",
                "Run `lakehouse init` with the newest program; an older one cannot use a newer schema.",
            )
        owner = connection.scalar(text("SELECT id FROM installation"))
    if owner != settings.installation and not any_owner:
        raise ControlError(
            f"schema {settings.control.schema_name!r} belongs to installation {owner!r}, "
            f"the settings say {settings.installation!r}",
            "Set LAKEHOUSE_INSTALLATION to the owner's, or LAKEHOUSE_CONTROL__SCHEMA to a schema of your own. "
            "Was the installation renamed? `lakehouse lake adopt --reason …`.",
        )
    return engine


def migrate(settings: Settings) -> Engine:
    """Create or upgrade the control tables and write the installation's id. Idempotent.

    Raises:
        ControlError: the database refuses, is newer than this program, or is another installation's.
    """
    from psycopg import sql
    from sqlalchemy import text
    from sqlalchemy.exc import ProgrammingError

    engine = _answering(settings)
    try:
        with engine.begin() as connection:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            schema = sql.Identifier(settings.control.schema_name).as_string(None)
            # Asked first: CREATE SCHEMA IF NOT EXISTS wants the right to create even where the schema is there.
            if connection.scalar(text("SELECT to_regnamespace(:s)"), {"s": settings.control.schema_name}) is None:
                connection.execute(text(f"CREATE SCHEMA {schema}"))
            if _revision(connection) != newest_revision():
                _upgrade(settings, connection)
            connection.execute(
                text("INSERT INTO installation (id) VALUES (:id) ON CONFLICT (singleton) DO NOTHING"),
                {"id": settings.installation},
            )
    except ProgrammingError as error:
        raise ControlError(
            f"control schema {settings.control.schema_name!r} cannot be made: {error.orig}",
            "Make it once as a privileged user: CREATE SCHEMA … AUTHORIZATION the user of these settings.",
        ) from error
    finally:
        engine.dispose()
    return connect(settings)


def _answering(settings: Settings) -> Engine:
    from sqlalchemy.exc import OperationalError

    engine = open_engine(settings)
    try:
        with engine.connect():
            pass
    except OperationalError as error:
        raise ControlError(
            f"control database does not answer: {error.orig}",
            "Check LAKEHOUSE_CONTROL__URL (LAKEHOUSE_SOURCE__URL where that is not set): host, password, database.",
            retry=Retry.TIMED,
        ) from error
    return engine


def _revision(connection: Connection) -> str | None:
    from sqlalchemy import text

    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def _upgrade(settings: Settings, connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["schema"] = settings.control.schema_name
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ControlError(
            f"schema {settings.control.schema_name!r} was made by a newer program: {error}",
            "Upgrade this program; it leaves the newer schema alone.",
        ) from error


@functools.cache
def newest_revision() -> str:
    """The revision that the migrations beside this module lead to.

    Read from the files' own lines: Alembic and what it imports take longer to load than a round with nothing to do.
    """
    revisions: set[str] = set()
    replaced: set[str] = set()
    for file in (Path(__file__).parent / "migrations" / "versions").glob("*.py"):
        found = dict(_REVISION.findall(file.read_text("utf-8")))
        revisions.add(found["revision"])
        replaced.add(found.get("down_revision", ""))
    (newest,) = revisions - replaced
    return newest
