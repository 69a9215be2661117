"""Bringing rows back from the lake: for a stated reason, by a named person, for a stated time.

Rows come from the lake's own files only, at one named snapshot, and go into a table of the archive's own schema or into
a file, never over a hot row. Invariants: a request is written down before it is looked at, and what became of it after;
a target is filled whole or not at all, and a table is compared with the lake by content before anybody sees it.
"""
