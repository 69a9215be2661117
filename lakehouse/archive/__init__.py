"""The cold tier: prove that the lake holds a row, put a tombstone in its place, delete it, and bring it back.

docs/adr/0005-the-cold-tier.md says why it is built so. Invariants: a hot row goes only in the transaction that writes
its tombstone and the signed receipt of its batch; storage is never read while rows are locked; no row that stays is
changed by a delete; what a hold names stays.
"""
