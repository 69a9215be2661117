"""How lake files are read and written: pyiceberg's own PyArrow file access, with fewer requests and connections.

pyarrow writes every object in parts: begin, one part, end. With a delayed opening an object below the size of a part
(nearly every file of a window, every manifest and metadata file) is one PUT, sent when the file is closed, and is
never there in part. A bigger one goes in parts as before. Tables of one bucket under one set of credentials share one
client and its open connections; whatever differs in any property has a client of its own.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pyiceberg.io.pyarrow import PyArrowFileIO

from catalog.objects import ObjectWriter

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

FILE_IO = "catalog.storage.LakeFileIO"
"""For pyiceberg's property `py-io-impl`."""


class LakeFileIO(PyArrowFileIO):
    """See the module."""

    def _initialize_s3_fs(self, netloc: str | None) -> FileSystem:
        # The table's own properties (its cursor among them) change with every landing, and open nothing.
        access = sorted((k, str(v)) for k, v in self.properties.items() if k.startswith(("s3.", "client.")))
        return _client(netloc, tuple(access))

    def _open(self, netloc: str | None) -> FileSystem:
        # pyiceberg passes only the options that it knows; the file system says itself how it is made again.
        made: Any = super()._initialize_s3_fs(netloc)
        make, (options,) = made.__reduce__()
        return make({**options, "allow_delayed_open": True})


@functools.lru_cache(maxsize=128)
def _client(netloc: str | None, access: tuple[tuple[str, str], ...]) -> FileSystem:
    return LakeFileIO(dict(access))._open(netloc)


def object_writer(storage: dict[str, str], location: str) -> ObjectWriter:
    """Writes objects below `location`, with a lake's `s3.*` properties; for a process that loads no Iceberg."""
    io = LakeFileIO(storage)
    scheme, netloc, path = io.parse_location(location, io.properties)
    if scheme == "file":
        from pyarrow.fs import LocalFileSystem

        return ObjectWriter(LocalFileSystem(), location, path)
    return ObjectWriter(io.fs_by_scheme(scheme, netloc), location, path)
