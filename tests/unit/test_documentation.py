"""docs/tables.md is what the contracts say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from schemas.contract import BUILT_IN, load_contracts
from schemas.documentation import contracts_markdown

CONTRACTS = load_contracts([BUILT_IN])
TABLES = Path(__file__).parents[2] / "docs" / "tables.md"


def test_tables_md_is_up_to_date() -> None:
    assert TABLES.read_text("utf-8") == contracts_markdown(CONTRACTS), (
        "docs/tables.md is not what the contracts say; run: lakehouse contract docs > docs/tables.md"
    )


def test_order_of_the_contracts_does_not_matter() -> None:
    assert contracts_markdown(dict(reversed(CONTRACTS.items()))) == contracts_markdown(CONTRACTS)


def test_every_column_and_every_reason_is_there() -> None:
    text = contracts_markdown(CONTRACTS)
    for contract in CONTRACTS.values():
        section = text.split(f"\n## {contract.table}\n")[1].split("\n## ")[0]
        for column in contract.columns:
            assert f"| {column.id} | `{column.name}` | `{column.type}` |" in section
        for item in contract.not_exported:
            assert f"- `{item.column}`: {item.reason}" in section


def test_text_does_not_break_the_table() -> None:
    findings = CONTRACTS["findings"]
    first, *rest = findings.columns
    odd = replace(first, description="one | two\nthree", source="the Id", since="1.4")
    text = contracts_markdown({"findings": replace(findings, columns=(odd, *rest), event_time=None)})
    assert "one \\| two three Hot column `the Id`. Since 1.4. |" in text
    assert "the lake table is not partitioned" in text
