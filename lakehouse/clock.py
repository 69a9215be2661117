"""Time as the product sees it, so that tests can move it.

Everything that stamps or compares wall-clock time takes a `Clock`; nothing calls `datetime.now` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the present moment, timezone-aware, in UTC."""


def system_clock() -> datetime:
    """The machine's clock, in UTC."""
    return datetime.now(UTC)
