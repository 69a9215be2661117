"""Checks an organization's archive as somebody would who has docs/compliance.md and no program of ours.

    python stranger.py PUBLIC_KEY_FILE CONTRACTS_FOLDER ARCHIVE_FILES TABLE=FILES …

FILES are globs of the Parquet files of the present snapshot. Only the standard library, `cryptography` and DuckDB's
plain SQL. Prints one JSON document: what is good, and what is not.
"""

import base64
import hashlib
import json
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def field(kind, value):
    """One field of docs/canonical-row.md, for the types that these tables have."""
    if value is None:
        return "~,"
    if kind in ("string", "json"):
        text = value
    elif kind in ("integer", "long"):
        text = str(value)
    elif kind == "boolean":
        text = "t" if value else "f"
    elif kind == "timestamptz":
        text = str((value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))
    elif kind == "date":
        text = str((value - date(1970, 1, 1)).days)
    elif kind == "list<string>":
        text = f"{len(value)}[{''.join(field('string', item) for item in value)}]"
    else:
        raise ValueError(kind)
    return f"{len(text.encode())}:{text},"


def moment(value):
    return None if value is None else value.astimezone(UTC).isoformat(timespec="microseconds")


def rows(files):
    listed = ", ".join(f"'{file}'" for file in files)
    found = duckdb.connect().execute(f"SELECT * FROM read_parquet([{listed}], union_by_name = true)")
    return found.to_arrow_table().to_pylist()


def main(public_file, contracts, archive, *tables):
    public = load_pem_public_key(Path(public_file).read_bytes())
    x = encode(public.public_bytes(Encoding.Raw, PublicFormat.Raw))
    kid = encode(hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest())
    shapes, lake = {}, {}
    for table, _, files in (t.partition("=") for t in tables):
        shape = json.loads(Path(contracts, table, "v1.json").read_text())
        shapes[table] = sorted(shape["columns"], key=lambda c: c["id"])
        lake[table] = {row["_sequence"]: row for row in rows(files.split(","))}
    batches = {}
    for row in rows(archive.split(",")):
        batches.setdefault(row["batch"], []).append(row)
    faults, good, before = [], 0, "0" * 64
    for number, mine in sorted(batches.items()):
        mine.sort(key=lambda row: row["row_key"].encode())
        (jws,) = [row["receipt"] for row in mine if row["receipt"] is not None]
        head, payload, signature = jws.split(".")
        if json.loads(decode(head)) != {"alg": "EdDSA", "typ": "lakehouse-receipt+jws", "kid": kid}:
            faults.append(f"batch {number}: another header")
        try:
            public.verify(decode(signature), f"{head}.{payload}".encode())
        except InvalidSignature:
            faults.append(f"batch {number}: signature")
        receipt = json.loads(decode(payload))
        if (receipt["v"], receipt["number"], receipt["rows"]) != (1, number, len(mine)):
            faults.append(f"batch {number}: number or rows")
        lines = hashlib.sha256()
        for row in mine:
            values = [
                row["organization_id"], row["table_name"], row["row_key"], moment(row["event_time"]), row["sequence"],
                row["batch"], row["delivered_to"], row["snapshot_id"], row["keyed_hash"], row["hash_key"],
                row["contract_version"], row["policy"], row["operator"], moment(row["archived_at"]),
            ]  # fmt: skip
            lines.update(json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        if lines.hexdigest() != receipt["tombstones_sha256"]:
            faults.append(f"batch {number}: tombstones")
        content = hashlib.sha256()
        for row in mine:
            version = lake[row["table_name"]].get(row["sequence"], {})
            text = "".join(field(c["type"], version.get(c["name"])) for c in shapes[row["table_name"]])
            content.update(hashlib.sha256(text.encode()).hexdigest().encode() + b"\n")
        if content.hexdigest() != receipt["content_sha256"]:
            faults.append(f"batch {number}: content")
        if receipt["previous"] != before:
            faults.append(f"batch {number}: another batch stood before it")
        before = hashlib.sha256(f"{before}\n{jws}".encode()).hexdigest()
        if {row["chain"] for row in mine} != {before}:
            faults.append(f"batch {number}: chain")
        good += len(mine)
    sys.stdout.write(json.dumps({"batches": len(batches), "rows": good, "chain": before, "faults": faults}))


main(*sys.argv[1:])
