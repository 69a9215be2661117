"""The one engine's keys: each place is read with its own."""

from __future__ import annotations

import secrets

from catalog.lake import LakeAddress
from lakehouse.duck import connect


def test_what_was_removed_leaves_no_keys_behind() -> None:
    bucket = f"bucket-{secrets.token_hex(4)}"
    keys = {"s3.endpoint": "http://127.0.0.1:1", "s3.access-key-id": "key", "s3.secret-access-key": "secret"}
    around = LakeAddress("files", "files", "", f"s3://{bucket}/exports", keys)
    inside = LakeAddress("files", "files", "", f"s3://{bucket}/exports/events", keys)
    beside = LakeAddress("files", "files", "", f"s3://{bucket}/exports-too", keys)
    without = LakeAddress("files", "files", "", f"s3://{bucket}/exports", {})

    def used(*addresses: LakeAddress, name: str = "exports/events/x.parquet") -> list[str]:
        with connect(addresses) as duck:
            which = f"which_secret('s3://{bucket}/{name}', 's3')"
            rows = duck.execute(f"SELECT unnest(scope) FROM {which} JOIN duckdb_secrets() USING (name)")
            return [row[0] for row in rows.fetchall()]

    for address in (inside, around, inside, around):
        assert used(beside, address) == [f"{address.warehouse}/"]
    assert used(name="exports-too/x.parquet") == [f"{beside.warehouse}/"]
    assert used(without) == [], "the usual chain of AWS has no keys of ours"
