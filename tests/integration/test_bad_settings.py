"""Settings that are wrong: every command says which, how to mend it, and never shows a secret."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from psycopg import sql

from lakehouse.embedded.s3 import EmbeddedS3
from tests.s3_gate import S3Gate
from tests.support import Lakehouse, host_tables, insert_events, local_variables, s3_variables

CANARY = "canary-bird-4711"
GOOD = {
    "LAKEHOUSE_INSTALLATION": "tests",
    "LAKEHOUSE_SOURCE__URL": f"postgresql://reader:{CANARY}@127.0.0.1:1/hot",
    "LAKEHOUSE_LAKE__WAREHOUSE": "file:///tmp/never-made",
    "LAKEHOUSE_LAKE__S3__SECRET_ACCESS_KEY": CANARY,
}


def run(variables: dict[str, str], *arguments: str, status: int = 2) -> str:
    """Run the program with these variables; its output, which must hold no secret and no traceback."""
    house = Lakehouse("", dict(GOOD))
    house.variables = variables
    done = house.run(*arguments, check=None)
    said = done.stdout + done.stderr
    assert CANARY not in said
    assert "Traceback" not in said, said
    assert done.returncode == status, said
    return said


def config(folder: Path, text: str) -> dict[str, str]:
    file = folder / "settings.toml"
    file.write_text(text)
    return {"LAKEHOUSE_CONFIG": str(file)}


def test_what_is_missing_is_named() -> None:
    said = run({}, "status")
    assert "installation (LAKEHOUSE_INSTALLATION): is missing" in said
    assert "LAKEHOUSE_SOURCE" in said and "LAKEHOUSE_LAKE" in said
    said = run({**GOOD, "LAKEHOUSE_SOURCE__URL": "", "LAKEHOUSE_LAKE__S3__REGION": "x"}, "status")
    assert "source.url (LAKEHOUSE_SOURCE__URL): must look like postgresql://user:password@host:5432/database" in said
    lacking = {k: v for k, v in GOOD.items() if k != "LAKEHOUSE_LAKE__WAREHOUSE"}
    assert "lake.warehouse (LAKEHOUSE_LAKE__WAREHOUSE): is missing" in run(lacking, "status")


def test_what_is_missing_is_named_with_its_own_variable() -> None:
    said = run({"LAKEHOUSE_INSTALLATION": "tests"}, "status")
    assert "LAKEHOUSE_SOURCE__URL" in said and "LAKEHOUSE_LAKE__WAREHOUSE" in said


@pytest.mark.parametrize(
    "name", ["LAKEHOUSE_SORCE__URL", "LAKEHOUSE_URL", "LAKEHOUSE_SOURCE__PASSWORD", "LAKEHOUSE_LAKE__S3__SECRET"]
)
def test_an_unknown_variable_is_refused(name: str) -> None:
    assert name in run({**GOOD, name: CANARY}, "status")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[lake]\nwarehous = "x"', "lake.warehous (LAKEHOUSE_LAKE__WAREHOUS)"),
        (f'[lak]\nwarehouse = "{CANARY}"', "lak (LAKEHOUSE_LAK)"),
        (f'[lake.s3]\nsecret = "{CANARY}"', "lake.s3.secret (LAKEHOUSE_LAKE__S3__SECRET)"),
        (f'[source]\nurl = ["{CANARY}"]', "source.url (LAKEHOUSE_SOURCE__URL)"),
        ("[landing]\nthreads = 1000", "landing.threads (LAKEHOUSE_LANDING__THREADS): Input should be less than or"),
        (
            f"[landing]\nthreads = '{CANARY}'",
            "landing.threads (LAKEHOUSE_LANDING__THREADS): Input should be a valid int",
        ),
        ('[control]\nschema = "a; DROP"', "control.schema (LAKEHOUSE_CONTROL__SCHEMA)"),
        ('installation = "two words"', "installation (LAKEHOUSE_INSTALLATION)"),
    ],
)
def test_a_file_with_a_wrong_key_or_value(tmp_path: Path, text: str, says: str) -> None:
    # The environment wins over the file: what the file gets wrong must not stand there too.
    kept = {k: v for k, v in GOOD.items() if f"({k})" not in says}
    said = run(kept | config(tmp_path, text), "status")
    assert says in said and "Set the variables named" in said


def test_a_file_that_is_not_there() -> None:
    assert "LAKEHOUSE_CONFIG names /nowhere.toml" in run({**GOOD, "LAKEHOUSE_CONFIG": "/nowhere.toml"}, "status")


@pytest.mark.parametrize("text", [f"[lake.s3]\nsecret_access_key = {CANARY}", f'[source]\nurl = "{CANARY}\n'])
def test_a_file_that_is_not_toml(tmp_path: Path, text: str) -> None:
    said = run(GOOD | config(tmp_path, text), "status")
    assert "line 2" in said and "settings.toml" in said


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://reader:{CANARY}@db:3306/hot",
        f"postgresql://reader:{CANARY}@db:5432",
        f"reader:{CANARY}@db/hot",
        f"host=db user=reader password={CANARY} dbname=hot",
        f"postgresql://reader:a#{CANARY}@db/hot",
        f"postgresql://reader:a?{CANARY}@db/hot",
        f"postgresql://reader:[{CANARY}@db/hot",
        f"postgresql://reader:a/{CANARY}@db/hot",
        f"postgresql://reader:1/{CANARY}@db/hot",
        f"postgresql://reader:a@{CANARY}@db.invalid/hot",
        f"postgresql://reader:%{CANARY}@db/hot",
        f"postgresql://reader:a {CANARY}@db/hot",
        f"postgresql://reader:{CANARY}@db:port/hot",
        f"postgresql://reader:{CANARY}@db:99999/hot",
        f"postgresql://reader:{CANARY}@db/hot?unheard=of",
    ],
)
def test_a_bad_url(url: str) -> None:
    assert "LAKEHOUSE_SOURCE__URL" in run({**GOOD, "LAKEHOUSE_SOURCE__URL": url}, "source", "check")


@pytest.mark.parametrize(
    "url",
    [
        f"{CANARY}",
        f"mysql://u:{CANARY}@db/cat",
        f"postgresql://u:{CANARY}@db:port/cat",
        f"postgresql://u:a@{CANARY}@db.invalid/cat",
    ],
)
def test_a_bad_catalog(hot_url: str, tmp_path: Path, url: str) -> None:
    host_tables(hot_url, ("org-a",))
    variables = local_variables(hot_url, tmp_path) | {"LAKEHOUSE_LAKE__CATALOG__URI": url}
    house = Lakehouse.__new__(Lakehouse)  # the settings are not valid: only the program can say so
    house.variables = variables
    done = house.run("init", check=None)
    said = done.stdout + done.stderr
    assert CANARY not in said and "Traceback" not in said
    assert done.returncode in (1, 2) and "LAKEHOUSE_LAKE__CATALOG__URI" in said


def test_a_source_that_does_not_answer() -> None:
    for arguments in (("status",), ("init",), ("source", "check"), ("contract", "draft", "--table", "public.x")):
        said = run(GOOD, *arguments)
        assert "LAKEHOUSE_SOURCE__URL" in said and "127.0.0.1" in said


def test_a_source_that_does_not_answer_says_why() -> None:
    assert "Connection refused" in run(GOOD, "source", "check")


@pytest.fixture
def s3_house(hot_url: str, s3: EmbeddedS3, bucket: str) -> Iterator[tuple[Lakehouse, S3Gate]]:
    """A lakehouse that reads as a role with the canary for a password, over a storage that can be made to refuse."""
    host_tables(hot_url)
    name = f"reader_{secrets.token_hex(4)}"
    parts = urlsplit(hot_url)
    with S3Gate(s3.endpoint) as gate:
        house = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
        role = sql.Identifier(name)
        with closing(house), house.hot() as hot:
            hot.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(CANARY)))
            hot.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(role))
            house.reopen(
                SOURCE__URL=urlunsplit(parts._replace(netloc=f"{name}:{CANARY}@{parts.hostname}:{parts.port}")),
                CONTROL__URL=hot_url,
                LAKE__S3__ENDPOINT=gate.endpoint,
            )
            yield house, gate
            house.close()
            hot.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


def test_no_command_shows_a_secret(s3_house: tuple[Lakehouse, S3Gate], s3: EmbeddedS3) -> None:
    house, gate = s3_house
    outputs: list[str] = []

    def command(*arguments: str, check: int | None = 0) -> None:
        done = house.run(*arguments, check=check)
        outputs.append(done.stdout + done.stderr)

    one = ("--table", "events")
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        command("init", "--json")
        command("source", "check", *one)
        assert not house.backfill("events").errors
        insert_events(hot, "org-a", 10, 1)
        command("sync", "--once", "--reconcile", *one)
        command("status", "--json")
        command("verify", *one, "--json")
        insert_events(hot, "org-a", 20, 1)
        gate.refuse(403, "SignatureDoesNotMatch")
        command("sync", "--once", *one, check=1)
        command("query", "SELECT count(*) FROM events", "-o", "org-a", check=None)
        gate.let_through()
        hot.execute("ALTER TABLE ingested_events DROP COLUMN actor")
        command("sync", "--once", *one, check=1)
        said = "".join(outputs)
        # Nor do the tables that the program keeps, which a delivery's error would end up in.
        kept = hot.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'lakehouse'"
        ).fetchall()
        for (table,) in kept:
            said += str(hot.execute(sql.SQL("SELECT * FROM lakehouse.{}").format(sql.Identifier(table))).fetchall())
    said += str([vars(house.lake_table("events", "org-a").metadata), house.app.address, house.app.settings])
    for secret in (CANARY, s3.secret_key, urlsplit(house.hot_url).password or ""):
        assert secret not in said
    assert "events" in said
