"""Rows that other rows refer to: no delete changes a row that stays, and none has to read a whole table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cold import Round, allow, archive_once, hot_ids, old_events, old_findings, open_house
from tests.support import Lakehouse


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    lakehouse = open_house(hot_url, tmp_path)
    yield lakehouse
    lakehouse.close()


def test_no_delete_changes_a_row_that_stays(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_findings(hot, "org-a", 1, 5)
        hot.execute(
            "INSERT INTO risk_exceptions (id, organization_id, finding_id, title, rationale, updated_at) "
            "VALUES ('x', 'org-a', 'org-a-f1', 't', 'r', now())"
        )
        hot.execute(
            "INSERT INTO agent_proposals (id, organization_id, finding_id, action, rationale, payload, updated_at) "
            "VALUES ('x', 'org-a', 'org-a-f2', 'a', 'r', '{}', now())"
        )
        # Of another schema, of two columns, and each with another action.
        hot.execute("CREATE SCHEMA other")
        for number, action in ((3, "CASCADE"), (4, "SET DEFAULT")):
            hot.execute(
                f"CREATE TABLE other.t{number} (o text, d varchar(128), FOREIGN KEY (o, d) REFERENCES "
                f"security_findings (organization_id, dedupe_key) ON DELETE {action})".encode()
            )
            hot.execute(f"CREATE INDEX ON other.t{number} (d, o)".encode())
            hot.execute(f"INSERT INTO other.t{number} VALUES ('org-a', 'd{number}')".encode())
        house.backfill("findings")
        assert archive_once(house, "findings", "org-a").rows == 1
        assert hot_ids(house, "security_findings") == {"f1", "f2", "f3", "f4"}
        assert hot.execute("SELECT finding_id FROM risk_exceptions").fetchall() == [("org-a-f1",)]
        assert hot.execute("SELECT finding_id FROM agent_proposals").fetchall() == [("org-a-f2",)]
        assert hot.execute("SELECT d FROM other.t3 UNION ALL SELECT d FROM other.t4").fetchall() == [
            ("d3",),
            ("d4",),
        ]
        # A parent waits for its children: once they are gone, it goes.
        hot.execute("DELETE FROM risk_exceptions")
        assert archive_once(house, "findings", "org-a").rows == 1


def test_rows_that_refer_to_each_other_in_one_table_go_together_or_stay(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        hot.execute(
            "ALTER TABLE tenant_audit_logs ADD COLUMN follows text REFERENCES tenant_audit_logs ON DELETE RESTRICT"
        )
        hot.execute("CREATE INDEX ON tenant_audit_logs (follows)")
        contract = house.app.contract("audit_log")
        known = object.__getattribute__(contract, "not_exported")
        from schemas.contract import NotExported

        object.__setattr__(contract, "not_exported", (*known, NotExported("follows", "a test")))
        hot.execute(
            """
            INSERT INTO tenant_audit_logs (id, organization_id, action, target_type, target_id, created_at)
            SELECT 'org-a-l' || n, 'org-a', 'x', 'y', 'z', '2020-01-01'::timestamp + n * interval '1 minute'
            FROM generate_series(1, 12) n
            """
        )
        pairs = {1: 2, 2: 1, 3: 4, 4: 3, 5: 3, 6: 7, 7: 8, 9: 9, 10: 11}
        for child, parent in pairs.items():
            hot.execute(
                "UPDATE tenant_audit_logs SET follows = %s WHERE id = %s", [f"org-a-l{parent}", f"org-a-l{child}"]
            )
        # It stays, and so does what it refers to, and what that refers to.
        hot.execute("UPDATE tenant_audit_logs SET created_at = now() WHERE id IN ('org-a-l5', 'org-a-l10')")
        house.backfill("audit_log")
        done = archive_once(house, "audit_log", "org-a")
        assert hot_ids(house, "tenant_audit_logs") == {"l3", "l4", "l5", "l10", "l11"}
        assert done.rows == 7
        assert done.kept == {"referred to by public.tenant_audit_logs (follows)": 3}


def test_rows_of_two_tables_that_refer_to_each_other_stay(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events DROP COLUMN ingestion_job_id")
        hot.execute("ALTER TABLE ingested_events ADD COLUMN ingestion_job_id text REFERENCES security_findings")
        hot.execute("CREATE INDEX ON ingested_events (ingestion_job_id)")
        old_events(hot, "org-a", 1, 4)
        old_findings(hot, "org-a", 1, 2, event=1)
        hot.execute("UPDATE ingested_events SET ingestion_job_id = 'org-a-f1' WHERE id = 'org-a-e1'")
        house.backfill("events")
        house.backfill("findings")
        assert archive_once(house, "findings", "org-a").rows == 1
        assert archive_once(house, "events", "org-a").rows == 3
        assert (hot_ids(house, "security_findings"), hot_ids(house)) == ({"f1"}, {"e1"})
        assert hot.execute("SELECT event_id FROM security_findings").fetchone() == ("org-a-e1",)


def test_an_index_that_does_not_serve_the_key_is_none(house: Lakehouse) -> None:
    from lakehouse.archive.gate import inspect

    contract = house.app.contract("events")

    def refused(index: str) -> Round | bool:
        with house.hot() as hot, hot.transaction(force_rollback=True):
            hot.execute("DROP INDEX rule_runs_event_id_idx")
            if index:
                hot.execute(index.encode())
            return bool(inspect(hot, contract).refusals)

    assert refused("")
    assert refused("CREATE INDEX ON rule_runs (event_id) WHERE status = 'FAILED'")
    assert refused("CREATE INDEX ON rule_runs (organization_id, event_id)")
    assert refused("CREATE INDEX ON rule_runs (lower(event_id))")
    assert refused('CREATE INDEX ON rule_runs (event_id COLLATE "de_DE")') if has_collation(house) else True
    assert not refused("CREATE INDEX ON rule_runs (event_id, organization_id)")
    assert not refused("CREATE INDEX ON rule_runs USING hash (event_id)")
    assert not refused("CREATE INDEX ON rule_runs (event_id text_pattern_ops)")


def has_collation(house: Lakehouse) -> bool:
    with house.hot() as hot:
        return hot.execute("SELECT count(*) > 0 FROM pg_collation WHERE collname = 'de_DE'").fetchone() == (True,)


def test_no_table_is_read_from_end_to_end(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 3000)
        old_events(hot, "org-b", 1, 3000)
        old_events(hot, "org-a", 5000, 3000, day="2099-01-01")
        old_findings(hot, "org-b", 1, 1000, event=1)
        hot.execute("VACUUM ANALYZE ingested_events, security_findings, rule_runs")
        house.backfill("events")
        before = sequential(house)
        # Slices and batches of a table that is much bigger than they are.
        assert archive_once(house, "events", "org-a", most=400, batch_rows=100).rows == 400
        assert sequential(house) == before


def sequential(house: Lakehouse) -> dict[str, int]:
    """How often each table was read whole. Sessions report when they end."""
    with house.hot() as hot:
        return dict(
            hot.execute(
                "SELECT relname, seq_scan FROM pg_stat_user_tables "
                "WHERE relname IN ('ingested_events', 'security_findings', 'rule_runs')"
            ).fetchall()
        )
