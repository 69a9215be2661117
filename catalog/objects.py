"""Writing new objects below a lake's folder where nothing else of Iceberg is needed: in the processes of a backfill.

Picklable; loads pyarrow and nothing more. Of pyiceberg's file access it offers what a writer of data files calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


class Writes(Protocol):
    """What can write a new object: pyiceberg's FileIO, or `ObjectWriter`."""

    def new_output(self, location: str) -> Any:
        """The object at this address; its `create(overwrite=False)` opens a stream."""
        ...


@dataclass(frozen=True)
class ObjectWriter:
    """Writes below `location` (an address); `path` is what the file system calls it."""

    files: FileSystem
    location: str
    path: str

    def new_output(self, location: str) -> NewObject:
        """The object at this address, which lies below `self.location`."""
        return NewObject(self.files, self.path + location.removeprefix(self.location))


@dataclass(frozen=True)
class NewObject:
    """An object that is to be written."""

    files: FileSystem
    path: str

    def create(self, *, overwrite: bool = False) -> Any:
        """Open it for writing.

        Raises:
            FileExistsError: it is there, and `overwrite` does not allow that.
            OSError: the storage's own.
        """
        from pyarrow.fs import FileType, LocalFileSystem

        if not overwrite and self.files.get_file_info(self.path).type is not FileType.NotFound:
            raise FileExistsError(f"{self.path}: is there already")
        if isinstance(self.files, LocalFileSystem):
            self.files.create_dir(str(PurePosixPath(self.path).parent), recursive=True)
        return self.files.open_output_stream(self.path)
