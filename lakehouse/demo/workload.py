"""The host's applications as the database sees them: a live load that is hard on whoever captures changes.

    python -m lakehouse.demo.workload --url URL [--seed 1] [--writers 4] [--rate 150]

It says `ready` once every writer is connected, and begins with the first phase name that it reads: a phase is a line
on stdin, and a transaction belongs to the phase in which it ended. At `stop` or end of file the writers end what they
are in, in under four seconds, and one JSON object {phase: counts} is printed. `inserts`, `updates` and `deletes` are
rows that statements changed and committed; what a foreign key does (`ON DELETE SET NULL`) is not counted.
`late_commits` are transactions that committed after one that had begun later.

What is done is data: a story is a list of transactions, a transaction a list of statements that share the story's
facts (ids, moments, a payload). The first transaction runs in turn, the others some time later.

Invariants: no row's event time ever changes, not even when an event is deleted and inserted again under its id; no
organization is made. Deadlocks, serialization failures and lock timeouts count as rollbacks and are tried again. Any
other error ends the process with status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import select
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import errors

_ROWS = ("inserts", "updates", "deletes")
_COUNTS = ("transactions", *_ROWS, "rollbacks", "savepoints", "long_transactions", "late_commits")
_RETRIED = (errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable)
_ATTEMPTS = 5
_LONG_EVERY = 8.0  # seconds, for each writer
_BACKLOG = 3.0  # seconds that a writer behind its rate tries to catch up
_FOLLOW_UPS = 50  # that may wait before nothing else is begun
_SKEWS = (0.0, -4.0, 2.5, -0.7, 0.3)  # of the applications' clocks against the database's, seconds
_SAMPLE = 4000  # rows of each table that the stories are about

# Facts that are picked from the database, by organization. Ids are hashes: the lowest are a random sample, and the
# primary key finds them. Findings and runs refer to events of one half, deletes take the other half.
_KNOWN = {
    "integration": "id FROM integration_connections",
    "user": "id FROM users",
    "destination": "id FROM siem_destinations",
    "event": "id FROM ingested_events WHERE id ~ '[0-7]$'",
    "doomed": "id FROM ingested_events WHERE id ~ '[^0-7]$'",
    "finding": "id FROM security_findings",
    "key": "dedupe_key FROM security_findings",
    "grant": "id FROM oauth_app_grants",
    "external": "external_id FROM saas_identities",
    "asset": "id FROM security_assets",
    "score": "id FROM baseline_scores",
}
_PAYLOAD = r"""{"actor": {"email": "dev%(n)d@example.com", "name": "Zoë Łukaszewska", "mfa": true}, "target":
    {"type": "repository", "name": "platform/service-%(n)d", "labels": ["prod", "機密", null]}, "network": {"ip":
    "203.0.113.9", "geo": {"city": "São Paulo", "lat": -23.5500, "lon": 1.10}}, "sequence": 9007199254740993,
    "total": 18446744073709551%(n)03d, "cost": %(n)d.10, "note": "said \"ok\" 🔐"}"""

_AGAIN = "id, organization_id, integration_id, provider, event_type, source, occurred_at, ingestion_job_id"
_GRANT = """id, organization_id, integration_id, provider, external_app_id, user_email, scopes, last_observed_at,
    updated_at"""
_STATEMENTS = {
    "event": """INSERT INTO ingested_events
            (id, organization_id, integration_id, provider, event_type, source, payload, occurred_at)
        SELECT id, %(organization)s, %(integration)s, 'OKTA', 'user.login', 'webhook', %(payload)s, %(occurred)s
        FROM unnest(%(events)s::text[]) AS id""",
    "process": """UPDATE ingested_events SET severity = 'MEDIUM', processing_status = %(outcome)s,
        processed_at = %(clock)s WHERE id = ANY(%(events)s)""",
    "event_gone": """DELETE FROM ingested_events AS e WHERE id = %(doomed)s
        AND NOT EXISTS (SELECT FROM security_findings AS f WHERE f.event_id = e.id) RETURNING to_jsonb(e)::text""",
    "event_again": f"""INSERT INTO ingested_events ({_AGAIN}, payload) SELECT {_AGAIN}, %(payload)s
        FROM jsonb_populate_record(NULL::ingested_events, (%(found)s::text[])[1]::jsonb) WHERE id IS NOT NULL""",
    "finding": """INSERT INTO security_findings AS f (id, organization_id, integration_id, event_id, dedupe_key, title,
            description, severity, risk_score, remediation_steps, evidence, asset_id)
        VALUES (%(new)s, %(organization)s, %(integration)s, %(event)s, %(key)s, 'Risky grant', 'Seen “again”.', 'HIGH',
            %(number)s, ARRAY['Revoke', NULL, ''], %(payload)s,
            (SELECT id FROM security_assets WHERE id = %(asset)s FOR KEY SHARE))
        ON CONFLICT (organization_id, dedupe_key) DO UPDATE SET event_id = excluded.event_id,
            title = excluded.title, severity = excluded.severity, risk_score = excluded.risk_score,
            evidence = excluded.evidence, resolved_at = NULL,
            status = CASE f.status WHEN 'RESOLVED' THEN 'OPEN' ELSE f.status END""",
    "resolve": """UPDATE security_findings SET status = 'RESOLVED', resolved_at = %(clock)s, resolved_by_id = %(user)s
        WHERE organization_id = %(organization)s AND dedupe_key = %(key)s AND status = 'OPEN'""",
    "mute": """UPDATE security_findings SET status = 'MUTED'
        WHERE organization_id = %(organization)s AND dedupe_key = %(key)s""",
    "siem": """INSERT INTO siem_deliveries
            (id, organization_id, destination_id, stream, payload, dedupe_key, updated_at)
        VALUES (%(new)s, %(organization)s, %(destination)s, 'FINDINGS', %(payload)s, %(new)s, NOW())""",
    "workflow": """INSERT INTO workflow_deliveries
            (id, organization_id, kind, action, finding_id, payload, dedupe_key, updated_at)
        VALUES (%(new)s, %(organization)s, 'JIRA', 'create_ticket', %(finding)s, %(payload)s, %(new)s, NOW())""",
    "grants": f"""INSERT INTO oauth_app_grants ({_GRANT})
        SELECT 'c' || left(md5(%(new)s || id), 24), organization_id, integration_id, provider, external_app_id,
            user_email, scopes, NOW(), %(clock)s FROM oauth_app_grants WHERE id = ANY(%(grants)s)
        ON CONFLICT (organization_id, integration_id, external_app_id, user_email) DO UPDATE
            SET last_observed_at = excluded.last_observed_at, updated_at = excluded.updated_at""",
    "grant_new": f"""INSERT INTO oauth_app_grants ({_GRANT}) VALUES (%(new)s, %(organization)s, %(integration)s, 'OKTA',
            'app-new', %(new)s || '@example.com', ARRAY['', NULL, 'say "hi"'], NOW(), NOW())""",
    "grant_gone": "DELETE FROM oauth_app_grants WHERE id IN (%(new)s, %(grant)s)",
    "identities": """INSERT INTO saas_identities
            (id, organization_id, provider, external_id, risk_score, last_observed_at, updated_at)
        (SELECT 'c' || left(md5(%(new)s || id), 24), organization_id, provider, external_id, %(number)s, NOW(), NOW()
            FROM saas_identities WHERE organization_id = %(organization)s
            AND (provider, external_id) >= (%(provider)s, %(external)s) ORDER BY provider, external_id LIMIT 400)
        UNION ALL SELECT left(%(new)s, 24) || n, %(organization)s, 'SLACK', %(new)s::text || n, %(number)s, NOW(), NOW()
            FROM generate_series(1, 3) AS n
        ON CONFLICT (organization_id, provider, external_id) DO UPDATE SET risk_score = excluded.risk_score,
            last_observed_at = excluded.last_observed_at, updated_at = excluded.updated_at""",
    "asset_new": """INSERT INTO security_assets (id, organization_id, integration_id, type, name, labels, updated_at)
        VALUES (%(new)s, %(organization)s, %(integration)s, 'OAUTH_APP', 'Søren''s app', ARRAY[''], %(clock)s)""",
    "asset": "UPDATE security_assets SET risk_score = 5, updated_at = %(clock)s WHERE id IN (%(new)s, %(asset)s)",
    "asset_gone": "DELETE FROM security_assets WHERE id IN (%(new)s, %(asset)s)",
    "audit": """INSERT INTO tenant_audit_logs
            (id, organization_id, actor_user_id, action, target_type, target_id, metadata)
        VALUES (%(new)s, %(organization)s, %(user)s, 'finding.muted', 'finding', %(finding)s, %(payload)s)""",
    "run": """INSERT INTO rule_runs
            (id, organization_id, rule_key, rule_version, trigger, event_id, started_at, parameters, updated_at)
        VALUES (%(new)s, %(organization)s, 'mfa-missing', '1.1', 'EVENT', %(event)s, NOW(), %(payload)s, NOW())""",
    "run_start": "UPDATE rule_runs SET status = 'RUNNING', updated_at = NOW() WHERE id = %(new)s",
    "run_end": """UPDATE rule_runs SET status = 'SUCCEEDED', finished_at = %(clock)s, duration_ms = %(number)s,
        updated_at = %(clock)s WHERE id = %(new)s""",
    "run_more": "UPDATE rule_runs SET findings_updated = findings_updated + 1, updated_at = NOW() WHERE id = %(new)s",
    "scores": """INSERT INTO baseline_scores (id, organization_id, baseline_key, baseline_version, control_key,
            integration_id, score, passed, failed, not_applicable, computed_at)
        SELECT 'c' || left(md5(%(new)s || n), 24), %(organization)s, 'cis-github-1.0', '1.0', 'control-' || n,
            %(integration)s, %(number)s - 0.90, n, 1, 0, %(clock)s FROM generate_series(1, 20) AS n
        ON CONFLICT DO NOTHING""",
    "score_gone": "DELETE FROM baseline_scores WHERE id = %(score)s",
}
_MINE = "id = ANY(%(found)s) AND lease_owner = 'demo:' || %(new)s"
for _table, _name in (("siem_deliveries", "siem"), ("workflow_deliveries", "workflow")):
    _STATEMENTS |= {
        f"{_name}_claim": f"""UPDATE {_table} SET status = 'PROCESSING', attempts = attempts + 1,
            lease_owner = 'demo:' || %(new)s, lease_expires_at = NOW() + interval '5 minutes', updated_at = NOW()
            WHERE id IN (SELECT id FROM {_table} WHERE organization_id = %(organization)s
                AND status IN ('PENDING', 'FAILED') AND next_attempt_at <= NOW()
                ORDER BY next_attempt_at LIMIT 5 FOR UPDATE SKIP LOCKED) RETURNING id""",
        f"{_name}_done": f"""UPDATE {_table} SET status = 'DELIVERED', delivered_at = %(clock)s, lease_owner = NULL,
            lease_expires_at = NULL, updated_at = %(clock)s WHERE {_MINE}""",
        f"{_name}_fail": f"""UPDATE {_table} SET status = CASE WHEN attempts < max_attempts THEN 'FAILED'
            ELSE 'DEAD_LETTER' END::"SiemDeliveryStatus", last_error = 'HTTP 503', updated_at = NOW(),
            next_attempt_at = NOW() + interval '30 s', lease_owner = NULL, lease_expires_at = NULL WHERE {_MINE}""",
    }

# Transactions of a story are parted by "/". The first dozen has every effect, so that a short phase has it too.
_STORIES = """
    event process
    event / process
    finding / resolve / finding
    event finding grant_gone ABANDON
    grant_new / grants / grant_gone
    event SAVEPOINT mute audit ROLLBACK audit
    siem / siem_claim / siem_fail / siem_claim / siem_done
    event_gone event_again
    run / run_start / run_end
    asset_new / asset / asset_gone
    workflow / workflow_claim / workflow_done
    event_gone / event_again
    audit
    scores / score_gone
    mute / finding
    identities
    run run_start / run_end / run_more
    finding SAVEPOINT event RELEASE audit
    event / process SAVEPOINT resolve ROLLBACK
    asset / grants
    siem siem_claim / siem_done
    workflow / workflow_claim / workflow_fail / workflow_claim / workflow_done"""
_LONG_STORIES = """
    event finding asset siem HOLD process audit
    event grants run run_start HOLD
    event finding HOLD ABANDON
    resolve siem_claim SAVEPOINT event HOLD ROLLBACK siem_done"""


class Board:
    """What the writers share: when to go and to stop, the phase, and the counts."""

    def __init__(self) -> None:
        self.go, self.stop = threading.Event(), threading.Event()
        self.phases: dict[str, Counter[str]] = {}
        self.failure: BaseException | None = None
        self.order = itertools.count(1)  # of beginnings
        self._phase, self._newest = "", 0
        self._lock = threading.Lock()

    def enter(self, phase: str) -> None:
        with self._lock:
            self._phase = phase
            self.phases.setdefault(phase, Counter())
        self.go.set()

    def ended(self, began: int, done: Counter[str]) -> None:
        with self._lock:
            if not done["rollbacks"]:
                done.update(transactions=1, late_commits=int(began < self._newest))
                self._newest = max(self._newest, began)
            self.phases[self._phase].update(done)


class World:
    """What is in the database at the start."""

    def __init__(self, url: str) -> None:
        known: dict[str, dict[str, list[str]]] = defaultdict(dict)
        with psycopg.connect(url, autocommit=True) as connection:
            for fact, what in _KNOWN.items():
                query = f"SELECT organization_id, {what} ORDER BY id LIMIT {_SAMPLE}"
                for organization, value in connection.execute(query):
                    known[organization].setdefault(fact, []).append(value)
            # With it, the ids of this run differ from those of earlier ones.
            self.salt = str(connection.execute("SELECT pg_current_xact_id()::text").fetchone())
        self.known = {name: facts for name, facts in known.items() if len(facts) == len(_KNOWN)}
        if not self.known:
            raise SystemExit("no organization has rows in every table: run lakehouse.demo.seed first")
        # A large customer writes more than a small one.
        self.weights = [len(facts["event"]) for facts in self.known.values()]


class Writer:
    """One application process: a connection, a clock that may be wrong, and stories in turn."""

    def __init__(self, board: Board, world: World, url: str, *, index: int, seed: int, interval: float) -> None:
        self._board, self._world, self._index, self._interval = board, world, index, interval
        self._random = random.Random(seed * 1000 + index)  # noqa: S311 - to be repeatable, not secret
        self._skew = timedelta(seconds=_SKEWS[index % len(_SKEWS)])
        self._numbers = itertools.count()
        self._follow_ups: deque[tuple[list[str], dict[str, Any]]] = deque()
        self._connection = psycopg.connect(url, application_name="lakehouse-demo-workload")
        # Literals, not parameters: one fact stands for text here and for varchar or an enum there.
        self._connection.cursor_factory = psycopg.ClientCursor
        # The host keeps UTC in columns without a time zone, so NOW() must mean UTC.
        self._connection.execute("SET TimeZone = 'UTC'; SET lock_timeout = '2500ms'")
        self._connection.commit()

    def run(self) -> None:
        try:
            self._board.go.wait()
            self._work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the process must end with it
            self._board.failure = error
            self._board.stop.set()
        finally:
            self._connection.close()

    def _work(self) -> None:
        stories = itertools.islice(itertools.cycle(_STORIES.strip().splitlines()), self._index * 6, None)
        long_stories = itertools.islice(itertools.cycle(_LONG_STORIES.strip().splitlines()), self._index, None)
        due = time.monotonic()
        long_at = due + 0.5 + self._index * 1.7
        while not self._board.stop.is_set():
            if time.monotonic() >= long_at:
                self._transact(next(long_stories).split(" / "), self._facts())
                long_at = time.monotonic() + _LONG_EVERY
            elif self._follow_ups and (len(self._follow_ups) > _FOLLOW_UPS or self._random.random() < 0.5):
                self._transact(*self._follow_ups.popleft())
            else:
                self._transact(next(stories).split(" / "), self._facts())
            due = max(due + self._interval, time.monotonic() - _BACKLOG)
            self._board.stop.wait(max(0.0, due - time.monotonic()))

    def _transact(self, story: list[str], facts: dict[str, Any]) -> None:
        """Run the first transaction of a story, again if the server asks for it, and queue the others."""
        again = _ATTEMPTS
        while again and not self._board.stop.is_set():
            done, began, again = Counter[str](), next(self._board.order), again - 1
            try:
                self._steps(story[0].split(), facts, done)
                self._connection.commit()
                if story[1:]:
                    self._follow_ups.append((story[1:], facts))
                again = 0
            except _RETRIED:
                self._abandon(done)
            self._board.ended(began, done)

    def _abandon(self, done: Counter[str]) -> None:
        self._connection.rollback()
        long = done["long_transactions"]
        done.clear()
        done.update(rollbacks=1, long_transactions=long)

    def _steps(self, steps: list[str], facts: dict[str, Any], done: Counter[str]) -> None:
        """Count rows in `done`, and leave what RETURNING gave in the fact `found`."""
        before = Counter[str]()
        for step in steps:
            if step == "ABANDON":
                self._abandon(done)
            elif step == "HOLD":
                done["long_transactions"] += 1
                self._board.stop.wait(self._random.uniform(1, 3))
            elif step == "SAVEPOINT":
                self._connection.execute("SAVEPOINT part")
                done["savepoints"] += 1
                before = done.copy()
            elif step == "ROLLBACK":
                self._connection.execute("ROLLBACK TO SAVEPOINT part")
                done.update({kind: before[kind] - done[kind] for kind in _ROWS})
            elif step == "RELEASE":
                self._connection.execute("RELEASE SAVEPOINT part")
            else:
                number = self._random.randrange(101)
                facts |= {"clock": self._clock(), "number": number, "payload": _PAYLOAD % {"n": number}}
                self._execute(_STATEMENTS[step], facts, done)

    def _execute(self, statement: str, facts: dict[str, Any], done: Counter[str]) -> None:
        if statement.startswith("INSERT"):
            # xmax is 0 in a row that was inserted, and this transaction in one that ON CONFLICT updated.
            rows = self._connection.execute(f"{statement} RETURNING xmax = 0", facts)
            done.update("inserts" if inserted else "updates" for (inserted,) in rows)
        else:
            rows = self._connection.execute(statement, facts)
            done["deletes" if statement.startswith("DELETE") else "updates"] += rows.rowcount
            if rows.description:
                facts["found"] = [row[0] for row in rows]

    def _facts(self) -> dict[str, Any]:
        """Who a story is about: an organization and rows of it (some may be gone by now), and new ids."""
        [(organization, known)] = self._random.choices(list(self._world.known.items()), self._world.weights)
        facts: dict[str, Any] = {fact: self._random.choice(values) for fact, values in known.items()}
        new = self._id()
        return facts | {
            "organization": organization,
            "new": new,
            "key": self._random.choice([facts["key"], facts["key"], new]),
            "events": [self._id() for _ in range(self._random.randint(1, 4))],
            "grants": self._random.choices(known["grant"], k=8),
            "provider": self._random.choice(["GITHUB", "SLACK", "OKTA"]),
            # One in ten comes late, by up to three days.
            "occurred": self._clock(self._random.uniform(0, self._random.choice([20] * 9 + [259_200]))),
            "outcome": self._random.choice(["PROCESSED"] * 19 + ["FAILED"]),
            "found": [],
        }

    def _id(self) -> str:
        text = f"{self._world.salt}/{self._index}/{next(self._numbers)}"
        return "c" + hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def _clock(self, ago: float = 0.0) -> datetime:
        """The application's clock, which may be wrong."""
        return datetime.now(UTC).replace(tzinfo=None) + self._skew - timedelta(seconds=ago)


