"""Figures for Prometheus: counted from this process's events, and read from the control tables when asked.

What happened here (rows, failures, milliseconds) is this process's own; how things stand (lag, open deliveries,
snapshots kept) is the installation's, the same whichever program is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from lakehouse.control.models import Cursor, Lake, TableStatistics, Task, WarehouseDelivery, Worker
from lakehouse.outbox.lease import seconds
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric
    from sqlalchemy import Engine

    from lakehouse.observe.events import Events

UNIT_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


def count_events(events: Events, registry: CollectorRegistry) -> None:
    """Count every event of this process from now on."""
    from prometheus_client import Counter, Histogram

    units = Counter("lakehouse_units", "Units of work by kind and outcome.", ["unit", "outcome"], registry=registry)
    took = Histogram(
        "lakehouse_unit_seconds", "How long units of work took.", ["unit"], registry=registry, buckets=UNIT_SECONDS
    )
    rows = Counter("lakehouse_landed_rows", "Rows landed.", ["table", "op"], registry=registry)
    size = Counter("lakehouse_landed_bytes", "Bytes of landed data files.", ["table"], registry=registry)
    archived = Counter(
        "lakehouse_archived_rows", "Rows that left the hot database for the lake.", ["table"], registry=registry
    )
    failures = Counter("lakehouse_failures", "Units that failed, by table.", ["unit", "table"], registry=registry)
    losses = Counter("lakehouse_lease_losses", "Leases of this process that others took over.", registry=registry)

    def sink(event: dict[str, Any]) -> None:
        kind, outcome = event["event"], event.get("outcome", "ok")
        units.labels(kind, outcome).inc()
        if "milliseconds" in event:
            took.labels(kind).observe(event["milliseconds"] / 1000)
        if outcome == "error":
            failures.labels(kind, event.get("table", "")).inc()
        if kind == "lease_lost":
            losses.inc()
        if kind == "archive_batch":
            archived.labels(event["table"]).inc(event["rows"])
        if kind == "landing" and outcome == "ok":
            rows.labels(event["table"], "upsert").inc(event["rows"])
            rows.labels(event["table"], "delete").inc(event["deletes"])
            size.labels(event["table"]).inc(event["bytes"])

    events.add(sink)


class Standing:
    """A collector: how the installation stands, read when Prometheus asks."""

    def __init__(self, engine: Engine, lease_seconds: float) -> None:
        self.engine = engine
        self.alive_seconds = 3 * lease_seconds

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's custom collectors."""
        from prometheus_client.core import GaugeMetricFamily

        age = func.extract("epoch", func.clock_timestamp() - Cursor.captured_at)
        lag = GaugeMetricFamily(
            "lakehouse_lag_seconds", "Age of what the lake shows.", labels=["organization", "table"]
        )
        failing = GaugeMetricFamily(
            "lakehouse_failing", "Organizations whose capture fails or is stopped.", labels=["table"]
        )
        open_ = GaugeMetricFamily("lakehouse_deliveries", "Deliveries that are not delivered.", labels=["status"])
        kept = GaugeMetricFamily(
            "lakehouse_snapshots_kept", "Snapshots in a lake table.", labels=["organization", "table"]
        )
        # A gauge: rows of the outbox are pruned, and their share with them.
        taken = GaugeMetricFamily(
            "lakehouse_takeovers", "Leases that ran out and were taken over, of rows that are kept.", labels=["of"]
        )
        workers = GaugeMetricFamily("lakehouse_workers", "Programs whose heartbeat is there.", labels=["role"])
        with self.engine.connect() as connection:
            row: Any
            captured = select(Lake.organization_id).where(Lake.stopped_at.is_(None))
            for row in connection.execute(
                select(Cursor.organization_id, Cursor.table_name, age.label("age")).where(
                    Cursor.organization_id.in_(captured)
                )
            ):
                lag.add_metric([row.organization_id, row.table_name], float(row.age))
            for row in connection.execute(
                select(Cursor.table_name, func.count().filter(Cursor.last_error.is_not(None)).label("n")).group_by(
                    Cursor.table_name
                )
            ):
                failing.add_metric([row.table_name], row.n)
            for row in connection.execute(
                select(WarehouseDelivery.status, func.count().label("n"))
                .where(WarehouseDelivery.status != "DELIVERED")
                .group_by(WarehouseDelivery.status)
            ):
                open_.add_metric([row.status], row.n)
            for row in connection.execute(
                select(TableStatistics.organization_id, TableStatistics.table_name, TableStatistics.snapshots)
            ):
                kept.add_metric([row.organization_id, row.table_name], row.snapshots)
            taken.add_metric(["task"], connection.scalar(select(func.coalesce(func.sum(Task.takeovers), 0))) or 0)
            taken.add_metric(
                ["delivery"], connection.scalar(select(func.coalesce(func.sum(WarehouseDelivery.takeovers), 0))) or 0
            )
            alive = Worker.seen_at > func.clock_timestamp() - seconds(self.alive_seconds)
            for row in connection.execute(
                select(Worker.role, func.count().label("n")).where(alive).group_by(Worker.role)
            ):
                workers.add_metric([row.role], row.n)
        yield from (lag, failing, open_, kept, taken, workers)


def serve(listen: str, engine: Engine, events: Events, lease_seconds: float) -> tuple[str, Any]:
    """Answer Prometheus at `host:port`, from a thread. Returns the URL and the server, to be shut down.

    Raises:
        LakehouseError: the port is taken.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    count_events(events, registry)
    registry.register(Standing(engine, lease_seconds))
    host, _, port = listen.rpartition(":")
    try:
        server, _ = start_http_server(int(port), addr=host, registry=registry)
    except OSError as error:
        raise LakehouseError(
            f"metrics cannot be served at {listen}: {error.strerror}",
            "Another program has the port: set LAKEHOUSE_METRICS__LISTEN to another, or to nothing.",
        ) from error
    return f"http://{host}:{server.server_port}/metrics", server
