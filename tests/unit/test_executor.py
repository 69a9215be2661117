"""A pool's processes: a signal to the whole group ends none of them, the end of the program all of them."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.support import ROOT

POOL = """
import os, signal, sys, time
from lakehouse.executor import LocalProcesses

signal.signal(signal.SIGTERM, lambda *_: None)
with LocalProcesses(1) as executor:
    print(executor.submit(eval, "__import__('os').getpid()").result(), flush=True)
    under_way = executor.submit(time.sleep, 0.5)
    if sys.argv[1] == "signalled":
        os.killpg(0, signal.SIGTERM)
    else:
        signal.pause()
    under_way.result()
    print(executor.submit(abs, -3).result())
"""


@pytest.mark.parametrize("what", ["signalled", "killed"])
def test_processes_end_with_the_program_and_not_before(what: str) -> None:
    command = [sys.executable, "-c", POOL, what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True) as program:
        assert program.stdout is not None
        worker = int(program.stdout.readline())
        if what == "signalled":
            assert program.stdout.readline() == "3\n"
            assert program.wait(30) == 0
            return
        left = psutil.Process(worker)
        program.kill()
        left.wait(15)
