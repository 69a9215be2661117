"""Defects of what is delivered: order, marks, ranges, proof."""

from __future__ import annotations

from dataclasses import replace

from tests.mutants.mutant import mutant

LAYOUT = "federation/postgres/layout.py"
REPLICA = "federation/postgres/adapter.py"
SESSION = "federation/postgres/session.py"
MARKS = "federation/postgres/marks.py"
CHECK = "lakehouse/deliver/check.py"
PLAN = "lakehouse/deliver/plan.py"
READING = "lakehouse/deliver/reading.py"
FILES = "federation/files/adapter.py"
SUITE = "conformance/test_destinations.py::test_conformance"
PROPERTY = "property/test_capture_random.py::test_random_writers_lose_nothing_and_double_nothing[xmin]"
KILLS = "crash/test_random_kills.py::test_killed_at_random_while_everything_goes_on"
FILLED = "crash/test_kill_deliver.py::test_a_resync_that_was_killed_reads_what_is_left"
GIVES_NOT = "conformance/test_files.py::test_a_storage_that_does_not_give_its_files_is_no_damaged_file"
EVERYWHERE = ("older-over-newer", "tombstone-physically-deleted", "unmarked-target", "range-by-snapshot")
"""Planted again for each of the suites in which everything goes on at once."""

