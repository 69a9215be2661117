"""Fills the host database of the demo with thirty days of three customers of very different size.

Everything is made inside PostgreSQL by one INSERT … SELECT a table. Ids, relations and values depend only on
(table, organization, row number, seed), so the same arguments give the same database, except for the moments:
those fall on the last thirty days (UTC) before now, on each of them, whenever that is.

It runs in one transaction: a failure leaves the database as it was. Ids that are there already (a second call
with the same seed) are an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

DAYS = 14
"""Calendar days (UTC) that event times are spread over, today included."""

_SHARES = {
    "security_assets": 3,
    "saas_identities": 5,
    "oauth_app_grants": 4,
    "security_findings": 12,
    "tenant_audit_logs": 12,
    "siem_deliveries": 8,
    "rule_runs": 3,
    "workflow_deliveries": 2,
    "baseline_scores": 1,
}
"""Percent of all rows, by exported table; the rest are `ingested_events`."""

_WEIGHTS = (70, 25, 5)
_NAMES = ("Northwind Health", "Kestrel Robotics", "Lumen & Oak Legal")
_PROVIDERS = 7
_USERS = 8
_CONTROLS = 40

_FIRST = ["Zoë", "明", "Søren", "Priya", "Łukasz", "Amélie", "Noah", "Chidi", "Inés", "Olga", "D'Arcy", "Mei"]
_LAST = [
    "Müller",
    "Okafor",
    "Nakamura",
    "O'Brien",
    "García",
    "Nowak",
    "Singh",
    "Lindqvist",
    "Costa",
    "Ivanova",
]
_EVENTS = [
    "repo.visibility_changed",
    "user.login",
    "user.mfa_disabled",
    "oauth.token_granted",
    "file.shared_externally",
    "admin.role_assigned",
    "app.installed",
    "vault.item_exported",
]
_RULES = [
    "public-repository",
    "mfa-missing",
    "dormant-admin",
    "risky-oauth-scope",
    "external-sharing",
    "stale-key",
]
_CITIES = ["São Paulo", "東京", "Zürich", "Reykjavík", "Austin", "Kraków"]


def seed(conninfo: str, *, rows: int, organizations: int = 3, seed: int = 1) -> dict[str, int]:
    """Fill an empty host database (`hot.sql`) with `rows` rows over the ten exported tables.

    Returns rows per exported table; every organization has some in each. Tables that are not exported (users,
    integrations, jobs, destinations, exceptions, proposals) come on top, about two percent of `rows`.

    Raises: ValueError for fewer than 100 rows an organization; psycopg.Error as the server says it.
    """
    if organizations < 1 or rows < 100 * organizations:
        raise ValueError(f"{rows} rows are too few for {organizations} organizations: at least 100 each")
    totals = {table: rows * percent // 100 for table, percent in _SHARES.items()}
    totals["ingested_events"] = rows - sum(totals.values())
    with psycopg.connect(conninfo) as connection:
        connection.execute("SET LOCAL TimeZone = 'UTC'")
        connection.execute("SET LOCAL synchronous_commit = off")
        connection.execute(_TRUST_OURSELVES)
        connection.execute(_functions(seed))
        _plan(connection, totals, organizations)
        for statement in (*_SURROUNDINGS, *_EXPORTED):
            connection.execute(statement)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("ANALYZE")
    return totals


def _plan(connection: psycopg.Connection, totals: dict[str, int], organizations: int) -> None:
    """Make the organizations, and a temporary table `o` that says how many rows each gets of each table."""
    weights = [*_WEIGHTS, *[_WEIGHTS[-1]] * organizations][:organizations]
    columns = sql.SQL(", ").join(sql.SQL("{} bigint").format(sql.Identifier(name)) for name in totals)
    connection.execute(sql.SQL("CREATE TEMP TABLE o (org int, id text, name text, {}) ON COMMIT DROP").format(columns))
    left = dict(totals)
    for org in range(organizations, 0, -1):
        weight = weights[org - 1] / sum(weights)
        share = {name: 1 + int((total - organizations) * weight) for name, total in totals.items()}
        if org == 1:
            share = left
        left = {name: count - share[name] for name, count in left.items()}
        name = _NAMES[org - 1] if org <= len(_NAMES) else f"Customer {org}"
        values = [org, name, org, *share.values()]
        marks = sql.SQL(", ").join([sql.Placeholder()] * len(share))
        connection.execute(
            sql.SQL(
                "INSERT INTO o (org, name, id, {}) VALUES (%s, %s, pg_temp.cuid('organizations', %s, 1), {})"
            ).format(sql.SQL(", ").join(map(sql.Identifier, share)), marks),
            values,
        )


# Checking 600,000 references one by one is a third of the work, and they hold by construction. Only a superuser
# (or who was granted it) may leave them out. Other triggers do not fire either.
_TRUST_OURSELVES = """SELECT set_config('session_replication_role', 'replica', true)
    WHERE has_parameter_privilege('session_replication_role', 'SET')"""


def _functions(seed: int) -> str:
    """Short SQL functions; `n` is a row number, `org` an organization's.

    PostgreSQL inlines them, which makes them cheap. It would not inline an IMMUTABLE `cuid`: `||` with a
    number is only STABLE.
    """
    return f"""
