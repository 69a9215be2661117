"""Capture: from a hot PostgreSQL table to Arrow, one window at a time.

A window is everything that changed between two snapshots of the database, for every organization that stands
at the same position. Three methods are planned behind one protocol (`lakehouse.capture.protocol`); `xmin`
and `trigger` are here. Invariants: a window is one REPEATABLE READ transaction; the table is locked in ACCESS SHARE
mode before the snapshot is taken; completeness rests on transaction ids, never on a clock.

When it fails nothing has happened: the position moves only with the lake's commit.
"""
