"""What only files have: a manifest that is damaged, deliveries that a filling cannot tell apart."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

import jq
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from federation.config import ConfigError, parse_config
from federation.kinds import DestinationKind
from federation.protocol import DestinationError, ForeignTargetError, Owner
from lakehouse import destinations
from lakehouse.deliver.fill import Place, fill
from lakehouse.deliver.parity import parity
from lakehouse.deliver.ranges import open_lake_table, range_reader
from lakehouse.deliver.run import resync
from lakehouse.duck import connect
from lakehouse.lakes import add_lake
from schemas.errors import LakehouseError, Retry
from tests.conformance.places import Files, add_there, is_data
from tests.conformance.stage import Stage, more_columns
from tests.faults.proxy import Fault, HttpProxy
from tests.support import ROOT, insert_events

MARK = "exports/org-a/_lakehouse.json"


@pytest.fixture(params=[DestinationKind.PARQUET_S3, DestinationKind.JSONL_S3], ids=lambda k: k.value)
def kind(request: pytest.FixtureRequest) -> DestinationKind:
    found: DestinationKind = request.param
    return found


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"format": 1}'], ids=["broken", "list", "empty"])
def test_a_damaged_manifest_is_said_and_filled_anew(stage: Stage, body: bytes) -> None:
    assert isinstance(stage.place, Files)
    stage.delivered()
    stage.place.put(stage.place.manifest_key("events"), body)
    error = stage.parity().error
    assert error is not None and error.retry is Retry.MANUAL and "resync" in error.hint
    (result,) = resync(stage.house.app, stage.destination, ["events"])
    assert result.error is None, result.error
    stage.equal()


def test_a_prefix_that_lost_its_mark_is_still_its_owners(stage: Stage) -> None:
    place = stage.place
    assert isinstance(place, Files)
    stage.delivered()
    marked = place.stored()
    place.client.delete_object(Bucket=place.bucket, Key=MARK)
    contract = stage.house.app.contract("events")
    for ask in ("check", "prepare"):
        adapter = stage.adapter_of(Owner("tests", "org-b"))
        with pytest.raises(ForeignTargetError, match="org-a"):
            getattr(adapter, ask)(*([contract] if ask != "check" else []))
        adapter.close()
    assert place.stored() == {k: v for k, v in marked.items() if k != MARK}
    stage.delivered()
    adapter = stage.adapter()
    adapter.prepare(contract)
    assert place.stored() == marked
    # One that says nothing is made again when somebody removed it, and not before.
    place.put(MARK, b"{}")
    with pytest.raises(DestinationError, match="does not say whose") as caught:
        adapter.prepare(contract)
    assert caught.value.retry is Retry.MANUAL and "delete that object" in caught.value.hint
    place.client.delete_object(Bucket=place.bucket, Key=MARK)
    adapter.prepare(contract)
    adapter.close()
    assert place.stored() == marked


def test_of_two_that_come_at_once_one_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = stage.house.app.contract("events")
    second = stage.adapter_of(Owner("tests", "org-a", destination="another", living=lambda _: True))
    read, asked = second.store.read_json, []

    def meanwhile(name: str) -> Any:
        found = read(name)
        if not asked:
            first = stage.adapter()
            first.prepare(contract)
            first.close()
        asked.append(name)
        return found

    monkeypatch.setattr(second.store, "read_json", meanwhile)
    with pytest.raises(ForeignTargetError, match=str(stage.destination.id)):
        second.prepare(contract)
    second.close()
    stage.delivered()
    stage.equal()


def test_prefixes_that_lie_in_one_another_are_refused(stage: Stage) -> None:
    """By their path alone: one destination's files would be read with another's keys, at another's endpoint."""
    house, place = stage.house, stage.place
    assert isinstance(place, Files)
    location, other = place.config["location"], {DestinationKind.PARQUET_S3, DestinationKind.JSONL_S3} - {place.kind}
    elsewhere = {"endpoint": place.s3.endpoint.replace("127.0.0.1", "localhost")}
    assert elsewhere["endpoint"] != place.s3.endpoint

    def add(kind: DestinationKind = place.kind, **config: Any) -> destinations.Destination:
        return add_there(house, kind, place.config | config, place.credentials, name="another")

    for config in (
        {"location": f"{location}/events"},
        {"location": f"{location}/events"} | elsewhere,
        {"location": location.rpartition("/")[0]},
        elsewhere,
        {"kind": next(iter(other))},
    ):
        with pytest.raises(LakehouseError, match=r"\(destination there\) lie in one another"):
            add(**config)
    with pytest.raises(LakehouseError, match=r"writes to .* already"):
        add()
    with pytest.raises(LakehouseError, match=r"\(destination there\) lie in one another"):
        add_lake(house.app, "org-a", f"{location}/lake", endpoint=place.s3.endpoint, credentials=place.credentials)
    destinations.edit(house.app, stage.destination, credentials=place.credentials)
    destinations.remove(house.app, add(location=f"{location}-too"))
    destinations.remove(house.app, stage.destination)
    stage.destination = add(location=f"{location}/events")
    stage.delivered()


