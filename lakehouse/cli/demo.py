"""`lakehouse demo`."""

from __future__ import annotations

import shlex
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from lakehouse.cli.output import stderr, stdout

if TYPE_CHECKING:
    from lakehouse.demo.environment import World
    from lakehouse.demo.run import DemoReport


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    rows: Annotated[int, typer.Option(min=1000, help="About how many rows to seed.")] = 200_000,
    organizations: Annotated[int, typer.Option(min=1, max=20, help="How many organizations.")] = 3,
    run: Annotated[
        bool,
        typer.Option(
            "--run", help="Three programs at a cadence of 2 s, killed every few seconds, without the bucket for 10 s."
        ),
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="How long windows run under the workload. Default: 40; 60 with --run.")
    ] = None,
    rate: Annotated[int, typer.Option(min=1, help="Transactions a second of the workload, about.")] = 150,
    seed: Annotated[int, typer.Option(help="Seed of the data and of the workload.")] = 1,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running until Ctrl-C, and say how to reach it.")
    ] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write all figures to this file, as JSON.")] = None,
) -> None:
    """From an empty PostgreSQL to Iceberg on S3 under a live workload, then proof that both hold the same."""
    from lakehouse.demo.environment import open_world
    from lakehouse.demo.run import DemoOptions, run_demo
    from lakehouse.demo.unrest import UnrestOptions, run_unrest

    if report is not None and not report.resolve().parent.is_dir():
        raise typer.BadParameter(f"no folder {report.resolve().parent}", param_hint="--report")
    began = time.monotonic()

    def say(line: str) -> None:
        stderr.print(f"{time.monotonic() - began:6.1f} s  {line}", markup=False, soft_wrap=True)

    say("starting PostgreSQL and an S3 server")
    with open_world() as world:
        length = seconds or (60.0 if run else 40.0)
        options = DemoOptions(rows=rows, organizations=organizations, seconds=length, rate=rate, seed=seed)
        result = run_unrest(world, options, UnrestOptions(), say) if run else run_demo(world, options, say)
        _show(result)
        if report is not None:
            _write(result, report)
        if keep:
            _keep(world, result)
    if not result.proven:
        raise typer.Exit(1)


def _show(result: DemoReport) -> None:
    from lakehouse.cli.deliver import parity_table
    from lakehouse.cli.read import comparison_table
    from lakehouse.demo.picture import fleet_table, picture

    stdout.print()
    stdout.print(picture(result))
    stdout.print()
    if result.fleet is not None:
        stdout.print(fleet_table(result.fleet))
        stdout.print()
    stdout.print(comparison_table(result.equality, result.labels))
    for comparison in result.equality:
        for difference in comparison.differences:
            stdout.print(f"{comparison.table}: {difference}", markup=False)
    stdout.print()
    stdout.print(parity_table(result.parity))
    if (r := result.retention) is not None:
        stdout.print(
            f"\n{r.rows:,} rows older than {r.days} days left the hot database in {r.batches} batches, the longest "
            f"{r.slowest_batch_seconds:.2f} s; {r.receipts} receipts verified, {r.rows_proven_again:,} rows proven; "
            "one altered file refused, one held finding kept, then archived and recalled",
            soft_wrap=True,
        )
    stdout.print(
        f"\nthe destinations equal the lake in {result.delivered} of {len(result.parity)} tables",
    )
    stdout.print(
        f"the lake equals the hot database in {result.equal} of {len(result.equality)} tables; "
        f"{result.seconds['total']:.0f} s in all"
    )


def _write(result: DemoReport, path: Path) -> None:
    import json

    path.write_text(json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    stdout.print(f"figures: {path}", markup=False)


def _keep(world: World, result: DemoReport) -> None:
    for line in reach(world, next(iter(result.labels.values()))):
        stdout.print(line, markup=False, soft_wrap=True, verbatim=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def reach(world: World, organization: str) -> list[str]:
    """Lines to paste into another terminal: lakehouse, psql, DuckDB, pyiceberg."""
    from catalog.lake import encode_organization
    from lakehouse.app import App
    from lakehouse.duck import EXTENSIONS, extension_path
    from lakehouse.query import find_tenant, tenants

    app = App(world.settings())
    tenant = find_tenant(tenants(app), organization)
    table = app.catalog.load_table((encode_organization(tenant.organization), "findings"))
    hot = urlsplit(world.hot_url)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in world.variables().items()]
    properties = {"uri": app.address.uri, **app.address.storage}
    app.close()
    return [
        "\neverything is running until Ctrl-C. In another terminal, in this folder:",
        "\n# lakehouse",
        *exports,
        'export PATH="$PWD/.venv/bin:$PATH"',
        "lakehouse status",
        f"lakehouse query --organization {organization} 'SELECT severity, count(*) FROM findings GROUP BY 1'",
        "\n# PostgreSQL",
        f"export PGHOST={hot.hostname} PGPORT={hot.port} PGUSER={hot.username} "
        f"PGPASSWORD={shlex.quote(hot.password or '')} PGDATABASE={hot.path.strip('/')}",
        "psql -c 'SELECT count(*) FROM ingested_events'",
        "\n# DuckDB, in .venv/bin/python (the path is the table's newest metadata; another landing makes a newer one)",
        "import duckdb; db = duckdb.connect()",
        *[f"db.execute(\"LOAD '{extension_path(name)}'\")" for name in EXTENSIONS],
        f"db.execute(\"CREATE SECRET (TYPE s3, KEY_ID '{world.s3.access_key}', SECRET '{world.s3.secret_key}', "
        f"ENDPOINT '{urlsplit(world.s3.endpoint).netloc}', REGION '{world.s3.region}', "
        "USE_SSL false, URL_STYLE 'path')\")",
        f"db.sql(\"SELECT count(*) FROM iceberg_scan('{table.metadata_location}')\")",
        "\n# pyiceberg, in .venv/bin/python",
        "from pyiceberg.catalog.sql import SqlCatalog",
        f"catalog = SqlCatalog({app.address.name!r}, **{properties!r})",
        f"catalog.load_table({'.'.join(table.name())!r}).scan(limit=3).to_arrow()",
    ]
