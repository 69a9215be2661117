"""Installs each peer into `.venv-peers/NAME`, pinned by `NAME.txt` beside this file, and again when that changed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.bench.world import ROOT

FOLDER = ROOT / ".venv-peers"


def environment(name: str) -> Path:
    """The `bin` folder of the peer's environment, installed if it is not.

    Raises:
        RuntimeError: pip failed; with the end of what it said. Nothing half installed is used.
    """
    requirements = Path(__file__).parent / f"{name}.txt"
    folder = FOLDER / name
    wanted = f"{hashlib.sha256(requirements.read_bytes()).hexdigest()} {sys.version}"
    mark = folder / ".ready"
    if not mark.exists() or mark.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        done = subprocess.run(
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{name} cannot be installed: {(done.stdout + done.stderr)[-2000:]}")
        mark.write_text(wanted)
    return folder / "bin"


def requirement(name: str) -> str:
    """The peer's own version, as its requirement file pins it."""
    first = (Path(__file__).parent / f"{name}.txt").read_text().splitlines()[0]
    return first.rpartition("==")[2]