def test_a_filling_that_is_overtaken_is_brought_further(stage: Stage) -> None:
    """A delivery begins before the filling's state and ends after it: its files cannot be told apart."""
    house = stage.house
    app = house.app
    contract = app.contract("events")
    adapter, another = stage.adapter(), stage.adapter()
    turns: list[int] = []

    def meanwhile() -> None:
        turns.append(adapter.standing(contract))
        if len(turns) == 1:
            with house.hot() as hot:
                insert_events(hot, "org-a", 70, 1, day="2026-03-03")
            house.sync_ok("events")
            with range_reader(app, open_lake_table(app, contract, "org-a")) as rows:
                another.deliver(stage.pieces(5, 11)[0], rows)

    adapter.prepare(contract)
    with range_reader(app, open_lake_table(app, contract, "org-a")) as rows:
        another.deliver(stage.pieces(0, 5)[0], rows)
    receipt, _ = fill(app, adapter, Place(stage.destination.id, contract, "org-a", meanwhile))
    adapter.close()
    another.close()
    assert (receipt.rows, receipt.sequence, turns) == (11, 11, [5, 11, 11, 11])
    stage.equal()


@pytest.mark.parametrize("kind", [DestinationKind.JSONL_S3], ids=lambda k: k.value)
def test_digits_that_a_double_does_not_have_are_compared(stage: Stage) -> None:
    place, house = stage.place, stage.house
    assert isinstance(place, Files)
    values = (
        '{"a": 1.00000000000000000001, "m": [12345678901234567890123, -0.10, 2e3], "s": "1, 2"}',
        "null",
        '"7"',
        "7",
    )
    with house.hot() as hot:
        for number, value in enumerate(values, 1):
            hot.execute("UPDATE ingested_events SET payload = %s::jsonb WHERE id = %s", [value, f"org-a-e{number}"])
    house.sync_ok("events")
    stage.delivered()
    stage.equal()
    (file,) = [f for f in place.manifest("events")["files"] if f["date"] == "2026-01-01"]
    key = file["path"].removeprefix(f"s3://{place.bucket}/")
    body = place.stored()[key]
    for old, new, row in (
        ("1.00000000000000000001", "1.00000000000000000002", "org-a-e1"),
        ("12345678901234567890123", "12345678901234567890124", "org-a-e1"),
        ("-0.10", "-0.1", "org-a-e1"),
        ('"payload":7', '"payload":"7"', "org-a-e4"),
    ):
        lines = gzip.decompress(body).decode()
        assert lines.count(old) == 1
        place.put(key, gzip.compress(lines.replace(old, new).encode()))
        (difference,) = stage.parity().differences
        assert (difference.key["id"], difference.columns) == (row, ("payload",))
    place.put(key, body)
    stage.equal()


