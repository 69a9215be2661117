"""Keeps what grows within its bounds: snapshots, metadata, small files, files that nobody names, rows of the outbox.

Every step can be killed anywhere and run again. Rows are never changed: a compaction writes the same rows, with the
same `_sequence`, into fewer files. The cursor in the lake table is never touched. Nothing is removed that a kept
snapshot, the table's metadata or a control table names; what is removed was noted first and waits for the grace
period (`freed_files`).
"""