CREATE FUNCTION pg_temp.cuid(name text, org int, n bigint) RETURNS text STABLE LANGUAGE sql
AS $$ SELECT 'c' || substr(md5(name || '/' || org || '/' || n || '/{int(seed)}'), 1, 24) $$;

-- A number from 0 to 65535; `salt` makes them independent.
CREATE FUNCTION pg_temp.rnd(salt int, org int, n bigint) RETURNS int IMMUTABLE LANGUAGE sql
AS $$ SELECT (hashint8extended(n, {int(seed)}::bigint * 1000000 + org * 1000 + salt) & 65535)::int $$;

-- A moment `fraction` (0 to 1) into one of the last days. Today ends a minute ago, so that nothing that is
-- derived from a moment lies ahead; in the first hour after midnight, "today" is still yesterday.
CREATE FUNCTION pg_temp.moment(day bigint, fraction float8) RETURNS timestamp STABLE LANGUAGE sql
AS $$ SELECT date_trunc('day', LOCALTIMESTAMP - interval '1 hour') - day * interval '1 day' + fraction *
    CASE WHEN day > 0 THEN interval '1 day'
    ELSE least(interval '1 day', LOCALTIMESTAMP - interval '1 minute'
        - date_trunc('day', LOCALTIMESTAMP - interval '1 hour')) END $$;

CREATE FUNCTION pg_temp.at(salt int, org int, n bigint) RETURNS timestamp STABLE LANGUAGE sql
AS $$ SELECT pg_temp.moment(n % {DAYS}, (hashint8extended(n, org * 1000 + salt) & 16777215) / 16777216.0) $$;

CREATE FUNCTION pg_temp.texts(n int) RETURNS text[] IMMUTABLE LANGUAGE sql
AS $$ SELECT CASE n % 8 WHEN 0 THEN NULL WHEN 1 THEN ARRAY[]::text[] WHEN 2 THEN ARRAY['repo', NULL, '']
    WHEN 3 THEN ARRAY['say "hi"', 'it''s', 'a,b{{c}}', 'back\\slash', 'NULL'] WHEN 4 THEN ARRAY[NULL]::text[]
    WHEN 5 THEN ARRAY['東京', 'équipe-plateforme', '🔐'] ELSE ARRAY['repo', 'read:org', 'admin'] END $$;
"""


def _pick(values: Sequence[str], number: str) -> str:
    """SQL for one of `values`, chosen by a non-negative integer expression."""
    array = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"(ARRAY[{array}])[1 + ({number}) % {len(values)}]"


def _insert(table: str, salt: int, columns: str, values: str, *, count: str = "") -> str:
    """One INSERT … SELECT over every organization's row numbers `g`, with `r.a`, `r.b`, `r.c`, `r.at`."""
    return f"""INSERT INTO {table} (id, organization_id, {columns})
        SELECT pg_temp.cuid('{table}', o.org, g), o.id, {values}
        FROM o, generate_series(1, {count or f"o.{table}"}) AS g, LATERAL (SELECT
            pg_temp.rnd({salt}, o.org, g) AS a, pg_temp.rnd({salt + 1}, o.org, g) AS b,
            pg_temp.rnd({salt + 2}, o.org, g) AS c, pg_temp.at({salt}, o.org, g) AS at) AS r"""


