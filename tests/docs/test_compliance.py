"""docs/compliance.md says which bytes are hashed and signed; its commands check a receipt that this program signed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from lakehouse.archive.archive_table import ARCHIVE
from lakehouse.archive.records import Receipt, Tombstone
from lakehouse.cli.receipts import COLUMNS
from tests.unit.test_seal import RECEIPT, key, sealer

DOCUMENT = (Path(__file__).parent.parent.parent / "docs/compliance.md").read_text()
__all__ = ["key"]


def fields(after: str) -> list[str]:
    """The names in the first column of the table that follows a text."""
    table = DOCUMENT[DOCUMENT.index(after) :].partition("| --- | --- |\n")[2].partition("\n\n")[0]
    return [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]


def test_the_fields_of_a_tombstones_line_are_those_of_the_document_in_its_order() -> None:
    columns = fields("**A tombstone**")
    assert columns == [c.name for c in ARCHIVE.columns][: len(columns)]
    assert len(columns) == len(Tombstone.__dataclass_fields__)
    assert [c.name for c in ARCHIVE.columns][len(columns) :] == ["batch_id", "receipt", "chain"]


def test_the_fields_of_a_receipt_are_those_of_the_document() -> None:
    assert sorted(fields("**A receipt**")) == sorted(["v", *Receipt.__dataclass_fields__])


def test_what_the_document_shows_of_receipts_is_what_the_command_prints() -> None:
    header = next(line for line in DOCUMENT.splitlines() if line.startswith("organization  batch"))
    assert tuple(re.split(r" {2,}", header)) == COLUMNS


def test_the_commands_of_the_document_check_a_signature(key: Path, tmp_path: Path) -> None:
    (script,) = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.S)
    signer = sealer(key)
    (tmp_path / "public.pem").write_text(signer.public_key.pem)
    jws = signer.seal(RECEIPT)
    (tmp_path / "receipt.jws").write_text(jws + "\n")
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Verified Successfully" in done.stdout, done.stderr
    head, payload, signature = jws.split(".")
    (tmp_path / "receipt.jws").write_text(f"{head}.{payload[:-1]}{'A' if payload[-1] != 'A' else 'B'}.{signature}\n")
    assert subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True).returncode != 0
