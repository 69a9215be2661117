"""Verification: the hot table against the lake's own files, by key and by content.

Both sides compute the canonical text of a row (docs/canonical-row.md) in SQL, each in its own engine, and the
hashes are compared; nothing that capture counted is believed. It reads, and changes nothing.
"""
