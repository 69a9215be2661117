"""docs/benchmarks.md and its pictures, out of docs/benchmarks.json: no figure in it is written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tests.bench.world import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"
PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT, EDGE = 640, 240, 48
COLOURS = ("#2563eb", "#d97706", "#059669")

Points = Sequence[tuple[float, float]]


def write(figures: dict[str, Any]) -> None:
    """Write the document and the picture of each curve."""
    PICTURES.mkdir(exist_ok=True)
    if curve := figures.get("landings", {}).get("curve"):
        landing = [(c["windows"], c["landing_ms"]) for c in curve]
        upkeep = [(c["windows"], c["maintenance_s"]) for c in curve]
        (PICTURES / "landing.svg").write_text(picture({"a landing (ms)": landing}, "windows"))
        (PICTURES / "maintenance.svg").write_text(picture({"a run of maintenance (s)": upkeep}, "windows"))
    DOCUMENT.write_text(text(figures))


def text(figures: dict[str, Any]) -> str:
    """The whole document."""
    parts = [
        "# Benchmarks\n\nWritten by `make bench` from [benchmarks.json](benchmarks.json); nothing is typed by hand. "
        '`ARGS="--only PART"` measures one part again and keeps the others\' last figures, `--rows` and `--rounds` '
        "shorten it, `--postgres URL` uses a server of yours. How each figure is taken stands at the head of its "
        "module in `tests/bench`.\n"
    ]
    for name, render in (
        ("backfill", _backfill),
        ("start", _start),
        ("windows", _windows),
        ("freshness", _freshness),
        ("deliver", _deliver),
        ("landings", _landings),
    ):
        if found := figures.get(name):
            parts.append(f"{render(found)}\n{_where(found['machine'], name)}")
    return "\n".join(parts)


def _where(machine: dict[str, Any], name: str) -> str:
    return (
        f'`make bench ARGS="--only {name}"`, {machine["date"]}: {machine["cores"]} cores, {machine["gigabytes"]} GB, '
        f"{machine['system']}, Python {machine['python']}, PostgreSQL {machine['postgresql']}; servers, programs and "
        "workload share them.\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(_cell(c) for c in line) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _backfill(found: dict[str, Any]) -> str:
    drain = found["drain"]
    rows: list[Sequence[Any]] = [
        ("one connection of `COPY … TO STDOUT (FORMAT binary)`", drain, "1.00", "", ""),
        ("two connections, half of the table each", found["drain_two"], f"{found['drain_two'] / drain:.2f}", "", ""),
    ]
    for form, f in found["forms"].items():
        table, count = form.split()
        what = "unpartitioned" if table.endswith("flat") else "by day"
        who = "one organization" if count == "1" else f"{count} organizations"
        rows.append(
            (
                f"`lakehouse backfill`, {what}, {who}",
                f["rows_per_second"],
                f"{f['ratio']:.2f}",
                f["processor_us"],
                f["megabytes"],
            )
        )
    return (
        f"## Backfill\n\n{found['rows']:,} events of {found['row_bytes']} bytes in the table, from the start of the "
        f"program to the commit; medians of {found['rounds']} rounds; the lake was compared with the "
        "table afterwards and is equal. Goals: 1.0 of one connection by day, 4 µs of processor a row, 600 MB for the "
        "whole process tree.\n\n"
        + _table(("", "rows/s", "of the drain", "processor, µs a row", "peak memory, MB"), rows)
    )


def _start(found: dict[str, Any]) -> str:
    rows = [
        (method, m["nothing_seconds"], m["changed_seconds"], m["changed_processor"], m["megabytes"])
        for method, m in found["methods"].items()
    ]
    return (
        f"## `sync --once`, from the start of the process to the commit\n\nA table of {found['rows']:,} events; "
        f"{found['changed']:,} changed rows, or none. Goals: 0.4 s with nothing to do, 1.8 s with 10,000 rows.\n\n"
        + _table(("method", "nothing to do, s", "changed rows, s", "processor, s", "peak memory, MB"), rows)
    )


def _windows(found: dict[str, Any]) -> str:
    rows = [
        (method, m["empty_ms"], m["changed_ms"], m["capture_ms"], m["megabytes"])
        for method, m in found["methods"].items()
    ]
    return (
        f"## A window of a running worker\n\n{found['changed']:,} changed rows in {found['rows']:,}. Goals: an empty "
        "window under 50 ms, one with 10,000 rows committed in under 0.4 s.\n\n"
        + _table(("method", "empty, ms", "changed rows, ms", "of which capture, ms", "pages looked at, MB"), rows)
        + "\nWhat the source pays, in transactions a second of pgbench (random updates, four clients):\n\n"
        + _table(("", "transactions/s"), [(k, round(v)) for k, v in found["transactions"].items()])
    )


def _freshness(found: dict[str, Any]) -> str:
    rows = [
        (method, m["probes"], m["p50"], m["p99"], m["longest"], f"{m['slowest_table']}: {m['slowest_p99']}")
        for method, m in found["methods"].items()
    ]
    return (
        f"## Freshness\n\nFrom a commit in PostgreSQL to a landing that is acknowledged: ten tables of one "
        f"organization ({found['rows']:,} rows) at a cadence of 1 s, pgbench beside it, {found['seconds']} s. "
        "Goal: p99 under 2 s.\n\n"
        + _table(("method", "probes", "p50, s", "p99, s", "longest, s", "slowest table, p99"), rows)
    )


def _deliver(found: dict[str, Any]) -> str:
    rows = [(kind, k["rows_per_second"], k.get("megabytes", "")) for kind, k in found["kinds"].items()]
    return (
        f"## Delivery\n\n{found['rows']:,} events from the lake into an empty destination, from the start of the "
        "program; beside it `COPY FROM` of the same rows into a bare table, and DuckDB writing them to one "
        "local file.\n\n" + _table(("", "rows/s", "peak memory, MB"), rows)
    )


def _landings(found: dict[str, Any]) -> str:
    names = {"landing": "landing", "processor": "landing, processor time", "window": "whole window"}
    rows = [(label, found[n]["first_ms"], found[n]["last_ms"], found[n]["ratio"]) for n, label in names.items()]
    head = ("windows", "landing, ms", "snapshots", "manifests", "data files", "files in `metadata/`", "maintenance, s")
    curve = [
        (
            c["windows"],
            c["landing_ms"],
            c["snapshots"],
            c["manifests"],
            c["data_files"],
            c["metadata_files"],
            c["maintenance_s"],
        )
        for c in found["curve"]
    ]
    return (
        f"## Landing latency after {found['windows']:,} windows\n\nMedians of the first and of the last "
        f"{found['edge']}, ms. Goal: a ratio of at most 1.2; above it `make bench` exits with 1.\n\n"
        + _table(("", "first", "last", "ratio"), rows)
        + "\n"
        + _table(head, curve)
        + "\n![a landing](pictures/landing.svg)\n![a run of maintenance](pictures/maintenance.svg)\n"
    )


def picture(lines: dict[str, Points], along: str) -> str:
    """An SVG of lines over one axis, both axes from zero."""
    most_x = max(x for points in lines.values() for x, _ in points)
    most_y = max(y for points in lines.values() for _, y in points) * 1.1

    def place(x: float, y: float) -> str:
        right, up = (WIDTH - 2 * EDGE) * x / most_x, (HEIGHT - 2 * EDGE) * y / most_y
        return f"{EDGE + right:.1f},{HEIGHT - EDGE - up:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<polyline points="{place(0, most_y)} {place(0, 0)} {place(most_x, 0)}" fill="none" stroke="#475569"/>',
        f'<text x="{WIDTH - EDGE}" y="{HEIGHT - EDGE + 32}" text-anchor="end">{along}</text>',
    ]
    for share in (0.25, 0.5, 0.75, 1.0):
        x, y = place(most_x * share, 0).split(",")
        parts.append(_mark(float(x), float(y) + 16, "middle", most_x * share))
        x, y = place(0, most_y * share).split(",")
        parts.append(_mark(float(x) - 6, float(y) + 4, "end", most_y * share))
    for number, (label, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{EDGE + 8}" y="{EDGE - 16 + 16 * number}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _mark(x: float, y: float, anchor: str, value: float) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{value:,.0f}</text>'
