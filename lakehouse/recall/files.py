"""Recalled rows as a file, with a manifest beside it: both whole, or neither.

On a disk the file is written under a temporary name in its own folder and linked to its name when all of it is there;
in a bucket an object appears whole by itself. The manifest comes last: a file without one does not count. What is there
already is never replaced.

Rows are in order of their keys' bytes, so the same recall of the same snapshot gives the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from lakehouse.archive.records import ContentDigest
from lakehouse.duck import quoted
from lakehouse.landing.parquet import HashingStream, row_groups
from lakehouse.recall.request import RecallError, Target
from lakehouse.recall.select import HASH, Chosen
from lakehouse.recall.text import csv_header, csv_line, json_line
from lakehouse.spill import spill_folder
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry
from schemas.lake_columns import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from lakehouse.app import App

MANIFEST = ".manifest.json"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True)
class Written:
    """A file that is complete, and not yet under its name."""

    rows: int
    content_sha256: str
    sha256: str
    bytes: int


class Place(Protocol):
    """Where a file and its manifest go."""

    name: str

    def check(self) -> None:
        """Nothing is there yet, and it can be written to.

        Raises:
            RecallError: something is.
            LakehouseError: the storage does not answer or refuses.
        """
        ...

    def draft(self) -> contextlib.AbstractContextManager[BinaryIO]:
        """A file to write to; what is not published is gone when this ends."""
        ...

    def publish(self, manifest: bytes) -> None:
        """Put the draft and then its manifest under their names.

        Raises:
            RecallError: somebody else wrote there meanwhile.
            LakehouseError: the storage does not answer or refuses.
        """
        ...


def place_of(app: App, output: str) -> Place:
    """A path of this machine, or an object in the operator's bucket, with the default lake's credentials.

    Raises:
        RecallError: it is no such place, or lies within a lake.
    """
    if "://" not in output:
        return LocalPlace(Path(output))
    if not output.startswith("s3://") or len(output.removeprefix("s3://").split("/", 1)) < 2 or output.endswith("/"):
        raise RecallError(f"--output {output}: is neither a path nor s3://bucket/name")
    for warehouse in {address.warehouse for address in app.addresses_of(app.enrolled())} | {app.address.warehouse}:
        if output.startswith(f"{warehouse}/"):
            raise RecallError(f"--output {output}: lies within a lake", "Maintenance would remove it: choose another.")
    return BucketPlace(output, dict(app.address.storage))


class LocalPlace:
    """See `Place`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.name = str(path)
        self._manifest = self.path.with_name(self.path.name + MANIFEST)
        self._draft = Path()

    def check(self) -> None:
        if not self.path.parent.is_dir():
            raise RecallError(f"--output {self.name}: there is no folder {self.path.parent}")
        for path in (self.path, self._manifest):
            if path.exists() or path.is_symlink():
                raise _there(str(path))

    @contextlib.contextmanager
    def draft(self) -> Iterator[BinaryIO]:
        with _disk(self.name):
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        self._draft = Path(name)
        try:
            with _disk(self.name), os.fdopen(handle, "wb") as file:
                yield file
        finally:
            self._draft.unlink(missing_ok=True)

    def publish(self, manifest: bytes) -> None:
        with _disk(self.name):
            _link(self._draft, self.path)
            written = self._draft.with_name(self._draft.name + MANIFEST)
            try:
                with written.open("xb") as file:
                    file.write(manifest)
                    _settle(file)
                _link(written, self._manifest)
            except BaseException:
                self.path.unlink()
                raise
            finally:
                written.unlink(missing_ok=True)
            _settle_folder(self.path.parent)


class BucketPlace:
    """See `Place`. The draft lies on this machine until it is sent."""

    def __init__(self, url: str, storage: dict[str, str]) -> None:
        from federation.files.store import Store

        self.name = url
        location, _, self._object = url.rpartition("/")
        self._store = Store(location, storage)
        self._file: BinaryIO | None = None

    def check(self) -> None:
        with _bucket(self.name):
            for name in (self._object, self._object + MANIFEST):
                if self._store.exists(name):
                    raise _there(self._store.url(name))

    @contextlib.contextmanager
    def draft(self) -> Iterator[BinaryIO]:
        with _disk(str(spill_folder())), tempfile.TemporaryFile(dir=spill_folder()) as file:
            self._file = file
            yield file

    def publish(self, manifest: bytes) -> None:
        import io

        assert self._file is not None  # noqa: S101 - published within its draft
        self._file.seek(0)
        with _bucket(self.name):
            self._store.create(self._object, self._file)
            try:
                self._store.create(self._object + MANIFEST, io.BytesIO(manifest))
            except BaseException:
                self._store.delete(self._object)
                raise