_PERSON = f"{_pick(_FIRST, 'r.a')} || ' ' || {_pick(_LAST, 'r.b')}"
_EMAIL = "'user' || r.a % 500 || '@' || replace(lower(split_part(o.name, ' ', 1)), '&', '') || '.example'"
_PROVIDER = f'(SELECT enum_range(NULL::"SaaSProvider"))[1 + r.a % {_PROVIDERS}]'
_INTEGRATION = f"pg_temp.cuid('integration_connections', o.org, 1 + r.a % {_PROVIDERS})"
_SEVERITY = _pick(["INFO", "INFO", "LOW", "LOW", "MEDIUM", "MEDIUM", "HIGH", "CRITICAL"], "r.b") + '::"Severity"'
_EVENT = _pick(_EVENTS, "r.b")
_RULE = _pick(_RULES, "r.c")
_USER = f"pg_temp.cuid('users', o.org, 1 + r.c % {_USERS})"
_ASSET = "pg_temp.cuid('security_assets', o.org, 1 + r.c % o.security_assets)"
_FINDING = "pg_temp.cuid('security_findings', o.org, 1 + r.c % o.security_findings)"
_DELIVERY = _pick(["DELIVERED"] * 8 + ["PENDING", "FAILED", "DEAD_LETTER"], "r.b") + '::"SiemDeliveryStatus"'
_LATER = "r.at + (LOCALTIMESTAMP - r.at) * (r.b / 65536.0)"
_YESTERDAY = "date_trunc('hour', LOCALTIMESTAMP - interval '1 day')"
_NAMED = f"CASE WHEN r.b % 40 > 3 THEN {_pick(_LAST, 'r.b % 40')} || ' Sync' END"

# Nested, not only ASCII, with decimals that a float would shorten and integers that a double cannot hold.
# format() and a cast take two thirds of the time of jsonb_build_object().
_SHAPE = (
    '{"actor": {"email": "%s", "name": "%s"}, "target": {"type": "repository", "name": "platform/service-%s", '
    '"labels": ["prod", "機密", null]}, "network": {"ip": "203.0.113.%s", "geo": {"city": "%s", "lat": %s.%s, '
    '"lon": 1.10}}, "sequence": %s, "total": 184467440737095%s, "cost": %s.%s0, "note": %s}'
)
_NOTE = _pick(["null", '""', r'"said \"ok\" 🔐"'], "r.a")
_PAYLOAD = f"""format('{_SHAPE}', {_EMAIL}, {_PERSON}, r.b % 900, r.c % 256, {_pick(_CITIES, "r.b")},
    r.a % 180 - 90, r.c, 9007199254740993 + g, 51617 + g, r.b % 900, r.c % 10, {_NOTE})::jsonb"""

# The event that finding g is about, and its moment: at the same place among the events, so of its own.
_SOURCE = "least(g * 4 + g / 15, o.ingested_events)"
_SOURCE_AT = f"pg_temp.at(10, o.org, {_SOURCE})"

# The moment of the baseline run that row g belongs to: all controls of a run share it.
_CYCLE = f"{DAYS} / {_CONTROLS}"
_RUN = f"pg_temp.moment(g % {DAYS}, (g / {_CYCLE} + 0.5) / (o.baseline_scores / {_CYCLE} + 1))"

