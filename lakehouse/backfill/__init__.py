"""Backfill: the first reading of a table, by key ranges in parallel processes.

Ranges are read under an exported snapshot (a new one when it gets old), each written to the lake's folder and
recorded when done, so that a restart reads only what is left. One commit per organization adds all of it. The
first window starts from the oldest of the snapshots and asks the lake which versions it already has: no gap,
no overlap, whatever was written meanwhile.
"""
