"""Who asks for something: the name that audits and records keep."""

from __future__ import annotations

import getpass
import os
import socket


def operator(by: str | None = None) -> str:
    """The name that was given, or the user of the operating system and the machine's name."""
    if by is not None and (given := " ".join(by.split())):
        return given
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that no name belongs to.
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