DELIVERED = (
    mutant(
        "older-over-newer",
        LAYOUT,
        '"WHERE excluded.{sequence} > held.{sequence}"',
        '"WHERE excluded.{sequence} <> held.{sequence}"',
        "conformance/test_replica.py::test_an_older_version_that_comes_late_changes_nothing",
    ),
    mutant(
        "tombstone-physically-deleted",
        REPLICA,
        "            self._marks.stand(cursor, layout, delivery.upto, delivery.snapshot_id)\n",
        "            self._run(cursor, sql.SQL(\"DELETE FROM {} WHERE _op = 'delete'\").format(layout.versions))\n"
        "            self._marks.stand(cursor, layout, delivery.upto, delivery.snapshot_id)\n",
        "conformance/test_replica.py::test_an_older_version_that_comes_late_changes_nothing",
    ),
    mutant(
        "the-oldest-of-a-batch",
        LAYOUT,
        '"ORDER BY {identity}, {sequence} DESC ON CONFLICT',
        '"ORDER BY {identity}, {sequence} ON CONFLICT',
        PROPERTY,
    ),
    mutant(
        "a-delivery-without-its-gap",
        REPLICA,
        "            if stands is None or stands < delivery.after:",
        "            if stands is None:",
        f"{SUITE}[POSTGRES_REPLICA-out_of_order_puts_no_older_version_over_a_newer]",
    ),
    mutant(
        "a-manifest-that-anybody-replaces",
        "federation/files/store.py",
        '{"IfNoneMatch": "*"} if instead_of is None else {"IfMatch": instead_of.etag}',
        "{}",
        f"{SUITE}[PARQUET_S3-two_workers_with_one_range]",
    ),
    mutant(
        "unmarked-target",
        MARKS,
        "            if installation != self.owner.installation or (\n"
        "                organization != self.owner.organization and not self.owner.shared\n"
        "            ):",
        "            if False:",
        f"{SUITE}[POSTGRES_REPLICA-a_foreign_mark_is_refused]",
    ),
    mutant(
        "unmarked-files",
        "federation/files/manifest.py",
        "    if (found.kind, found.owner, found.table) != (kind, owner, table):",
        "    if found.kind != kind:",
        f"{SUITE}[JSONL_S3-a_foreign_mark_is_refused]",
    ),
    mutant(
        "range-by-snapshot",
        "lakehouse/deliver/ranges.py",
        '        names = ", ".join(quoted(c.name) for c in lake_fields(lake.contract))\n',
        '        names = ", ".join(quoted(c.name) for c in lake_fields(lake.contract))\n'
        "        kept = {s.snapshot_id for s in lake.table.snapshots()}\n"
        '        added = {int(e["snapshot_id"]) for e in lake.table.inspect.entries().to_pylist()}\n'
        '        rest = rest if added <= kept else "WHERE false"\n',
        f"{SUITE}[PARQUET_S3-ranges_outlive_expiry_and_compaction]",
    ),
    mutant(
        "an-empty-table-is-an-unfinished-one",
        "lakehouse/deliver/ranges.py",
        "    if cursor is None and snapshot is None:",
        "    if False:",
        "conformance/test_empty.py::test_a_table_without_a_row_is_equal[PARQUET_S3]",
    ),
    mutant(
        "parity-of-counts",
        "lakehouse/deliver/parity.py",
        "    return (one.rows, one.digest) == (other.rows, other.digest)",
        "    return one.rows == other.rows",
        f"{SUITE}[POSTGRES_REPLICA-one_altered_value_is_named]",
        f"{SUITE}[JSONL_S3-one_altered_value_is_named]",
    ),
    mutant(
        "nothing-is-equal-to-the-lakes-beginning",
        "lakehouse/deliver/parity.py",
        "        if content.sequence < delivered:",
        "        if False:",
        f"{SUITE}[POSTGRES_REPLICA-a_cleared_target_is_a_gap]",
        f"{SUITE}[PARQUET_S3-a_cleared_target_is_a_gap]",
    ),
    mutant(
        "a-history-is-not-compared",
        "lakehouse/deliver/parity.py",
        "            if side.every_version and latest.there.sequence:",
        "            if False:",
        "conformance/test_replica.py::test_one_altered_version_of_a_history_is_named_and_mended",
    ),
    mutant(
        "a-history-is-compared-without-what-happened",
        "lakehouse/deliver/sides.py",
        "        version = f\"sha256({row} || ':' || {SEQUENCE} || ':' || {OP})\"",
        "        version = row",
        "conformance/test_replica.py::test_one_altered_version_of_a_history_is_named_and_mended",
    ),
    mutant(
        "a-history-keeps-what-was-altered",
        REPLICA,
        "                self._run(cursor, layout.clear(layout.history_table, filling.sequence, stands))\n",
        "",
        "conformance/test_replica.py::test_one_altered_version_of_a_history_is_named_and_mended",
    ),
    mutant(
        "deletes-of-a-range-are-not-looked-for",
        "lakehouse/deliver/parity.py",
        "Aspect.RANGE if after else Aspect.LATEST",
        "Aspect.LATEST",
        "conformance/test_replica.py::test_a_delete_that_is_not_taken_is_seen_before_it_is_acknowledged[tombstone]",
    ),
    mutant(
        "a-deleted-row-may-be-shown",
        LAYOUT,
        "self.mine(*_beyond(after), deleted, hidden)",
        "self.mine(*_beyond(after), deleted)",
        "conformance/test_replica.py::test_a_deleted_row_that_a_view_shows_is_seen",
    ),
    mutant(
        "digits-of-a-double-are-enough",
        "lakehouse/deliver/sides.py",
        "    return f\"array_to_string({marked}, '')\"",
        "    return text",
        "conformance/test_files.py::test_digits_that_a_double_does_not_have_are_compared",
    ),
    mutant(
        "what-bears-a-higher-number-is-not-looked-at",
        "lakehouse/deliver/sides.py",
        "loosely, after, whole=True)",
        "loosely, after)",
        "conformance/test_files.py::test_an_old_version_with_a_number_above_the_manifests_is_seen[PARQUET_S3]",
        "conformance/test_files.py::test_a_row_with_a_number_above_the_manifests_is_seen[JSONL_S3]",
    ),
    mutant(
        "a-busy-storage-is-a-damaged-file",
        READING,
        "    if asked and (status is None or",
        "    if not asked and (status is None or",
        f"{SUITE}[PARQUET_S3-a_throttled_target_is_tried_again]",
        f"{GIVES_NOT}[JSONL_S3-cut]",
    ),
    mutant(
        "a-refusal-is-a-damaged-file",
        READING,
        "    if asked and status not in _DAMAGE:",
        "    if False:",
        f"{GIVES_NOT}[JSONL_S3-AccessDenied]",
    ),
    mutant(
        "a-file-that-is-gone-is-a-refusal",
        READING,
        "    if asked and status not in _DAMAGE:",
        "    if asked:",
        f"{SUITE}[PARQUET_S3-a_vanished_table_is_said]",
    ),
    mutant(
        "what-landed-is-delivered-at-once",
        PLAN,
        "      AND (:early OR w.delivered_at IS NULL OR",
        "      AND (true OR :early OR",
        "conformance/test_cadence.py::test_what_landed_waits_for_the_cadence_of_its_table",
    ),
    mutant(
        "a-tables-own-cadence-is-not-asked",
        PLAN,
        "coalesce(t.cadence_seconds, d.cadence_seconds)",
        "d.cadence_seconds",
        "conformance/test_cadence.py::test_what_landed_waits_for_the_cadence_of_its_table",
    ),
    mutant(
        "a-whole-step-waits-for-its-cadence",
        PLAN,
        " OR c.sequence - w.upto >= :step\n",
        "\n",
        "conformance/test_cadence.py::test_a_whole_step_waits_for_no_cadence",
    ),
    mutant(
        "a-filling-forgets-what-came-meanwhile",
        FILES,
        "files=(*taken.files, *later),",
        "files=taken.files,",
        f"{SUITE}[JSONL_S3-a_resync_goes_on_beside_deliveries]",
    ),
    mutant(
        "a-filling-that-was-overtaken-is-taken-for-done",
        FILES,
        "            if any(f.first <= filling.sequence for f in later):\n",
        "            if later:\n                return Receipt(held.sequence, 0)\n            if False:\n",
        f"{SUITE}[PARQUET_S3-a_resync_goes_on_beside_deliveries]",
    ),
    mutant(
        "a-filling-takes-newer-rows-away",
        LAYOUT,
        "sql.Literal(upto), sql.Literal(max(upto, stands))",
        "sql.Literal(max(upto, stands)), sql.Literal(max(upto, stands))",
        f"{SUITE}[POSTGRES_REPLICA-a_resync_goes_on_beside_deliveries]",
    ),
    mutant(
        "a-killed-filling-begins-anew",
        "lakehouse/deliver/fill.py",
        "    if now is None or not _usable(now, adapter, lake):",
        "    if True:",
        f"{FILLED}[POSTGRES_REPLICA-fill.taken-4]",
        f"{FILLED}[PARQUET_S3-fill.before_exchange-0]",
    ),
    mutant(
        "what-landed-since-is-left-out-of-a-filling",
        "lakehouse/deliver/fill.py",
        "    if now.sequence >= upto:\n        return now\n",
        "    if now.rows:\n        return now\n",
        f"{FILLED}[JSONL_S3-fill.taken-4]",
    ),
    mutant(
        "two-fill-one-table",
        MARKS,
        "        if self.filling(cursor, layout, lock=True) != wanted:",
        "        if False:",
        f"{SUITE}[POSTGRES_REPLICA-who_fills_beside_another_gives_way]",
    ),
    mutant(
        "a-new-one-gets-all-that-ever-was",
        "lakehouse/deliver/run.py",
        "    return stands == 0 or claimed.sequence_upto - stands > app.settings.deliver.fill_behind",
        "    return False",
        f"{SUITE}[PARQUET_S3-one_that_is_new_or_far_behind_is_filled]",
        "conformance/test_replica.py::test_a_replica_without_a_history_is_filled",
    ),
    mutant(
        "a-history-of-the-latest",
        "lakehouse/deliver/run.py",
        "    if adapter.every_version:\n        return False\n",
        "    adapter.config = adapter.config.model_copy(update={'history': False})\n",
        f"{SUITE}[POSTGRES_REPLICA-one_that_is_new_or_far_behind_is_filled]",
    ),
    mutant(
        "what-was-cleared-is-filled-in-silence",
        "lakehouse/deliver/run.py",
        "    if not claimed.sequence_after <= stands < claimed.sequence_upto:",
        "    if not stands < claimed.sequence_upto:",
        f"{SUITE}[JSONL_S3-a_cleared_target_is_a_gap]",
    ),
    mutant(
        "a-dead-destination-is-current",
        "lakehouse/standing.py",
        '            "needs a person": r.open == "DEAD_LETTER",\n            "error": r.last_error is not None and r.open is not None,\n',
        "",
        f"{SUITE}[PARQUET_S3-a_dead_destination_holds_up_nobody]",
    ),
    mutant(
        "a-view-is-replaced-before-its-readers-eyes",
        REPLICA,
        "            if not self._shows(cursor, layout):",
        "            if True:",
        "conformance/test_replica.py::test_a_resync_waits_for_no_reader",
    ),
    mutant(
        "a-column-that-the-lake-has-not-yet",
        "lakehouse/deliver/ranges.py",
        "        if not missing:\n",
        "        if True:\n",
        f"{SUITE}[POSTGRES_REPLICA-an_added_column_arrives_without_a_break]",
    ),
    mutant(
        "columns-of-the-first-contract-only",
        LAYOUT,
        "                if c.name not in held:",
        "                if False:",
        f"{SUITE}[POSTGRES_REPLICA-an_added_column_arrives_without_a_break]",
    ),
    mutant(
        "a-busy-server-waits-for-a-person",
        "federation/files/store.py",
        "retry=Retry.MANUAL if refused else Retry.TIMED,",
        "retry=Retry.MANUAL,",
        f"{SUITE}[JSONL_S3-a_throttled_target_is_tried_again]",
    ),
    mutant(
        "closed-only-in-name",
        SESSION,
        "        if self._open is not None:\n            with suppress(Error):\n                self._open.close()\n"
        "            self._open = None\n        if self._line is not None:\n            self._line.close()\n"
        "            self._line = None\n",
        "        Session.kept = [*getattr(Session, 'kept', []), self._open, self._line]\n"
        "        self._open = self._line = None\n        del Error\n",
        f"{SUITE}[POSTGRES_REPLICA-close_releases_whatever_happened]",
    ),
    mutant(
        "an-emptied-lake-is-begun-anew",
        "lakehouse/landing/commit.py",
        "    if stands != expected:",
        "    if stands is not None and stands != expected:",
        f"{SUITE}[ICEBERG_S3-a_cleared_target_is_a_gap]",
    ),
    mutant(
        "an-application-is-closed-only-in-name",
        "lakehouse/app.py",
        "        self.source.close()\n        with self._lock:",
        "        with self._lock:",
        f"{SUITE}[ICEBERG_S3-close_releases_whatever_happened]",
    ),
    mutant(
        "a-password-in-a-url-is-repeated",
        "federation/config.py",
        '    if "url" in raw and (fault := _url_fault(raw["url"])):',
        '    if fault := "":',
        "conformance/test_replica_refused.py::test_targets_that_are_refused",
    ),
    mutant(
        "a-hanging-destination-takes-every-place",
        "lakehouse/worker/worker.py",
        "            kinds = KINDS if len(busy) < max(1, work.concurrency - 1) else KINDS[:1]\n",
        "            kinds, busy = KINDS, []\n",
        "conformance/test_replica.py::test_a_destination_that_hangs_takes_one_place",
    ),
    mutant(
        "a-server-that-hangs-is-waited-for",
        "federation/postgres/line.py",
        "            if self._speaks():",
        "            if True:",
        "conformance/test_silent.py::test_servers_that_are_stopped_hold_up_nobody",
    ),
    mutant(
        "a-server-that-works-is-given-up",
        "federation/postgres/line.py",
        "            return bool(probe.recv(1))",
        "            return False",
        "conformance/test_silent.py::test_a_server_that_works_is_waited_for",
    ),
    mutant(
        "anybody-may-use-the-line",
        "federation/postgres/line.py",
        "                if self._connected and self._listener is not None:",
        "                if False:",
        "conformance/test_silent.py::test_a_server_that_works_is_waited_for",
    ),
    mutant(
        "credentials-stored-untried",
        "lakehouse/destinations.py",
        '        values["target"] = check_target(\n            app, destination.id, destination.organization, kind, destination.config, keys, chosen\n        )\n',
        "",
        "conformance/test_replica_refused.py::test_other_credentials_are_tried_before_they_are_stored",
    ),
    mutant(
        "what-was-given-up-keeps-a-destination",
        "lakehouse/destinations.py",
        "        if DestinationKind(destination.kind) in COPYING:\n            # A range",
        "        if False:\n            # A range",
        f"{SUITE}[PARQUET_S3-a_dead_destination_holds_up_nobody]",
    ),
    mutant(
        "a-foreign-prefix-is-found-ours",
        FILES,
        "        for table in self.store.folders():",
        "        for table in ():",
        f"{SUITE}[PARQUET_S3-a_foreign_mark_is_refused]",
    ),
    mutant(
        "a-prefix-is-whoevers-comes",
        "federation/files/mark.py",
        "                self._refuse(found.value, where)\n",
        "                pass\n",
        f"{SUITE}[PARQUET_S3-a_place_is_one_destinations]",
        "conformance/test_shared.py::test_it_is_nobodys_else[PARQUET_S3]",
    ),
    mutant(
        "a-mark-is-looked-at-before-deliveries-only",
        FILES,
        "        self._mark.once()\n        name = manifest.name(contract.table, self.owner)\n",
        "        name = manifest.name(contract.table, self.owner)\n",
        f"{SUITE}[JSONL_S3-a_place_is_one_destinations]",
    ),
    mutant(
        "a-prefix-without-a-mark-is-nobodys",
        FILES,
        "        if marked is None:\n            self._look_around()\n",
        "",
        "conformance/test_files.py::test_a_prefix_that_lost_its_mark_is_still_its_owners",
    ),
    mutant(
        "two-take-one-prefix",
        "federation/files/mark.py",
        "        except RaceLostError:\n            self.check()\n",
        "        except RaceLostError:\n            pass\n",
        "conformance/test_files.py::test_of_two_that_come_at_once_one_is_refused",
    ),
    mutant(
        "files-are-read-with-anothers-keys",
        "lakehouse/destinations.py",
        "            _check_overlap(app, identifier, kind, place, target)\n",
        "",
        "conformance/test_files.py::test_prefixes_that_lie_in_one_another_are_refused",
    ),
    mutant(
        "a-lake-lies-in-a-destination",
        "lakehouse/lakes.py",
        '    places += [(f"destination {d.name}", d.location) for d in store.file_places(app.engine)]\n',
        "    del store\n",
        "conformance/test_files.py::test_prefixes_that_lie_in_one_another_are_refused",
    ),
    mutant(
        "keys-of-what-was-removed",
        "lakehouse/duck.py",
        '            engine.execute(f"DROP SECRET IF EXISTS {_secret_name(other)}")\n',
        "",
        "unit/test_duck.py::test_what_was_removed_leaves_no_keys_behind",
    ),
    mutant(
        "a-delivery-is-not-compared",
        "lakehouse/deliver/run.py",
        "                check_delivered(app, adapter, claimed, credentials, lake)\n",
        "",
        f"{SUITE}[POSTGRES_REPLICA-a_delivery_is_compared_before_it_is_acknowledged]",
        f"{SUITE}[JSONL_S3-a_delivery_is_compared_before_it_is_acknowledged]",
    ),
    mutant(
        "only-what-an-attempt-wrote-is-compared",
        CHECK,
        "    contract = lake.contract\n",
        "    contract = lake.contract\n    if claimed.attempts > 1:\n        return\n",
        f"{SUITE}[POSTGRES_REPLICA-a_difference_is_said_at_every_attempt]",
        f"{SUITE}[PARQUET_S3-killed_before_it_was_compared]",
    ),
    mutant(
        "deletes-are-asked-of-what-was-filled-without",
        CHECK,
        "claimed.sequence_after if filled <= claimed.sequence_after else 0",
        "claimed.sequence_after",
        f"{SUITE}[JSONL_S3-a_difference_is_said_at_every_attempt]",
    ),
    mutant(
        "a-replica-does-not-know-that-it-was-filled",
        MARKS,
        '"UPDATE {} SET filled = $3 WHERE',
        '"UPDATE {} SET filled = 0 * $3 WHERE',
        "conformance/test_replica.py::test_a_replica_without_a_history_is_filled",
    ),
    mutant(
        "a-difference-of-a-delivery-is-not-remembered",
        CHECK,
        "            remember(app.engine, claimed.destination, claimed.organization, claimed.table, error.detail)\n",
        "",
        f"{SUITE}[JSONL_S3-a_difference_is_said_at_every_attempt]",
    ),
    mutant(
        "a-delivery-takes-a-difference-away",
        "lakehouse/deliver/run.py",
        "last_delivery_at=now, last_error=kept",
        "last_delivery_at=now, last_error=None",
        f"{SUITE}[PARQUET_S3-parity_on_schedule_stands_until_it_is_mended]",
    ),
    mutant(
        "organizations-share-their-sequence",
        MARKS,
        '"SELECT sequence FROM {} WHERE table_name = $1 AND organization = $2{}"',
        "\"SELECT sequence FROM {} WHERE table_name = $1 AND $2::text <> '' ORDER BY 1 DESC LIMIT 1{}\"",
        "conformance/test_shared.py::test_every_organization_is_in_one_table[POSTGRES_REPLICA]",
    ),
    mutant(
        "a-filling-takes-other-organizations-away",
        LAYOUT,
        'sql.SQL("DELETE FROM {} {}").format(table, self.mine(beyond))',
        'sql.SQL("DELETE FROM {} WHERE {}").format(table, beyond)',
        "conformance/test_shared.py::test_every_organization_is_in_one_table[POSTGRES_REPLICA]",
    ),
    mutant(
        "all-organizations-in-ones-own-schema",
        MARKS,
        "        if not alone:",
        "        if False:",
        "conformance/test_shared.py::test_it_is_nobodys_else[POSTGRES_REPLICA]",
    ),
    mutant(
        "a-filling-drops-a-strangers-table",
        MARKS,
        "            self._refuse(cursor, layout, [layout.filling_name])\n",
        "            pass\n",
        "conformance/test_replica.py::test_a_filling_leaves_a_strangers_table",
    ),
    mutant(
        "a-strangers-table-is-found-at-the-first-filling",
        MARKS,
        "            layout.filling_name,\n        ]",
        "        ]",
        "conformance/test_replica.py::test_a_filling_leaves_a_strangers_table",
    ),
    mutant(
        "names-are-found-too-long-at-delivery",
        "lakehouse/destinations.py",
        "        Layout(contract, parsed.schema_name, parsed.history)\n",
        "        pass\n",
        "conformance/test_replica_refused.py::test_a_name_that_a_replica_would_cut_is_refused_at_once",
    ),
    mutant(
        "two-tables-of-one-name",
        "lakehouse/destinations.py",
        "    refuse_one_name([contract.table for contract in chosen], history=parsed.history)\n",
        "",
        "conformance/test_replica_refused.py::test_two_tables_that_need_one_name_are_refused_at_once",
    ),
    mutant(
        "a-table-of-ours-is-taken-for-a-strangers",
        MARKS,
        "        refuse_one_name([*(row[0] for row in cursor.fetchall()), layout.contract.table], history=layout.history)\n",
        "",
        "conformance/test_replica_refused.py::test_two_tables_that_need_one_name_are_refused_at_once",
    ),
    mutant(
        "one-replica-by-two-spellings",
        MARKS,
        "            if self.owner.beside(destination):",
        "            if False:",
        "conformance/test_replica_refused.py::test_one_replica_by_two_spellings_is_one_destinations",
    ),
    mutant(
        "the-target-of-a-removed-destination-is-lost",
        "lakehouse/deliver/targets.py",
        "        return connection.execute(query).one_or_none() is not None\n",
        "        return connection.execute(query).one_or_none() is not False\n",
        "conformance/test_replica_refused.py::test_one_replica_by_two_spellings_is_one_destinations",
    ),
    mutant(
        "a-history-that-nobody-kept",
        REPLICA,
        "                if layout.history and not mine.history:",
        "                if False:",
        "conformance/test_replica.py::test_a_history_is_no_history_where_it_was_not_kept",
    ),
    mutant(
        "a-history-once-is-a-history-for-ever",
        MARKS,
        "history = held.history AND excluded.history",
        "history = held.history",
        "conformance/test_replica.py::test_a_history_is_no_history_where_it_was_not_kept",
    ),
    mutant(
        "names-are-looked-at-once-only",
        "lakehouse/destinations.py",
        "        _check_names(app, DestinationKind(destination.kind), destination.config, tables)\n",
        "        pass\n",
        "conformance/test_replica_refused.py::test_a_name_that_a_replica_would_cut_is_refused_at_once",
    ),
    mutant(
        "a-replica-is-the-hot-database",
        SESSION,
        "            if found in never:",
        "            if False:",
        "conformance/test_hot.py::test_the_hot_database_came_to_be_where_it_is",
        "conformance/test_replica_refused.py::test_targets_that_are_refused",
    ),
    mutant(
        "a-hot-database-that-does-not-answer-is-no-replica",
        "lakehouse/deliver/targets.py",
        "        return {(str(row[0]), str(row[1])) for row in rows}\n",
        "        return set()\n",
        "conformance/test_hot.py::test_one_that_does_not_answer_is_what_it_was_last",
    ),
    mutant(
        "deliveries-wait-for-the-hot-database",
        "lakehouse/deliver/targets.py",
        "    except SourceError:\n",
        "    except ZeroDivisionError:\n",
        "conformance/test_hot.py::test_a_hot_database_that_does_not_answer_holds_up_no_delivery",
    ),
)

MUTANTS = DELIVERED + tuple(
    replace(planted, name=f"{planted.name}-{suite}", tests=(test,))
    for planted in DELIVERED
    if planted.name in EVERYWHERE
    for suite, test in (("under-writers", PROPERTY), ("under-kills", KILLS))
)
