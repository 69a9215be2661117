"""The programs that are left running: workers do what is due, one scheduler among many says what is.

A worker claims deliveries whose landing waits and tasks that are due, a few at a time, and does each under its
lease. The scheduler plans: one statement finds every table with an organization whose cadence has passed. Neither
knows the other: both only read and write rows, so any number of each may run on any number of machines.

When one dies, what it held is taken over as soon as its leases have run out.
"""
