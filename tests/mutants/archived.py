"""Defects of what comes after the archive: its tombstones in the lake, and what capture makes of rows that it took."""

from __future__ import annotations

from tests.mutants.mutant import mutant

EXPORT = "lakehouse/archive/export.py"
PRUNING = "lakehouse/maintenance/archive.py"
EXPORTS = "integration/test_archive_export.py"

MUTANTS = (
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
