"""What a destination's `config` may hold, by kind, and which kinds this version delivers to.

A config never holds a secret: credentials are kept apart, encrypted. `target` is what a destination writes to, in
one spelling, so that two destinations at one target are refused.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from federation.kinds import DestinationKind
from schemas.errors import LakehouseError, Retry


class ConfigError(LakehouseError):
    """A destination's config is not valid; every fault is named."""

    retry = Retry.NEVER


class IcebergS3Config(BaseModel):
    """The organization's own lake; where that is stands with the lake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


CONFIGS: dict[DestinationKind, type[BaseModel]] = {DestinationKind.ICEBERG_S3: IcebergS3Config}
"""The kinds that this version delivers to."""


def parse_kind(text: str) -> DestinationKind:
    """A kind by its name.

    Raises:
        ConfigError: there is none of that name, or this version does not deliver to it.
    """
    names = ", ".join(k.value for k in CONFIGS)
    try:
        kind = DestinationKind(text.upper())
    except ValueError:
        raise ConfigError(f"no kind of destination is named {text!r}", f"This version delivers to: {names}.") from None
    if kind not in CONFIGS:
        raise ConfigError(f"this version does not deliver to {kind.value} yet", f"It delivers to: {names}.")
    return kind


def parse_config(kind: DestinationKind, raw: dict[str, Any]) -> BaseModel:
    """Check a config.

    Raises:
        ConfigError: unknown or missing keys, values of the wrong type: all of them.
    """
    try:
        return CONFIGS[kind].model_validate(raw)
    except ValidationError as error:
        known = ", ".join(CONFIGS[kind].model_fields) or "none"
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise ConfigError(
            f"the config of a {kind.value} destination is not valid: " + "; ".join(faults), f"Its keys are: {known}."
        ) from None
