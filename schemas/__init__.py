"""Contracts: the published definition of every table, and all that is derived from it.

No I/O except reading the contract files themselves; nothing here knows a database, a bucket or a warehouse.
"""
