"""Defects of what comes after the archive: its tombstones in the lake, and what capture makes of rows that it took."""

from __future__ import annotations

from tests.mutants.mutant import mutant

EXPORT = "lakehouse/archive/export.py"
PRUNING = "lakehouse/maintenance/archive.py"
EXPORTS = "integration/test_archive_export.py"
RULE = "lakehouse/archive/archived.py"
HELD = "lakehouse/landing/held.py"
WINDOW = "lakehouse/window.py"
ARCHIVED = "integration/test_archived.py"
FENCES = "integration/test_fences.py"

MUTANTS = (
    mutant(
        "archived-is-deleted",
        HELD,
        "        if found:\n            since",
        "        if found and not organization:\n            since",
        f"{ARCHIVED}::test_an_archived_row_stays_the_latest_state[xmin]",
    ),
    mutant(
        "archived-is-deleted-by-triggers",
        "lakehouse/capture/trigger.py",
        "            gone.append(not_by_archive(contract))",
        "            gone.append(sql.SQL('true'))",
        f"{ARCHIVED}::test_an_archived_row_stays_the_latest_state[trigger]",
    ),
    mutant(
        "any-tombstone-excuses-a-delete",
        "lakehouse/archive/tombstones.py",
        '"AND a.row_key = {key} AND a.xact = {change})"',
        '"AND a.row_key = {key} AND {change} IS NOT NULL)"',
        f"{ARCHIVED}::test_nobodys_setting_makes_a_delete_an_archive[trigger]",
        f"{ARCHIVED}::test_an_id_that_was_inserted_again_unseen[trigger]",
    ),
    mutant(
        "tombstones-of-another-snapshot",
        "lakehouse/capture/xmin.py",
        "            tombstones=Tombstones(catalog, contract),",
        "            tombstones=Tombstones(\n"
        "                __import__('psycopg').connect(self.source._url, autocommit=True), contract\n            ),",
        f"{ARCHIVED}::test_tombstones_are_read_under_the_windows_own_snapshot",
    ),
    mutant(
        "once-archived-always-archived",
        RULE,
        '        "WHERE c.proven >= own.newest AND coalesce(k.newest, own.newest) <= own.newest "\n',
        '        "WHERE true "\n',
        f"{ARCHIVED}::test_an_id_that_was_inserted_again_and_seen_is_deleted_for_good[xmin]",
    ),
    mutant(
        "two-rows-of-one-id",
        RULE,
        "AND coalesce(k.newest, own.newest) <= own.newest ",
        "",
        f"{ARCHIVED}::test_archived_a_second_time[2026-05-05-xmin]",
    ),
    mutant(
        "another-event-time-is-another-row",
        RULE,
        '        f"AND NOT EXISTS (SELECT 1 FROM hot h WHERE h.{quoted(contract.tenant)} = c.{quoted(contract.tenant)} "\n'
        '        f"AND {same_key})"\n',
        "",
        f"{ARCHIVED}::test_an_id_that_came_back_with_another_event_time[False-xmin]",
    ),
    mutant(
        "who-came-back-is-not-looked-for",
        HELD,
        "        if inventory is None or self.contract.identity == self.contract.primary_key:",
        "        if True:",
        f"{ARCHIVED}::test_an_id_that_came_back_with_another_event_time[True-xmin]",
    ),
    mutant(
        "who-came-back-and-went-is-not-looked-for",
        HELD,
        "AND {OP} <> '{DELETE}' AND {came}",
        "AND false AND {came}",
        f"{ARCHIVED}::test_it_came_back_with_another_event_time_and_went_before_keys_were_compared[deleted]",
    ),
    mutant(
        "the-former-identity-goes-whatever-is-newer",
        HELD,
        " AND (p.newest IS NULL OR p.newest > t.sequence)",
        "",
        f"{ARCHIVED}::test_it_came_back_as_another_and_then_as_itself",
    ),
    mutant(
        "who-came-back-is-not-looked-for-by-triggers",
        WINDOW,
        "    stager.add(_returned(app, contract, window, plan, tables, failures), op=DELETE)\n",
        "",
        f"{ARCHIVED}::test_an_id_that_came_back_with_another_event_time[True-trigger]",
    ),
    mutant(
        "archive-of-the-lake-not-asked",
        RULE,
        "            and (relation := self._not_here(organization)) is not None\n",
        "            and (relation := self._not_here(organization)) is None\n",
        f"{ARCHIVED}::test_a_lost_inventory_is_made_again_without_them[xmin-True]",
        f"{ARCHIVED}::test_a_database_that_lost_its_archive_asks_the_lake",
    ),
    mutant(
        "only-the-first-batches-may-be-pruned",
        "lakehouse/archive/tombstones.py",
        '"SELECT FROM generate_series(1, %s::bigint) AS n (batch) WHERE (SELECT true "',
        '"SELECT FROM generate_series(1, least(1, %s::bigint)) AS n (batch) WHERE (SELECT true "',
        f"{ARCHIVED}::test_what_only_the_lake_has_of_the_archive_is_no_delete[xmin-without tombstones]",
        f"{ARCHIVED}::test_what_only_the_lake_has_of_the_archive_is_no_delete[trigger-without tombstones]",
        f"{FENCES}::test_a_restore_brings_archived_rows_back_to_life[before the window]",
    ),
    mutant(
        "batches-that-a-restore-forgot-are-not-looked-for",
        RULE,
        "self.tombstones.complete(organization, standing.number, standing.chain)",
        "self.tombstones.complete(organization, *self.tombstones._catalog.execute("
        "'SELECT number, chain FROM lakehouse_archive.batches ORDER BY number DESC LIMIT 1').fetchone())",
        f"{ARCHIVED}::test_what_only_the_lake_has_of_the_archive_is_no_delete[xmin-forgotten]",
        f"{FENCES}::test_a_restore_brings_archived_rows_back_to_life[after it]",
    ),
    mutant(
        "whatever-batch-has-the-number-is-the-lakes",
        "lakehouse/archive/tombstones.py",
        "AND number = %s AND chain = %s) AND NOT EXISTS (",
        "AND number = %s AND %s <> '') AND NOT EXISTS (",
        f"{ARCHIVED}::test_what_only_the_lake_has_of_the_archive_is_no_delete[xmin-another]",
    ),
    mutant(
        "recapture-leaves-out-what-came-back",
        HELD,
        "            if taken is not None:",
        "            if taken is not None and not organization:",
        f"{ARCHIVED}::test_a_recapture_brings_again_what_came_back_as_it_was[xmin-False]",
        f"{ARCHIVED}::test_a_recapture_brings_again_what_came_back_as_it_was[xmin-True]",
    ),
    mutant(
        "archive-opened-after-the-snapshot",
        WINDOW,
        "            if not again:",
        "            if not again or done is not None:",
        f"{ARCHIVED}::test_what_is_archived_while_everything_is_read_again_does_not_come_to_life",
    ),
    mutant(
        "a-closed-archive-is-no-archive",
        "lakehouse/archive/tombstones.py",
        "        if readable is False:",
        "        if readable is False and not user:",
        f"{ARCHIVED}::test_who_may_not_read_the_archive_lands_no_delete",
    ),
    mutant(
        "verify-believes-tombstones",
        "lakehouse/verify/compare.py",
        "        faults = (self.missing, self.extra, self.content, self.both, self.lost, self.repeated)",
        "        faults = (self.missing, self.extra, self.content, self.repeated)",
        f"{ARCHIVED}::test_verify_tells_what_is_wrong_with_tombstones",
    ),
    mutant(
        "export-without-its-number",
        EXPORT,
        "set_properties(after.to_property() | {",
        "set_properties({",
        f"{EXPORTS}::test_every_tombstone_comes_once_with_its_receipt",
    ),
    mutant(
        "export-over-another-exporter",
        EXPORT,
        "            if read_standing(self.lake) != before:\n                return False\n",
        "",
        f"{EXPORTS}::test_another_exporter_is_met_between_reading_and_committing",
    ),
    mutant(
        "a-restored-batch-is-taken-for-exported",
        EXPORT,
        "        elif ours[0] != standing.chain:\n            raise _another(self.organization, standing.number)\n",
        "",
        f"{EXPORTS}::test_batches_under_numbers_that_the_lake_has_are_for_a_person",
    ),
    mutant(
        "pruned-before-exported",
        PRUNING,
        "        if number > exported.number or not _is_exported(connection, organization, number, exported):\n",
        "        if not connection:\n",
        f"{EXPORTS}::test_tombstones_are_pruned_after_the_audit_window_and_only_once_exported",
    ),
)
