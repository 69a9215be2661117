"""`lakehouse lake retention set`, `clear`, `list`, `plan` and `apply`."""

from __future__ import annotations

import dataclasses
from contextlib import closing, contextmanager
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import JsonFlag, print_json, size, stderr, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lakehouse.app import App
    from lakehouse.retention.plan import Day, TablePlan
    from lakehouse.retention.policy import LakeRetention

retention_app = typer.Typer(no_args_is_help=True, help="The lake's own end of life; none unless a person sets it.")
Organization = Annotated[str, typer.Option("--organization", "-o", help="Whose lake (id or slug).")]
Reason = Annotated[str, typer.Option("--reason", help="Why; the audit and the lake keep it.")]
By = Annotated[str | None, typer.Option("--by", help="Who decides. Default: this system's user; the audit keeps it.")]


def register(lake_app: typer.Typer) -> None:
    lake_app.add_typer(retention_app, name="retention")


@contextmanager
def _of(organization: str) -> Iterator[tuple[App, str]]:
    from lakehouse.cli.capture import open_app
    from lakehouse.query import find_tenant, tenants

    with closing(open_app()) as app:
        yield app, find_tenant(tenants(app), organization).organization


@retention_app.command("set")
def set_retention(
    organization: Organization,
    years: Annotated[int, typer.Option("--years", help="After so many years of event time a day leaves the lake.")],
    reason: Reason,
    by: By = None,
    as_json: JsonFlag = False,
) -> None:
    """Say for how many years an organization's rows stay in its lake. Nothing leaves before `lake retention apply`."""
    from lakehouse.operator import operator
    from lakehouse.retention import policy

    with _of(organization) as (app, of):
        _say(policy.set_retention(app, of, years, reason=reason, by=operator(by)), "from now on", as_json=as_json)


@retention_app.command("clear")
def clear(organization: Organization, reason: Reason, by: By = None, as_json: JsonFlag = False) -> None:
    """From now on an organization's rows stay in its lake for ever."""
    from lakehouse.operator import operator
    from lakehouse.retention import policy

    with _of(organization) as (app, of):
        _say(policy.clear_retention(app, of, reason=reason, by=operator(by)), "until now", as_json=as_json)


def _say(found: LakeRetention, when: str, *, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        stdout.print(f"organization {found.organization}: {found.years} years in the lake, {when}", markup=False)


@retention_app.command("list")
def list_retentions(as_json: JsonFlag = False) -> None:
    """Every organization that has a lake retention; the others' rows stay for ever."""
    from lakehouse.cli.capture import open_app
    from lakehouse.retention.policy import retentions

    with closing(open_app()) as app:
        found = list(retentions(app).values())
    if as_json:
        print_json([dataclasses.asdict(r) for r in found])
        return
    columns = ("organization", "years", "changed by", "changed at", "reason")
    rows = [(r.organization, r.years, r.changed_by, r.changed_at, r.reason) for r in found]
    stdout.print(table("", columns, rows, numbers=("years",)))


@retention_app.command("plan")
def plan(organization: Organization, as_json: JsonFlag = False) -> None:
    """What `apply` would take from an organization's lake, what stays and why, and until when it can still be read."""
    from lakehouse.retention.plan import plan as make
    from lakehouse.retention.policy import retentions

    with _of(organization) as (app, of):
        policy = retentions(app).get(of)
        plans = make(app, of)
    if as_json:
        print_json({"policy": dataclasses.asdict(policy) if policy else None, "tables": [_json(p) for p in plans]})
    elif policy is None:
        stdout.print(f"organization {of} has no lake retention: its rows stay in the lake for ever", markup=False)
    else:
        stdout.print(f"organization {of}: {policy.years} years ({policy.reason})", markup=False)
        columns = ("table", "days before", "days", "from", "to", "versions", "bytes")
        rows = [(p.table, p.before, len(p.ends), *_span(p.ends), p.versions, size(p.bytes)) for p in plans]
        stdout.print(table("would leave the lake", columns, rows, numbers=("days", "versions", "bytes")))
        for p in plans:
            _show_rest(p)
    _fail([(p.table, p.error) for p in plans])


@retention_app.command("apply")
def apply(organization: Organization, reason: Reason, by: By = None, as_json: JsonFlag = False) -> None:
    """Let the days leave the lake that `plan` shows. Each is recorded in the lake first, with a digest of its content.

    Exit 1 if a table is in error; the others are done.
    """
    from lakehouse.operator import operator
    from lakehouse.retention.apply import apply as let_go

    with _of(organization) as (app, of):
        results = let_go(app, of, reason=reason, by=operator(by))
    if as_json:
        shown = [
            {
                "table": r.table,
                "days": [dataclasses.asdict(d) for d in r.days],
                "kept": _kept(r.plan) if r.plan else {},
                "readable_until": r.plan.readable_until if r.plan and r.days else None,
                "error": r.error.detail if r.error else None,
            }
            for r in results
        ]
        print_json({"organization": of, "tables": shown})
    else:
        columns = ("table", "days", "from", "to", "versions", "rows")
        rows = [
            (
                r.table, len(r.days), min((d.day for d in r.days), default=None),
                max((d.day for d in r.days), default=None), sum(d.versions for d in r.days), r.rows,
            )
            for r in results
        ]  # fmt: skip
        stdout.print(table("left the lake", columns, rows, numbers=("days", "versions", "rows")))
        for r in results:
            if r.plan is not None:
                _show_rest(r.plan)
    _fail([(r.table, r.error) for r in results])


def _span(days: Sequence[Day]) -> tuple[date | None, date | None]:
    return (days[0].date, days[-1].date) if days else (None, None)


def _kept(found: TablePlan) -> dict[str, list[str]]:
    return {reason: [d.date.isoformat() for d in days] for reason, days in found.kept.items()}


def _json(found: TablePlan) -> dict[str, Any]:
    return {
        "table": found.table,
        "before": found.before,
        "days": [{"day": d.date, "versions": d.versions, "bytes": d.bytes} for d in found.ends],
        "kept": _kept(found),
        "readable_until": found.readable_until,
        "tags": list(found.tags),
        "destinations": list(found.destinations),
        "error": found.error.detail if found.error else None,
    }


def _show_rest(found: TablePlan) -> None:
    for reason, days in found.kept.items():
        first, last = _span(days)
        stdout.print(
            f"{found.table}: {len(days):,} days stay ({first} to {last}): {reason}", markup=False, soft_wrap=True
        )
    if not found.ends:
        return
    if found.readable_until is not None:
        tags = f"; those with a tag as long as it is there: {', '.join(found.tags)}" if found.tags else ""
        stdout.print(
            f"{found.table}: older snapshots show the rows until {found.readable_until:%Y-%m-%d} UTC at most{tags}",
            markup=False,
            soft_wrap=True,
        )
    if found.destinations:
        stdout.print(
            f"{found.table}: destinations keep what they have until filled anew: {', '.join(found.destinations)}",
            markup=False,
            soft_wrap=True,
        )


def _fail(errors: Sequence[tuple[str, LakehouseError | None]]) -> None:
    for name, error in errors:
        if error is not None:
            stderr.print(f"error: {name}: {error.detail}\n  {error.hint}", markup=False, soft_wrap=True)
    if any(error is not None for _, error in errors):
        raise typer.Exit(1)
