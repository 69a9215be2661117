"""Which key a stored credential needs, and the places that credentials belong to.

Keys come from `[secrets] keys`, by version; v1 is the host's own `APERIO_ENCRYPTION_KEY` where `keys` has no v1.
New values are sealed with `[secrets] key_version`; a value is opened with the version that stands beside it, so that
readers go on while a rotation is under way. Keys are looked up when first needed: a program that stores no
credential needs none. Whatever is opened or sealed is remembered for redaction before it is handed out.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from lakehouse.observe.redact import remember, remember_all
from lakehouse.secrets.envelope import SecretError, parse_key, seal, unseal
from lakehouse.settings import Settings

HOST_KEY = "APERIO_ENCRYPTION_KEY"
HOST_VERSION = "v1"


def destination_place(organization_id: str | None, destination_id: UUID | str) -> str:
    """Where a destination's credentials belong; the host uses the same text.

    A vendor-wide destination has no organization: nothing stands before the first colon. No organization can take
    that place, because an empty id is refused everywhere.
    """
    return f"{organization_id or ''}:warehouse:{destination_id}:credentials"


def lake_place(organization_id: str, lake_id: UUID | str) -> str:
    """Where the credentials of an organization's own lake belong."""
    return f"{organization_id}:lake:{lake_id}:credentials"


class Vault:
    """Seals and opens stored credentials. Cheap to make; safe to share between threads."""

    def __init__(self, settings: Settings, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment
        self._written = {v: k.get_secret_value() for v, k in settings.secrets.keys.items()}
        self.key_version = settings.secrets.key_version
        self._keys: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def seal(self, plain: str | Mapping[str, Any], place: str, *, key_version: str | None = None) -> tuple[str, str]:
        """Envelope and key version of a credential (a mapping is sealed as JSON), for the row that `place` names.

        Raises:
            SecretError: there is no key of this version, or it is not valid.
        """
        text = plain if isinstance(plain, str) else json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
        remember_all(plain)
        version = key_version or self.key_version
        return seal(text, self.key(version), place), version

    def open(self, text: str, key_version: str | None, place: str) -> str:
        """The credential that an envelope holds.

        Raises:
            SecretError: no such key, a wrong one, another row's envelope, or none at all; place, key version and
                setting are named.
        """
        version = key_version or HOST_VERSION
        plain = unseal(text, self.key(version, place), place, where=f"{place}: credentials under key {version}")
        remember_all(_decoded(plain))
        return plain

    def key(self, version: str, place: str = "") -> bytes:
        """The 32 bytes of a key.

        Raises:
            SecretError: there is none, or it is not valid.
        """
        with self._lock:
            if version not in self._keys:
                self._keys[version] = self._find(version, place)
            return self._keys[version]

    def _find(self, version: str, place: str) -> bytes:
        setting = f"LAKEHOUSE_SECRETS__KEYS, version {version}"
        text = self._written.get(version)
        if text is None and version == HOST_VERSION:
            setting = HOST_KEY
            text = self._environment.get(HOST_KEY)
        if text is None:
            known = sorted(set(self._written) | ({HOST_VERSION} if self._environment.get(HOST_KEY) else set()))
            raise SecretError(
                f"{place + ': ' if place else ''}there is no encryption key {version}",
                "Give it in LAKEHOUSE_SECRETS__KEYS"
                + (f" or as {HOST_KEY}" if version == HOST_VERSION else "")
                + f"; known versions: {', '.join(known) or 'none'}.",
            )
        remember(text)
        remember(text.partition(":")[2])
        return parse_key(text, where=setting, environment=self._environment)


def _decoded(plain: str) -> Any:
    try:
        return json.loads(plain)
    except ValueError:
        return plain
