"""Defects of what lets a row leave the hot database."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, mutant

AGE = "lakehouse/archive/age.py"
BATCH = "lakehouse/archive/batch.py"
KEYS = "lakehouse/archive/foreign_keys.py"
GATE = "lakehouse/archive/gate.py"
POLICY = "lakehouse/archive/policy.py"
PROOF = "lakehouse/archive/proof.py"
RUN = "lakehouse/archive/run.py"
SUITE = "integration/test_archive_gate.py"
REFERRED = "integration/test_archive_keys.py"
RUNS = "integration/test_archive_run.py"
BETWEEN = f"{SUITE}::test_what_happens_between_the_proof_and_the_lock_keeps_the_row"
STOPS = f"{SUITE}::test_what_changes_between_the_proof_and_the_lock_stops_the_batch"
FORGOTTEN = f"{SUITE}::test_plan_and_dry_run_know_the_holds_that_a_restore_forgot"
REPLICA_KNOWN = "conformance/test_replica.py::test_what_is_known_to_be_cleared_backs_no_archiving"

MUTANTS = (
    mutant(
        "gate-on-counts",
        PROOF,
        '(f"version.hash <> {HASH}",',
        '("false",',
        f"{SUITE}::test_what_the_lake_does_not_hold_as_it_is_stays_and_is_named",
    ),
    mutant(
        "hold-checked-only-before-the-batch",
        BATCH,
        '            (held(contract, "t"), HELD),\n',
        '            (sql.SQL("false"), HELD),\n',
        BETWEEN,
    ),
    mutant(
        "hidden-rows-refer-to-nothing",
        KEYS,
        "           row_security_active(k.conrelid),\n",
        "           false,\n",
        f"{RUNS}::test_a_table_whose_rows_are_hidden_refuses_what_it_refers_to_and_nothing_else",
    ),
    mutant(
        "isolated-as-the-database-is",
        BATCH,
        '        self.connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")\n',
        "",
        f"{SUITE}::test_a_hold_that_is_placed_while_the_batch_waits_for_it_is_seen",
    ),
    mutant(
        "proof-after-the-delete",
        RUN,
        "            proof = stack.enter_context(\n",
        "            from psycopg import sql\n\n"
        "            connection.execute(\n"
        '            sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(\n'
        "                sql.Identifier(gate.contract.source_schema, gate.contract.source_table)\n"
        "            ),\n"
        '            [found.rows["k0"].to_pylist()],\n'
        "        )\n"
        "            proof = stack.enter_context(\n",
        f"{RUNS}::test_a_waiver_is_recorded_and_waives_no_proof",
    ),
    mutant(
        "a-new-column-is-ignored",
        GATE,
        "    if unknown := contract.unknown_columns(hot.columns):",
        "    if unknown := contract.unknown_columns(()):",
        STOPS,
    ),
    mutant(
        "set-null-not-seen",
        KEYS,
        "WHERE c.contype = 'f' AND c.conparentid = 0",
        "WHERE c.contype = 'f' AND c.confdeltype <> 'n' AND c.conparentid = 0",
        f"{REFERRED}::test_no_delete_changes_a_row_that_stays",
    ),
    mutant(
        "cascade-not-seen",
        KEYS,
        "WHERE c.contype = 'f' AND c.conparentid = 0",
        "WHERE c.contype = 'f' AND c.confdeltype <> 'c' AND c.conparentid = 0",
        f"{REFERRED}::test_no_delete_changes_a_row_that_stays",
    ),
    mutant(
        "referring-rows-looked-for-before-the-lock-only",
        BATCH,
        '            *((r.condition(), f"{REFERRED}{r.child}") for r in gate.others),\n',
        "",
        BETWEEN,
    ),
    mutant(
        "an-index-of-some-rows-is-good-enough",
        KEYS,
        "AND i.indisready AND i.indpred IS NULL",
        "AND i.indisready",
        f"{REFERRED}::test_an_index_that_does_not_serve_the_key_is_none",
    ),
    mutant(
        "tables-are-read-whole",
        BATCH,
        '            ("enable_seqscan", "off"),\n',
        "",
        f"{REFERRED}::test_no_table_is_read_from_end_to_end",
    ),
    mutant(
        "own-references-not-followed",
        BATCH,
        "        if not gate.own or not going:",
        "        if going is not None:",
        f"{REFERRED}::test_rows_that_refer_to_each_other_in_one_table_go_together_or_stay",
    ),
    mutant(
        "parents-first",
        RUN,
        "        for name in self.gates.order:",
        "        for name in reversed(self.gates.order):",
        f"{RUNS}::test_plan_enable_run_disable",
    ),
    mutant(
        "age-by-occurred-at",
        AGE,
        "    bounds = [contract[name] for name in contract.age_bounds]",
        "    bounds = [contract[contract.event_time or contract.age_bounds[0]]]",
        f"{SUITE}::test_old_rows_go_and_leave_a_tombstone_and_a_receipt_that_verifies",
    ),
    mutant(
        "what-is-not-known-to-be-in-use-is-not",
        AGE,
        "    return _in_none(contract, contract.states.settled, alias)\n",
        "    return sql.SQL('NOT {}').format(_in_none(contract, contract.states.never_old, alias))\n",
        f"{SUITE}::test_a_state_that_the_contract_does_not_know_is_in_use",
    ),
    mutant(
        "muted-once-is-muted-since",
        AGE,
        '    after = f"coalesce(list_max(list_transform({other}, lambda v: v.s)), -1)"',
        '    after = f"coalesce(list_max(list_transform({other}, lambda v: -1)), -1)"',
        f"{SUITE}::test_findings_in_use_stay_and_a_muted_one_is_as_old_as_its_muting",
    ),
    mutant(
        "content-not-compared-after-the-lock",
        BATCH,
        '"{} IS DISTINCT FROM p.row_hash OR t.xmin',
        '"{} IS NULL OR t.xmin',
        f"{SUITE}::test_content_that_changes_without_a_row_being_touched_is_found_under_the_lock",
    ),
    mutant(
        "version-not-compared-after-the-lock",
        BATCH,
        " OR t.xmin::text::bigint <> p.hot_xmin",
        "",
        BETWEEN,
    ),
    mutant(
        "proof-of-another-version",
        PROOF,
        '        (f"{inexact} AND NOT {captured}", f"\'{NOT_LANDED}\'"),\n',
        "",
        f"{SUITE}::test_only_a_version_that_the_cursor_has_passed_is_proof",
    ),
    mutant(
        "retention-not-read-again",
        BATCH,
        "self._look(gate, retention.cutoff, locked)",
        "self._look(gate, retention.now, locked)",
        f"{SUITE}::test_a_longer_retention_is_read_again_under_the_lock",
    ),
    mutant(
        "policy-not-read-again",
        BATCH,
        "        if policy is None or not policy.covers(self.contract):",
        "        if policy is None:",
        STOPS,
    ),
    mutant(
        "locked-rows-are-waited-for",
        BATCH,
        "FOR UPDATE OF t SKIP LOCKED",
        "FOR UPDATE OF t",
        BETWEEN,
    ),
    mutant(
        "as-many-as-may-be",
        BATCH,
        "        if gone != len(going):",
        "        if gone > len(going):",
        STOPS,
    ),
    mutant(
        "tombstones-in-a-transaction-of-their-own",
        BATCH,
        '        failpoint("archive.tombstones_written")\n',
        '        failpoint("archive.tombstones_written")\n'
        '        self.connection.execute("COMMIT")\n'
        '        self.connection.execute("BEGIN")\n',
        "crash/test_kill_archive.py::test_killed_while_rows_leave",
    ),
    mutant(
        "a-plan-of-the-databases-holds",
        "lakehouse/archive/plan.py",
        "            restored = forgotten(app, connection if installed else None, organization)\n",
        "            restored = []\n",
        FORGOTTEN,
    ),
    mutant(
        "a-dry-run-of-the-databases-holds",
        RUN,
        "                self.forgotten = forgotten(self.app, self.connection if self.installed else None, organization)\n",
        "                self.forgotten = ()\n",
        FORGOTTEN,
    ),
    mutant(
        "known-to-differ-and-counted",
        "lakehouse/archive/durable.py",
        "      AND NOT EXISTS (SELECT FROM destination_differences x WHERE x.destination_id = d.id\n",
        "      AND NOT EXISTS (SELECT FROM destination_differences x WHERE x.destination_id = d.id AND false\n",
        REPLICA_KNOWN,
    ),
    mutant(
        "half-filled-and-counted",
        "lakehouse/archive/durable.py",
        "      AND NOT EXISTS (SELECT FROM destination_fillings f WHERE f.destination_id = d.id\n",
        "      AND NOT EXISTS (SELECT FROM destination_fillings f WHERE f.destination_id = d.id AND false\n",
        REPLICA_KNOWN,
    ),
    mutant(
        "what-a-comparison-found-is-not-remembered",
        "lakehouse/deliver/parity.py",
        "                if result.equal or result.fault is not None:\n",
        "                if result.equal:\n",
        REPLICA_KNOWN,
    ),
    mutant(
        "no-receipt-asked-for",
        PROOF,
        "    if backing.sequence is not None:",
        "    if backing.sequence is None:",
        f"{SUITE}::test_another_kind_of_destination_can_be_asked_for",
    ),
    mutant(
        "archived-before-it-was-reconciled",
        RUN,
        "        if why := not_ready(self.app, self.connection, gate, organization):",
        '        if why := "":',
        f"{RUNS}::test_an_adopted_lake_is_archived_only_after_every_row_was_compared",
    ),
    Mutant(
        "disabled-goes-on",
        (
            Edit(
                RUN, "    enabled = [o for o, policy in known.items() if policy.enabled]", "    enabled = list(known)"
            ),
            Edit(POLICY, "return self.enabled and wants(", "return wants("),
        ),
        (f"{RUNS}::test_plan_enable_run_disable",),
    ),
)
