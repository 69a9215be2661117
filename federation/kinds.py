"""The kinds of destination, and the states that a destination and a delivery can be in."""

from __future__ import annotations

from enum import StrEnum


class DestinationKind(StrEnum):
    """Where an organization can have its tables."""

    SNOWFLAKE = "SNOWFLAKE"
    BIGQUERY = "BIGQUERY"
    DATABRICKS = "DATABRICKS"
    ICEBERG_S3 = "ICEBERG_S3"
    PARQUET_S3 = "PARQUET_S3"
    JSONL_S3 = "JSONL_S3"
    POSTGRES_REPLICA = "POSTGRES_REPLICA"


class DestinationStatus(StrEnum):
    """Whether deliveries are made."""

    ACTIVE = "active"
    PAUSED = "paused"
    ERROR = "error"


class DeliveryStatus(StrEnum):
    """The states of an outbox row, as the host names them."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    DEAD_LETTER = "DEAD_LETTER"