def write(chosen: Chosen, target: Target, file: BinaryIO) -> Written:
    """Write the chosen rows, in little memory.

    Raises:
        LakehouseError: see `Chosen.read`.
    """
    hashing = HashingStream(file)
    digest = ContentDigest()
    writer = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl}[target]
    writer(chosen, hashing, digest)
    _settle(file)
    return Written(digest.rows, digest.hexdigest(), hashing.sha256.hexdigest(), hashing.size)


def _parquet(chosen: Chosen, stream: HashingStream, digest: ContentDigest) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    contract = chosen.lake.contract
    schema = file_schema(contract)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in chosen.read(*(quoted(name) for name in schema.names)):
            digest.add(batch[HASH].to_pylist())
            columns = [batch[field.name].cast(field.type) for field in schema]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    with (
        pa.PythonFile(stream, mode="w") as sink,
        pq.ParquetWriter(sink, schema, compression="zstd", compression_level=1, store_schema=False) as writer,
    ):
        for table in row_groups(batches()):
            writer.write_table(table)


def file_schema(contract: Contract) -> pa.Schema:
    """The contract's columns in its order, in the lake's types and with its field ids; any may be null."""
    import pyarrow as pa

    lake = arrow_schema(contract)
    return pa.schema([lake.field(c.name).with_nullable(True) for c in contract.columns])


def _csv(chosen: Chosen, stream: HashingStream, digest: ContentDigest) -> None:
    contract = chosen.lake.contract
    stream.write(f"{csv_header(contract)}\r\n".encode())
    for batch in chosen.read(f"{csv_line(contract)} AS line"):
        digest.add(batch[HASH].to_pylist())
        stream.write("\r\n".join([*batch["line"].to_pylist(), ""]).encode())


def _jsonl(chosen: Chosen, stream: HashingStream, digest: ContentDigest) -> None:
    for batch in chosen.read(f"{json_line(chosen.lake.contract)} AS line"):
        digest.add(batch[HASH].to_pylist())
        stream.write("\n".join([*batch["line"].to_pylist(), ""]).encode())


def manifest_text(values: dict[str, Any]) -> bytes:
    """A manifest as it is stored: JSON in UTF-8."""
    return (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode()


def _link(draft: Path, path: Path) -> None:
    try:
        # A link fails where the name is taken; a rename would replace it.
        os.link(draft, path)
    except FileExistsError:
        raise _there(str(path)) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Such a file system: the name is taken first, and then replaced by what belongs there.
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise _there(str(path)) from None
        draft.replace(path)


def _settle(file: Any) -> None:
    file.flush()
    with contextlib.suppress(OSError):
        # Of a file without a descriptor there is nothing to wait for.
        os.fsync(file.fileno())


def _settle_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _there(what: str) -> RecallError:
    return RecallError(f"{what}: is there already", "Give another --output; nothing is replaced.")


@contextlib.contextmanager
def _disk(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecallError(
            f"--output {name}: {error.strerror or error}", "Mend the path, or make room. Nothing of it is there."
        ) from error


@contextlib.contextmanager
def _bucket(name: str) -> Iterator[None]:
    from federation.files.store import ObjectExistsError

    try:
        yield
    except RecallError:
        raise
    except ObjectExistsError as error:
        raise _there(name) from error
    except LakehouseError as error:
        refused = error.retry is not Retry.TIMED
        raise RecallError(
            f"--output {name}: {error.detail}",
            "The default lake's keys (LAKEHOUSE_LAKE__S3__…) must allow to read, write and delete there."
            if refused
            else "Nothing of it counts: try again.",
            retry=error.retry,
        ) from error
