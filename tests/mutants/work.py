"""Defects of who does what: leases, retries, planning, secrets, egress, lakes of organizations' own."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, mutant

DELIVERIES = "lakehouse/outbox/deliveries.py"
TASKS = "lakehouse/outbox/tasks.py"
LEASE = "lakehouse/outbox/lease.py"
LEASES = "integration/test_leases.py"
SCHEDULE = "integration/test_schedule.py"
GUARD = "lakehouse/egress/guard.py"
PROXY = "lakehouse/egress/proxy.py"
EGRESS = "integration/test_egress.py"

MUTANTS = (
    mutant(
        "claim-without-skip-locked",
        TASKS,
        "        .with_for_update(skip_locked=True)\n    )\n    with engine.begin() as connection:\n        row = ",
        "    )\n    with engine.begin() as connection:\n        row = ",
        f"{LEASES}::test_every_task_is_claimed_once_by_whoever_comes",
    ),
    mutant(
        "generation-of-a-task-not-checked",
        TASKS,
        ".where(Task.id == lease.id, Task.lease_owner == lease.owner, Task.lease_generation == lease.generation)\n"
        "            .values(\n                **{",
        ".where(Task.id == lease.id, Task.lease_owner == lease.owner)\n            .values(\n                **{",
        f"{LEASES}::test_a_stale_worker_can_neither_finish_nor_fail_a_task",
    ),
    mutant(
        "generation-of-a-delivery-not-checked",
        DELIVERIES,
        "        _D.lease_generation == lease.generation,\n",
        "",
        f"{LEASES}::test_a_stale_worker_neither_fails_nor_abandons_a_delivery",
        f"{LEASES}::test_a_share_left_behind_is_landed_by_another_and_its_first_owner_changes_nothing",
    ),
    mutant(
        "owner-of-a-delivery-not-checked",
        DELIVERIES,
        "        _D.lease_owner == lease.owner,\n        _D.lease_generation == lease.generation,\n",
        "",
        f"{LEASES}::test_a_stale_worker_neither_fails_nor_abandons_a_delivery",
    ),
    mutant(
        "claimed-and-not-kept",
        "lakehouse/deliver/run.py",
        "    with app.leases.holding(*(claimed.lease for claimed in mine)):",
        "    if mine:",
        f"{LEASES}::test_deliveries_that_are_claimed_at_once_are_kept_until_their_turn",
    ),
    mutant(
        "a-window-recorded-without-its-lease",
        "lakehouse/control/landings.py",
        "    with engine.begin() as connection:\n        guard_task(connection, lease)\n"
        "        connection.execute(\n            insert(Window)",
        "    with engine.begin() as connection:\n        connection.execute(\n            insert(Window)",
        f"{LEASES}::test_a_stale_worker_records_no_window",
    ),
    mutant(
        "a-deadline-from-the-answer",
        LEASE,
        "        self.deadline = asked_at + self.seconds * (1 - MARGIN)",
        "        self.deadline = time.monotonic() + self.seconds",
        f"{LEASES}::test_local_trust_ends_before_the_database_s",
    ),
    mutant(
        "a-lost-renewal-goes-unsaid",
        LEASE,
        "                    lease.lost = True\n                    self.on_lost(lease)",
        "                    pass",
        f"{LEASES}::test_renewal_keeps_what_is_held_and_says_what_is_lost",
    ),
    mutant(
        "leases-that-never-run-out",
        DELIVERIES,
        "_D.lease_expires_at < now))",
        "_D.lease_expires_at < now - seconds(86400)))",
        f"{LEASES}::test_a_share_left_behind_is_landed_by_another_and_its_first_owner_changes_nothing",
    ),
    mutant(
        "members-with-open-deliveries",
        "lakehouse/sync.py",
        "            members = {m.organization: m for m in found if not m.open}",
        "            members = {m.organization: m for m in found}",
        f"{LEASES}::test_a_share_left_behind_is_landed_by_another_and_its_first_owner_changes_nothing",
    ),
    mutant(
        "claims-in-order-of-age",
        DELIVERIES,
        "        .order_by(ranked.c.turn, ranked.c.next_attempt_at)",
        "        .order_by(ranked.c.next_attempt_at)",
        f"{LEASES}::test_an_organization_with_many_deliveries_does_not_hold_up_the_others",
    ),
    mutant(
        "an-outage-is-given-up",
        "lakehouse/outbox/retry.py",
        " and not (endless and retry is Retry.TIMED)",
        "",
        "unit/test_retry.py::test_an_outage_is_waited_out_at_half_an_hour",
    ),
    mutant(
        "a-permanent-error-is-tried-again",
        "lakehouse/outbox/retry.py",
        "    if retry is Retry.NEVER or ",
        "    if ",
        "unit/test_retry.py::test_a_permanent_error_waits_for_a_person_at_once_and_an_unknown_one_after_five",
    ),
    mutant(
        "planned-although-not-due",
        "lakehouse/control/store.py",
        "Cursor.polled_at + cadence() * part * seconds(1) <= now",
        "Cursor.polled_at <= now",
        f"{SCHEDULE}::test_a_window_is_due_when_the_cadence_has_passed_and_once",
    ),
    mutant(
        "stopped-by-an-empty-list",
        "lakehouse/worker/discover.py",
        "    if lakes and not listed:",
        "    if False:",
        f"{SCHEDULE}::test_an_empty_list_of_organizations_stops_nobody",
    ),
    mutant(
        "a-deleted-organization-goes-on",
        "lakehouse/worker/discover.py",
        "        if organization not in listed and store.stop_lake(app.engine, organization, DELETED):",
        "        if False:",
        f"{SCHEDULE}::test_a_deleted_organization_is_stopped_and_its_lake_is_kept",
    ),
    mutant(
        "a-lead-without-a-lease",
        "lakehouse/worker/scheduler.py",
        "        if claimed is not None:\n            self.app.leases.hold",
        "        from lakehouse.outbox.lease import Lease\n"
        "        from lakehouse.outbox.tasks import ClaimedTask\n"
        "        mine = Lease(SCHEDULE, self.app.leases.owner, 1, work.lease_seconds)\n"
        "        mine.renewed(time.monotonic())\n"
        "        claimed = claimed or ClaimedTask(SCHEDULE, None, 0, mine)\n"
        "        if claimed is not None:\n            self.app.leases.hold",
        f"{SCHEDULE}::test_several_schedulers_run_and_one_leads",
    ),
    Mutant(
        "landed-although-some-range-did-not-read-it",
        (
            Edit(
                "lakehouse/backfill/run.py",
                "            record.leave_out(app.engine, state.id, set(state.organizations) - set(organizations))\n",
                "            pass\n",
            ),
            Edit(
                "lakehouse/backfill/run.py",
                "                    record.leave_out(app.engine, state.id, set(state.organizations) - set(ready))\n",
                "                    pass\n",
            ),
        ),
        (
            "integration/test_backfill_left.py::test_an_organization_that_was_paused_meanwhile_is_not_read_on",
            "integration/test_backfill_left.py::"
            "test_a_staged_file_that_is_changed_or_gone_is_read_again_and_holds_up_nobody",
        ),
    ),
    mutant(
        "an-incomplete-backfill-is-adopted",
        "lakehouse/backfill/run.py",
        "                if cursor is not None and not cursor.complete and not resuming:",
        "                if False:",
        "integration/test_backfill_left.py::test_a_part_of_a_backfill_that_was_given_up_is_emptied_and_read_again",
    ),
    mutant(
        "envelope-without-its-place",
        "lakehouse/secrets/envelope.py",
        "        return AESGCM(key).decrypt(nonce, ciphertext + tag, place.encode()).decode()",
        "        return AESGCM(key).decrypt(nonce, ciphertext + tag, b'').decode()",
        "unit/test_envelope.py::test_what_the_host_wrote_is_read",
    ),
    mutant(
        "rotation-over-an-edit",
        "lakehouse/secrets/rotate.py",
        ".where(row.table.id == row.id, row.table.encrypted_credentials == row.text)",
        ".where(row.table.id == row.id)",
        "integration/test_rotate.py::test_an_edit_meanwhile_wins_and_is_rotated_too",
    ),
    mutant(
        "rotation-before-all-are-opened",
        "lakehouse/secrets/rotate.py",
        "        _openable(vault, rows)\n",
        "",
        "integration/test_rotate.py::test_one_row_that_does_not_open_holds_up_all_and_is_named",
    ),
    mutant(
        "only-the-first-answer-is-checked",
        GUARD,
        "        for answer in answers:\n            address = ",
        "        for answer in answers[:1]:\n            address = ",
        "unit/test_egress_guard.py::test_what_is_not_public_is_refused",
    ),
    mutant(
        "resolved-again-after-the-check",
        PROXY,
        "await asyncio.open_connection(address, port, limit=HEAD_BYTES)",
        "await asyncio.open_connection(host, port, limit=HEAD_BYTES)",
        f"{EGRESS}::test_the_address_that_was_checked_is_the_one_that_is_used",
        f"{EGRESS}::test_an_answer_that_changes_between_check_and_connect",
    ),
    mutant(
        "whatever-is-public-passes",
        PROXY,
        '        if not any(port == p and (host == h or host.endswith(f".{h}")) for h, p in admitted):',
        "        if False:",
        f"{EGRESS}::test_a_redirect_leads_nowhere",
    ),
    mutant(
        "nobody-asks-for-a-credential",
        PROXY,
        "        if known is None or not hmac.compare_digest(known[0].encode(), password.encode()):",
        "        if known is None:",
        f"{EGRESS}::test_nobody_without_a_credential_is_served",
    ),
    mutant(
        "one-secret-for-all-lakes",
        "lakehouse/duck.py",
        '        "SCOPE": literal(f"{lake.warehouse}/"),\n',
        '        "SCOPE": "\'s3://\'",\n',
        f"{EGRESS}::test_one_engine_keeps_lakes_apart",
    ),
    mutant(
        "duckdb-without-the-proxy",
        "lakehouse/duck.py",
        '    if proxy := storage.get("s3.proxy-uri"):',
        '    if proxy := storage.get("s3.no-proxy-uri"):',
        f"{EGRESS}::test_pyarrow_and_duckdb_go_through_it",
    ),
    mutant(
        "warehouses-in-one-another",
        "lakehouse/lakes.py",
        "        if nested(warehouse, place):",
        "        if warehouse == place:",
        "integration/test_own_lakes.py::test_what_is_refused",
    ),
    mutant(
        "another-catalog-is-not-seen",
        "lakehouse/app.py",
        "            if catalog != self.catalog_identity:",
        "            if False:",
        "integration/test_own_lakes.py::test_another_catalog_is_refused_and_the_same_under_another_name_is_not",
    ),
    mutant(
        "one-encoding-of-a-secret",
        "lakehouse/observe/redact.py",
        "    forms = {form for secret in secrets for form in _forms(secret)}",
        "    forms = set(secrets)",
        "unit/test_redact.py::test_a_known_secret_in_every_form",
    ),
    mutant(
        "a-signal-to-the-group-ends-the-pool",
        "lakehouse/executor.py",
        '["lakehouse.forking", __name__, *libraries]',
        "[__name__, *libraries]",
        "unit/test_executor.py::test_processes_end_with_the_program_and_not_before[signalled]",
    ),
    mutant(
        "a-pool-outlives-its-program",
        "lakehouse/executor.py",
        "        connection.wait([parent.sentinel])\n",
        "        threading.Event().wait()\n",
        "unit/test_executor.py::test_processes_end_with_the_program_and_not_before[killed]",
    ),
)
