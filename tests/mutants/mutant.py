"""What a planted defect is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Edit:
    """In `file`, the one place where `old` stands becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A defect. `name` is how docs/correctness.md calls it; `tests` are pytest's node ids below tests/."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    def faults(self, root: Path = ROOT) -> list[str]:
        """Why it cannot be planted: the code has moved on, and this mutant has not."""
        found = []
        for edit in self.edits:
            path = root / edit.file
            count = path.read_text().count(edit.old) if path.is_file() else 0
            if count != 1:
                found.append(
                    f"{self.name}: {edit.file} holds {edit.old.strip().splitlines()[0]!r} {count} times, not once"
                )
        for test in self.tests:
            file, _, function = test.partition("::")
            path = root / "tests" / file
            if not path.is_file() or f"def {function.partition('[')[0]}(" not in path.read_text():
                found.append(f"{self.name}: tests/{test} is not there")
        return found

    def plant(self, root: Path) -> None:
        """Put it into the copy of the code below `root`."""
        for edit in self.edits:
            path = root / edit.file
            path.write_text(path.read_text().replace(edit.old, edit.new))


def mutant(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    """A defect of one edit."""
    return Mutant(name, (Edit(file, old, new),), tests)
