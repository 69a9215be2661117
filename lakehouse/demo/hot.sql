-- The host database of the demo and the tests: what the host application's own migrations make of PostgreSQL.
--
-- Names, column order, types, nullability, defaults, indexes and foreign keys are the host's. Nothing is added
-- to suit the lakehouse: an index that the host lacks would hide what a capture costs there.
-- `users`, `agents`, `agent_tasks` are cut down to what foreign keys need. Run it with `public` first in the path.

CREATE TYPE "AgentProposalStatus" AS ENUM ('PROPOSED', 'APPROVED', 'REJECTED', 'EXECUTED', 'FAILED');
CREATE TYPE "AssetCriticality" AS ENUM ('LOW', 'MEDIUM', 'HIGH', 'CRITICAL');
CREATE TYPE "AssetExposureLevel" AS ENUM ('INTERNAL', 'TRUSTED_EXTERNAL', 'PUBLIC');
CREATE TYPE "AssetOwnershipStatus" AS ENUM ('ASSIGNED', 'UNASSIGNED', 'REVIEW_REQUIRED');
CREATE TYPE "EventProcessingStatus" AS ENUM ('RECEIVED', 'PROCESSED', 'FAILED');
CREATE TYPE "FindingStatus" AS ENUM ('OPEN', 'RESOLVED', 'MUTED');
CREATE TYPE "IngestionJobStatus" AS ENUM ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'DEAD_LETTER');
CREATE TYPE "IntegrationMode" AS ENUM ('READ_ONLY', 'REMEDIATION');
CREATE TYPE "IntegrationStatus" AS ENUM ('CONNECTED', 'DISABLED', 'ERROR');
CREATE TYPE "RiskExceptionStatus" AS ENUM ('ACTIVE', 'EXPIRED', 'REVOKED');
CREATE TYPE "SaaSProvider" AS ENUM ('GITHUB', 'SLACK', 'GOOGLE_WORKSPACE', 'ONE_PASSWORD', 'OKTA',
    'MICROSOFT_365', 'ATLASSIAN');
CREATE TYPE "SaasIdentityKind" AS ENUM ('USER', 'SERVICE_ACCOUNT', 'BOT');
CREATE TYPE "SaasIdentityStatus" AS ENUM ('ACTIVE', 'SUSPENDED', 'DORMANT');
CREATE TYPE "SecurityAssetType" AS ENUM ('APPLICATION', 'OAUTH_APP', 'SERVICE_ACCOUNT', 'DATA_RESOURCE',
    'WORKSPACE', 'VAULT', 'REPOSITORY');
CREATE TYPE "Severity" AS ENUM ('CRITICAL', 'HIGH', 'MEDIUM', 'LOW', 'INFO');
CREATE TYPE "SiemDeliveryStatus" AS ENUM ('PENDING', 'PROCESSING', 'DELIVERED', 'FAILED', 'DEAD_LETTER');
CREATE TYPE "SiemKind" AS ENUM ('SPLUNK_HEC', 'PANTHER', 'PANOPTICON', 'ELASTIC', 'DATADOG',
    'GENERIC_WEBHOOK', 'JSON_FILE', 'CEREBRO_CLAIMS');
CREATE TYPE "SiemStatus" AS ENUM ('ACTIVE', 'PAUSED', 'ERROR');
CREATE TYPE "SiemStreamType" AS ENUM ('FINDINGS', 'EVENTS', 'AUDIT_LOGS');

