"""Work as rows in PostgreSQL: claimed under a lease, acknowledged under the same lease, or tried again.

Two kinds of row. A **task** stands for good (`capture:events`): planning makes it due, a worker claims it, and when
it is finished it waits to become due again. A **delivery** is one range of one table for one destination:

    PENDING ──claim──▶ PROCESSING ──acknowledge──▶ DELIVERED
       ▲                  │    │
       │            retry │    │ permanent, or too often
       │                  ▼    ▼
       └───retry by── FAILED  DEAD_LETTER ──`deliveries retry`──▶ PENDING
           a person

Invariants: time is the database's (`clock_timestamp()`); rows are claimed with FOR UPDATE SKIP LOCKED; a claim
raises the row's generation; every renewal, acknowledgement and retry filters on owner and generation, so a worker
that lost its lease changes nothing. A landing's delivery exists from the moment its files are staged: until it is
DELIVERED no further window reads that table of that organization.

When a worker dies its leases run out and others take the rows; what it had committed to the lake is found there.
"""
