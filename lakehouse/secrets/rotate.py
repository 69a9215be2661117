"""Re-encrypts stored credentials under another key version, row by row, while workers run.

Every row is opened before the first one is written: a wrong key changes nothing. Each row is then written by a
compare-and-swap on its old envelope, so that a credential that somebody edits meanwhile wins, and is looked at again.
A rotation that dies has changed whole rows only, each with the version that its envelope needs: readers go on, and
running it again does the rest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, or_, select, update

from lakehouse.control.models import Lake, WarehouseDestination
from lakehouse.failpoints import failpoint
from lakehouse.secrets.envelope import SecretError
from lakehouse.secrets.keyring import HOST_VERSION, Vault, destination_place, lake_place

if TYPE_CHECKING:
    from sqlalchemy import Engine

PASSES = 3
_TABLES: tuple[Any, ...] = (Lake, WarehouseDestination)


@dataclass
class Rotation:
    """What one rotation did. `left`: rows that still stand under an older version, by version."""

    key_version: str
    rotated: dict[str, int] = field(default_factory=dict)
    edited: int = 0
    """Rows that somebody stored again between reading and writing; looked at again."""
    left: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not self.left


@dataclass(frozen=True)
class _Row:
    table: Any
    id: Any
    place: str
    text: str
    version: str | None

    @property
    def name(self) -> str:
        return f"{self.table.__tablename__} {self.id} (key version {self.version or HOST_VERSION})"


def rotate(engine: Engine, vault: Vault, key_version: str | None = None) -> Rotation:
    """Re-encrypt every credential of lakes and destinations under `key_version` (default: the settings').

    Idempotent; may run beside workers and beside another rotation to the same version.

    Raises:
        SecretError: a key is missing or wrong; every such row is named, and nothing was changed.
    """
    result = Rotation(key_version or vault.key_version, {table.__tablename__: 0 for table in _TABLES})
    vault.key(result.key_version)
    for _ in range(PASSES):
        rows = _older(engine, result.key_version)
        if not rows:
            break
        _openable(vault, rows)
        for row in rows:
            if _rewrite(engine, vault, row, result.key_version):
                result.rotated[row.table.__tablename__] += 1
            else:
                result.edited += 1
            failpoint("keys.row_rotated")
    result.left = dict(Counter(row.version or HOST_VERSION for row in _older(engine, result.key_version)))
    return result


def _older(engine: Engine, key_version: str) -> list[_Row]:
    rows = []
    with engine.connect() as connection:
        for table in _TABLES:
            found = connection.execute(
                select(table.id, table.organization_id, table.encrypted_credentials, table.token_key_version)
                .where(
                    table.encrypted_credentials.is_not(None),
                    or_(table.token_key_version != key_version, table.token_key_version.is_(None)),
                )
                .order_by(table.id)
            ).all()
            place = lake_place if table is Lake else destination_place
            rows += [_Row(table, i, place(o, i), text, version) for i, o, text, version in found]
    return rows


def _openable(vault: Vault, rows: list[_Row]) -> None:
    faults = []
    for row in rows:
        try:
            vault.open(row.text, row.version, row.place)
        except SecretError as error:
            faults.append(f"{row.name}: {error.detail}")
    if faults:
        shown = "\n  ".join(faults[:10]) + (f"\n  and {len(faults) - 10} more" if len(faults) > 10 else "")
        raise SecretError(
            f"{len(faults)} of {len(rows)} stored credentials do not open; nothing was changed:\n  {shown}",
            "Check LAKEHOUSE_SECRETS__KEYS (APERIO_ENCRYPTION_KEY is v1 where it has none) for the versions named; "
            "a credential whose key is lost has to be stored again.",
        )


def _rewrite(engine: Engine, vault: Vault, row: _Row, key_version: str) -> bool:
    plain = vault.open(row.text, row.version, row.place)
    text, version = vault.seal(plain, row.place, key_version=key_version)
    with engine.begin() as connection:
        changed = connection.execute(
            update(row.table)
            .where(row.table.id == row.id, row.table.encrypted_credentials == row.text)
            .values(encrypted_credentials=text, token_key_version=version, updated_at=func.now())
        )
        return bool(changed.rowcount)