def _listen(board: Board) -> None:
    """Take phases from stdin until `stop`, its end, or a writer's failure."""
    data, rest = b"-", b""
    while data and not board.stop.is_set():
        # Polled, because a writer that fails cannot end a read.
        if select.select([0], [], [], 0.1)[0]:
            data = os.read(0, 4096)
            *lines, rest = (rest + data).split(b"\n")
            for phase in (line.decode().strip() for line in lines):
                if phase == "stop":
                    return
                if phase:
                    board.enter(phase)


def main() -> None:
    """Run until told to stop. Raises: what a writer met that the host would not have met."""
    parser = argparse.ArgumentParser(prog="lakehouse.demo.workload", description="A live load on the host database.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=150.0, help="transactions a second, of all writers")
    options = parser.parse_args()
    board, world = Board(), World(options.url)
    pace = {"seed": options.seed, "interval": options.writers / options.rate}
    writers = [Writer(board, world, options.url, index=index, **pace) for index in range(options.writers)]
    threads = [threading.Thread(target=writer.run) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        _listen(board)
    finally:
        board.stop.set()
        board.go.set()
        for thread in threads:
            thread.join()
    if board.failure:
        raise board.failure
    counts = {phase: {kind: counted[kind] for kind in _COUNTS} for phase, counted in board.phases.items()}
    sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
