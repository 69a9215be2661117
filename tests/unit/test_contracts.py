"""The built-in contracts, and what a broken contract is told."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.schema import assign_fresh_schema_ids
from pyiceberg.types import ListType

from schemas.contract import BUILT_IN, FIRST_COLUMN_ID, Contract, load_contract, load_contracts, parse_contract
from schemas.errors import ContractError
from schemas.lake_columns import LAKE_COLUMNS, arrow_schema, iceberg_schema, lake_fields, partition_spec

TABLES = {
    "events": "ingested_events",
    "findings": "security_findings",
    "rule_runs": "rule_runs",
    "siem_deliveries": "siem_deliveries",
    "workflow_deliveries": "workflow_deliveries",
    "audit_log": "tenant_audit_logs",
    "oauth_grants": "oauth_app_grants",
    "identities": "saas_identities",
    "assets": "security_assets",
    "baseline_scores": "baseline_scores",
}
CONTRACTS = load_contracts([BUILT_IN])
SECRET = re.compile(
    r"passw|secret|token|credential|api_?key|private|encrypt|cipher|otp|salt|session|cookie|card|ssn|cvv"
)


@pytest.fixture(params=sorted(TABLES))
def contract(request: pytest.FixtureRequest) -> Contract:
    return CONTRACTS[request.param]


def _raw(table: str) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((BUILT_IN / table / "v1.json").read_text("utf-8"))
    return raw


def _field_id(field: pa.Field[Any]) -> int:
    assert field.metadata is not None
    return int(field.metadata[b"PARQUET:field_id"])


# The built-in ten


def test_the_ten_tables_are_there_with_their_source() -> None:
    assert {name: c.source_table for name, c in CONTRACTS.items()} == TABLES
    assert {c.source_schema for c in CONTRACTS.values()} == {"public"}
    assert {c.version for c in CONTRACTS.values()} == {"1.0"}
    assert {n for n, c in CONTRACTS.items() if c.provisional} == {"rule_runs", "workflow_deliveries", "baseline_scores"}


def test_retention_applies_to_what_grows_and_never_to_what_is_state() -> None:
    assert {n: c.retention for n, c in CONTRACTS.items() if c.retention != "never"} == {
        "events": "applies",
        "findings": "applies",
        "rule_runs": "applies",
        "workflow_deliveries": "applies",
        "audit_log": "applies",
        "siem_deliveries": "optional",
    }


def test_ids_are_those_that_create_table_gives(contract: Contract) -> None:
    columns = contract.columns
    assert [c.id for c in columns] == list(range(FIRST_COLUMN_ID, FIRST_COLUMN_ID + len(columns)))
    elements = [c.element_id for c in columns if c.element_id is not None]
    first = FIRST_COLUMN_ID + len(columns)
    assert elements == list(range(first, first + len(elements)))
    # The rule is pyiceberg's, so let it say so: numbering afresh changes nothing.
    schema = iceberg_schema(contract)
    fresh = assign_fresh_schema_ids(schema)
    assert [str(f) for f in fresh.fields] == [str(f) for f in schema.fields]


def test_arrow_and_iceberg_agree(contract: Contract) -> None:
    arrow, iceberg = arrow_schema(contract), iceberg_schema(contract)
    assert arrow.names == [f.name for f in iceberg.fields] == [c.name for c in lake_fields(contract)]
    assert arrow.names[:5] == [c.name for c in LAKE_COLUMNS]
    for ours, theirs in zip(arrow, iceberg.fields, strict=True):
        assert _field_id(ours) == theirs.field_id
        assert ours.nullable is not theirs.required
        if isinstance(theirs.field_type, ListType):
            assert pa.types.is_list(ours.type)
            assert _field_id(ours.type.value_field) == theirs.field_type.element_id


def test_tables_are_partitioned_by_the_day_of_a_time_that_is_never_null(contract: Contract) -> None:
    assert contract.event_time is not None
    assert not contract[contract.event_time].nullable
    (field,) = partition_spec(contract).fields
    assert field.source_id == contract[contract.event_time].id
    assert contract.identity == (contract.event_time, "id")
    assert contract.tenant == "organization_id"


def test_nothing_that_looks_secret_is_exported(contract: Contract) -> None:
    assert [c.source for c in contract.columns if SECRET.search(c.source)] == []
    assert all(c.sensitivity == "confidential" for c in contract.columns if c.type.name == "json")
    assert all(c.sensitivity == "personal" for c in contract.columns if re.search(r"email|ip_address|actor", c.name))


def test_age_is_never_the_tenants_own_clock_alone_nor_a_time_ahead(contract: Contract) -> None:
    assert set(contract.age_bounds) - {"occurred_at"}
    assert not [b for b in contract.age_bounds if re.search(r"next|due|expire|lease", b)]


def test_each_enum_column_lists_labels(contract: Contract) -> None:
    for column in contract.columns:
        if column.source_type.startswith('"'):
            assert re.search(r"[A-Z]{3,}.*,.*[A-Z]{2,}", column.description), column.name


def test_files_hold_one_column_a_line(contract: Contract) -> None:
    lines = (BUILT_IN / contract.table / "v1.json").read_text("utf-8").splitlines()
    entries = [json.loads(line.strip().rstrip(",")) for line in lines if line.startswith('    {"id"')]
    assert [e["name"] for e in entries] == [c.name for c in contract.columns]


def test_unknown_columns_are_those_neither_exported_nor_listed() -> None:
    contract = CONTRACTS["siem_deliveries"]
    hot = [c.source for c in contract.columns] + ["lease_owner", "lease_expires_at"]
    assert contract.unknown_columns(hot) == []
    assert contract.unknown_columns([*hot, "z_new", "a_new", "id"]) == ["a_new", "z_new"]


# Broken ones


def _without(path: str) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        target: Any = raw
        *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
        for part in parents:
            target = target[part]
        del target[last]

    return change


def _with(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        target: Any = raw
        *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
        for part in parents:
            target = target[part]
        target[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "field", "fault"),
    [
        (_without("tenant"), "(top level)", "'tenant' is a required property"),
        (_with("tennant", "x"), "(top level)", "'tennant' was unexpected"),
        (_with("version", "1"), "version", "'1' does not match"),
        (_with("columns.3.type", "uuid"), "columns[3].type", "'uuid' does not match"),
        (_with("columns.3.id", 5), "columns[3].id", "5 is less than the minimum"),
        (_with("columns.3.name", "_op"), "columns[3].name", "'_op' does not match"),
        (_with("columns.3.sensitivity", "secret"), "columns[3].sensitivity", "'secret' is not one of"),
        (_with("columns.3.comment", "x"), "columns[3]", "'comment' was unexpected"),
        (_with("retention", "90 days"), "retention", "'90 days' is not one of"),
        (_with("not_exported", [{"column": "x"}]), "not_exported[0]", "'reason' is a required property"),
        (_with("tenant", "org"), "tenant", "no exported column is named 'org'"),
        (_with("tenant", "event_id"), "tenant", "'event_id' must not be nullable"),
        (_with("tenant", "evidence"), "tenant", "must be string, integer or long"),
        (_with("primary_key", ["id", "uid"]), "primary_key", "no exported column is named 'uid'"),
        (_with("primary_key", ["evidence"]), "primary_key", "of type json cannot be compared exactly"),
        (_with("event_time", "resolved_at"), "event_time", "'resolved_at' must not be nullable"),
        (_with("event_time", "title"), "event_time", "must be timestamptz or date, not string"),
        (_with("watermark.column", "updated_at"), "watermark.column", "no exported column is named 'updated_at'"),
        (_with("age_bounds", ["risk_score"]), "age_bounds", "must be timestamptz or date, not integer"),
        (_with("columns.4.id", 6), "columns[4].id", "6 is already columns[0].id"),
        (_with("columns.10.element_id", 7), "columns[10].element_id", "7 is already columns[1].id"),
        (_without("columns.10.element_id"), "columns[10].element_id", "missing for a list"),
        (_with("columns.5.element_id", 99), "columns[5].element_id", "only a list has one"),
        (_with("columns.5.name", "id"), "columns[5].name", "'id' is already columns[0]"),
        (_with("columns.5.source", "id"), "columns[5].source", "'id' is already columns[0]"),
        (_with("columns.9.type", "decimal(5,6)"), "columns[9].type", "scale at most the precision"),
        (_with("columns.9.type", "decimal(39,0)"), "columns[9].type", "precision at most 38"),
        (_with("not_exported", [{"column": "title", "reason": "x"}]), "not_exported[0].column", "'title' is exported"),
        (_with("states", {"column": "status", "never_old": ["OPEN"]}), "states", "'finished' is a required property"),
        (_with("states.finished", ["OPEN"]), "states", "'OPEN' is in more than one list"),
    ],
)
def test_a_fault_names_file_and_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], field: str, fault: str
) -> None:
    raw = _raw("findings")
    change(raw)
    path = tmp_path / "findings" / "v1.json"
    path.parent.mkdir()
    path.write_text(json.dumps(raw), "utf-8")
    with pytest.raises(ContractError) as caught:
        load_contract(path)
    assert f"{path}: {field}: " in caught.value.detail
    assert fault in caught.value.detail
    assert caught.value.hint


def test_all_faults_of_all_files_come_at_once(tmp_path: Path) -> None:
    for table, change in {"events": _with("tenant", "x"), "findings": _with("event_time", "y")}.items():
        raw = copy.deepcopy(_raw(table))
        change(raw)
        raw["age_bounds"] = ["z"]
        (tmp_path / table).mkdir()
        (tmp_path / table / "v1.json").write_text(json.dumps(raw), "utf-8")
    with pytest.raises(ContractError) as caught:
        load_contracts([tmp_path])
    assert caught.value.detail.count("no exported column is named") == 4


@pytest.mark.parametrize(
    ("text", "fault"), [("{", "not JSON"), ("[]", "is not of type 'object'"), (b"\xff\xfe", "not JSON")]
)
def test_a_file_that_is_no_contract(tmp_path: Path, text: str | bytes, fault: str) -> None:
    path = tmp_path / "v1.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ContractError, match=fault) as caught:
        load_contract(path)
    assert str(path) in str(caught.value)


def test_a_file_or_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="cannot be read"):
        load_contract(tmp_path / "v1.json")
    with pytest.raises(ContractError, match="no contract found"):
        load_contracts([tmp_path])


def test_a_contract_must_stand_where_it_says(tmp_path: Path) -> None:
    (tmp_path / "incidents").mkdir()
    (tmp_path / "incidents" / "v2.json").write_text(json.dumps(_raw("findings")), "utf-8")
    with pytest.raises(ContractError, match=r"says findings 1\.0, the path says incidents v2"):
        load_contracts([tmp_path])


def test_the_newest_major_and_the_later_folder_win(tmp_path: Path) -> None:
    raw = _raw("findings")
    folder = tmp_path / "findings"
    folder.mkdir()
    for major in (1, 2, 10):
        raw["version"] = f"{major}.0"
        (folder / f"v{major}.json").write_text(json.dumps(raw), "utf-8")
    found = load_contracts([BUILT_IN, tmp_path])
    assert found["findings"].major == 10
    assert found["events"].major == 1


def test_columns_added_later_say_since_when() -> None:
    raw = _raw("findings")
    raw["version"] = "1.1"
    raw["columns"].append(
        raw["columns"][5] | {"id": 23, "name": "muted_reason", "source": "muted_reason", "since": "1.1"}
    )
    contract = parse_contract(raw, where="test")
    assert contract["title"].since == "1.0"
    assert contract["muted_reason"].since == "1.1"
    assert arrow_schema(contract).names[-1] == "muted_reason"
