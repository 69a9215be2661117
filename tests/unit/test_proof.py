"""What `make proof` counts as a run, and where it writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof import document
from tests.proof.__main__ import TRANSACTIONS, VERSIONS, environment, figures, load, shortfall

PRINTED = """PROPERTY_SEED=1 {'A': '1'}
.figures {"transactions": 20000, "versions": 300000, "windows": 7}
and so on
figures {"transactions": 27999, "versions": 200000, "windows": 8}
.
2 passed in 3 s
"""


def test_what_the_tests_print_is_added_up() -> None:
    found = figures(PRINTED)
    assert found == {"passed": 2, "transactions": 47_999, "versions": 500_000, "windows": 15}
    assert shortfall(found) == "47,999 of 48,000 transactions"
    assert shortfall(found | {"transactions": 48_000}) == ""
    assert shortfall({}) == "0 of 48,000 transactions, 0 of 500,000 versions"


def test_three_methods_together_reach_the_numbers() -> None:
    chosen = environment("seed", 20, Path("log"))
    assert 3 * int(chosen["PROPERTY_TRANSACTIONS"]) >= TRANSACTIONS
    assert 3 * int(chosen["PROPERTY_VERSIONS"]) >= VERSIONS
    assert (chosen["PROPERTY_SECONDS"], chosen["CRASH_SECONDS"], chosen["PROPERTY_SEED"]) == ("400", "1200", "seed")


def test_the_summary_is_put_between_its_markers() -> None:
    whole = f"# Title\n{document.BEGIN}\nold\n{document.END}\nafter\n"
    assert document.placed(whole, "new\n") == f"# Title\n{document.BEGIN}\n\nnew\n\n{document.END}\nafter\n"
    with pytest.raises(ValueError, match="substring"):
        document.placed("# Title\n", "new\n")


def test_the_document_shows_the_figures_that_are_kept() -> None:
    text = document.DOCUMENT.read_text()
    assert document.placed(text, document.text(load())) == text
