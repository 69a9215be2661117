"""What people use today for the same work, each in an environment of its own, over the same table in the same run.

`environments` installs them, `kinds` says how each is called, `compare` reads what it wrote and names what it changed,
`beside` is the part of `make bench`. `dlt_load.py` and `duck_copy.py` are programs: each is run by its own
environment's interpreter and imports nothing of ours.
"""
