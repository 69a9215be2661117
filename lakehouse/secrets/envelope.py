"""The host's envelope for stored credentials, byte for byte, so that both programs read each other's values.

The text in a column is base64url without padding of the JSON `{version, algorithm, iv, tag, ciphertext}`, each part
base64url without padding: AES-256-GCM, a random nonce of 12 bytes, a tag of 16. The additional authenticated data
is the place that the value belongs to. A key is 32 bytes, written `base64:…`, `base64url:…` or `hex:…`; any other
text is a passphrase and goes through scrypt, which is refused where `NODE_ENV` is `production`, as the host does.

Nothing here knows which key a value needs: see `keyring`. What does not open raises; no part of a key or of a
plain text is ever in a message.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from schemas.errors import LakehouseError, Retry

ALGORITHM = "aes-256-gcm"
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
_SCRYPT = {"salt": b"aperio-token-vault", "n": 16384, "r": 8, "p": 1}
_PARTS = ("iv", "tag", "ciphertext")


class SecretError(LakehouseError):
    """A stored credential cannot be sealed or opened; the place and the setting are named, never the value."""

    retry = Retry.MANUAL


def parse_key(text: str, *, where: str, environment: Mapping[str, str] | None = None) -> bytes:
    """The 32 bytes of a key as it is written in a setting.

    `where` names the setting in errors; `environment` is where `NODE_ENV` is looked up (default: the process's).

    Raises:
        SecretError: not 32 bytes, not decodable, empty, or a passphrase in production.
    """
    kind, separator, body = text.strip().partition(":")
    if separator and kind in ("base64", "base64url", "hex"):
        key = _decode_key(kind, body.strip())
        if key is None or len(key) != KEY_BYTES:
            found = "cannot be decoded" if key is None else f"has {len(key)} bytes"
            raise SecretError(
                f"{where}: the {kind} key {found}; it must have {KEY_BYTES} bytes",
                f"Make one: openssl rand -base64 {KEY_BYTES}, and write base64: before it.",
            )
        return key
    if not text.strip():
        raise SecretError(f"{where}: the key is empty", f"Make one: openssl rand -base64 {KEY_BYTES}.")
    if (os.environ if environment is None else environment).get("NODE_ENV") == "production":
        raise SecretError(
            f"{where}: a passphrase is refused where NODE_ENV is production",
            f"Write {KEY_BYTES} random bytes as base64:…, base64url:… or hex:…",
        )
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Scrypt(length=KEY_BYTES, **_SCRYPT).derive(text.encode())  # type: ignore[arg-type]


def _decode_key(kind: str, body: str) -> bytes | None:
    try:
        if kind == "hex":
            return bytes.fromhex(body) if re.fullmatch(r"[0-9A-Fa-f]*", body) else None
        # Node reads either alphabet under either name.
        bare = body.rstrip("=").replace("-", "+").replace("_", "/")
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (ValueError, binascii.Error):
        return None


def seal(plain: str, key: bytes, place: str) -> str:
    """The envelope of `plain` for `place`; another one each time (the nonce is random)."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(NONCE_BYTES)
    sealed = AESGCM(key).encrypt(nonce, plain.encode(), place.encode())
    envelope = {
        "version": 1,
        "algorithm": ALGORITHM,
        "iv": _encode(nonce),
        "tag": _encode(sealed[-TAG_BYTES:]),
        "ciphertext": _encode(sealed[:-TAG_BYTES]),
    }
    return _encode(json.dumps(envelope, separators=(",", ":")).encode())


def unseal(text: str, key: bytes, place: str, *, where: str) -> str:
    """The plain text of an envelope.

    Raises:
        SecretError: it is no envelope of this version, or key or place are not those that it was sealed with.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce, tag, ciphertext = _parts(text, where)
    try:
        return AESGCM(key).decrypt(nonce, ciphertext + tag, place.encode()).decode()
    except InvalidTag:
        raise SecretError(
            f"{where}: does not open with this key",
            "It was sealed with another key, for another row, or was changed; nothing was written.",
        ) from None
    except UnicodeDecodeError:
        raise SecretError(f"{where}: what is sealed is not text") from None


def _parts(text: str, where: str) -> tuple[bytes, bytes, bytes]:
    fault = SecretError(
        f"{where}: is not an envelope of version 1 ({ALGORITHM})",
        "The column holds something else, or was written by a newer program. Store the credential again.",
    )
    try:
        envelope: Any = json.loads(_decode(text))
        nonce, tag, ciphertext = (_decode(envelope[part]) for part in _PARTS)
        known = envelope["version"] == 1 and envelope["algorithm"] == ALGORITHM
    except (ValueError, KeyError, TypeError, AttributeError):
        raise fault from None
    if not known or len(nonce) != NONCE_BYTES or len(tag) != TAG_BYTES:
        raise fault
    return nonce, tag, ciphertext


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
