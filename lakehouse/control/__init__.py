"""The control tables: what the product remembers in PostgreSQL beside the hot tables.

They live in a schema of their own and have no foreign key to a host table: a cascade there must not take
cursors, receipts or holds with it. Everything about the lake's position can be rebuilt from the lake.
"""
