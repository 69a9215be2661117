"""Canary secrets in every place that takes one; none may be in anything that the program says or keeps.

Commands run as real processes: well, with wrong options, with endpoints that refuse, with passwords that are wrong,
and with an error that the program does not know, whose traceback quotes a secret.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
import typer
from psycopg import sql

from lakehouse.cli import app as program
from lakehouse.control.database import migrate
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.lakes import add_lake
from lakehouse.secrets import Vault, destination_place
from tests.s3_gate import S3Gate
from tests.support import Lakehouse, host_tables, insert_events, s3_variables


def canary(what: str) -> str:
    """Distinctive, long, and with characters that every encoding writes otherwise."""
    return f"Canary/{what}+{secrets.token_hex(8)}"


def forms(secret: str) -> list[str]:
    """How a secret could be written: as it is, encoded for a URL, in hex, in base64 at any offset."""
    raw = secret.encode()
    encoded = [base64.b64encode(b"x" * n + raw).decode()[4 : 4 + len(raw)] for n in (0, 1, 2)]
    return [secret, quote(secret), quote(secret, safe=""), raw.hex(), *encoded, secret[7:]]


@pytest.fixture
def planted() -> dict[str, str]:
    return {what: canary(what) for what in ("source", "control", "catalog", "token", "destination", "session", "wrong")}


def as_role(url: str, role: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}:{quote(password, safe='')}@{parts.hostname}:{parts.port}"))


@pytest.fixture
def house(hot_url: str, s3: EmbeddedS3, bucket: str, planted: dict[str, str]) -> Iterator[tuple[Lakehouse, S3Gate]]:
    """Three roles with canaries for passwords, a lake of an organization's own, keys and sealed credentials."""
    host_tables(hot_url)
    tag = secrets.token_hex(4)
    with S3Gate(s3.endpoint) as gate, psycopg.connect(hot_url, autocommit=True) as hot:
        lakehouse = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
        urls = {}
        for what in ("source", "control", "catalog"):
            hot.execute(
                sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(
                    sql.Identifier(f"{what}_{tag}"), sql.Literal(planted[what])
                )
            )
            urls[what] = as_role(hot_url, f"{what}_{tag}", planted[what])
        planted["key"] = secrets.token_hex(32)
        planted["host key"] = base64.b64encode(secrets.token_bytes(32)).decode()
        planted["s3"] = s3.secret_key
        lakehouse.reopen(
            SOURCE__URL=urls["source"],
            CONTROL__URL=urls["control"],
            LAKE__CATALOG__URI=f"{urls['catalog']}?options=-csearch_path%3Dlakehouse",
            LAKE__S3__ENDPOINT=gate.endpoint,
            SECRETS__KEYS=json.dumps({"v2": f"hex:{planted['key']}"}),
            SECRETS__KEY_VERSION="v2",
            EGRESS__ALLOW=json.dumps(["127.0.0.1"]),
        )
        lakehouse.variables["APERIO_ENCRYPTION_KEY"] = f"base64:{planted['host key']}"
        yield lakehouse, gate
        lakehouse.close()
        for what in urls:
            hot.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(sql.Identifier(f"{what}_{tag}")))


@pytest.fixture
def said(planted: dict[str, str]) -> Iterator[list[str]]:
    """Everything that was said; searched at the end."""
    heard: list[str] = []
    yield heard
    everything = "\n".join(heard)
    assert len(everything) > 1000
    for what, secret in planted.items():
        for form in forms(secret):
            at = everything.find(form)
            assert at < 0, f"the {what} secret is shown: …{everything[max(0, at - 200) : at + 80]}…"


def leaves(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found += leaves(command, (*path, name)) if hasattr(command, "commands") else [(*path, name)]
    return found


ENDLESS = {("demo",), ("run",), ("worker",), ("scheduler",)}
ARGUMENTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("sync",): ("--once", "--table", "events"),
    ("backfill",): ("--table", "events"),
    ("verify",): ("--table", "events"),
    ("source", "check"): ("--table", "events"),
    ("query",): ("SELECT count(*) FROM events", "-o", "org-a"),
    ("contract", "draft"): ("--table", "public.ingested_events"),
}
WITHOUT_JSON = {("contract", "draft"), ("contract", "docs")}


def everything_kept(house: Lakehouse) -> str:
    """Every row of every control table, as text."""
    with house.hot() as hot:
        tables = hot.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'lakehouse'")
        return "\n".join(
            str(hot.execute(sql.SQL("SELECT t::text FROM lakehouse.{} t").format(sql.Identifier(name))).fetchall())
            for (name,) in tables.fetchall()
        )


