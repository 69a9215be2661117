"""docs/benchmarks.md and its pictures, out of docs/benchmarks.json: no figure in it is written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.bench import goals, picture
from tests.bench.world import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"
PICTURES = ROOT / "docs" / "pictures"
OURS = "lakehouse backfill, by day"


def write(figures: dict[str, Any]) -> None:
    """Write the document and the picture of each curve."""
    PICTURES.mkdir(exist_ok=True)
    for name, drawn in _pictures(figures).items():
        (PICTURES / f"{name}.svg").write_text(drawn)
    DOCUMENT.write_text(text(figures))


def _pictures(figures: dict[str, Any]) -> dict[str, str]:
    found = {}
    if part := figures.get("backfill"):
        shares = {"two connections": part["drain_two"] / part["drain"]}
        shares |= {_form(form): f["ratio"] for form, f in part["forms"].items()}
        found["backfill"] = picture.bars(shares, "of one connection's drain", ours=list(shares)[1:], goal=1.0)
    if part := figures.get("peers"):
        rates = {name.replace("`", ""): w["rows_per_second"] for name, w in part["ways"].items()}
        found["peers"] = picture.bars(
            rates, "rows/s; the line is one connection's drain", ours=[OURS], goal=part["drain"]
        )
    if part := figures.get("freshness"):
        curves = {f"{method} (% of commits)": m["curve"] for method, m in part["methods"].items()}
        found["freshness"] = picture.lines(curves, "seconds from commit to landing")
    if part := figures.get("landings"):
        landing = [(c["windows"], c["landing_ms"]) for c in part["curve"]]
        upkeep = [(c["windows"], c["maintenance_s"]) for c in part["curve"]]
        if landing:
            found["landing"] = picture.lines({"a landing (ms)": landing}, "windows")
            found["maintenance"] = picture.lines({"a run of maintenance (s)": upkeep}, "windows")
    return found


def text(figures: dict[str, Any]) -> str:
    """The whole document."""
    parts = [
        "# Benchmarks\n\nWritten by `make bench` from [benchmarks.json](benchmarks.json); nothing is typed by hand. "
        '`ARGS="--only PART"` measures one part again and keeps the others\' last figures, `--rows` and `--rounds` '
        "shorten it, `--postgres URL` uses a server of yours. How each figure is taken stands at the head of its "
        "module in `tests/bench`.\n",
        _goals(figures),
    ]
    for name, render in (
        ("backfill", _backfill),
        ("peers", _peers),
        ("start", _start),
        ("windows", _windows),
        ("freshness", _freshness),
        ("deliver", _deliver),
        ("archive", _archive),
        ("landings", _landings),
    ):
        if found := figures.get(name):
            parts.append(f"{render(found)}\n{_where(found['machine'], name)}")
    return "\n".join(parts)


def _goals(figures: dict[str, Any]) -> str:
    judged = goals.judge(figures)
    rows = [
        (
            goal.part,
            _form(goal.row) if goal.part == "backfill" else goal.row,
            f"{'≤' if goal.at_most else '≥'} {goal.bound:g} {goal.what}",
            f"{goal.measured:g}",
            "met" if goal.met else "**missed**",
        )
        for goal in judged
    ]
    met = sum(goal.met for goal in judged)
    return f"## Goals\n\n{met} of {len(judged)} are met.\n\n" + _table(("part", "of", "goal", "measured", ""), rows)


def _where(machine: dict[str, Any], name: str) -> str:
    return (
        f'`make bench ARGS="--only {name}"`, {machine["date"]}: {machine["cores"]} cores, {machine["gigabytes"]} GB, '
        f"{machine['system']}, Python {machine['python']}, PostgreSQL {machine['postgresql']}; servers, programs and "
        f"workload share them; it took {machine['minutes']} minutes.\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(_cell(c) for c in line) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")


def _form(form: str) -> str:
    table, count = form.split()
    what = "unpartitioned" if table.endswith("flat") else "by day"
    return f"{what}, one organization" if count == "1" else f"{what}, {count} organizations"


def _backfill(found: dict[str, Any]) -> str:
    drain = found["drain"]
    rows: list[Sequence[Any]] = [
        ("one connection of `COPY … TO STDOUT (FORMAT binary)`", drain, "1.00", "", "", ""),
        (
            "two connections, half of the table each",
            found["drain_two"],
            f"{found['drain_two'] / drain:.2f}",
            "",
            "",
            "",
        ),
    ]
    for form, f in found["forms"].items():
        rows.append(
            (
                f"`lakehouse backfill`, {_form(form)}",
                f["rows_per_second"],
                f"{f['ratio']:.2f}",
                f["processor_us"],
                f["megabytes"],
                goals.of_row("backfill", found, form),
            )
        )
    return (
        f"## Backfill\n\n{found['rows']:,} events of {found['row_bytes']} bytes in the table, from the start of the "
        f"program to the commit; medians of {found['rounds']} rounds; the lake was compared with the "
        "table afterwards and is equal. Processor time and memory are those of the program's whole process tree.\n\n"
        + _table(("", "rows/s", "of the drain", "processor, µs a row", "peak memory, MB", "goals"), rows)
        + "\n![of one connection's drain](pictures/backfill.svg)\n"
        + _profile(found.get("profile"))
    )


def _profile(found: Mapping[str, Any] | None, name: str = "") -> str:
    """Where the time of one run went; nothing if it was not taken."""
    if not found:
        return ""
    rows = [
        (
            s["step"],
            f"{s['seconds']:.3f}" if s["seconds"] else "",
            f"{s['processor']:.3f}",
            f"{s['processor'] / found['rows'] * 1e6:.2f}",
        )
        for s in found["steps"]
    ]
    left = found["unwatched"]
    rows.append(
        (
            "interpreters that start and end, threads of libraries",
            "",
            f"{left:.3f}",
            f"{left / found['rows'] * 1e6:.2f}",
        )
    )
    parts = [
        f"\n### A goal is missed: where the time goes{f', {name}' if name else ''}\n\n`{found['command']}` with its "
        f"steps watched, {found['seconds']:.2f} s and {found['processor']:.2f} s of processor. A step on the clock is "
        "of the program's first process, where threads add up; its processor time is of all processes. "
        "What a step within it took is not its own.\n\n",
        _table(("step", "on the clock, s", "processor, s", "µs a row"), rows),
        f"\n{_machine(found['machine'])}\n",
    ]
    if tried := found.get("tried"):
        parts.append("\nWhat other settings would do, one run each:\n\n")
        parts.append(
            _table(
                ("tried", "of the drain", "processor, µs a row", "peak memory, MB"),
                [(what, f"{t['ratio']:.2f}", t["processor_us"], t["megabytes"]) for what, t in tried.items()],
            )
        )
    return "".join(parts)


def _machine(found: Mapping[str, Any]) -> str:
    spent = {k: v for k, v in found.items() if k not in ("cores", "seconds")}
    return (
        f"Meanwhile {found['cores']} cores × {found['seconds']:.1f} s went to: "
        + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in spent.items())
        + "."
    )


def _peers(found: dict[str, Any]) -> str:
    rows = [
        (
            f"**{name}**" if name == OURS else name,
            w["rows_per_second"],
            f"{w['ratio']:.2f}",
            "" if name == OURS else f"{w['faster']:.2f}",
            w["processor_us"],
            w["megabytes"],
            w["changed"],
            goals.of_row("peers", found, name),
        )
        for name, w in found["ways"].items()
    ]
    head = ("", "rows/s", "of the drain", "we are × as fast", "processor, µs a row", "peak memory, MB")
    return (
        f"## Beside what people use\n\nThe same {found['rows']:,} rows of one organization to the same S3 server, in "
        f"turn in each of {found['rounds']} rounds (medians); one connection drained {found['drain']:,} rows/s. Ours "
        "is sorted and partitioned by day, the others are one partition. What each wrote was compared.\n\n"
        + _table((*head, "what it changed", "goals"), rows)
        + "\n![rows a second](pictures/peers.svg)\n"
        + _profile(found.get("profile"))
    )


def _start(found: dict[str, Any]) -> str:
    rows = [
        (
            f"**`lakehouse sync --once`, {method}**",
            m["nothing_seconds"],
            m["changed_seconds"],
            m["changed_processor"],
            m["megabytes"],
            "",
            goals.of_row("start", found, method),
        )
        for method, m in found["methods"].items()
    ]
    ours = found["methods"]["xmin"]
    for name, m in found["peers"].items():
        figures = ["", "", "", ""]
        if "changed_seconds" in m:
            nothing, changed = m["nothing_seconds"], m["changed_seconds"]
            figures = [
                f"{nothing} ({nothing / ours['nothing_seconds']:.1f} × ours)",
                f"{changed} ({changed / ours['changed_seconds']:.1f} × ours)",
                m["changed_processor"],
                m["megabytes"],
            ]
        rows.append((name, *figures, m["note"], ""))
    profiles = "".join(_profile(p, name) for name, p in found.get("profiles", {}).items())
    return (
        f"## `sync --once`, from the start of the process to the commit\n\nA table of {found['rows']:,} events; "
        f"{found['changed']:,} changed rows, or none; medians of {found['rounds']} rounds, in each of which everybody "
        "brought the same change after our `xmin`.\n\n"
        + _table(
            ("", "nothing to do, s", "changed rows, s", "processor, s", "peak memory, MB", "seen", "goals"),
            rows,
        )
        + profiles
    )


def _windows(found: dict[str, Any]) -> str:
    rows = [
        (
            method,
            m["empty_ms"],
            m["changed_ms"],
            m["capture_ms"],
            m["megabytes"],
            goals.of_row("windows", found, method),
        )
        for method, m in found["methods"].items()
    ]
    baseline = found["transactions"]["no capture"]
    return (
        f"## A window of a running worker\n\n{found['changed']:,} changed rows in {found['rows']:,}, from the claim to "
        "the acknowledged landing.\n\n"
        + _table(
            ("method", "empty, ms", "changed rows, ms", "of which capture, ms", "read at the source, MB", "goals"), rows
        )
        + "\nWhat the source pays, in transactions a second of pgbench (random updates, four clients):\n\n"
        + _table(
            ("", "transactions/s", "of no capture"),
            [(k, round(v), f"{v / baseline:.2f}") for k, v in found["transactions"].items()],
        )
        + "".join(
            _steps(f"a window by {method}, {kind}", steps)
            for method, of in found.get("profiles", {}).items()
            for kind, steps in of.items()
        )
    )


def _steps(what: str, steps: Sequence[Mapping[str, Any]]) -> str:
    return f"\n### A goal is missed: where the time goes, {what}\n\n" + _table(
        ("step", "on the clock, ms", "processor, ms", "times"),
        [(s["step"], f"{s['seconds'] * 1e3:.1f}", f"{s['processor'] * 1e3:.1f}", f"{s['calls']:g}") for s in steps],
    )


def _freshness(found: dict[str, Any]) -> str:
    rows = [
        (
            method,
            m["probes"],
            m["p50"],
            m["p99"],
            m["longest"],
            f"{m['slowest_table']}: {m['slowest_p99']}",
            goals.of_row("freshness", found, method),
        )
        for method, m in found["methods"].items()
    ]
    parts = [
        f"## Freshness\n\nFrom a commit in PostgreSQL to a landing that is acknowledged: ten tables of one "
        f"organization ({found['rows']:,} rows) at a cadence of 1 s, pgbench beside it, {found['seconds']} s.\n\n",
        _table(("method", "probes", "p50, s", "p99, s", "longest, s", "slowest table, p99", "goals"), rows),
        "\n![share of commits that had landed](pictures/freshness.svg)\n",
    ]
    if goals.missed("freshness", found):
        parts.append("\n### A goal is missed: where the time goes\n\nUnits of work as the program reported them:\n\n")
        parts.append(
            _table(
                ("method", "unit", "count", "p50, ms", "p99, ms", "all, s"),
                [
                    (method, unit, u["count"], u["p50"], u["p99"], u["seconds"])
                    for method, m in found["methods"].items()
                    for unit, u in m["units"].items()
                ],
            )
        )
        for method, m in found["methods"].items():
            spent = ", ".join(f"{what} {s:.0f} s" for what, s in m["machine"].items() if what != "seconds")
            parts.append(f"\nProcessor time of the machine in {m['machine']['seconds']:.0f} s by {method}: {spent}.\n")
    return "".join(parts)


def _deliver(found: dict[str, Any]) -> str:
    rows = [(kind, k["rows_per_second"], k.get("megabytes", "")) for kind, k in found["kinds"].items()]
    return (
        f"## Delivery\n\n{found['rows']:,} events from the lake into an empty destination, from the start of the "
        "program; beside it `COPY FROM` of the same rows into a bare table, and DuckDB writing them to one "
        "local file.\n\n" + _table(("", "rows/s", "peak memory, MB"), rows)
    )


def _archive(found: dict[str, Any]) -> str:
    speed, price = found["speed"], found["price"]
    rows = [
        (
            f"**{goals.ARCHIVED}**, with proof, tombstones and receipts",
            speed["archived_per_second"],
            f"{speed['ratio']:.2f}",
            goals.of_row("archive", found, goals.ARCHIVED),
        ),
        ("`DELETE … RETURNING id`", speed["deleted_per_second"], "1.00", ""),
    ]
    marks = [
        (
            m["lake_rows"],
            m["files"],
            m["files_read"],
            m["read_us"],
            m["proof_us"],
            goals.of_row("archive", found, f"{m['lake_rows']:,} rows"),
        )
        for m in price["marks"]
    ]
    recalled = [
        (
            label,
            price["recall"][name]["seconds"],
            price["recall"][name]["processor"],
            price["recall"][name]["megabytes"],
            goals.of_row("archive", found, goals.RECALLED) if name == "with_tombstone" else "",
        )
        for name, label in (
            ("with_tombstone", f"**{goals.RECALLED}**, its tombstone at hand"),
            ("without_tombstone", "looked for in the whole table"),
        )
    ]
    return (
        f"## The cold tier\n\n{found['rows']:,} events of one organization leave the hot table, in batches of "
        f"{speed['batch_rows']:,}; medians of {found['rounds']} rounds. A batch's transaction took "
        f"{speed['batch_p50_ms']} ms (p50), {speed['batch_p99_ms']} ms (p99), {speed['batch_longest_ms']} ms at most, "
        f"of {speed['batches']}.\n\n"
        + _table(("", "rows/s", "of a plain delete", "goals"), rows)
        + f"\nThe price of proving a row, with {price['candidates']:,} candidates in one read: the hot table gives "
        "key, version and hash; the proof plans, reads and hashes the lake's files.\n\n"
        + _table(("rows in the lake", "files", "files read", "hot, µs a row", "proof, µs a row", "goals"), marks)
        + "\nOne row of the largest of these lakes is brought back by its id: `lakehouse recall --id … --to table`, "
        "from the start of the program to its end.\n\n"
        + _table(("", "s", "s of processor", "peak memory, MB", "goals"), recalled)
    )


def _landings(found: dict[str, Any]) -> str:
    names = {"landing": "landing", "processor": "landing, processor time", "window": "whole window"}
    rows = [
        (label, found[n]["first_ms"], found[n]["last_ms"], found[n]["ratio"], goals.of_row("landings", found, n))
        for n, label in names.items()
    ]
    shape = ("windows", "landing_ms", "snapshots", "manifests", "data_files", "metadata_files")
    head = ("after … windows", "landing, ms", "snapshots", "manifests", "data files", "files in `metadata/`")
    return (
        f"## Landing latency after {found['windows']:,} windows\n\nMedians of the first and of the last "
        f"{found['edge']}, ms; above its goal `make bench` exits with 1.\n\n"
        + _table(("", "first", "last", "ratio", "goals"), rows)
        + "\nA landing after so many windows (the median of the twenty around it):\n\n"
        + _table(head, [[m[name] for name in shape] for m in found["marks"]])
        + ("\n![a landing](pictures/landing.svg)\n![maintenance](pictures/maintenance.svg)\n" if found["curve"] else "")
        + "".join(
            _steps(f"the {where} {found['edge']} windows, one window's share", steps)
            for where, steps in found.get("profiles", {}).items()
        )
    )
