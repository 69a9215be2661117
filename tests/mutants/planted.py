"""Every planted defect, by the part of the product that it is in."""

from __future__ import annotations

from tests.mutants import archive, archived, capture, evidence, federation, landing, recall, work
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *capture.MUTANTS,
    *landing.MUTANTS,
    *work.MUTANTS,
    *federation.MUTANTS,
    *archive.MUTANTS,
    *archived.MUTANTS,
    *evidence.MUTANTS,
    *recall.MUTANTS,
)
