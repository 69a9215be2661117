"""The archive as an operator uses it: enabled, planned, run by hand and on a schedule, throttled, refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lakehouse.adopt import adopt_tables, find_differences
from lakehouse.archive.plan import make_plan
from lakehouse.archive.policy import PolicyOff, any_enabled, disable, enable
from lakehouse.archive.run import archive_all
from lakehouse.archive.throttle import Throttle, read_lag
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.outbox import tasks
from lakehouse.worker.scheduler import Scheduler
from schemas.errors import LakehouseError
from tests.cold import REFERENCES, old_events, old_findings, open_house, tombstones
from tests.integration.test_schedule import work
from tests.servers import standby
from tests.support import Lakehouse, host_tables, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    lakehouse = open_house(hot_url, tmp_path)
    yield lakehouse
    lakehouse.close()


def count(house: Lakehouse, table: str, where: str = "true") -> int:
    with house.hot() as hot:
        row = hot.execute(f"SELECT count(*) FROM {table} WHERE {where}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def of(found: Any, organization: str, table: str) -> Any:
    (one,) = [t for t in found["tables"] if (t["organization"], t["table"]) == (organization, table)]
    return one


def test_plan_enable_run_disable(house: Lakehouse) -> None:
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 30)
        old_events(hot, "org-b", 1, 4)
        hot.execute("UPDATE ingested_events SET created_at = now() WHERE id = 'org-a-e30'")
        hot.execute("UPDATE ingested_events SET occurred_at = '2999-01-01' WHERE id = 'org-a-e29'")
        old_findings(hot, "org-a", 1, 5, event=1)
        old_findings(hot, "org-a", 10, 2, event=10, status="OPEN")
        old_findings(hot, "org-a", 20, 2, event=20, status="MUTED")
        hot.execute(
            "INSERT INTO risk_exceptions (id, organization_id, finding_id, title, rationale, updated_at) "
            "VALUES ('x', 'org-a', 'org-a-f1', 't', 'r', now())"
        )
    for table in ("events", "findings", "audit_log", "rule_runs", "workflow_deliveries"):
        house.backfill(table)
    with house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e28'")
    # Nothing was ever set up: the plan says what would go.
    assert not any_enabled(house.app)
    plan = house.run_json("archive", "plan", "--organization", "org-a-slug")
    assert not plan["installed"]
    assert plan["order"].index("findings") < plan["order"].index("events")
    events, findings = of(plan, "org-a", "events"), of(plan, "org-a", "findings")
    assert not events["enabled"] and not events["refusals"]
    # Of 30: one just arrived, one lies ahead, one is not landed, and findings that stay keep 5 (one for its exception).
    assert (events["hot_rows"], events["rows"]) == (30, 22)
    assert events["waits"] == {"public.security_findings (event_id)": 4}
    assert events["kept"] == {
        "referred to by public.security_findings (event_id)": 5,
        "not old: a timestamp lies ahead": 1,
        "not old: newest of occurred_at, processed_at, created_at": 1,
        "not landed yet": 1,
    }
    assert events["bytes"] > 22 * 100
    assert events["oldest"][:10] == events["newest"][:10] == "2020-01-01"
    assert findings["rows"] == 4
    assert findings["kept"] == {
        "in use: status OPEN": 2,
        "age counts from its landing, which a proof knows: status MUTED": 2,
        "referred to by public.risk_exceptions (finding_id)": 1,
    }
    house.run("archive", "enable", "--organization", "org-a", "--reason", "90 days", "--by", "Ann Operator")
    assert any_enabled(house.app)
    assert "is not enabled" in house.run("archive", "run", "--organization", "org-b", check=2).stderr
    dry = house.run_json("archive", "run", "--dry-run")
    assert (of(dry, "org-a", "events")["proven"], of(dry, "org-a", "findings")["proven"]) == (18, 4)
    assert count(house, "ingested_events") == 34
    done = house.run_json("archive", "run")
    events, findings = of(done, "org-a", "events"), of(done, "org-a", "findings")
    assert (findings["rows"], events["rows"]) == (4, 22), "children went first, so that their parents could"
    assert events["kept"] == {"not landed yet": 1}
    assert {t["organization"] for t in done["tables"]} == {"org-a"}
    assert count(house, "ingested_events") == 12
    assert count(house, "risk_exceptions", "finding_id IS NULL") == 0
    assert {t.operator for t in tombstones(house)} == {"Ann Operator"}
    assert {t.policy for t in tombstones(house)} == {"data_retention_days 90"}
    assert "is off" in house.run("archive", "disable", "--organization", "org-a", "--reason", "a dispute").stdout
    assert "for nobody" in house.run("archive", "run").stdout
    with house.hot() as hot:
        audit = hot.execute("SELECT actor, action, reason FROM lakehouse_archive.audit ORDER BY id").fetchall()
    assert audit[0] == ("Ann Operator", "archive enabled", "90 days")
    assert audit[-1][1:] == ("archive disabled", "a dispute")


def test_what_can_be_seen_before_anything_is_set_up(hot_url: str, tmp_path: Path) -> None:
    """Without a schema, a policy or a key: the dry run proves, what reads shows nothing, and nothing is written."""
    host_tables(hot_url, ("org-a",))
    house = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    house.init()
    with house.hot() as hot:
        for statement in REFERENCES:
            hot.execute(statement)
        old_events(hot, "org-a", 1, 3)
    house.backfill("events")
    dry = house.run_json("archive", "run", "--organization", "org-a", "--dry-run")
    assert (of(dry, "org-a", "events")["state"], of(dry, "org-a", "events")["proven"]) == ("done", 3)
    assert "for nobody" in house.run("archive", "run").stdout
    assert "is not enabled" in house.run("archive", "run", "--organization", "org-a", check=2).stderr
    for command in (("audit",), ("receipts", "show"), ("hold", "list"), ("recall", "list")):
        assert house.run_json(*command) == [], command
        house.run(*command, "--organization", "org-a")
        assert "no organization 'nobody'" in house.run(*command, "--organization", "nobody", check=2).stderr
    assert "has no such receipt" in house.run("receipts", "show", "--batch", "1", check=2).stderr
    assert count(house, "ingested_events") == 3
    assert count(house, "pg_namespace", "nspname = 'lakehouse_archive'") == 0, "it was looked at, and not set up"
    house.close()


def test_enabling_says_what_would_stop_it(house: Lakehouse) -> None:
    app = house.app
    with house.hot() as hot:
        with pytest.raises(LakehouseError, match="needs a reason"):
            enable(app, "org-a", reason="  ")
        with pytest.raises(LakehouseError, match="never archived"):
            enable(app, "org-a", reason="x", optional_tables=["assets"])
        with pytest.raises(LakehouseError, match="always goes"):
            enable(app, "org-a", reason="x", optional_tables=["events"])
        hot.execute("UPDATE organizations SET data_retention_days = -1 WHERE id = 'org-a'")
        with pytest.raises(LakehouseError, match="data_retention_days is -1"):
            enable(app, "org-a", reason="x")
        with pytest.raises(LakehouseError, match="never enabled"):
            disable(app, "org-b", reason="x")
        enable(app, "org-b", reason="x")
        house.reopen(ARCHIVE__SIGNING_KEY_FILE="/does/not/exist")
        with pytest.raises(LakehouseError, match="signing_key_file"):
            enable(house.app, "org-c", reason="x")
        with pytest.raises(LakehouseError, match="signing_key_file"):
            archive_all(house.app)


def test_refusals_are_planned_and_stop_only_their_table(house: Lakehouse) -> None:
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 3)
        old_findings(hot, "org-a", 1, 3)
        hot.execute("DROP INDEX rule_runs_event_id_idx")
        hot.execute("ALTER TABLE tenant_audit_logs ADD COLUMN surprise text")
        hot.execute("CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'")
        hot.execute("CREATE TRIGGER seen BEFORE DELETE ON security_findings FOR EACH ROW EXECUTE FUNCTION seen()")
        hot.execute("ALTER TABLE rule_runs ADD FOREIGN KEY (event_id) REFERENCES ingested_events NOT VALID")
    house.backfill("events")
    house.backfill("findings")
    enable(house.app, "org-a", reason="x")
    enable(house.app, "org-b", reason="x")
    with house.hot() as hot:
        hot.execute("UPDATE organizations SET data_retention_days = 0 WHERE id = 'org-b'")
    plan = house.run_json("archive", "plan")
    assert all("data_retention_days is 0" in t["refusals"][0] for t in plan["tables"] if t["organization"] == "org-b")
    assert any(
        'CREATE INDEX CONCURRENTLY ON "public"."rule_runs" ("event_id")' in r
        for r in of(plan, "org-a", "events")["refusals"]
    )
    assert any("surprise" in r for r in of(plan, "org-a", "audit_log")["refusals"])
    assert "nothing has landed" in of(plan, "org-a", "rule_runs")["refusals"][0]
    assert of(plan, "org-a", "findings")["notes"] == ["trigger seen of public.security_findings fires at each delete"]
    human = house.run("archive", "plan").stdout
    assert "trigger seen" in human
    assert "archiving is off for org-c" in human
    done = house.run_json("archive", "run")
    states = {t["table"]: t["state"] for t in done["tables"] if t["organization"] == "org-a"}
    of_others = {t["table"]: t["detail"] for t in done["tables"] if t["organization"] == "org-b"}
    assert "data_retention_days is 0" in of_others["findings"]
    assert states == {
        "events": "refused", "findings": "done", "audit_log": "refused", "rule_runs": "not ready",
        "workflow_deliveries": "not ready",
    }  # fmt: skip
    assert (count(house, "ingested_events"), count(house, "security_findings")) == (3, 0)


def test_cycles_and_optional_tables_are_in_the_plan(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events DROP COLUMN ingestion_job_id")
        hot.execute("ALTER TABLE ingested_events ADD COLUMN ingestion_job_id text REFERENCES security_findings")
        hot.execute("CREATE INDEX ON ingested_events (ingestion_job_id)")
        old_events(hot, "org-a", 1, 3)
        old_findings(hot, "org-a", 1, 2, event=1)
        hot.execute("UPDATE ingested_events SET ingestion_job_id = 'org-a-f1' WHERE id = 'org-a-e1'")
        hot.execute(
            "INSERT INTO siem_deliveries (id, organization_id, stream, payload, status, created_at, updated_at) SELECT "
            "'s' || n, 'org-a', 'EVENTS', '{}', s::\"SiemDeliveryStatus\", '2020-01-01', '2020-01-01' "
            "FROM (VALUES (1, 'DELIVERED'), (2, 'FAILED')) v (n, s)"
        )
    for table in ("events", "findings", "siem_deliveries"):
        house.backfill(table)
    enable(house.app, "org-a", reason="x")
    plan = make_plan(house.app, ["org-a"])
    assert plan.cycles == [("events", "findings")]
    events, findings, siem = (
        next(t for t in plan.tables if t.table == name) for name in ("events", "findings", "siem_deliveries")
    )
    assert (events.rows, findings.rows) == (2, 1)
    assert events.kept == {"referred to by public.security_findings (event_id)": 1}
    assert (siem.enabled, siem.rows, siem.kept) == (False, 1, {"in use: status PENDING, PROCESSING, FAILED": 1})
    # Who names a table that does not go is told why; `off` is no error.
    named = ("--table", "siem_deliveries", "--table", "assets")
    for more in ((), ("--dry-run",)):
        said = house.run("archive", "run", "--organization", "org-a", *named, *more).stdout
        assert "org-a: siem_deliveries: off: archived only where it is chosen: `lakehouse archive enable … --o" in said
        assert "org-a: assets: off: this table is never archived: its contract says so" in said
        assert "for nobody" not in said
    result = archive_all(house.app)
    assert result.well
    assert "siem_deliveries" not in {t.table for t in result.tables}
    enable(house.app, "org-a", reason="x", optional_tables=["siem_deliveries"])
    result = archive_all(house.app, tables=["siem_deliveries"])
    assert [(t.table, t.rows) for t in result.tables] == [("siem_deliveries", 1)]
    assert count(house, "siem_deliveries") == 1
    with house.hot() as hot:
        hot.execute("DROP TABLE siem_deliveries")
    (gone,) = archive_all(house.app, tables=["siem_deliveries"]).tables
    assert (gone.state, gone.detail) == ("off", "the hot database has no such table")


def test_a_waiver_is_recorded_and_waives_no_proof(house: Lakehouse) -> None:
    house.reopen(ARCHIVE__RECEIPT_KINDS=json.dumps(["SNOWFLAKE"]))
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
        house.backfill("events")
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e1'")
    enable(house.app, "org-a", reason="x")
    (done,) = archive_all(house.app, tables=["events"]).tables
    assert done.kept == {"no destination holds it": 4, "not landed yet": 1}
    assert "needs a reason" in house.run("archive", "run", "-o", "org-a", "--no-destination", check=2).stderr
    # Where nothing runs, nothing was waived.
    refused = house.run("archive", "run", "-o", "org-b", "--no-destination", "--reason", "none yet", check=2)
    assert "is not enabled" in refused.stderr
    house.run("archive", "run", "-o", "org-a", "--dry-run", "--no-destination", "--reason", "none yet")
    assert count(house, "lakehouse_archive.audit", "action = 'destination waived for a run'") == 0
    told = house.run_json(
        "archive", "run", "-o", "org-a", "--table", "events", "--no-destination", "--reason", "none yet", "--by", "Ann"
    )
    assert of(told, "org-a", "events")["kept"] == {"not landed yet": 1}
    assert count(house, "ingested_events") == 1
    with house.hot() as hot:
        assert hot.execute(
            "SELECT reason FROM lakehouse_archive.audit WHERE action = 'destination waived for a run' AND actor = 'Ann'"
        ).fetchall() == [("none yet",)]
        from lakehouse.archive.seal import read_unverified

        (receipt,) = hot.execute("SELECT receipt FROM lakehouse_archive.batches").fetchone() or ("",)
        assert read_unverified(receipt).destinations == ({"waived_by": "Ann", "reason": "none yet"},)
        # In the policy it stands until the policy is replaced, also for what was proven under it.
        old_events(hot, "org-a", 10, 5)
    house.sync_ok("events")
    enable(house.app, "org-a", reason="no destination yet", no_destination=True, by="Ann")
    from tests.cold import archive_once

    waiver = enable(house.app, "org-a", reason="no destination yet", no_destination=True, by="Ann").waiver
    with pytest.raises(PolicyOff, match="taken back"):
        archive_once(
            house, "events", "org-a", waiver=waiver, between=lambda: enable(house.app, "org-a", reason="we have one")
        )
    assert count(house, "ingested_events") == 6
    enable(house.app, "org-a", reason="no destination yet", no_destination=True, by="Ann")
    assert archive_all(house.app, tables=["events"]).tables[0].rows == 6


def test_workers_archive_on_a_schedule_and_only_where_it_is_enabled(house: Lakehouse) -> None:
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
        old_events(hot, "org-b", 1, 5)
    house.backfill("events")
    work(house)
    scheduler = Scheduler(house.app, threading.Event())
    scheduler._archive()
    assert work(house) == 0, "nobody has enabled it"
    enable(house.app, "org-a", reason="x")
    scheduler._archive()
    scheduler._archive()
    assert work(house) == 1
    assert (count(house, "ingested_events", "organization_id = 'org-a'"), count(house, "ingested_events")) == (0, 5)
    scheduler._archive()
    assert work(house) == 0, "it was done a moment ago"
    with house.app.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE tasks SET finished_at = finished_at - interval '2 hours' WHERE id = 'archive'"
        )
    scheduler._archive()
    claimed = tasks.claim_named(house.app.engine, "another", 60, tasks.ARCHIVE)
    assert claimed is not None
    assert work(house) == 0, "another worker is at it"


def test_a_lake_that_does_not_answer_deletes_nothing_and_the_next_run_goes_on(house: Lakehouse, tmp_path: Path) -> None:
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
    house.backfill("events")
    enable(house.app, "org-a", reason="x")
    warehouse, elsewhere = tmp_path / "warehouse", tmp_path / "elsewhere"
    warehouse.rename(elsewhere)
    result = archive_all(house.app, tables=["events"])
    assert result.first_error is not None
    assert not tombstones(house)
    assert count(house, "ingested_events") == 5
    elsewhere.rename(warehouse)
    assert archive_all(house.app, tables=["events"]).tables[0].rows == 5


def test_a_run_stops_between_two_batches(house: Lakehouse) -> None:
    house.reopen(ARCHIVE__BATCH_ROWS="10", ARCHIVE__PROOF_ROWS="25")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 60)
        # Many of one moment: slices go on within it.
        hot.execute("UPDATE ingested_events SET occurred_at = '2020-01-01' WHERE id <> 'org-a-e60'")
    house.backfill("events")
    enable(house.app, "org-a", reason="x")
    seen: list[dict[str, Any]] = []
    house.app.events.add(lambda e: seen.append(e) if e["event"] == "archive_batch" else None)
    (done,) = archive_all(house.app, tables=["events"], should_stop=lambda: len(seen) >= 2).tables
    assert (done.state, done.rows, done.batches) == ("stopped", 20, 2)
    assert (seen[1]["done"], seen[1]["proven"]) == (20, 30)
    (done,) = archive_all(house.app, tables=["events"]).tables
    assert (done.state, done.rows, done.candidates) == ("done", 40, 40)
    assert [t.batch for t in tombstones(house)][-1] == 6


def test_an_adopted_lake_is_archived_only_after_every_row_was_compared(house: Lakehouse) -> None:
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
    house.backfill("events")
    house.sync_ok("events")
    enable(house.app, "org-a", reason="x")
    # The same database under another name, as after a failover to a standby.
    house.reopen(SOURCE__URL=house.hot_url.replace("127.0.0.1", "localhost"))
    (done,) = archive_all(house.app, tables=["events"]).tables
    assert (done.state, done.rows) == ("not ready", 0)
    assert "until a person adopts it" in done.detail
    adopt_tables(house.app, find_differences(house.app, [], ["events"]), "a new name")
    (done,) = archive_all(house.app, tables=["events"]).tables
    assert (done.state, done.rows) == ("not ready", 0)
    assert "until reconciled" in done.detail
    house.sync_ok("events")
    assert archive_all(house.app, tables=["events"]).tables[0].rows == 5


def test_the_archives_own_user_needs_few_rights_and_is_told_which(house: Lakehouse) -> None:
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
        old_findings(hot, "org-a", 1, 1, event=1, status="OPEN")
        hot.execute("CREATE ROLE archivist LOGIN PASSWORD 'x'")
        try:
            hot.execute("CREATE SCHEMA lakehouse_archive AUTHORIZATION archivist")
            hot.execute("GRANT SELECT ON ingested_events, organizations, security_findings, rule_runs TO archivist")
            house.backfill("events")
            parts = psycopg.conninfo.conninfo_to_dict(house.hot_url)
            house.reopen(ARCHIVE__URL=f"postgresql://archivist:x@{parts['host']}:{parts['port']}/{parts['dbname']}")
            enable(house.app, "org-a", reason="x")
            (done,) = archive_all(house.app, tables=["events"]).tables
            assert "GRANT DELETE ON public.ingested_events" in done.detail
            hot.execute("GRANT DELETE ON ingested_events TO archivist")
            (done,) = archive_all(house.app, tables=["events"]).tables
            assert "GRANT UPDATE (id) ON public.ingested_events" in done.detail
            hot.execute("GRANT UPDATE (id) ON ingested_events TO archivist")
            hot.execute("REVOKE SELECT ON security_findings FROM archivist")
            (done,) = archive_all(house.app, tables=["events"]).tables
            assert 'GRANT SELECT ON "public"."security_findings"' in done.detail
            hot.execute("GRANT SELECT ON security_findings TO archivist")
            (done,) = archive_all(house.app, tables=["events"]).tables
            assert (done.state, done.rows) == ("done", 4)
        finally:
            house.close()
            hot.execute("DROP OWNED BY archivist CASCADE")
            hot.execute("DROP ROLE archivist")


def test_a_table_whose_rows_are_hidden_refuses_what_it_refers_to_and_nothing_else(house: Lakehouse) -> None:
    """Row-level security: who refers cannot be seen, so nothing goes there; the plan and the other tables go on."""
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
        old_findings(hot, "org-a", 1, 2)
        for table in ("events", "findings"):
            house.backfill(table)
        hot.execute("CREATE ROLE secluded LOGIN PASSWORD 'x'")
        try:
            hot.execute("CREATE SCHEMA lakehouse_archive AUTHORIZATION secluded")
            hot.execute("GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO secluded")
            hot.execute("ALTER TABLE agent_proposals ENABLE ROW LEVEL SECURITY")
            hot.execute("CREATE POLICY everybody ON agent_proposals USING (true)")
            parts = psycopg.conninfo.conninfo_to_dict(house.hot_url)
            house.reopen(ARCHIVE__URL=f"postgresql://secluded:x@{parts['host']}:{parts['port']}/{parts['dbname']}")
            enable(house.app, "org-a", reason="x")
            plan = house.run_json("archive", "plan", "--organization", "org-a")
            (refusal,) = of(plan, "org-a", "findings")["refusals"]
            assert refusal.startswith(
                "public.agent_proposals (finding_id) refers to it by agent_proposals_finding_id_fkey"
            )
            assert "BYPASSRLS" in refusal
            assert (of(plan, "org-a", "events")["refusals"], of(plan, "org-a", "events")["rows"]) == ([], 5)
            done = {t.table: t for t in archive_all(house.app, tables=["findings", "events"]).tables}
            assert (done["findings"].state, done["findings"].detail) == ("refused", refusal)
            assert (done["events"].state, done["events"].rows) == ("done", 5)
            # The table itself: nothing of it can be counted, and the plan says why.
            hot.execute("ALTER TABLE security_findings ENABLE ROW LEVEL SECURITY")
            plan = house.run_json("archive", "plan", "--organization", "org-a")
            assert "row-level security hides rows" in of(plan, "org-a", "findings")["refusals"][0]
            hot.execute("ALTER ROLE secluded BYPASSRLS")
            (one,) = archive_all(house.app, tables=["findings"]).tables
            assert (one.state, one.rows) == ("done", 2)
        finally:
            house.close()
            hot.execute("DROP OWNED BY secluded CASCADE")
            hot.execute("DROP ROLE secluded")


def test_standbys_are_waited_for(tmp_path: Path) -> None:
    del tmp_path
    with EmbeddedPostgres() as primary:
        url = primary.create_database("app")
        replica = standby(primary)
        try:
            with psycopg.connect(url, autocommit=True) as hot:
                while read_lag(hot).standbys == 0:
                    hot.execute("SELECT pg_sleep(0.05)")
                _standbys(hot, url, replica.url("app"))
        finally:
            replica.stop()


def _standbys(hot: psycopg.Connection[Any], url: str, replica: str) -> None:
    events: list[str] = []

    def emit(kind: str, **fields: Any) -> None:
        del fields
        events.append(kind)
        if kind == "archive_waits":
            # It is seen to be behind; now it goes on.
            with psycopg.connect(replica, autocommit=True) as other:
                other.execute("SELECT pg_wal_replay_resume()")

    hot.execute("CREATE TABLE t (n int)")
    throttle = Throttle(0, 0.5, lambda: False, emit)
    throttle.after(hot, 1)
    assert events == []
    with psycopg.connect(replica, autocommit=True) as other:
        other.execute("SELECT pg_wal_replay_pause()")
    while (read_lag(hot).seconds or 0) <= 0.5:
        hot.execute("INSERT INTO t VALUES (1)")
        hot.execute("SELECT pg_sleep(0.1)")
    throttle.after(hot, 1)
    assert events == ["archive_waits"]
    assert (read_lag(hot).seconds or 0) <= 0.5
    hot.execute("CREATE ROLE blind LOGIN PASSWORD 'x'")
    with psycopg.connect(url, user="blind", password="x", autocommit=True) as blind:
        throttle.after(blind, 1)
        throttle.after(blind, 1)
    assert events == ["archive_waits", "archive_lag_unknown"], "said once"


def test_rows_a_second_are_kept_however_batches_come() -> None:
    now, waits = [100.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    throttle = Throttle(1000, 0, lambda: False, lambda *_, **__: None, clock=lambda: now[0], sleep=sleep)
    for _ in range(3):
        # The batch itself takes a tenth of a second.
        now[0] += 0.1
        throttle.after(None, 500)  # type: ignore[arg-type]
    assert now[0] == pytest.approx(101.5, abs=0.11)
    assert max(waits) <= 0.2, "it asks in between whether to stop"