_SURROUNDINGS = (
    """INSERT INTO organizations (id, name, slug, notification_email, created_at, updated_at)
        SELECT id, name, trim('-' FROM regexp_replace(lower(name), '[^a-z0-9]+', '-', 'g')),
            CASE WHEN org <> 2 THEN 'security@example.com' END,
            LOCALTIMESTAMP - interval '400 days', LOCALTIMESTAMP - interval '31 days' FROM o ORDER BY org""",
    _insert(
        "users",
        1,
        "email, display_name, created_at",
        f"'staff' || g || '@example.com', {_PERSON}, r.at",
        count=str(_USERS),
    ),
    _insert(
        "integration_connections",
        4,
        "provider, display_name, external_account_id, encrypted_access_token, updated_at",
        """(SELECT enum_range(NULL::"SaaSProvider"))[g], o.name || ' ' || g, 'account-' || g,
        'not-a-real-credential', r.at""",
        count=str(_PROVIDERS),
    ),
    _insert(
        "siem_destinations",
        7,
        "kind, name, endpoint_url, streams, updated_at",
        """CASE g WHEN 1 THEN 'SPLUNK_HEC' ELSE 'GENERIC_WEBHOOK' END::"SiemKind", 'siem-' || g,
        'https://siem.example.com/' || g, enum_range(NULL::"SiemStreamType"), r.at""",
        count="2",
    ),
    _insert(
        "ingestion_jobs",
        10,
        "integration_id, provider, event_type, source, occurred_at, payload, status, attempts, updated_at",
        f"""{_INTEGRATION}, {_PROVIDER}, {_EVENT}, 'webhook', pg_temp.at(10, o.org, g * 50), '{{}}',
        'SUCCEEDED', 1, LOCALTIMESTAMP""",
        count="o.ingested_events / 50",
    ),
)

