"""What can go wrong between us and a lake, and the one place that translates other libraries' errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import LakehouseError, Retry


class CatalogError(LakehouseError):
    """The Iceberg catalog is not there, refuses, or answers what it should not."""


class StorageError(LakehouseError):
    """The bucket or folder of a lake is not there or refuses."""


class OwnershipError(LakehouseError):
    """A namespace or table is another organization's or another installation's. Nothing is written."""

    retry = Retry.NEVER


_STORAGE_HINTS = (
    (
        ("NO_SUCH_BUCKET", "NoSuchBucket"),
        "Create the bucket, or set LAKEHOUSE_LAKE__WAREHOUSE to one that is there.",
        Retry.MANUAL,
    ),
    (
        ("INVALID_ACCESS_KEY_ID", "InvalidAccessKeyId", "SIGNATURE_DOES_NOT_MATCH", "SignatureDoesNotMatch"),
        "Check LAKEHOUSE_LAKE__S3__ACCESS_KEY_ID and LAKEHOUSE_LAKE__S3__SECRET_ACCESS_KEY.",
        Retry.MANUAL,
    ),
    (
        # Before those who refuse: a quota that is used up comes as a 403 from some servers.
        ("InsufficientStorage", "StorageFull", "QuotaExceeded", "No space left on device", "Disk quota exceeded"),
        "The storage is full: make room or raise the quota. Nothing was lost, and it goes on by itself.",
        Retry.TIMED,
    ),
    (
        ("ACCESS_DENIED", "AccessDenied", "Forbidden", "HTTP response code: 403"),
        "Check LAKEHOUSE_LAKE__S3__ACCESS_KEY_ID and LAKEHOUSE_LAKE__S3__SECRET_ACCESS_KEY; they must allow to read, "
        "list, write and delete below the warehouse prefix.",
        Retry.MANUAL,
    ),
    (
        (
            "NETWORK_CONNECTION",
            "Couldn't connect",
            "Connection refused",
            "curlCode",
            "Timeout",
            "SLOW_DOWN",
            "SERVICE_UNAVAILABLE",
            "INTERNAL_FAILURE",
            "HTTP status 50",
            "HTTP response code: 50",
            # DuckDB's own words for a connection that did not come about.
            "error for HTTP",
        ),
        "The storage does not answer, or is in trouble: check LAKEHOUSE_LAKE__S3__ENDPOINT and the network. "
        "Nothing was lost.",
        Retry.TIMED,
    ),
)


@contextmanager
def lake_errors(where: str) -> Iterator[None]:
    """Translate storage and catalog errors raised inside into ours; `where` names the lake or table.

    Errors of a commit are not for this: `CommitFailedException` and an unknown outcome mean something.
    """
    from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException, NoSuchTableError
    from pyiceberg.exceptions import ValidationError as IcebergValidationError

    try:
        yield
    except (LakehouseError, CommitFailedException, CommitStateUnknownException, NoSuchTableError):
        raise
    except _catalog_database_errors() as error:
        raise CatalogError(
            f"{where}: the catalog's database fails: {_first_line(getattr(error, 'orig', None) or error)}",
            "Check LAKEHOUSE_LAKE__CATALOG__URI and that the database answers.",
            retry=Retry.TIMED,
        ) from error
    except OSError as error:
        raise storage_error(where, error) from error
    except (ValueError, TypeError, LookupError, EOFError, AssertionError, IcebergValidationError) as error:
        # What readers of metadata and manifests raise over a file that is not one.
        raise CatalogError(
            f"{where}: its metadata cannot be read: {type(error).__name__}: {_first_line(error)}",
            "A metadata or manifest file is damaged: bring it back from the bucket's versions. Nothing was written.",
        ) from error


def _catalog_database_errors() -> tuple[type[Exception], ...]:
    # A process that never loaded SQLAlchemy (it only writes files) meets none of its errors.
    loaded = sys.modules.get("sqlalchemy.exc")
    return (loaded.SQLAlchemyError,) if loaded is not None else ()


def storage_error(where: str, error: OSError) -> StorageError:
    """Our error for a file system's, with the remedy that fits it."""
    text = str(error)
    for marks, hint, retry in _STORAGE_HINTS:
        if any(mark in text for mark in marks):
            return StorageError(f"{where}: {_first_line(error)}", hint, retry=retry)
    return StorageError(f"{where}: {_first_line(error)}", "Look at the storage's own message above.")


def _first_line(error: object) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:400]