CREATE TABLE organizations (
    id text PRIMARY KEY,
    name varchar(160) NOT NULL,
    slug varchar(120) NOT NULL,
    notification_email varchar(255),
    data_retention_days integer NOT NULL DEFAULT 90,
    critical_risk_threshold integer NOT NULL DEFAULT 80,
    default_sla_hours integer NOT NULL DEFAULT 24,
    auto_resolve_low_severity boolean NOT NULL DEFAULT false,
    enforce_sso_only boolean NOT NULL DEFAULT false,
    webhook_alert_url varchar(500),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX ON organizations (slug);

CREATE TABLE users (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    email varchar(255) NOT NULL,
    display_name varchar(160),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE integration_connections (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    provider "SaaSProvider" NOT NULL,
    display_name varchar(160) NOT NULL,
    external_account_id varchar(255) NOT NULL,
    scopes text[] DEFAULT ARRAY[]::text[],
    disabled_checks text[] DEFAULT ARRAY[]::text[],
    encrypted_access_token text NOT NULL,
    encrypted_refresh_token text,
    encrypted_webhook_secret text,
    google_mailbox_scan_client_email varchar(255),
    encrypted_google_mailbox_scan_private_key text,
    token_key_version varchar(32) NOT NULL DEFAULT 'v1',
    status "IntegrationStatus" NOT NULL DEFAULT 'CONNECTED',
    mode "IntegrationMode" NOT NULL DEFAULT 'READ_ONLY',
    last_sync_at timestamp(3),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);
CREATE INDEX ON integration_connections (organization_id);
CREATE UNIQUE INDEX ON integration_connections (organization_id, provider, external_account_id);
CREATE INDEX ON integration_connections (organization_id, provider, status);

CREATE TABLE ingestion_jobs (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    integration_id text NOT NULL REFERENCES integration_connections ON DELETE CASCADE,
    provider "SaaSProvider" NOT NULL,
    event_type varchar(180) NOT NULL,
    source varchar(180) NOT NULL,
    actor varchar(255),
    occurred_at timestamp(3) NOT NULL,
    payload jsonb NOT NULL,
    status "IngestionJobStatus" NOT NULL DEFAULT 'QUEUED',
    attempts integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 3,
    next_attempt_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    last_error varchar(500),
    processed_at timestamp(3),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL,
    lease_owner varchar(180),
    lease_expires_at timestamp(3)
);
CREATE INDEX ON ingestion_jobs (integration_id, status);
CREATE INDEX ON ingestion_jobs (organization_id, status, next_attempt_at);
CREATE INDEX ON ingestion_jobs (status, lease_expires_at);

CREATE TABLE ingested_events (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    integration_id text NOT NULL REFERENCES integration_connections ON DELETE CASCADE,
    provider "SaaSProvider" NOT NULL,
    event_type varchar(180) NOT NULL,
    source varchar(180) NOT NULL,
    actor varchar(255),
    severity "Severity" NOT NULL DEFAULT 'INFO',
    payload jsonb NOT NULL,
    processing_status "EventProcessingStatus" NOT NULL DEFAULT 'RECEIVED',
    occurred_at timestamp(3) NOT NULL,
    processed_at timestamp(3),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    ingestion_job_id text REFERENCES ingestion_jobs ON DELETE SET NULL
);
CREATE UNIQUE INDEX ON ingested_events (ingestion_job_id);
CREATE INDEX ON ingested_events (organization_id);
CREATE INDEX ON ingested_events (organization_id, occurred_at);
CREATE INDEX ON ingested_events (organization_id, provider, event_type);

CREATE TABLE security_assets (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    integration_id text REFERENCES integration_connections ON DELETE CASCADE,
    owner_user_id text REFERENCES users ON DELETE SET NULL,
    business_owner_user_id text REFERENCES users ON DELETE SET NULL,
    type "SecurityAssetType" NOT NULL,
    provider "SaaSProvider",
    name varchar(180) NOT NULL,
    summary varchar(500),
    external_id varchar(255),
    labels text[] DEFAULT ARRAY[]::text[],
    criticality "AssetCriticality" NOT NULL DEFAULT 'MEDIUM',
    exposure_level "AssetExposureLevel" NOT NULL DEFAULT 'INTERNAL',
    ownership_status "AssetOwnershipStatus" NOT NULL DEFAULT 'UNASSIGNED',
    contains_sensitive_data boolean NOT NULL DEFAULT false,
    is_privileged boolean NOT NULL DEFAULT false,
    risk_score integer NOT NULL DEFAULT 0,
    last_observed_at timestamp(3),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);
CREATE INDEX ON security_assets (integration_id);
CREATE INDEX ON security_assets (organization_id, exposure_level);
CREATE INDEX ON security_assets (organization_id, ownership_status);
CREATE INDEX ON security_assets (organization_id, provider, external_id);
CREATE INDEX ON security_assets (organization_id, type);
CREATE INDEX ON security_assets (owner_user_id);

CREATE TABLE security_findings (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    integration_id text NOT NULL REFERENCES integration_connections ON DELETE CASCADE,
    event_id text REFERENCES ingested_events ON DELETE SET NULL,
    dedupe_key varchar(128) NOT NULL,
    title varchar(220) NOT NULL,
    description text NOT NULL,
    severity "Severity" NOT NULL,
    status "FindingStatus" NOT NULL DEFAULT 'OPEN',
    risk_score integer NOT NULL,
    remediation_steps text[],
    evidence jsonb NOT NULL,
    detected_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    resolved_at timestamp(3),
    resolved_by_id text REFERENCES users ON DELETE SET NULL,
    asset_id text REFERENCES security_assets ON DELETE SET NULL
);
CREATE INDEX ON security_findings (organization_id);
CREATE INDEX ON security_findings (organization_id, asset_id);
CREATE UNIQUE INDEX ON security_findings (organization_id, dedupe_key);
CREATE INDEX ON security_findings (organization_id, detected_at);
CREATE INDEX ON security_findings (organization_id, integration_id);
CREATE INDEX ON security_findings (organization_id, status, severity);

CREATE TABLE siem_destinations (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    kind "SiemKind" NOT NULL,
    name varchar(160) NOT NULL,
    endpoint_url varchar(500),
    file_path varchar(500),
    index varchar(120),
    encrypted_token text,
    token_key_version varchar(32) NOT NULL DEFAULT 'v1',
    streams "SiemStreamType"[] DEFAULT ARRAY['FINDINGS'::"SiemStreamType"],
    status "SiemStatus" NOT NULL DEFAULT 'ACTIVE',
    last_delivery_at timestamp(3),
    last_error varchar(500),
    deliveries_ok integer NOT NULL DEFAULT 0,
    deliveries_fail integer NOT NULL DEFAULT 0,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);
CREATE INDEX ON siem_destinations (organization_id);
CREATE INDEX ON siem_destinations (organization_id, kind);

CREATE TABLE siem_deliveries (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    destination_id text REFERENCES siem_destinations ON DELETE SET NULL,
    stream "SiemStreamType" NOT NULL,
    payload jsonb NOT NULL,
    status "SiemDeliveryStatus" NOT NULL DEFAULT 'PENDING',
    attempts integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 5,
    next_attempt_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    last_error varchar(500),
    delivered_at timestamp(3),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL,
    lease_owner varchar(180),
    lease_expires_at timestamp(3),
    dedupe_key varchar(128)
);
CREATE INDEX ON siem_deliveries (destination_id, status);
CREATE UNIQUE INDEX ON siem_deliveries (organization_id, destination_id, stream, dedupe_key);
CREATE INDEX ON siem_deliveries (organization_id, status, next_attempt_at);
CREATE INDEX ON siem_deliveries (status, lease_expires_at);

CREATE TABLE tenant_audit_logs (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    actor_user_id text REFERENCES users ON DELETE SET NULL,
    action varchar(180) NOT NULL,
    target_type varchar(120) NOT NULL,
    target_id varchar(180) NOT NULL,
    ip_address varchar(64),
    metadata jsonb,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX ON tenant_audit_logs (organization_id);
CREATE INDEX ON tenant_audit_logs (organization_id, actor_user_id);
CREATE INDEX ON tenant_audit_logs (organization_id, created_at);

CREATE TABLE oauth_app_grants (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    integration_id text NOT NULL REFERENCES integration_connections ON DELETE CASCADE,
    asset_id text REFERENCES security_assets ON DELETE SET NULL,
    provider "SaaSProvider" NOT NULL,
    external_app_id varchar(255) NOT NULL,
    app_display_name varchar(255),
    user_email varchar(255) NOT NULL,
    user_external_id varchar(255),
    user_display_name varchar(255),
    scopes text[] DEFAULT ARRAY[]::text[],
    anonymous boolean NOT NULL DEFAULT false,
    native_app boolean NOT NULL DEFAULT false,
    last_observed_at timestamp(3) NOT NULL,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);
CREATE INDEX ON oauth_app_grants (asset_id);
CREATE INDEX ON oauth_app_grants (organization_id, external_app_id);
CREATE INDEX ON oauth_app_grants (organization_id, integration_id);
CREATE UNIQUE INDEX ON oauth_app_grants (organization_id, integration_id, external_app_id, user_email);

CREATE TABLE saas_identities (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    integration_id text REFERENCES integration_connections ON DELETE SET NULL,
    provider "SaaSProvider" NOT NULL,
    external_id varchar(255) NOT NULL,
    email varchar(255),
    display_name varchar(160),
    kind "SaasIdentityKind" NOT NULL DEFAULT 'USER',
    status "SaasIdentityStatus" NOT NULL DEFAULT 'ACTIVE',
    role varchar(120),
    groups text[] DEFAULT ARRAY[]::text[],
    scope_hints text[] DEFAULT ARRAY[]::text[],
    linked_asset_ids text[] DEFAULT ARRAY[]::text[],
    mfa_enabled boolean,
    is_privileged boolean NOT NULL DEFAULT false,
    is_external boolean NOT NULL DEFAULT false,
    last_observed_at timestamp(3),
    risk_score integer NOT NULL DEFAULT 0,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);
CREATE INDEX ON saas_identities (integration_id, status);
CREATE UNIQUE INDEX ON saas_identities (organization_id, provider, external_id);
CREATE INDEX ON saas_identities (organization_id, provider, status);

CREATE TABLE risk_exceptions (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    asset_id text REFERENCES security_assets ON DELETE SET NULL,
    finding_id text REFERENCES security_findings ON DELETE SET NULL,
    created_by_user_id text REFERENCES users ON DELETE SET NULL,
    approved_by_user_id text REFERENCES users ON DELETE SET NULL,
    title varchar(180) NOT NULL,
    rationale text NOT NULL,
    compensating_controls text[] DEFAULT ARRAY[]::text[],
    status "RiskExceptionStatus" NOT NULL DEFAULT 'ACTIVE',
    expires_at timestamp(3),
    approved_at timestamp(3),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);
CREATE INDEX ON risk_exceptions (asset_id);
CREATE INDEX ON risk_exceptions (finding_id);
CREATE INDEX ON risk_exceptions (organization_id, status, created_at);

CREATE TABLE agents (id text PRIMARY KEY, organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE);
CREATE TABLE agent_tasks (
    id text PRIMARY KEY, organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE
);

CREATE TABLE agent_proposals (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    task_id text REFERENCES agent_tasks ON DELETE SET NULL,
    finding_id text REFERENCES security_findings ON DELETE SET NULL,
    proposed_by_agent_id text REFERENCES agents ON DELETE SET NULL,
    approved_by_user_id text REFERENCES users ON DELETE SET NULL,
    action varchar(160) NOT NULL,
    rationale text NOT NULL,
    payload jsonb NOT NULL,
    status "AgentProposalStatus" NOT NULL DEFAULT 'PROPOSED',
    approved_at timestamp(3),
    executed_at timestamp(3),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);
CREATE INDEX ON agent_proposals (finding_id);
CREATE INDEX ON agent_proposals (organization_id, status, created_at);
CREATE INDEX ON agent_proposals (task_id);

-- The three tables that the host plans but does not have yet (provisional).
CREATE TYPE "RuleRunTrigger" AS ENUM ('EVENT', 'SCHEDULE', 'BACKFILL', 'MANUAL');
CREATE TYPE "RuleRunStatus" AS ENUM ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'SKIPPED');
CREATE TYPE "WorkflowKind" AS ENUM ('JIRA', 'LINEAR', 'SLACK', 'TEAMS', 'PAGERDUTY');

CREATE TABLE rule_runs (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    rule_key varchar(128) NOT NULL,
    rule_version varchar(32) NOT NULL,
    trigger "RuleRunTrigger" NOT NULL,
    event_id text REFERENCES ingested_events ON DELETE SET NULL,
    status "RuleRunStatus" NOT NULL DEFAULT 'QUEUED',
    started_at timestamp(3) NOT NULL,
    finished_at timestamp(3),
    duration_ms integer,
    events_evaluated integer NOT NULL DEFAULT 0,
    findings_opened integer NOT NULL DEFAULT 0,
    findings_updated integer NOT NULL DEFAULT 0,
    parameters jsonb NOT NULL,
    last_error varchar(500),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);

-- Lease and error are nullable, as in siem_deliveries. There is no table for destination_id to refer to.
CREATE TABLE workflow_deliveries (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    destination_id text,
    kind "WorkflowKind" NOT NULL,
    action varchar(80) NOT NULL,
    finding_id text REFERENCES security_findings ON DELETE SET NULL,
    external_id varchar(255),
    external_url varchar(500),
    payload jsonb NOT NULL,
    status "SiemDeliveryStatus" NOT NULL DEFAULT 'PENDING',
    attempts integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 5,
    next_attempt_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    lease_owner varchar(180),
    lease_expires_at timestamp(3),
    last_error varchar(500),
    sla_due_at timestamp(3),
    acknowledged_at timestamp(3),
    delivered_at timestamp(3),
    dedupe_key varchar(128) NOT NULL,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL
);

CREATE TABLE baseline_scores (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    baseline_key varchar(120) NOT NULL,
    baseline_version varchar(32) NOT NULL,
    control_key varchar(120) NOT NULL,
    integration_id text,
    score numeric(5, 2) NOT NULL,
    passed integer NOT NULL,
    failed integer NOT NULL,
    not_applicable integer NOT NULL,
    evidence jsonb,
    computed_at timestamp(3) NOT NULL,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE UNIQUE INDEX ON baseline_scores
    (organization_id, baseline_key, control_key, integration_id, computed_at);
