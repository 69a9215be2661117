"""Merges the files of small record tables of our own (`_holds`): one file for each commit would be read for ever.

All rows are read and written again in one commit on top of the head that they were read from. Who commits in between
wins, and the next run merges. A table that has grown beyond what is read at once is left as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catalog.errors import lake_errors
from lakehouse.landing.commit import COMPACTION_SUMMARY

if TYPE_CHECKING:
    from lakehouse.maintenance.references import References

MOST_FILES = 32
LARGEST = 64 * 1024 * 1024
"""Bytes of files."""


def merge_records(references: References) -> tuple[int, int]:
    """Merge a record table's files into one where there are many: how many, and into how many.

    Raises:
        CatalogError, StorageError: the lake does not answer; the table is as it was, or merged.
    """
    from pyiceberg.exceptions import CommitFailedException

    table = references.table
    live = references.live()
    if len(live) <= MOST_FILES or sum(f.bytes for f in live) > LARGEST:
        return 0, 0
    with lake_errors(".".join(table.name())):
        # What is read and what is replaced are of the snapshot that `table` stands at: the commit requires it.
        rows = table.scan().to_arrow()
        try:
            table.overwrite(rows, snapshot_properties={COMPACTION_SUMMARY: f"{len(live)} files into 1"})
        except CommitFailedException:
            return 0, 0
    return len(live), 1
