"""Planted defects: each is put into a copy of the code, and the tests named with it must fail there.

`make mutants` runs them all. A defect that no test notices is a promise that nobody keeps.
"""
