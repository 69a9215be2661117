"""Defects of holds, and of the proof of what left: receipts, tombstones, the chain."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, mutant

HOLDS = "integration/test_holds.py"
EVIDENCE = "integration/test_evidence.py"
CHECK = "lakehouse/archive/evidence.py"
CHAIN = "lakehouse/archive/chain.py"
SEAL = "lakehouse/archive/seal.py"

MUTANTS = (
    mutant(
        "signature-not-checked",
        SEAL,
        "PyJWS([ALGORITHM]).decode(text, known.key, algorithms=[ALGORITHM])",
        'PyJWS().decode(text, options={"verify_signature": False})',
        "unit/test_seal.py::test_whatever_is_altered_is_not_a_receipt_any_more",
        f"{EVIDENCE}::test_any_altered_text_of_a_receipt_is_no_receipt",
    ),
    mutant(
        "a-key-that-anybody-can-read",
        SEAL,
        "    if status.st_mode & others:\n",
        "    if not others:\n",
        "unit/test_seal.py::test_a_key_that_others_can_read_is_refused",
    ),
    Mutant(
        "chain-only-counted",
        (
            Edit(CHAIN, "        if after is None or batch.chain != after:\n", "        if after is None:\n"),
            Edit(
                CHAIN,
                "        if receipt is not None and receipt.previous != before:\n",
                "        if receipt is not None and not receipt.previous:\n",
            ),
        ),
        (f"{EVIDENCE}::test_any_altered_text_of_a_receipt_is_no_receipt",),
    ),
    mutant(
        "a-chain-without-its-end",
        CHAIN,
        "    if standing and last != standing:\n",
        "    if standing and not batches and last != standing:\n",
        f"{EVIDENCE}::test_a_removed_batch_shows_wherever_it_stood",
    ),
    mutant(
        "a-receipt-of-another-batch",
        CHECK,
        "        if said != stands:\n",
        "        if said[0] != stands[0]:\n",
        f"{EVIDENCE}::test_swapped_batches_show",
    ),
    mutant(
        "content-from-tombstones-instead-of-rows",
        CHECK,
        "        if content_digest(hashes) == receipt.content_sha256:\n",
        "        if len(mine) == receipt.rows:\n",
        f"{EVIDENCE}::test_one_altered_value_in_the_lake_is_found_and_by_the_tombstone_key_named",
    ),
    mutant(
        "tombstones-not-compared",
        CHECK,
        "        if tombstones_digest(mine) == receipt.tombstones_sha256:\n",
        "        if len(mine) == receipt.rows:\n",
        f"{EVIDENCE}::test_an_altered_tombstone_is_found_and_named_with_what_differs",
    ),
    mutant(
        "what-is-missing-was-pruned",
        CHAIN,
        "    if archived_at >= cutoff:\n",
        "    if archived_at >= cutoff and number < 1:\n",
        f"{EVIDENCE}::test_a_batch_whose_tombstones_nobody_pruned_is_named",
    ),
    mutant(
        "pruned-in-any-order",
        CHAIN,
        "    if kept_from is not None and kept_from < number:\n",
        "    if kept_from is not None and kept_from < 0:\n",
        f"{EVIDENCE}::test_a_batch_whose_tombstones_nobody_pruned_is_named",
    ),
    mutant(
        "what-was-put-back-was-removed",
        CHECK,
        "        if number in self.put_back:\n",
        "        if number in self.put_back and number < 1:\n",
        f"{EVIDENCE}::test_batches_that_a_restored_database_got_back_are_told_from_those",
    ),
    mutant(
        "archived-and-deleted-is-as-it-was",
        "lakehouse/archive/recompute.py",
        "        content.deleted.setdefault(batch, []).append(key)\n",
        "        content.deleted.pop(batch, key)\n",
        f"{EVIDENCE}::test_an_archived_row_that_the_lake_shows_as_deleted_is_named_unless_it_came_back",
    ),
    mutant(
        "any-delete-of-an-archived-id-is-one-of-its-row",
        "lakehouse/archive/recompute.py",
        "JOIN named n ON {of_key}{own} ",
        "JOIN named n ON {of_key} ",
        f"{EVIDENCE}::test_an_archived_row_that_the_lake_shows_as_deleted_is_named_unless_it_came_back",
    ),
    mutant(
        "a-damaged-file-ends-the-check",
        "lakehouse/archive/recorded.py",
        "            if not self._leave_out_broken():\n",
        "            if not self.broken:\n",
        f"{EVIDENCE}::test_a_file_that_is_gone_or_damaged_costs_the_rows_that_it_held",
    ),
    mutant(
        "an-end-of-life-that-nobody-decided",
        CHECK,
        "            if (day := recorded.get(gone)) is None:\n",
        "            if (day := recorded.get(gone, next(iter(recorded.values()), None))) is None:\n",
        "integration/test_lake_retention.py::test_receipts_of_rows_that_have_left",
    ),
    mutant(
        "an-outage-is-a-damaged-file",
        "lakehouse/archive/recorded.py",
        "                if not _is_the_files_fault(error):\n",
        "                if not error:\n",
        f"{EVIDENCE}::test_an_object_that_is_gone_is_evidence_and_a_storage_that_does_not_answer_is_none",
    ),
    mutant(
        "a-hold-filtered-by-table-only",
        "lakehouse/archive/scope.py",
        '"_h.released_at IS NULL AND _h.organization_id = {tenant} "',
        '"_h.released_at IS NULL "',
        f"{HOLDS}::test_a_hold_names_an_organization_a_table_ids_or_a_range_of_time",
    ),
    mutant(
        "holds-of-every-organization",
        "lakehouse/archive/holds.py",
        'sql.SQL("WHERE organization_id = %(organization)s" if organization is not None else "")',
        'sql.SQL("" if organization is not None else "WHERE %(organization)s::text IS NULL")',
        f"{HOLDS}::test_a_restored_database_gets_back_what_it_forgot",
    ),
    mutant(
        "placed-without-the-lock",
        "lakehouse/archive/holds.py",
        "            lock_organization(connection, organization)\n            yield\n",
        "            yield\n",
        f"{HOLDS}::test_a_hold_waits_for_the_batch_that_runs_and_stops_the_next",
    ),
    mutant(
        "a-released-hold-mirrored-as-placed",
        "lakehouse/archive/mirror.py",
        "    if hold.released_at is not None:\n        released = {",
        "    if hold.released_at is None and hold.released_by is not None:\n        released = {",
        f"{HOLDS}::test_the_lake_has_each_hold_and_release_once",
        f"{HOLDS}::test_a_restored_database_gets_back_what_it_forgot",
    ),
    mutant(
        "a-release-that-only-the-lake-has",
        "lakehouse/archive/holds.py",
        "    found = [*known.values(), *(hold for key, hold in lake.items() if key not in known)]\n",
        "    found = [*{**known, **lake}.values()]\n",
        f"{HOLDS}::test_a_restored_database_gets_back_what_it_forgot",
    ),
    mutant(
        "expiry-without-the-holds",
        "lakehouse/maintenance/run.py",
        "        if not self.held:\n",
        "        if self.should_stop():\n",
        f"{HOLDS}::test_nothing_expires_while_holds_cannot_be_looked_up",
    ),
    mutant(
        "a-tag-that-follows-the-head",
        "lakehouse/archive/mirror.py",
        "if on and name not in refs and snapshot is not None]",
        "if on and snapshot is not None and refs.get(name) != snapshot]",
        f"{HOLDS}::test_tags_keep_what_a_hold_saw_until_it_is_released",
    ),
)
