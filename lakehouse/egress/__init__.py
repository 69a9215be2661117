"""The way out to endpoints that a tenant gave: `guard` says what may be reached, `proxy` is the only door."""

from lakehouse.egress.guard import EgressError, Guard

__all__ = ["EgressError", "Guard"]