@pytest.mark.timeout(900)
def test_no_secret_is_ever_said_or_kept(
    house: tuple[Lakehouse, S3Gate], s3: EmbeddedS3, planted: dict[str, str], said: list[str], tmp_path: Path
) -> None:
    lakehouse, gate = house

    def run(*arguments: str, check: int | None = None) -> None:
        done = lakehouse.run(*arguments, check=check)
        # Without the arguments, of which one holds a canary.
        said.append(f"$ {arguments[:2]}\n{done.stdout}{done.stderr}")

    migrate(lakehouse.app.settings).dispose()
    own = s3.create_bucket(f"own-{secrets.token_hex(4)}")
    keys = {"access_key_id": s3.access_key, "secret_access_key": s3.secret_key, "session_token": planted["session"]}
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(keys | {"session_token": planted["wrong"], "secret_access_key": planted["token"]}))
    place = ("--organization", "org-a", "--warehouse", f"s3://{own}/lake", "--endpoint", gate.endpoint)
    # Keys that are wrong, a file with an odd key, a URL with a password: refused, and nothing of it is repeated.
    run("lake", "add", *place, "--credentials-file", str(file), "--json")
    file.write_text(json.dumps({"odd": planted["token"]}))
    run("lake", "add", *place, "--credentials-file", str(file), check=2)
    bad = f"https://user:{quote(planted['wrong'], safe='')}@storage.invalid"
    run("lake", "add", *place[:5], bad, "--credentials-file", str(file), check=2)
    add_lake(
        lakehouse.app, "org-a", f"s3://{own}/lake", endpoint=gate.endpoint,
        credentials={k: v for k, v in keys.items() if k != "session_token"},
    )  # fmt: skip
    identity = uuid.uuid4()
    sealed, version = Vault(lakehouse.app.settings).seal(
        {"password": planted["destination"]}, destination_place("org-a", identity)
    )
    with lakehouse.hot() as hot:
        hot.execute(
            "INSERT INTO lakehouse.warehouse_destinations (id, organization_id, kind, name, encrypted_credentials, "
            "token_key_version) VALUES (%s, 'org-a', 'SNOWFLAKE', 'w', %s, %s)",
            [identity, sealed, version],
        )
        insert_events(hot, "org-a", 1, 3)
        insert_events(hot, "org-b", 1, 3)
    run("init", "--json", check=0)
    run("backfill", "--table", "events", "--json", check=0)
    commands = [c for c in leaves(typer.main.get_command(program)) if c not in ENDLESS]
    assert len(commands) >= 12

    def all_commands(as_json: bool) -> None:
        for command in commands:
            more = ("--json",) if as_json and command not in WITHOUT_JSON else ()
            run(*command, *ARGUMENTS.get(command, ()), *more)

    all_commands(as_json=False)
    for command in commands[::4]:
        run(*command, "--no-such-option", "x", check=2)
    # The storage refuses, then the passwords are wrong; what is stored of it is read at the end.
    with lakehouse.hot() as hot:
        insert_events(hot, "org-a", 10, 1)
        insert_events(hot, "org-b", 10, 1)
    gate.refuse(403, "SignatureDoesNotMatch")
    all_commands(as_json=True)
    gate.let_through()
    good = dict(lakehouse.variables)
    for name in ("SOURCE__URL", "CONTROL__URL", "LAKE__CATALOG__URI"):
        parts = urlsplit(good[f"LAKEHOUSE_{name}"])
        wrong = parts._replace(
            netloc=f"{parts.username}:{quote(planted['wrong'], safe='')}@{parts.hostname}:{parts.port}"
        )
        lakehouse.variables[f"LAKEHOUSE_{name}"] = urlunsplit(wrong)
        for command in (("status",), ("init",), ("sync", "--once", "--table", "events", "--json"), ("keys", "rotate")):
            run(*command)
        lakehouse.variables = dict(good)
    lakehouse.variables["LAKEHOUSE_SECRETS__KEYS"] = json.dumps({"v2": f"hex:{secrets.token_hex(32)}"})
    run("keys", "rotate", "--to", "v1", check=2)
    lakehouse.variables["LAKEHOUSE_SECRETS__KEYS"] = json.dumps({"v2": f"hex:{planted['key']}zz"})
    run("keys", "rotate", "--to", "v2", check=None)
    lakehouse.variables = dict(good)
    run("keys", "rotate", "--to", "v1", "--json", check=0)
    with lakehouse.hot() as hot:
        errors = hot.execute("SELECT last_error FROM lakehouse.cursors WHERE last_error IS NOT NULL").fetchall()
    assert errors, "an error was stored, and is searched"
    kept = everything_kept(lakehouse)
    said.append(kept)


CRASH = """
import os, threading
from lakehouse.cli import main
import lakehouse.cli.read as read
from lakehouse.cli.capture import open_app

def broken(app):
    def inner():
        raise RuntimeError("thread " + os.environ["LAKEHOUSE_SOURCE__URL"])
    thread = threading.Thread(target=inner); thread.start(); thread.join()
    import logging, warnings
    logging.getLogger("x").warning("logged %s", os.environ["LAKEHOUSE_LAKE__S3__SECRET_ACCESS_KEY"])
    warnings.warn("warned " + os.environ["APERIO_ENCRYPTION_KEY"])
    try:
        raise ValueError(os.environ["LAKEHOUSE_LAKE__S3__SECRET_ACCESS_KEY"])
    except ValueError as error:
        told = os.environ["LAKEHOUSE_SECRETS__KEYS"] + os.environ["LAKEHOUSE_CONTROL__URL"]
        raise RuntimeError("unknown " + told) from error

import lakehouse.status
lakehouse.status.read_status = broken
main()
"""


def test_a_traceback_of_an_error_that_nobody_knows(house: tuple[Lakehouse, S3Gate], said: list[str]) -> None:
    lakehouse, _ = house
    done = subprocess.run(
        [sys.executable, "-c", CRASH, "status"], env=lakehouse.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done
    for word in (
        "Traceback",
        "RuntimeError: unknown",
        "ValueError: ***",
        "RuntimeError: thread",
        "logged ***",
        "warned ***",
    ):
        assert word in done.stderr, (word, done.stderr)
    said.append(done.stdout + done.stderr)
