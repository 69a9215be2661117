"""The lake's own end of life: whole days that are older than an organization's policy leave the lake.

None by default. Invariants: a day goes whole, in one commit that touches neither cursor nor `_sequence`; never while
one of its rows is hot or held, or the source is not known to be the lake's; what it held (rows, content) and who
decided is recorded in the lake itself before it goes, and in the audit.
"""
