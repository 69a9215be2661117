"""Defects of reading the source: windows, positions, fences, triggers."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, mutant

XMIN = "lakehouse/capture/xmin.py"
TRIGGER = "lakehouse/capture/trigger.py"
FENCE = "lakehouse/capture/fence.py"
INSTALLATION = "lakehouse/capture/installation.py"
WINDOWS = "integration/test_windows.py"
TRIGGERS = "integration/test_trigger.py"
FENCES = "integration/test_fences.py"
CHANGES = "integration/test_source_changes.py"

MUTANTS = (
    mutant(
        "sessions-errors-unknown",
        "lakehouse/capture/source.py",
        "                yield session.reader\n        except Error as error:",
        "                yield session.reader\n        except psycopg.Error as error:",
        "faults/test_storage_refuses.py::test_what_the_operator_sees",
    ),
    mutant(
        "catalog-asked-over-a-second-connection",
        XMIN,
        "            with transaction(cursor, contract):\n                yield self._open(contract, groups, catalog, cursor, bound,",
        "            with self.source.catalog(bounded=True) as catalog, transaction(cursor, contract):\n"
        "                yield self._open(contract, groups, catalog, cursor, bound,",
        "integration/test_sessions.py::test_who_waits_for_the_windows_lock_is_not_waited_for",
    ),
    mutant(
        "decimals-through-a-double",
        "lakehouse/capture/projection.py",
        '    if column.type.name in ("string", "json", "decimal"):\n        return sql.SQL("{}::text").format(source)',
        '    if column.type.name == "decimal":\n        return sql.SQL("{}::float8::text").format(source)\n'
        '    if column.type.name in ("string", "json"):\n        return sql.SQL("{}::text").format(source)',
        "integration/test_types.py::test_every_type_and_edge_value_comes_back_as_it_was",
    ),
    mutant(
        "sessions-of-any-age",
        "lakehouse/capture/sessions.py",
        "        if time.monotonic() - self.opened > LONGEST_SECONDS:",
        "        if False:",
        "integration/test_sessions.py::test_an_old_one_is_opened_anew",
    ),
    mutant(
        "sessions-kept-after-an-error",
        "lakehouse/capture/sessions.py",
        "            session.close()\n            raise",
        "            self._idle.append(session)\n            raise",
        "integration/test_sessions.py::test_a_window_that_failed_keeps_nothing",
    ),
    Mutant(
        "window-from-xmax",
        (
            Edit(
                XMIN,
                "            xmin=self.snapshot.xmin,\n            xmax=self.snapshot.xmax,\n            seen=() if capped",
                "            xmin=self.snapshot.xmax,\n            xmax=self.snapshot.xmax,\n            seen=() if capped",
            ),
            Edit(
                XMIN,
                "            exact_xmin=self.snapshot.xmin if exact else old.exact_xmin,",
                "            exact_xmin=self.snapshot.xmax if exact else old.exact_xmin,",
            ),
        ),
        (f"{WINDOWS}::test_a_transaction_that_commits_late_is_not_missed",),
    ),
    mutant(
        "keyset-cursor",
        XMIN,
        "            lower=position.exact_xmin if pruned_before else position.xmin,",
        "            lower=max(position.seen, default=position.xmin),",
        f"{WINDOWS}::test_a_savepoint_hidden_from_the_snapshot_is_not_missed",
        f"{WINDOWS}::test_a_transaction_that_commits_late_is_not_missed",
    ),
    mutant(
        "no-seen-list",
        XMIN,
        "            seen=() if capped else tuple(sorted(self._seen)),",
        "            seen=(),",
        f"{WINDOWS}::test_a_transaction_that_commits_late_is_not_missed",
    ),
    Mutant(
        "one-seen-list-for-all",
        (
            Edit(
                XMIN,
                "            if not plan.ask_lake and plan.group.position.seen:\n",
                "            if not plan.ask_lake and (self._seen or plan.group.position.seen):\n",
            ),
            Edit(
                XMIN,
                '",".join(map(str, plan.group.position.seen))',
                '",".join(map(str, self._seen | {*plan.group.position.seen}))',
            ),
        ),
        (f"{WINDOWS}::test_what_one_has_seen_hides_nothing_from_a_straggler",),
    ),
    mutant(
        "backfill-ids-in-the-seen-list",
        "lakehouse/backfill/record.py",
        "            seen=(),\n            exact_xmin=oldest,\n            bound=self.first.bound,\n            repeats=True,",
        "            seen=tuple(range(oldest, max(s.xmax for s in snapshots))),\n"
        "            exact_xmin=oldest,\n            bound=self.first.bound,\n            repeats=False,",
        f"{WINDOWS}::test_a_transaction_that_was_open_during_the_backfill_is_not_missed",
    ),
    mutant(
        "first-window-from-the-newest-snapshot",
        "lakehouse/backfill/record.py",
        "        oldest = min(s.xmin for s in snapshots)",
        "        oldest = max(s.xmax for s in snapshots)",
        f"{WINDOWS}::test_a_transaction_that_was_open_during_the_backfill_is_not_missed",
    ),
    mutant(
        "no-subtraction-after-a-backfill",
        "lakehouse/backfill/record.py",
        "            repeats=True,",
        "            repeats=False,",
        f"{WINDOWS}::test_a_transaction_that_was_open_during_the_backfill_is_not_missed",
    ),
    mutant(
        "sweep-without-pairs",
        "lakehouse/window.py",
        "    elif plan.ask_lake:\n",
        "    elif plan.ask_lake and plan.group.position.repeats:\n",
        f"{WINDOWS}::test_a_pruned_table_misses_nothing_after_its_exact_read",
    ),
    mutant(
        "exact-read-from-the-last-window",
        XMIN,
        "            lower=position.exact_xmin if pruned_before else position.xmin,",
        "            lower=position.xmin,",
        f"{WINDOWS}::test_a_pruned_table_misses_nothing_after_its_exact_read",
    ),
    mutant(
        "delete-without-its-event-time",
        "lakehouse/landing/parquet.py",
        "        elif column.name in share.column_names:\n",
        "        elif column.name in share.column_names and not (op != 'upsert' and column.name == contract.event_time):\n",
        f"{WINDOWS}::test_a_deleted_row_is_a_delete_in_its_own_partition",
    ),
    mutant(
        "deletes-not-asked-for",
        "lakehouse/window.py",
        "                stager.add(keys.deleted(organization, table, cursors[organization]), op=DELETE)",
        "                stager.add(iter(()), op=DELETE)",
        f"{WINDOWS}::test_truncate_is_seen_when_keys_are_compared",
        f"{WINDOWS}::test_a_row_that_moves_to_another_organization_or_day",
    ),
    mutant(
        "no-fingerprint-of-columns",
        XMIN,
        "        if columns != position.columns or not set(position.labels) <= set(labels):",
        "        if False:",
        f"{WINDOWS}::test_what_changes_without_touching_a_row_is_captured_again",
    ),
    mutant(
        "no-default-in-the-fingerprint",
        "lakehouse/capture/source.py",
        "        shape = [(c.name, c.number, c.type, c.generated, c.default) for c in used]",
        "        shape = [(c.name, c.number, c.type, c.generated) for c in used]",
        f"{CHANGES}::test_a_change_that_touches_no_row",
    ),
    mutant(
        "no-file-node-in-the-identity",
        FENCE,
        "    if _differ(before.storage, present.storage):",
        "    if False:",
        f"{CHANGES}::test_a_change_that_touches_no_row",
    ),
    mutant(
        "no-bound-on-the-age",
        FENCE,
        "    if age > TOO_OLD:",
        "    if age > 2**62:",
        f"{CHANGES}::test_a_position_of_long_ago_and_ids_that_wrap",
    ),
    mutant(
        "a-period-from-the-future",
        XMIN,
        "abs(now - position.reconciled_at) >= period",
        "(now - position.reconciled_at) >= period",
        f"{CHANGES}::test_keys_are_compared_after_the_clock_was_set_back",
    ),
    mutant(
        "captured-at-goes-back",
        "lakehouse/sync.py",
        "        captured_at = max([window.captured_at, *(c.captured_at for c in cursors.values())])",
        "        captured_at = window.captured_at",
        f"{CHANGES}::test_a_clock_that_jumps_loses_and_repeats_nothing",
    ),
    mutant(
        "system-identifier-only",
        FENCE,
        "    if snapshot.xmax < position.xmax:",
        "    if False:",
        f"{FENCES}::test_a_failover_that_lost_what_the_lake_holds_is_refused",
        f"{FENCES}::test_a_restore_from_an_older_copy",
    ),
    mutant(
        "timeline-not-compared",
        FENCE,
        "    if before.timeline != present.timeline:",
        "    if False:",
        "unit/test_fence.py::test_what_differs",
    ),
    mutant(
        "restart-not-seen",
        FENCE,
        "    if _differ(before.started, present.started):",
        "    if False:",
        f"{FENCES}::test_a_restore_that_has_caught_up_with_the_lake_is_compared",
    ),
    mutant(
        "identity-without-address",
        FENCE,
        "            before.address,\n            present.address,\n",
        "            before.address,\n            before.address,\n",
        f"{FENCES}::test_a_cloned_staging_copy",
    ),
    mutant(
        "pairs-of-an-earlier-history",
        "lakehouse/landing/held.py",
        "AND {SEQUENCE} > {read_history(table).floor} ",
        "",
        f"{FENCES}::test_an_id_that_names_another_transaction_now_hides_nothing",
    ),
    mutant(
        "trigger-window-from-xmax",
        TRIGGER,
        "            xmin=self.snapshot.xmin,\n            xmax=self.snapshot.xmax,\n            seen=self.log.visible,",
        "            xmin=self.snapshot.xmax,\n            xmax=self.snapshot.xmax,\n            seen=self.log.visible,",
        f"{TRIGGERS}::test_late_commits_savepoints_and_prepared_transactions",
    ),
    mutant(
        "no-trigger-on-moved-keys",
        INSTALLATION,
        "            one + end,\n            True,\n        ),\n        (\n            DELETED,",
        '            "\\nBEGIN\\n" + end,\n            True,\n        ),\n        (\n            DELETED,',
        f"{TRIGGERS}::test_a_row_that_moves_leaves_a_tombstone_of_what_it_was",
    ),
    Mutant(
        "tombstones-after-rows",
        (
            Edit("lakehouse/window.py", "    stager.add(window.deletes(plan), op=DELETE)\n", ""),
            Edit(
                "lakehouse/window.py",
                "        stager.add(rows)\n        return keys\n",
                "        stager.add(rows)\n        stager.add(window.deletes(plan), op=DELETE)\n        return keys\n",
            ),
        ),
        (f"{TRIGGERS}::test_an_id_that_comes_back",),
    ),
    mutant(
        "stamp-not-forced",
        INSTALLATION,
        "BEFORE INSERT OR UPDATE ON {} FOR EACH ROW ",
        "BEFORE UPDATE ON {} FOR EACH ROW ",
        f"{TRIGGERS}::test_copy_and_on_conflict_with_a_foreign_change_xid",
    ),
    Mutant(
        "truncate-not-looked-for",
        (
            Edit(
                TRIGGER,
                "        emptied = any(x >= position.xmin and x not in position.seen for x in log.truncated)",
                "        emptied = False",
            ),
            # Either of the two is enough to see it.
            Edit(FENCE, "    if _differ(before.storage, present.storage):", "    if False:"),
        ),
        (f"{TRIGGERS}::test_truncate_makes_the_next_window_compare_keys",),
    ),
    mutant(
        "generation-not-compared",
        TRIGGER,
        "position.method != self.name or position.generation != log.generation:",
        "position.method != self.name:",
        f"{TRIGGERS}::test_a_gap_that_was_closed_again_is_read_exactly",
    ),
    Mutant(
        "disabled-trigger-not-seen",
        (
            Edit(INSTALLATION, '        if enabled == "D":\n', '        if enabled == "X":\n'),
            Edit(INSTALLATION, '        elif enabled != "A":\n', '        elif enabled == "Y":\n'),
        ),
        (f"{TRIGGERS}::test_a_table_that_is_no_longer_prepared_lands_nothing_until_it_is",),
    ),
    mutant(
        "method-change-trusts-the-seen-list",
        XMIN,
        "        if position.method != self.name:\n",
        "        if False:\n",
        f"{TRIGGERS}::test_changing_the_method_to_and_fro",
    ),
    mutant(
        "switch-from-the-pruned-position",
        TRIGGER,
        "WindowKind.EXACT, ask_lake=True, lower=position.exact_xmin, reconcile=True)",
        "WindowKind.EXACT, ask_lake=True, lower=position.xmin, reconcile=True)",
        f"{TRIGGERS}::test_a_pruned_timestamp_hides_nothing_from_the_switch",
    ),
    mutant(
        "tombstones-pruned-too-far",
        "lakehouse/capture/tombstones.py",
        "            passed = min([int(row[0]), *(p.xmin for p in positions if p.method == TriggerCapture.name)])",
        "            passed = int(row[0]) if positions else int(row[0])",
        f"{TRIGGERS}::test_tombstones_are_pruned_behind_every_position",
    ),
    mutant(
        "pruning-not-noted",
        TRIGGER,
        "position.xmin < log.pruned_below or forced is True",
        "forced is True",
        f"{TRIGGERS}::test_tombstones_are_pruned_behind_every_position",
    ),
    mutant(
        "predicate-without-the-index",
        TRIGGER,
        '[sql.SQL("t.{} >= {}").format(_COLUMN, _xid(position.xmin))]',
        '[sql.SQL("t.{}::text::numeric >= {}::text::numeric").format(_COLUMN, _xid(position.xmin))]',
        f"{TRIGGERS}::test_a_window_over_a_big_table_uses_the_index",
    ),
    mutant(
        "invalid-index-taken-for-done",
        INSTALLATION,
        """if i["table"] == table and i["valid"]), None)""",
        """if i["table"] == table), None)""",
        "integration/test_prepare.py::test_an_invalid_index_is_made_again",
    ),
    mutant(
        "triggers-outside-of-the-transaction",
        "lakehouse/capture/prepare.py",
        'Step("column, log, triggers", tuple(_install(contract, hot, found, reader, anew=log_wrong)))',
        'Step("column, log, triggers", tuple(_install(contract, hot, found, reader, anew=log_wrong)), together=False)',
        "integration/test_prepare.py::test_killed_after_any_statement_and_run_again",
    ),
    Mutant(
        "an-error-that-ends-the-round",
        (
            Edit(
                "lakehouse/sync.py",
                "            except LakehouseError as error:\n                result.errors[item.organization] = error\n",
                "            except LakehouseError as error:\n                raise RuntimeError('ended') from error\n",
            ),
        ),
        ("integration/test_bad_input_lake.py::test_a_damaged_lake_holds_up_only_its_own",),
    ),
    mutant(
        "a-glance-past-an-open-commit",
        "lakehouse/glance.py",
        "                if result.captured_at is None:\n                    return None\n",
        "                result.captured_at = result.captured_at or clock()\n",
        "integration/test_glance.py::test_a_commit_that_was_open_during_a_glance_is_captured",
    ),
    mutant(
        "a-glance-past-unsettled-shares",
        "lakehouse/glance.py",
        "(version, owner, unsettled) != (newest_revision(), settings.installation, False)",
        "(version, owner) != (newest_revision(), settings.installation)",
        "integration/test_glance.py::test_what_is_not_plainly_quiet_goes_the_ordinary_way",
    ),
    mutant(
        "a-glance-past-tombstones",
        TRIGGER,
        "        return [*super()._signs(plan), self._sign_of_gone(plan)]",
        "        return super()._signs(plan)",
        "integration/test_glance.py::test_a_tombstone_is_not_quiet",
    ),
)
