"""The summary of docs/proof.json in docs/correctness.md, between two markers: no figure in it is written by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.crash_report import FROM_OUTSIDE
from tests.support import ROOT

DOCUMENT = ROOT / "docs" / "correctness.md"
BEGIN = "<!-- written by `make proof` -->"
END = "<!-- until here -->"
HEAD = ("seed", "commit", "minutes", "transactions", "row versions", "windows", "deliveries", "kills", "outcome")


def write(kept: dict[str, Any]) -> None:
    """Put the summary between the markers of the document."""
    DOCUMENT.write_text(placed(DOCUMENT.read_text(), text(kept)))


def placed(document: str, summary: str) -> str:
    """The document with this summary in place of the one that it has.

    Raises:
        ValueError: it has no markers.
    """
    before, rest = document[: document.index(BEGIN)], document[document.index(END) :]
    return f"{before}{BEGIN}\n\n{summary}\n{rest}"


def cells(run: dict[str, Any]) -> list[str]:
    """One run, in the order of `HEAD`."""
    both = Counter(run["property"]) + Counter(run["crash"])
    return [
        run["seed"],
        run["commit"],
        f"{run['seconds'] / 60:.1f}",
        f"{run['property'].get('transactions', 0):,}",
        f"{run['property'].get('versions', 0):,}",
        f"{both['windows']:,}",
        f"{both['deliveries']:,}",
        f"{sum(run['kills'].values()):,}",
        run["outcome"],
    ]


def line(run: dict[str, Any]) -> str:
    """One run as it is printed."""
    return ", ".join(f"{name} {cell}" for name, cell in zip(HEAD, cells(run), strict=True))


def text(kept: dict[str, Any]) -> str:
    """The whole summary."""
    if not kept:
        return "None yet.\n"
    machine = kept["machine"]
    parts = [
        f"On {machine['cores']} cores, {machine['gigabytes']} GB, {machine['system']}, Python {machine['python']}; all "
        "figures are in [proof.json](proof.json). Transactions and row versions are what the writers of the property "
        "suite committed in its three methods together; kills are processes that died in the crash suite.\n"
    ]
    for series, what in (("runs", "in a row"), ("long", "of a given length")):
        if runs := kept.get(series):
            parts.append(_series(runs, what))
    return "\n".join(parts)


def _series(runs: Sequence[dict[str, Any]], what: str) -> str:
    command = "--runs" if runs[0]["minutes"] is None else "--minutes"
    value = len(runs) if runs[0]["minutes"] is None else f"{runs[0]['minutes']:g}"
    passed = sum(r["outcome"] == "passed" for r in runs)
    kills = sum((Counter(r["kills"]) for r in runs), Counter[str]())
    outside = kills.pop(FROM_OUTSIDE, 0)
    lost = sum(r["property"].get("naive_lost", 0) for r in runs)
    proofs = sum(r[s].get("equal_destinations", 0) for r in runs for s in ("property", "crash"))
    table = "".join("| " + " | ".join(row) + " |\n" for row in [HEAD, ["---"] * len(HEAD), *map(cells, runs)])
    return (
        f'`make proof ARGS="{command} {value}"`: {passed} of {len(runs)} {what} passed.\n\n{table}\n'
        f"The lake lost nothing and doubled nothing; {proofs:,} tables of destinations were equal to it in the end. "
        f"The keyset cursor that ran beside the windows lost {lost:,} rows. "
        f"{outside:,} processes were killed at random moments, the others at "
        f"{', '.join(f'`{name}` ({n:,})' for name, n in sorted(kills.items()))}.\n"
    )