_EXPORTED = (
    _insert(
        "ingested_events",
        10,
        """integration_id, provider, event_type, source, actor, severity, payload, processing_status,
        occurred_at, processed_at, created_at, ingestion_job_id""",
        f"""{_INTEGRATION}, {_PROVIDER}, {_EVENT}, CASE r.c % 3 WHEN 0 THEN 'poller' ELSE 'webhook' END,
        CASE r.b % 20 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE {_EMAIL} END, {_SEVERITY}, {_PAYLOAD},
        {_pick(["RECEIVED", "FAILED", *["PROCESSED"] * 48], "r.c")}::"EventProcessingStatus", r.at,
        CASE WHEN r.c % 50 > 0 THEN r.at + (300 + r.a % 20000) * interval '1 ms' END,
        r.at + r.a % 20000 * interval '1 ms',
        CASE WHEN g % 50 = 0 THEN pg_temp.cuid('ingestion_jobs', o.org, g / 50) END""",
    ),
    _insert(
        "security_assets",
        20,
        """integration_id, owner_user_id, type, provider, name, summary, external_id, labels, criticality,
        exposure_level, ownership_status, contains_sensitive_data, risk_score, last_observed_at, created_at,
        updated_at""",
        f"""CASE WHEN r.b % 9 > 0 THEN {_INTEGRATION} END, CASE WHEN r.b % 3 > 0 THEN {_USER} END,
        (SELECT enum_range(NULL::"SecurityAssetType"))[1 + r.b % 7],
        CASE WHEN r.b % 9 > 0 THEN {_PROVIDER} END, {_pick(_LAST, "r.c")} || ' service ' || g,
        CASE r.a % 3 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE E'Seen by a sync: “quoted”, \\\\ and\\ttab.' END,
        'asset-' || g, pg_temp.texts(r.c), (SELECT enum_range(NULL::"AssetCriticality"))[1 + r.c % 4],
        (SELECT enum_range(NULL::"AssetExposureLevel"))[1 + r.a % 3],
        CASE WHEN r.b % 3 > 0 THEN 'ASSIGNED' ELSE 'UNASSIGNED' END::"AssetOwnershipStatus", r.a % 4 = 0,
        r.b % 101, CASE WHEN r.a % 5 > 0 THEN {_LATER} END, r.at, {_LATER}""",
    ),
    # A directory sync writes thousands of rows with one timestamp: whole hours, so that ties are many.
    _insert(
        "saas_identities",
        30,
        """integration_id, provider, external_id, email, display_name, kind, status, role, groups,
        scope_hints, linked_asset_ids, mfa_enabled, is_privileged, is_external, last_observed_at, risk_score,
        created_at, updated_at""",
        f"""{_INTEGRATION}, {_PROVIDER}, 'identity-' || g, CASE WHEN r.c % 12 > 0 THEN {_EMAIL} END,
        {_PERSON}, (SELECT enum_range(NULL::"SaasIdentityKind"))[1 + r.c % 12 / 10],
        (SELECT enum_range(NULL::"SaasIdentityStatus"))[1 + r.b % 12 / 10],
        {_pick(["member", "admin", "owner", ""], "r.b")}, pg_temp.texts(r.b), pg_temp.texts(r.c),
        CASE r.c % 3 WHEN 0 THEN ARRAY[{_ASSET}] ELSE ARRAY[]::text[] END,
        CASE r.a % 3 WHEN 0 THEN NULL WHEN 1 THEN true ELSE false END, r.b % 10 = 0, r.c % 15 = 0,
        date_trunc('hour', r.at), r.c % 101, date_trunc('hour', r.at),
        greatest(date_trunc('hour', r.at), {_YESTERDAY})""",
    ),
    _insert(
        "oauth_app_grants",
        40,
        """integration_id, asset_id, provider, external_app_id, app_display_name, user_email,
        user_display_name, scopes, anonymous, last_observed_at, created_at, updated_at""",
        f"""{_INTEGRATION}, CASE WHEN r.c % 2 = 0 THEN {_ASSET} END, {_PROVIDER}, 'app-' || r.b % 40,
        {_NAMED}, 'user' || g || '@example.com', {_PERSON}, pg_temp.texts(r.a), r.b % 50 = 0, {_YESTERDAY},
        r.at, greatest(r.at, {_YESTERDAY})""",
    ),
    _insert(
        "security_findings",
        50,
        """integration_id, event_id, dedupe_key, title, description, severity, status, risk_score,
        remediation_steps, evidence, detected_at, resolved_at, resolved_by_id, asset_id""",
        f"""{_INTEGRATION}, CASE WHEN r.b % 10 > 0 THEN pg_temp.cuid('ingested_events', o.org, {_SOURCE}) END,
        md5('finding' || g) || md5(o.id || g), 'Rule ' || {_RULE} || ' matched ' || {_PERSON},
        E'Seen in an event.\\nIt says "look at this".', {_SEVERITY},
        {_pick(["OPEN", "OPEN", "OPEN", "RESOLVED", "RESOLVED", "MUTED"], "r.a")}::"FindingStatus",
        r.b % 101, pg_temp.texts(r.b),
        jsonb_build_object('rule', {_RULE}, 'score', 1.10, 'matched', jsonb_build_array(g, NULL)),
        {_SOURCE_AT} + r.c % 20000 * interval '1 ms',
        CASE WHEN r.a % 6 IN (3, 4) THEN {_SOURCE_AT} + interval '30 s' END,
        CASE WHEN r.a % 6 = 3 THEN {_USER} END, CASE WHEN r.c % 3 = 0 THEN {_ASSET} END""",
    ),
    _insert(
        "tenant_audit_logs",
        60,
        "actor_user_id, action, target_type, target_id, ip_address, metadata, created_at",
        f"""CASE WHEN r.a % 8 > 0 THEN {_USER} END, {_pick(["finding.resolved", "finding.muted"], "r.b")},
        'finding', {_FINDING}, CASE WHEN r.c % 7 > 0 THEN '198.51.100.' || r.c % 256 END,
        CASE WHEN r.c % 4 > 0 THEN jsonb_build_object('by', {_PERSON}, 'n', g, 'cost', 1.10) END, r.at""",
    ),
    _insert(
        "siem_deliveries",
        70,
        """destination_id, stream, payload, status, attempts, next_attempt_at, last_error, delivered_at,
        created_at, updated_at, dedupe_key""",
        f"""pg_temp.cuid('siem_destinations', o.org, 1 + r.a % 2), 'FINDINGS',
        jsonb_build_object('finding', {_FINDING}, 'by', {_PERSON}, 'risk', 1.10), {_DELIVERY}, 1 + r.c % 5,
        r.at, CASE WHEN r.b % 11 > 8 THEN 'HTTP 503: "try later"' END,
        CASE WHEN r.b % 11 < 8 THEN r.at + interval '20 s' END, r.at, r.at + interval '20 s',
        CASE WHEN r.c % 6 > 0 THEN 'finding-' || g END""",
    ),
    _insert(
        "rule_runs",
        80,
        """rule_key, rule_version, trigger, event_id, status, started_at, finished_at, duration_ms,
        events_evaluated, findings_opened, findings_updated, parameters, last_error, created_at,
        updated_at""",
        f"""{_RULE}, '1.' || r.a % 4,
        CASE WHEN r.b % 3 > 0 THEN 'EVENT' ELSE 'SCHEDULE' END::"RuleRunTrigger",
        CASE WHEN r.b % 3 > 0 THEN pg_temp.cuid('ingested_events', o.org, 1 + r.b % o.ingested_events) END,
        CASE WHEN r.a % 9 > 0 THEN 'SUCCEEDED' ELSE 'FAILED' END::"RuleRunStatus", r.at + interval '40 ms',
        r.at + (41 + r.c % 9000) * interval '1 ms', 1 + r.c % 9000, 1 + r.c % 400, r.a % 3, r.b % 5,
        jsonb_build_object('threshold', 1.10, 'tags', jsonb_build_array('日次', NULL)),
        CASE WHEN r.a % 9 = 0 THEN 'timeout after 5 s' END, r.at,
        r.at + (41 + r.c % 9000) * interval '1 ms'""",
    ),
    _insert(
        "workflow_deliveries",
        90,
        """kind, action, finding_id, external_id, external_url, payload, status, attempts, next_attempt_at,
        last_error, sla_due_at, acknowledged_at, delivered_at, dedupe_key, created_at, updated_at""",
        f"""(SELECT enum_range(NULL::"WorkflowKind"))[1 + r.a % 5], 'create_ticket',
        CASE WHEN r.a % 7 > 0 THEN {_FINDING} END, CASE WHEN r.b % 11 < 8 THEN 'SEC-' || g END,
        CASE WHEN r.b % 11 < 8 THEN 'https://tickets.example.com/SEC-' || g END,
        jsonb_build_object('summary', {_PERSON}, 'estimate', 1.10), {_DELIVERY}, 1 + r.c % 5, r.at,
        CASE WHEN r.b % 11 > 8 THEN 'HTTP 429' END, CASE WHEN r.c % 2 = 0 THEN r.at + interval '1 day' END,
        CASE WHEN r.b % 11 < 4 THEN r.at + interval '25 s' END,
        CASE WHEN r.b % 11 < 8 THEN r.at + interval '20 s' END, 'ticket-' || g, r.at,
        r.at + interval '25 s'""",
    ),
    # (day, control, run) is one-to-one with g, so the unique index holds.
    _insert(
        "baseline_scores",
        100,
        """baseline_key, baseline_version, control_key, integration_id, score, passed, failed, not_applicable,
        evidence, computed_at, created_at""",
        f"""'cis-google-workspace-1.1', '1.1', 'control-' || g / {DAYS} % {_CONTROLS},
        CASE WHEN r.a % 9 > 0 THEN {_INTEGRATION} END, round(r.b % 10001 / 100.0, 2), r.b % 50,
        r.c % 20, r.a % 3, CASE WHEN r.a % 3 > 0 THEN jsonb_build_object('checked', 9007199254740993, 'ratio', 1.10)
        END, {_RUN}, {_RUN}""",
    ),
    _insert(
        "risk_exceptions",
        110,
        "asset_id, finding_id, created_by_user_id, title, rationale, updated_at",
        f"{_ASSET}, {_FINDING}, {_USER}, 'Accepted until the migration', 'It''s on a test tenant.', r.at",
        count="5",
    ),
    _insert(
        "agent_proposals",
        120,
        "finding_id, action, rationale, payload, updated_at",
        f"{_FINDING}, 'revoke_grant', 'Unused for 90 days', '{{}}', r.at",
        count="5",
    ),
)
