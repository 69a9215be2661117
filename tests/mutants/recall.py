"""Defects of bringing rows back from the lake, and of letting them go."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, mutant

TABLE = "lakehouse/recall/table.py"
SELECT = "lakehouse/recall/select.py"
CONDITION = "lakehouse/recall/condition.py"
RECALL = "integration/test_recall.py"
TARGETS = "integration/test_recall_targets.py"
PLAN = "lakehouse/retention/plan.py"
APPLY = "lakehouse/retention/apply.py"
RETENTION = "integration/test_lake_retention.py"

_ANY_EXPRESSION = Edit(
    CONDITION, "    if kind not in _EXPRESSIONS:\n", "    if kind not in {*_EXPRESSIONS, *_NAMES}:\n"
)

MUTANTS = (
    Mutant(
        "recalled-into-the-hot-table",
        (
            Edit(
                TABLE,
                "    names = [RECALL_ID, RECALLED_AT, *(c.source for c in contract.columns)]\n"
                '    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(table(name), ',
                "    names = [c.source for c in contract.columns]\n"
                "    hot = sql.Identifier(contract.source_schema, contract.source_table)\n"
                '    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(hot, ',
            ),
            Edit(TABLE, "copy_line(contract, (str(identity), at.astimezone(UTC).isoformat()))", "copy_line(contract)"),
        ),
        (f"{TARGETS}::test_recalls_share_a_table_and_each_goes_in_its_time",),
    ),
    mutant(
        "recalled-rows-are-not-proven",
        TABLE,
        "!= digest.hexdigest():\n        raise _differs",
        '== "":\n        raise _differs',
        f"{TARGETS}::test_what_the_hot_database_cannot_hold_any_more",
    ),
    mutant(
        "recall-ignores-as-of",
        SELECT,
        "relation=_relation(lake, files), as_of=_as_of(request))",
        "relation=_relation(lake, files), as_of=None)",
        f"{RECALL}::test_as_of_a_time",
    ),
    mutant(
        "a-tombstone-that-is-believed",
        SELECT,
        "        if rest := [key for key in request.ids if key not in found]:",
        "        if rest := [key for key in request.ids if key not in times]:",
        f"{RECALL}::test_a_tombstone_is_a_hint",
    ),
    mutant(
        "an-id-is-looked-for-everywhere",
        SELECT,
        "        tasks = lake.table.scan(row_filter=wanted, snapshot_id=lake.snapshot_id).plan_files()",
        "        tasks = lake.table.scan(snapshot_id=lake.snapshot_id).plan_files()",
        f"{RECALL}::test_an_id_is_read_from_its_day_alone",
    ),
    mutant(
        "expired-recalls-are-kept",
        "lakehouse/recall/run.py",
        "        over = register.expired(connection, app.clock())\n",
        "        over = register.expired(connection, app.clock())[:0]\n",
        f"{TARGETS}::test_recalls_share_a_table_and_each_goes_in_its_time",
    ),
    Mutant(
        "a-condition-with-subqueries",
        (_ANY_EXPRESSION,),
        ("unit/test_recall_condition.py::test_whatever_else_is_refused",),
    ),
    Mutant(
        "a-condition-that-reads-a-file",
        (_ANY_EXPRESSION, Edit(SELECT, "    confine(connection, folders)\n", "")),
        (f"{RECALL}::test_a_condition_reads_nothing_else",),
    ),
    mutant(
        "a-recall-of-which-nothing-is-written-down",
        "lakehouse/recall/run.py",
        "            except LakehouseError as error:\n                _note_failure(connection, identity, describe(error))\n",
        "            except LakehouseError:\n",
        f"{TARGETS}::test_who_asked_for_what_is_written_down_before_and_after",
    ),
    mutant(
        "backslashes-are-not-doubled",
        "lakehouse/recall/text.py",
        'for plain, escaped in (("chr(92)", "chr(92) || chr(92)"), (TAB,',
        "for plain, escaped in ((TAB,",
        "property/test_archive_random.py::test_random_rows_of_every_type_leave_and_come_back_equal",
    ),
    mutant(
        "handed-out-before-it-is-on-record",
        "lakehouse/recall/run.py",
        '            self._finish(done)\n            failpoint("recall.recorded")\n'
        "            place.publish(files.manifest_text(self._manifest(done)))\n",
        '            failpoint("recall.recorded")\n'
        "            place.publish(files.manifest_text(self._manifest(done)))\n            self._finish(done)\n",
        "crash/test_kill_recall.py::test_killed_before_its_file_is_seen",
    ),
    mutant(
        "an-end-of-life-past-a-hold",
        PLAN,
        "    holds = holds_on(app, organization, contract.table)\n",
        "    holds = holds_on(app, organization, contract.table)[:0]\n",
        f"{RETENTION}::test_a_hold_stops_it",
    ),
    mutant(
        "holds-are-asked-for-in-the-plan-only",
        APPLY,
        "        if any(k(day) is not None for k in keep for day in days):\n            return []\n",
        "",
        f"{RETENTION}::test_a_hold_that_is_placed_while_it_runs",
    ),
    mutant(
        "a-hot-day-ends",
        PLAN,
        '"rows of it are hot" if hot[day.number] else None]',
        '"rows of it are hot" if hot[day.number] < 0 else None]',
        f"{RETENTION}::test_a_hot_row_keeps_its_day",
    ),
    mutant(
        "any-source-may-say-what-is-hot",
        PLAN,
        "    if not archiving_allowed(app, organization, contract.table):",
        "    if False:",
        f"{RETENTION}::test_a_source_that_is_not_known_keeps_everything",
    ),
    mutant(
        "what-has-left-the-lake-is-deleted",
        "lakehouse/landing/held.py",
        'f"WHERE NOT {in_ended_days(self.contract, ended)}"',
        'f"WHERE NOT {in_ended_days(self.contract, ended[:0])}"',
        f"{RETENTION}::test_old_days_leave_and_capture_goes_on",
    ),
    mutant(
        "another-file-than-was-hashed",
        APPLY,
        "        if {f.path for f in references.live() if f.day in numbers} != old:\n            return False\n",
        "        references.live()\n",
        f"{RETENTION}::test_many_days_and_files_that_change_meanwhile",
    ),
    mutant(
        "the-newest-snapshots-keep-what-has-left",
        "lakehouse/maintenance/expiry.py",
        "ended = max((n for n, s in enumerate(ordered) if _took_days(s)), default=0)",
        "ended = 0",
        f"{RETENTION}::test_snapshots_from_before_days_ended_are_kept_by_day_alone",
    ),
    mutant(
        "what-has-left-the-lake-is-a-difference",
        "lakehouse/deliver/parity.py",
        "    if endings:\n        ((ended,),) = duck.execute(",
        "    if endings[:0]:\n        ((ended,),) = duck.execute(",
        "conformance/test_destinations.py::test_conformance[PARQUET_S3-days_that_left_the_lake_are_no_difference]",
    ),
    mutant(
        "what-has-left-the-lake-is-missing",
        "lakehouse/archive/evidence.py",
        "        missing = sorted({t.row_key for t in mine} - held - ended)",
        "        missing = sorted({t.row_key for t in mine} - held)",
        f"{RETENTION}::test_receipts_of_rows_that_have_left",
    ),
)
