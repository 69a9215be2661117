"""The one policy: what becomes of work that failed.

TIMED errors (a dead bucket, a database that does not answer) are tried again after 30 s, doubling to 30 min, with
jitter. MANUAL and unknown errors too, but `max_attempts` times in all, then a person must look. NEVER: at once.
A landing is tried without an end where the error is TIMED: giving up would stop an organization's canonical tables
for an outage that ends by itself.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lakehouse.control.models import ERROR_LENGTH
from lakehouse.observe.events import describe
from lakehouse.settings import WorkSettings
from schemas.errors import LakehouseError, Retry

JITTER = 0.25
"""Each wait is shorter or longer by up to this part of it: what failed together does not retry together."""


@dataclass(frozen=True)
class Decision:
    """`wait_seconds`: until the next attempt; None: no more, a person must look."""

    wait_seconds: float | None
    error: str


def decide(error: BaseException, attempts: int, settings: WorkSettings, *, endless: bool = False) -> Decision:
    """What to do after the attempt number `attempts` (from 1) failed.

    `endless`: TIMED errors are tried again however often. The error's text is cut to 500 characters.
    """
    retry = error.retry if isinstance(error, LakehouseError) else Retry.MANUAL
    text = describe(error)[:ERROR_LENGTH]
    if retry is Retry.NEVER or (attempts >= settings.max_attempts and not (endless and retry is Retry.TIMED)):
        return Decision(None, text)
    # The exponent is bounded: an endless retry must not overflow.
    wait = min(settings.retry_max_seconds, settings.retry_base_seconds * 2 ** min(attempts - 1, 30))
    return Decision(wait * random.uniform(1 - JITTER, 1 + JITTER), text)  # noqa: S311 - jitter, not a secret
