"""The planted defects still fit the code, and docs/correctness.md names each of them."""

from __future__ import annotations

import re
from collections import Counter

from tests.mutants.mutant import ROOT
from tests.mutants.planted import MUTANTS


def test_every_mutant_can_be_planted() -> None:
    assert [fault for mutant in MUTANTS for fault in mutant.faults()] == []


def test_every_mutant_has_one_promise_and_every_name_a_mutant() -> None:
    text = (ROOT / "docs/correctness.md").read_text()
    rows = [line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| ")]
    named = Counter(name for row in rows for name in re.findall(r"`([a-z-]+)`", row))
    assert set(named) == {mutant.name for mutant in MUTANTS}
    assert max(named.values()) == 1
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
