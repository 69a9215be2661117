"""Defects of what is written: staging, commits, cursors, maintenance, proof."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, mutant

COMMIT = "lakehouse/landing/commit.py"
PARQUET = "lakehouse/landing/parquet.py"
GARBAGE = "lakehouse/maintenance/garbage.py"
EXPIRY = "lakehouse/maintenance/expiry.py"
COMPACTION = "lakehouse/maintenance/compaction.py"
PRUNING = "lakehouse/maintenance/outbox.py"
COMPARE = "lakehouse/verify/compare.py"
CATALOGS = "contract/test_catalogs.py"
MAINTENANCE = "integration/test_maintenance.py"
WINDOWS = "integration/test_windows.py"

QUARANTINE = "integration/test_quarantine.py"

MUTANTS = (
    mutant(
        "a-full-bucket-is-a-refusal",
        "catalog/errors.py",
        '("InsufficientStorage", "StorageFull", "QuotaExceeded", "No space left on device", "Disk quota exceeded")',
        '("StorageFull", "No space left on device", "Disk quota exceeded")',
        "faults/test_storage_refuses.py::test_a_bucket_that_takes_nothing",
    ),
    mutant(
        "quarantined-rows-are-not-read-again",
        "lakehouse/sync.py",
        "window.examine(organization, list(known.open) if known else [])",
        "window.examine(organization, [])",
        f"{QUARANTINE}::test_the_lake_keeps_the_last_good_version",
    ),
    mutant(
        "quarantined-is-deleted",
        "lakehouse/landing/held.py",
        'WHERE {join}) AND NOT {self._quarantined}"\n        )\n        history',
        'WHERE {join})"\n        )\n        history',
        f"{QUARANTINE}::test_the_lake_keeps_the_last_good_version",
    ),
    mutant(
        "mended-stays-open",
        "lakehouse/landing/quarantine.py",
        "            if key in fine or key not in seen:",
        "            if key not in seen:",
        f"{QUARANTINE}::test_the_lake_keeps_the_last_good_version",
    ),
    mutant(
        "quarantine-log-not-checked",
        "lakehouse/sync.py",
        "*([staged(item.organization, log)] if log else [])",
        "",
        f"{QUARANTINE}::test_a_log_that_was_changed_is_not_committed_by_another_process",
    ),
    mutant(
        "sealed-without-the-open-rows",
        "lakehouse/landing/quarantine.py",
        '                if not seal or row["sequence"] in wanted:',
        "                if not seal:",
        f"{QUARANTINE}::test_a_big_log_is_sealed_and_nothing_of_it_is_lost",
    ),
    Mutant(
        "no-bound-on-the-quarantine",
        (
            Edit(
                "lakehouse/landing/quarantine.py",
                "                if len(opened) > most:\n                    raise _too_many(contract, organization, opened[row.key]",
                "                if False:\n                    raise _too_many(contract, organization, opened[row.key]",
            ),
            Edit(
                "lakehouse/capture/forbidden.py",
                "            if len(flagged.keys) > self.most:",
                "            if False:",
            ),
        ),
        (f"{QUARANTINE}::test_too_many_stop_their_organization",),
    ),
    mutant(
        "no-fence",
        COMMIT,
        "    if stands != expected:",
        "    if False:",
        f"{CATALOGS}::test_a_stale_cursor_commits_nothing",
        f"{WINDOWS}::test_a_stale_cursor_is_fenced_and_mended_from_the_lake",
    ),
    mutant(
        "pyicebergs-retry-on",
        "catalog/tables.py",
        '"commit.retry.num-retries": "0",\n        "commit.manifest-merge.enabled"',
        '"commit.retry.num-retries": "4",\n        "commit.manifest-merge.enabled"',
        f"{CATALOGS}::test_of_racing_landings_exactly_one_wins",
    ),
    mutant(
        "property-only-commit",
        COMMIT,
        'separators=(",", ":"))} | history)\n        summary = {',
        'separators=(",", ":"))} | history)\n    with table.transaction() as transaction:\n        summary = {',
        f"{CATALOGS}::test_a_landing_is_one_snapshot_with_its_cursor_and_exact_totals",
        f"{CATALOGS}::test_of_racing_landings_exactly_one_wins",
    ),
    Mutant(
        "cursor-in-the-summary-only",
        (
            Edit(
                COMMIT,
                "        transaction.set_properties({CURSOR_PROPERTY: json.dumps("
                'cursor.to_json(), separators=(",", ":"))} | history)\n        summary = {\n',
                "        transaction.set_properties(history)\n        summary = {\n"
                '            CURSOR_PROPERTY: json.dumps(cursor.to_json(), separators=(",", ":")),\n',
            ),
            Edit(
                "lakehouse/landing/cursor.py",
                "    text = table.properties.get(CURSOR_PROPERTY)\n",
                "    head = table.current_snapshot()\n"
                "    text = head.summary.additional_properties.get(CURSOR_PROPERTY) if head and head.summary else None\n",
            ),
        ),
        (f"{MAINTENANCE}::test_a_compaction_changes_no_row_and_no_cursor",),
    ),
    Mutant(
        "lands-whenever-it-is-asked",
        (
            Edit(COMMIT, "    if stands != expected:", "    if False:"),
            Edit(COMMIT, "    return int(number) if head == window else 0", "    return 0"),
            Edit(
                COMMIT,
                "        if (done := _settled(table, cursor)) is not None:\n            return done\n        _check_fence",
                "        _check_fence",
            ),
        ),
        (f"{CATALOGS}::test_a_window_lands_once_however_often_it_is_tried",),
    ),
    mutant(
        "parts-are-not-counted",
        COMMIT,
        "    return int(number) if head == window else 0",
        "    return 0",
        f"{CATALOGS}::test_parts_go_on_where_they_stopped",
        f"{CATALOGS}::test_a_window_lands_once_however_often_it_is_tried",
    ),
    Mutant(
        "acknowledged-before-the-commit",
        (
            Edit(
                "lakehouse/sync.py",
                "            landed = land(\n",
                "            landings.acknowledge("
                "app.engine, item, contract.table, item.after, snapshot_id=1, now=app.clock())\n"
                "            landed = land(\n",
            ),
            Edit(
                "lakehouse/sync.py",
                "            landings.acknowledge(\n                app.engine, item, contract.table, landed.cursor, "
                "snapshot_id=landed.snapshot_id, now=app.clock()\n            )\n",
                "",
            ),
        ),
        ("crash/test_kill.py::test_killed_in_a_window[landing.before_commit]",),
    ),
    mutant(
        "marks-not-checked",
        "catalog/lake.py",
        "    def check_marks(self, where: str, properties: Mapping[str, str]) -> None:\n",
        "    def check_marks(self, where: str, properties: Mapping[str, str]) -> None:\n        return\n",
        "integration/test_bad_input_lake.py::test_a_lake_of_another_organization_or_installation",
    ),
    mutant(
        "namespace-from-the-slug",
        "catalog/lake.py",
        '    body = re.sub(rb"[^a-z0-9]", lambda m: b"_%02x" % m[0][0], organization_id.encode())',
        '    body = re.sub(rb"[^a-z0-9]", b"_", organization_id.lower().encode())',
        "integration/test_bad_input_organizations.py::test_no_two_ids_share_a_namespace",
    ),
    mutant(
        "only-size-and-rows-of-a-staged-file",
        PARQUET,
        "(file.sha256 is not None and digest.hexdigest() != file.sha256)",
        "False",
        f"{MAINTENANCE}::test_a_staged_file_is_checked_before_another_process_commits_it",
    ),
    mutant(
        "staged-files-of-a-backfill-not-checked",
        "lakehouse/backfill/run.py",
        "            check_staged(table.io, file)\n",
        "",
        "integration/test_backfill_left.py::test_a_staged_file_that_is_changed_or_gone_is_read_again_and_holds_up_nobody",
    ),
    mutant(
        "orphans-without-the-staged",
        GARBAGE,
        "        return {path for path in found if path}",
        "        return {path for path in found if not path}",
        f"{MAINTENANCE}::test_orphans_go_after_the_safety_age_and_named_files_never",
    ),
    mutant(
        "orphans-of-any-age",
        GARBAGE,
        "        elif file.modified_at <= oldest:",
        "        else:",
        f"{MAINTENANCE}::test_orphans_go_after_the_safety_age_and_named_files_never",
    ),
    mutant(
        "freed-files-go-at-once",
        "lakehouse/maintenance/run.py",
        "noted_before=self.now - timedelta(minutes=self.settings.grace_minutes)",
        "noted_before=self.now",
        f"{MAINTENANCE}::test_snapshots_expire_and_their_files_go_after_the_grace_period",
    ),
    mutant(
        "tagged-snapshots-expire",
        EXPIRY,
        " | {ref.snapshot_id for ref in metadata.refs.values()}",
        "",
        f"{MAINTENANCE}::test_snapshots_expire_and_their_files_go_after_the_grace_period",
    ),
    mutant(
        "the-last-of-a-day-expires",
        EXPIRY,
        "    return kept | set(last_of_day.values())",
        "    return kept",
        f"{MAINTENANCE}::test_the_last_snapshot_of_a_day_is_kept",
    ),
    mutant(
        "files-of-kept-snapshots-freed",
        EXPIRY,
        "        freed -= references.of(s for s in snapshots if s.snapshot_id not in going)\n",
        "",
        f"{MAINTENANCE}::test_snapshots_expire_and_their_files_go_after_the_grace_period",
    ),
    mutant(
        "freed-files-not-noted",
        EXPIRY,
        "        note(engine, organization, name, freed, EXPIRED, now)\n",
        "",
        "crash/test_kill_maintenance.py::test_killed_in_maintenance",
        f"{MAINTENANCE}::test_snapshots_expire_and_their_files_go_after_the_grace_period",
    ),
    mutant(
        "expired-metadata-is-kept-for-ever",
        EXPIRY,
        '"write.metadata.delete-after-commit.enabled": "true"',
        '"write.metadata.delete-after-commit.enabled": "false"',
        f"{MAINTENANCE}::test_bounds_hold_over_many_windows_and_the_cursor_survives",
    ),
    mutant(
        "a-compaction-that-renumbers",
        COMPACTION,
        '        quoted(c.name) if c.name in there else f"NULL AS {quoted(c.name)}" for c in lake_fields(contract)',
        '        f"{quoted(c.name)} + 1 AS {quoted(c.name)}" if c.name == SEQUENCE else quoted(c.name) '
        'if c.name in there else f"NULL AS {quoted(c.name)}" for c in lake_fields(contract)',
        f"{MAINTENANCE}::test_a_compaction_changes_no_row_and_no_cursor",
    ),
    mutant(
        "merged-without-a-checksum",
        COMPACTION,
        "    if before != after or before[0] != group.rows:",
        "    if False:",
        f"{MAINTENANCE}::test_a_file_that_is_not_what_its_manifest_says_is_not_merged",
    ),
    mutant(
        "a-compaction-on-an-old-head",
        COMPACTION,
        "        with lake_errors(where):\n            table.refresh()\n        live = {",
        "        live = {",
        f"{MAINTENANCE}::test_a_landing_beside_a_compaction_loses_nothing",
    ),
    mutant(
        "big-files-merged-again-and-again",
        COMPACTION,
        "file.bytes <= TIER * below",
        "True",
        f"{MAINTENANCE}::test_a_tiny_late_file_does_not_have_a_big_one_rewritten",
    ),
    mutant(
        "outbox-pruned-by-age-alone",
        PRUNING,
        " AND d.sequence_after > 0\n",
        "\n",
        f"{MAINTENANCE}::test_the_outbox_is_pruned_by_age_and_keeps_what_is_needed",
    ),
    mutant(
        "verify-compares-counts",
        COMPARE,
        """f"WHEN h.{HASH} <> l.{HASH} THEN 'content' END AS kind""",
        'f"END AS kind',
        "integration/test_verify.py::test_one_altered_value_in_a_parquet_file",
        "integration/test_verify.py::test_one_hot_row_updated_with_capture_stopped",
    ),
    mutant(
        "repeats-not-counted",
        COMPARE,
        '                "HAVING count(*) > 1)",',
        '                "HAVING count(*) > 1000)",',
        "integration/test_verify.py::test_a_version_that_landed_twice_is_seen",
    ),
    mutant(
        "a-delete-is-shown-as-a-row",
        "schemas/views.py",
        """        f"    AND {quoted((OP,))} <> '{DELETE}'\"""",
        """        f"    AND {quoted((OP,))} <> '{DELETE}x'\"""",
        "unit/test_views.py::test_the_newest_version_unless_it_is_a_delete",
    ),
    mutant(
        "as-of-ignored",
        "lakehouse/query.py",
        "latest_view_sql(contract, relation=relation, as_of=limit)",
        "latest_view_sql(contract, relation=relation)",
        "integration/test_query.py::test_a_join_now_and_as_of_a_time",
    ),
    mutant(
        "as-of-ignored-by-the-history",
        "lakehouse/query.py",
        '(f" WHERE {CAPTURED_AT} <= {limit}" if limit else "")',
        '""',
        "integration/test_query.py::test_a_join_now_and_as_of_a_time",
    ),
)
