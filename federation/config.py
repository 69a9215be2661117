"""What a destination's `config` may hold, by kind, and which kinds this version delivers to.

A config never holds a secret: credentials are kept apart, encrypted. `target` is what a destination writes to, in
one spelling, so that two destinations at one target are refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from federation.kinds import DestinationKind
from schemas.errors import LakehouseError, Retry


class ConfigError(LakehouseError):
    """A destination's config is not valid; every fault is named."""

    retry = Retry.NEVER


class IcebergS3Config(BaseModel):
    """The organization's own lake; where that is stands with the lake."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _identifier(text: str) -> str:
    if not text or "\0" in text or len(text.encode()) > IDENTIFIER_BYTES:
        raise ValueError(f"a PostgreSQL name has 1 to {IDENTIFIER_BYTES} bytes; longer ones would be cut in silence")
    if text.lower().startswith("pg_") or text == "information_schema":
        raise ValueError("names that begin with pg_ are PostgreSQL's own")
    return text


def _location(text: str) -> str:
    parts = urlsplit(text)
    path = parts.path.strip("/")
    odd = [s for s in path.split("/") if s in ("", ".", "..") or re.search(r"[\s*?\[\]{}%#'\"\\\\]", s)] if path else []
    if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc) or not path or odd or parts.query or parts.fragment:
        raise ValueError("must look like s3://bucket/prefix, in plain characters, without credentials")
    return f"s3://{parts.netloc}/{path}"


def _region(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text):
        raise ValueError("a region looks like eu-central-1")
    return text


def _endpoint(text: str) -> str:
    # What else is asked of it is asked where it leads: `lakehouse.egress.guard`.
    if not text:
        raise ValueError("an endpoint looks like https://host:port; leave the key out for Amazon's own")
    return text


IDENTIFIER_BYTES = 63
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class PostgresReplicaConfig(BaseModel):
    """A schema of a PostgreSQL database. Its URL, with user and password, is a credential."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    schema_name: Annotated[str, Field(alias="schema"), AfterValidator(_identifier)]
    history: bool = False
    """Also keep every version, as `<table>_history`."""


class FilesConfig(BaseModel):
    """A prefix of a bucket. Keys are credentials; without any, the lake's own are used (and no `endpoint`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    location: Annotated[str, AfterValidator(_location)]
    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    region: Annotated[str, AfterValidator(_region)] | None = None
    max_dates: Annotated[int, Field(ge=1, le=400)] = 90
    """Dates that one step writes at most, each an open file; a delivery of more is made in several."""
    history: bool = False
    """Hold every version that the lake has, also from before it was added."""


CONFIGS: dict[DestinationKind, type[BaseModel]] = {
    DestinationKind.ICEBERG_S3: IcebergS3Config,
    DestinationKind.POSTGRES_REPLICA: PostgresReplicaConfig,
    DestinationKind.PARQUET_S3: FilesConfig,
    DestinationKind.JSONL_S3: FilesConfig,
}
"""The kinds that this version delivers to."""
CREDENTIALS: dict[DestinationKind, tuple[frozenset[str], frozenset[str]]] = {
    DestinationKind.ICEBERG_S3: (frozenset(), frozenset()),
    DestinationKind.POSTGRES_REPLICA: (frozenset({"url"}), frozenset()),
    DestinationKind.PARQUET_S3: (frozenset(), frozenset({"access_key_id", "secret_access_key", "session_token"})),
    DestinationKind.JSONL_S3: (frozenset(), frozenset({"access_key_id", "secret_access_key", "session_token"})),
}
"""Keys of the credentials of each kind: those that must be there, and those that may."""
COPYING = (DestinationKind.POSTGRES_REPLICA, DestinationKind.PARQUET_S3, DestinationKind.JSONL_S3)
"""Kinds that are fed by deliveries of rows."""
SHARED = (DestinationKind.POSTGRES_REPLICA, DestinationKind.PARQUET_S3)
"""Kinds that can be vendor-wide: every organization's rows in one table."""


def parse_credentials(kind: DestinationKind, raw: Any) -> dict[str, str]:
    """Check the credentials of a destination.

    Raises:
        ConfigError: not an object of texts, unknown or missing keys. No value is repeated in it.
    """
    must, may = CREDENTIALS[kind]
    known = f"A JSON object with {', '.join(sorted(must | may)) or 'no keys'}."
    if not isinstance(raw, dict) or not all(isinstance(v, str) and v for v in raw.values()):
        raise ConfigError(f"the credentials of a {kind.value} destination are not an object of texts", known)
    if odd := sorted(map(str, raw.keys() - must - may)):
        # Whoever mixes up keys and values must not read a value here.
        named = [key if re.fullmatch(r"[A-Za-z_]{1,40}", key) else "one that is no name" for key in odd]
        raise ConfigError(
            f"the credentials of a {kind.value} destination have unknown keys: {', '.join(dict.fromkeys(named))}", known
        )
    if missing := sorted(must - raw.keys()):
        raise ConfigError(f"the credentials of a {kind.value} destination lack {', '.join(missing)}", known)
    if "url" in raw and (fault := _url_fault(raw["url"])):
        raise ConfigError(
            f"the url of a {kind.value} destination {fault}",
            "It must look like postgresql://user:password@host:5432/database; in user and password each of / ? # @ : % "
            f"and spaces is written as %XX. Its parameters may be: {', '.join(sorted(_URL_PARAMETERS))}.",
        )
    if ("access_key_id" in raw) != ("secret_access_key" in raw):
        raise ConfigError("the credentials have only one of access_key_id and secret_access_key", known)
    return dict(raw)


_URL_PARAMETERS = frozenset(
    (
        "channel_binding",
        "connect_timeout",
        "gssencmode",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "target_session_attrs",
    )
)
"""Others would change where it leads, or have files of this machine read."""


def _url_fault(url: str) -> str | None:
    """What is wrong with a replica's url; nothing of it is repeated, a part of a password may stand anywhere in it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        return "cannot be read"
    unwritten = re.search(r"%(?![0-9A-Fa-f]{2})|%00|[\s\x00-\x1f]", url) or url.count("@") != parts.netloc.count("@")
    faults = {
        "cannot be read": parts.scheme not in ("postgresql", "postgres") or not host or "," in parts.netloc,
        "has characters that are not written as %XX": unwritten or url.count("@") > 1 or parts.fragment,
        "has more than one name after its host": parts.path.count("/") > 1,
        "has parameters that it may not have": any(name not in _URL_PARAMETERS for name, _ in parameters),
    }
    return next((text for text, found in faults.items() if found), None)


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
        fields = CONFIGS[kind].model_fields
        known = ", ".join(field.alias or name for name, field in fields.items()) or "none"
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise ConfigError(
            f"the config of a {kind.value} destination is not valid: " + "; ".join(faults), f"Its keys are: {known}."
        ) from None
