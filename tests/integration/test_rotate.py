"""Stored credentials go under another key: row by row, beside edits and readers, and after a kill."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, update

from lakehouse.control.models import Lake, WarehouseDestination
from lakehouse.secrets import Vault, destination_place, lake_place
from lakehouse.secrets.envelope import SecretError
from lakehouse.secrets.rotate import rotate
from tests.support import Lakehouse, host_tables, local_variables

OLD, NEW, LOST = ("hex:" + digit * 64 for digit in "123")
DESTINATIONS = 4


def keys(**versions: str) -> str:
    return json.dumps(versions)


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    """Three lakes and four destinations (one of them vendor-wide) with credentials under v1."""
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.reopen(SECRETS__KEYS=keys(v1=OLD, v2=NEW))
    lakehouse.init()
    vault = Vault(lakehouse.app.settings)
    with lakehouse.app.engine.begin() as connection:
        for identity, organization in connection.execute(select(Lake.id, Lake.organization_id)).all():
            text, version = vault.seal({"n": f"lake-{organization}"}, lake_place(organization, identity))
            connection.execute(
                update(Lake).where(Lake.id == identity).values(encrypted_credentials=text, token_key_version=version)
            )
        for number in range(DESTINATIONS):
            identity, tenant = uuid.uuid4(), None if number == 0 else "org-a"
            text, version = vault.seal({"n": f"destination-{number}"}, destination_place(tenant, identity))
            connection.execute(
                insert(WarehouseDestination).values(
                    id=identity,
                    organization_id=tenant,
                    kind="POSTGRES_REPLICA",
                    name=f"d{number}",
                    encrypted_credentials=text,
                    token_key_version=version,
                )
            )
    yield lakehouse
    lakehouse.close()


def stored(house: Lakehouse) -> list[tuple[str, str, str]]:
    """(plain text's name, key version, envelope) of every credential; each must open under the version beside it."""
    vault = Vault(house.app.settings)
    found = []
    with house.app.engine.connect() as connection:
        for table, place in ((Lake, lake_place), (WarehouseDestination, destination_place)):
            columns = (table.id, table.organization_id, table.encrypted_credentials, table.token_key_version)
            rows = connection.execute(select(*columns).where(table.encrypted_credentials.is_not(None)))  # type: ignore[call-overload]
            for identity, organization, text, version in rows:
                plain = vault.open(text, version, place(organization, identity))
                found.append((json.loads(plain)["n"], version, text))
    return sorted(found)


NAMES = sorted([f"lake-org-{o}" for o in "abc"] + [f"destination-{n}" for n in range(DESTINATIONS)])


def test_every_credential_goes_under_the_new_key(house: Lakehouse) -> None:
    before = stored(house)
    assert [version for _, version, _ in before] == ["v1"] * 7
    result = house.run_json("keys", "rotate", "--to", "v2")
    assert result["rotated"] == {"lakes": 3, "warehouse_destinations": DESTINATIONS}
    assert result["left"] == {} and result["complete"]
    after = stored(house)
    assert [(name, version) for name, version, _ in after] == [(name, "v2") for name in NAMES]
    assert not {text for *_, text in before} & {text for *_, text in after}
    again = house.run_json("keys", "rotate", "--to", "v2")
    assert sum(again["rotated"].values()) == 0 and stored(house) == after
    said = house.run("keys", "rotate", "--to", "v2")
    assert "left under an older version: none" in said.stdout and "still written with v1" in said.stderr
    house.reopen(SECRETS__KEYS=keys(v2=NEW), SECRETS__KEY_VERSION="v2")
    assert len(stored(house)) == 7, "the old key is needed no more"


def test_a_wrong_key_changes_nothing(house: Lakehouse) -> None:
    before = stored(house)
    for wrong, words in ((keys(v1=LOST, v2=NEW), "does not open"), (keys(v2=NEW), "no encryption key v1")):
        house.reopen(SECRETS__KEYS=wrong, SECRETS__KEY_VERSION="v2")
        done = house.run("keys", "rotate", check=2)
        assert "7 of 7 stored credentials do not open; nothing was changed" in done.stderr
        assert words in done.stderr and "LAKEHOUSE_SECRETS__KEYS" in done.stderr
        assert f"lakes {first_lake(house)} (key version v1)" in done.stderr
        assert "Traceback" not in done.stderr and "1" * 64 not in done.stderr and "3" * 64 not in done.stderr
    house.reopen(SECRETS__KEYS=keys(v1=OLD, v2=NEW), SECRETS__KEY_VERSION="v1")
    assert stored(house) == before
    assert "no encryption key v7" in house.run("keys", "rotate", "--to", "v7", check=2).stderr
    assert stored(house) == before


def first_lake(house: Lakehouse) -> Any:
    with house.app.engine.connect() as connection:
        return connection.scalar(select(Lake.id).order_by(Lake.id).limit(1))


def test_one_row_that_does_not_open_holds_up_all_and_is_named(house: Lakehouse) -> None:
    vault = Vault(house.app.settings)
    lake = first_lake(house)
    elsewhere, _ = vault.seal({"n": "moved"}, lake_place("org-z", lake))
    with house.app.engine.begin() as connection:
        connection.execute(update(Lake).where(Lake.id == lake).values(encrypted_credentials=elsewhere))
    with pytest.raises(SecretError, match=f"1 of 7 (.|\n)*lakes {lake}"):
        rotate(house.app.engine, vault, "v2")
    with house.app.engine.connect() as connection:
        assert set(connection.scalars(select(WarehouseDestination.token_key_version))) == {"v1"}


def test_an_edit_meanwhile_wins_and_is_rotated_too(house: Lakehouse) -> None:
    vault = Vault(house.app.settings)
    engine, lake = house.app.engine, first_lake(house)
    with engine.connect() as connection:
        organization = connection.scalar(select(Lake.organization_id).where(Lake.id == lake))
    assert organization is not None
    edits: list[str] = []

    # The moment between reading the rows and writing the first one.
    @event.listens_for(engine, "before_cursor_execute")
    def edit(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.startswith("UPDATE lakes") and not edits:
            edits.append("")
            text, version = vault.seal({"n": "edited"}, lake_place(organization, lake))
            with engine.begin() as other:
                other.execute(
                    update(Lake).where(Lake.id == lake).values(encrypted_credentials=text, token_key_version=version)
                )

    result = rotate(engine, vault, "v2")
    assert (result.edited, result.left) == (1, {})
    found = stored(house)
    assert ("edited", "v2") in [(name, version) for name, version, _ in found]
    assert len(found) == 7 and {version for _, version, _ in found} == {"v2"}


def test_what_is_left_is_counted(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who stores with the old key faster than this rotates: it ends, and says so."""
    vault = Vault(house.app.settings)
    lake = first_lake(house)

    def store_again(name: str) -> None:
        with house.app.engine.begin() as connection:
            organization = connection.scalar(select(Lake.organization_id).where(Lake.id == lake))
            text, version = vault.seal({"n": "again"}, lake_place(str(organization), lake))
            connection.execute(
                update(Lake).where(Lake.id == lake).values(encrypted_credentials=text, token_key_version=version)
            )

    monkeypatch.setattr("lakehouse.secrets.rotate.failpoint", store_again)
    result = rotate(house.app.engine, vault, "v2")
    assert result.left == {"v1": 1} and not result.complete


def test_killed_in_the_middle_and_run_again(house: Lakehouse) -> None:
    done = house.run("keys", "rotate", "--to", "v2", failpoints="keys.row_rotated=kill@3", check=None)
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    # A reader in the middle of it opens every row, by the version beside each.
    half = stored(house)
    assert sorted(version for _, version, _ in half) == ["v1"] * 4 + ["v2"] * 3
    assert [name for name, *_ in half] == NAMES
    result = house.run_json("keys", "rotate", "--to", "v2")
    assert sum(result["rotated"].values()) == 4 and result["complete"]
    assert [(name, version) for name, version, _ in stored(house)] == [(name, "v2") for name in NAMES]
