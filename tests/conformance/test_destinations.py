"""One suite for every kind of destination: kind × case. A kind without a place, or a case that one skips, fails.

The cases are those of `copies`. ICEBERG_S3 is the lake itself, which landing writes and acknowledges: `lake` says of
each case what it means there, or what makes it impossible, and asserts that.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from federation.config import CONFIGS, COPYING
from federation.kinds import DestinationKind
from lakehouse.deliver import run as deliver_run
from tests.conformance import copies, lake
from tests.conformance.copies import faults, filling, order, proof
from tests.conformance.lake import faults as lake_faults
from tests.conformance.lake import filling as lake_filling
from tests.conformance.lake import order as lake_order
from tests.conformance.lake import proof as lake_proof
from tests.conformance.stage import Stage

Case = Callable[[Any], None]
MODULES: dict[ModuleType, tuple[Case, ...]] = {m: m.CASES for m in (order, faults, filling, proof)}
OF_THE_LAKE: dict[ModuleType, tuple[Case, ...]] = {
    m: m.CASES for m in (lake_order, lake_faults, lake_filling, lake_proof)
}
CASES = tuple(case.__name__ for cases in MODULES.values() for case in cases)
KINDS = (*COPYING, DestinationKind.ICEBERG_S3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.value)
def test_conformance(stage: Stage, kind: DestinationKind, case: str) -> None:
    assert stage.place.real
    of_kind = MODULES if kind in COPYING else OF_THE_LAKE
    (found,) = (c for cases in of_kind.values() for c in cases if c.__name__ == case)
    found(stage)


def test_no_cell_is_empty(request: pytest.FixtureRequest) -> None:
    collected = {item.name for item in request.session.items}
    if not any(name.startswith("test_conformance[") for name in collected):
        pytest.skip("only this test was asked for")
    wanted = {f"test_conformance[{kind.value}-{case}]" for kind in KINDS for case in CASES}
    if request.config.option.keyword or any("::" in a for a in request.config.args):
        wanted &= collected
    assert wanted <= collected


def test_every_kind_has_every_case() -> None:
    """Of the kinds that this version has, and of the cases that are written down."""
    assert set(KINDS) == set(CONFIGS) and deliver_run.COPYING == COPYING
    for package, modules in ((copies, MODULES), (lake, OF_THE_LAKE)):
        assert len(CASES) == sum(map(len, modules.values()))
        assert {c.__name__ for cases in modules.values() for c in cases} == set(CASES)
        for module, cases in modules.items():
            assert module.__name__.startswith(f"{package.__name__}.")
            written = {n for n, f in vars(module).items() if getattr(f, "__module__", "") == module.__name__}
            assert {n for n in written if not n.startswith("_")} <= {c.__name__ for c in cases}
