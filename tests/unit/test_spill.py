"""Folders of killed processes are removed by the next one; those of living ones and of others are not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from lakehouse.spill import PREFIX, remove_left

HOLD = "from lakehouse.spill import spill_folder; print(spill_folder(), flush=True); input()"


def test_a_killed_processs_folder_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    stranger = tmp_path / f"{PREFIX}without-a-lock"
    stranger.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        )
        for _ in range(2)
    ]
    killed, living = processes
    with killed, living:
        folders = []
        for process in processes:
            assert process.stdout is not None
            folders.append(Path(process.stdout.readline().strip()))
        assert remove_left(tmp_path) == []
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert remove_left(tmp_path) == [folders[0]]
        assert not folders[0].exists() and folders[1].is_dir() and stranger.is_dir() and elsewhere.is_dir()
        living.communicate("\n")
    assert not folders[1].exists(), "who ends removes it"