def rewrite(place: Files, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change the rows of every file that the manifest names, as somebody with the right tools would."""
    for file in place.manifest("events")["files"]:
        key = file["path"].removeprefix(f"s3://{place.bucket}/")
        body = place.stored()[key]
        if place.kind is DestinationKind.JSONL_S3:
            rows = [json.loads(line) for line in gzip.decompress(body).decode().splitlines()]
            place.put(key, gzip.compress("".join(json.dumps(r) + "\n" for r in change(rows)).encode()))
            continue
        table = pq.read_table(pa.BufferReader(body))
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), table.schema), sink)
        place.put(key, sink.getvalue().to_pybytes())


def test_an_old_version_with_a_number_above_the_manifests_is_seen(stage: Stage) -> None:
    """Readers take the highest `_sequence`, and know no bound."""
    place = stage.place
    assert isinstance(place, Files)
    stage.delivered()
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e3'")
    stage.house.sync_ok("events")
    stage.delivered()
    stage.equal()
    rewrite(place, lambda rows: [r | ({"_sequence": 999} if r["severity"] == "INFO" else {}) for r in rows])
    found = stage.parity()
    assert ("org-a-e3", "content", ("severity",)) in [(d.key["id"], d.kind, d.columns) for d in found.differences]
    assert (found.equal, found.sequence) == (False, 11)


def test_a_row_with_a_number_above_the_manifests_is_seen(stage: Stage) -> None:
    place = stage.place
    assert isinstance(place, Files)
    stage.delivered()
    rewrite(place, lambda rows: rows + [r | {"id": "ghost", "_sequence": 999} for r in rows if r["id"] == "org-a-e3"])
    assert "ghost" in place.ids("events")
    found = stage.parity()
    assert [(d.key["id"], d.kind) for d in found.differences] == [("ghost", "extra")] and not found.equal


AGAIN, KEYS, RESYNC = (Retry.TIMED, "tried again"), (Retry.MANUAL, "check keys"), (Retry.MANUAL, "resync")
ANSWERS = {
    (503, "SlowDown"): AGAIN,
    (500, "InternalError"): AGAIN,
    (429, "TooManyRequests"): AGAIN,
    (0, "cut"): AGAIN,
    (403, "AccessDenied"): KEYS,
    (400, "AuthorizationHeaderMalformed"): KEYS,
    (404, "NoSuchKey"): RESYNC,
}


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer[1])
def test_a_storage_that_does_not_give_its_files_is_no_damaged_file(stage: Stage, answer: tuple[int, str]) -> None:
    stage.delivered()
    place = stage.place
    assert isinstance(place, Files)
    with HttpProxy(place.s3.endpoint) as proxy:
        there = dataclasses.replace(stage.destination, config=place.config | {"endpoint": proxy.endpoint})
        kind: Literal["answer", "cut_reply"] = "answer" if answer[0] else "cut_reply"
        fault = proxy.arm(Fault(kind, lambda request: is_data(request.text), times=None, answer=answer))
        (found,) = parity(stage.house.app, [there], ["events"])
    assert fault.hits and not found.equal and found.error is not None
    retry, word = ANSWERS[answer]
    assert (found.error.retry, word in found.error.hint) == (retry, True), (found.error, found.error.hint)
    assert (found.fault is None) == (retry is Retry.TIMED), "what could not be asked is no difference"
    stage.equal()


@pytest.mark.parametrize("config", [{"max_dates": 401}, {"max_dates": 0}, {"schema": "x"}, {"prefix": "x"}], ids=str)
def test_a_config_that_is_refused(kind: DestinationKind, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(config))):
        parse_config(kind, {"location": "s3://bucket/prefix"} | config)


def test_what_the_page_says_works_when_pasted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/files.md, over a table with a delete, an update and a column that came later."""
    place, house = stage.place, stage.house
    assert isinstance(place, Files)
    stage.delivered()
    house.reopen(CONTRACTS=json.dumps(["builtin", str(more_columns(stage.folder))]))
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events ADD COLUMN region text DEFAULT 'eu'")
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e1'")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
    house.sync_ok("events", reconcile=True)
    stage.delivered()
    page = (ROOT / "docs" / "files.md").read_text()
    page = page.replace("s3://bucket/exports", place.config["location"]).replace("=acme", "=org-a")
    blocks = re.findall(r"```(\w*)\n(.*?)```", page, re.S)
    wanted = {f"org-a-e{n}": "INFO" for n in (3, 4, 5, 6, 50, 51, 60, 61)} | {"org-a-e1": "HIGH"}
    if place.kind is DestinationKind.JSONL_S3:
        (command,) = [b for _, b in blocks if "jq -s" in b]
        program = re.search(r"jq -s '(.*)'", command)
        assert program is not None
        lines = "\n".join(json.dumps(r) for r in place.rows("events"))
        rows = jq.compile(program[1]).input_text(lines, slurp=True).all()
        assert {r["id"]: (r["severity"], r["region"]) for r in rows} == {k: (v, "eu") for k, v in wanted.items()}
        return
    (statements,) = [b for kind, b in blocks if kind == "sql"]
    with connect([], private=True) as duck:
        host = urlsplit(place.s3.endpoint).netloc
        duck.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID '{place.s3.access_key}', SECRET '{place.s3.secret_key}', "
            f"ENDPOINT '{host}', USE_SSL false, URL_STYLE 'path')"
        )
        found = duck.execute(statements).to_arrow_table().to_pylist()
    assert {r["id"]: (r["severity"], r["region"]) for r in found} == {k: (v, "eu") for k, v in wanted.items()}

    (snippet,) = [b for kind, b in blocks if kind == "python" and "polars" in b]
    for name, value in {
        "AWS_ENDPOINT_URL": place.s3.endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": place.s3.access_key,
        "AWS_SECRET_ACCESS_KEY": place.s3.secret_key,
        "AWS_REGION": place.s3.region,
    }.items():
        monkeypatch.setenv(name, value)
    scope: dict[str, Any] = {"read": lambda url: place.stored()[url.removeprefix(f"s3://{place.bucket}/")]}
    exec(snippet, scope)
    rows = scope["events"].collect().to_dicts()
    assert {r["id"]: (r["severity"], r["region"]) for r in rows} == {k: (v, "eu") for k, v in wanted.items()}
