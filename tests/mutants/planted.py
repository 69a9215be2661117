"""Every defect that `make mutants` plants, in the order of docs/correctness.md."""

from __future__ import annotations

from tests.mutants import archive, archived, capture, federation, landing, work
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *capture.MUTANTS,
    *landing.MUTANTS,
    *work.MUTANTS,
    *federation.MUTANTS,
    *archive.MUTANTS,
    *archived.MUTANTS,
)
