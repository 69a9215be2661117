"""The operator's keys: receipts are signed with one, the hashes in tombstones are made with another.

A receipt is a JWS in compact form (RFC 7515), signed with Ed25519 (`EdDSA`, RFC 8037); its header names the key by the
RFC 7638 thumbprint of the public half, so that receipts outlive a change of keys. A tombstone says what its row held
only to whoever has the tombstone key, for it stays after the row was erased: HMAC-SHA256 over the 64 characters of the
canonical hash. Keys are looked at when the archive starts: one that is missing or open to others ends it before
anything is deleted. Nothing here prints a private key, and what was read is remembered for redaction.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from lakehouse.archive.installation import ArchiveError
from lakehouse.archive.records import RECEIPT_TYPE, Receipt
from lakehouse.observe.redact import remember
from lakehouse.secrets.envelope import SecretError, parse_key

if TYPE_CHECKING:
    from lakehouse.app import App

ALGORITHM = "EdDSA"
_MAKE = "Make one: lakehouse receipts keygen FILE (or openssl genpkey -algorithm ed25519 -out FILE; chmod 600 FILE)"
_SET = f"{_MAKE}, and set LAKEHOUSE_ARCHIVE__SIGNING_KEY_FILE to it."
_LARGEST = 64 * 1024
"""Bytes of a key's file; a PEM of this kind has about 120."""


class ReceiptError(ArchiveError):
    """A receipt is not what its key signed, or is none."""


@dataclass(frozen=True)
class PublicKey:
    """Who checks receipts needs this and nothing else of the operator's."""

    key: Ed25519PublicKey

    @property
    def thumbprint(self) -> str:
        """RFC 7638: SHA-256 over the JWK's required members, as base64url without padding."""
        required = {name: value for name, value in self.jwk.items() if name in ("crv", "kty", "x")}
        return _base64url(hashlib.sha256(json.dumps(required, sort_keys=True, separators=(",", ":")).encode()).digest())

    @property
    def jwk(self) -> dict[str, str]:
        """As a JSON Web Key (RFC 8037), without its `kid`."""
        return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(self.key.public_bytes(Encoding.Raw, PublicFormat.Raw))}

    @property
    def pem(self) -> str:
        """As PEM (SubjectPublicKeyInfo)."""
        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class Sealer:
    """Signs receipts and keys hashes with what the settings name. Safe to share between threads.

    Raises:
        ArchiveError: a key is missing, cannot be read, is of another kind, or others can read it.
    """

    def __init__(self, app: App) -> None:
        settings = app.settings.archive
        self._signing = read_signing_key(settings.signing_key_file)
        self._kid = PublicKey(self._signing.public_key()).thumbprint
        self.hash_key_version = settings.tombstone_key_version
        self._hashing = _tombstone_key(
            {version: key.get_secret_value() for version, key in settings.tombstone_keys.items()}, self.hash_key_version
        )

    @property
    def public_key(self) -> PublicKey:
        """The public half of the signing key."""
        return PublicKey(self._signing.public_key())

    def keyed_hash(self, row_hash: str) -> tuple[str, str]:
        """HMAC-SHA256 in lower-case hex over the text of a row's canonical hash, and the version of the key."""
        return hmac.digest(self._hashing, row_hash.encode(), "sha256").hex(), self.hash_key_version

    def seal(self, receipt: Receipt) -> str:
        """The receipt's JWS in compact form; the same text whenever the same receipt is sealed with the same key."""
        from jwt.api_jws import PyJWS

        return PyJWS().encode(
            receipt.payload(), self._signing, algorithm=ALGORITHM, headers={"typ": RECEIPT_TYPE, "kid": self._kid}
        )


def unseal(text: str, keys: Mapping[str, PublicKey]) -> Receipt:
    """The receipt of a JWS whose signature is good under one of `keys` (by thumbprint).

    Only what `Sealer.seal` writes is taken: this algorithm, this type, no other header, the payload's own canonical
    bytes, so that a receipt has one text.

    Raises:
        ReceiptError: no receipt, an unknown key, or not what that key signed.
    """
    from jwt.api_jws import PyJWS
    from jwt.exceptions import PyJWTError

    header = header_of(text)
    if header.keys() != {"alg", "kid", "typ"} or (header["alg"], header["typ"]) != (ALGORITHM, RECEIPT_TYPE):
        raise ReceiptError(f"not a receipt: its header is {json.dumps(header)[:200]}")
    if (known := keys.get(str(header["kid"]))) is None:
        raise ReceiptError(
            f"signed with the key {header['kid']}, which is not among those given ({', '.join(keys) or 'none'})",
            "Give the public key of that time as well: --public-key FILE can be repeated.",
        )
    try:
        payload: bytes = PyJWS([ALGORITHM]).decode(text, known.key, algorithms=[ALGORITHM])
    except PyJWTError as error:
        raise ReceiptError(f"the signature is not of key {header['kid']}: {error}") from error
    receipt = _parsed(payload)
    if receipt.payload() != payload or "=" in text:
        raise ReceiptError("not a receipt in the form that is signed: docs/compliance.md says which bytes")
    return receipt


def read_unverified(text: str) -> Receipt:
    """The receipt of a JWS without a look at its signature: to show it, never to trust it.

    Raises:
        ReceiptError: it is none.
    """
    from jwt.api_jws import PyJWS
    from jwt.exceptions import PyJWTError

    try:
        return _parsed(PyJWS().decode(text, options={"verify_signature": False}))
    except PyJWTError as error:
        raise ReceiptError(f"not a receipt: {error}") from error


def header_of(text: str) -> dict[str, Any]:
    """A JWS's header, not to be trusted.

    Raises:
        ReceiptError: it is no JWS.
    """
    from jwt.api_jws import PyJWS
    from jwt.exceptions import PyJWTError

    try:
        return PyJWS().get_unverified_header(text)
    except PyJWTError as error:
        raise ReceiptError(f"not a receipt: {error}") from error


def _parsed(payload: bytes) -> Receipt:
    try:
        return Receipt.parse(payload)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReceiptError(
            f"not a receipt of version 1: {type(error).__name__}: {error}", "A newer program may have written it."
        ) from error


def read_signing_key(file: Path | None) -> Ed25519PrivateKey:
    """The operator's signing key, from a PEM file (PKCS8, not encrypted) that only its owner can read.

    As ssh does: a file of another owner's, such as a mounted secret, may be readable by our group.

    Raises:
        ArchiveError: see the class; the hint says what to do.
    """
    if file is None:
        raise ArchiveError("no key to sign receipts with: archive.signing_key_file is not set", _SET)
    where = f"archive.signing_key_file: {file}"
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            data = stream.read(_LARGEST + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise ArchiveError(f"{where}: cannot be read: {error.strerror}", _SET) from error
    others = stat.S_IRWXG | stat.S_IRWXO if status.st_uid == os.getuid() else stat.S_IRWXO
    if status.st_mode & others:
        raise ArchiveError(
            f"{where}: others can read or change it (mode {stat.S_IMODE(status.st_mode):04o})",
            f"chmod 600 {file}. If somebody may have read it, make a new one; old receipts keep their key.",
        )
    if not data or len(data) > _LARGEST:
        raise ArchiveError(f"{where}: not a key: {'too long' if data else 'empty, or no file'}", _SET)
    remember(data.decode("ascii", "replace"))
    return _private_key(data, where)


def _private_key(data: bytes, where: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise ArchiveError(
            f"{where}: the key is encrypted, and nobody is there to type its passphrase",
            "Keep it in a file without one that only this user can read: openssl pkey -in FILE -out OTHER",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        # What the library says of a bad key may repeat a part of it.
        raise ArchiveError(f"{where}: not a private key in PEM (PKCS8)", _SET) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ArchiveError(f"{where}: a key of another kind ({type(key).__name__}); Ed25519 is needed", _SET)
    seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    for form in (_base64url(seed), base64.b64encode(seed).decode(), seed.hex()):
        remember(form)
    return key


def _tombstone_key(keys: Mapping[str, str], version: str) -> bytes:
    if version not in keys:
        raise ArchiveError(
            f"no key for the hashes in tombstones: archive.tombstone_keys has no {version!r} "
            f"({', '.join(sorted(keys)) or 'it is empty'})",
            f'Make one: openssl rand -base64 32, and set LAKEHOUSE_ARCHIVE__TOMBSTONE_KEYS=\'{{"{version}": '
            "\"base64:…\"}}'. Keep it: it proves what a tombstone's row held.",
        )
    remember(keys[version])
    remember(keys[version].partition(":")[2])
    try:
        return parse_key(keys[version], where=f"LAKEHOUSE_ARCHIVE__TOMBSTONE_KEYS, version {version}")
    except SecretError as error:
        raise ArchiveError(error.detail, error.hint) from error


def read_public_key(file: Path) -> PublicKey:
    """A public key from a file: PEM (SubjectPublicKeyInfo) or a JSON Web Key.

    Raises:
        ArchiveError: it cannot be read, or is no Ed25519 public key.
    """
    where = f"--public-key {file}"
    hint = "It is what `lakehouse receipts keygen` printed; of a private key: openssl pkey -in FILE -pubout"
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST)
    except OSError as error:
        raise ArchiveError(f"{where}: cannot be read: {error.strerror}", hint) from error
    try:
        key = _from_jwk(json.loads(data)) if data.lstrip().startswith(b"{") else load_pem_public_key(data)
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm):
        raise ArchiveError(f"{where}: not a public key in PEM or as a JSON Web Key", hint) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ArchiveError(f"{where}: a key of another kind ({type(key).__name__}); Ed25519 is needed", hint)
    return PublicKey(key)


def _from_jwk(raw: Any) -> Ed25519PublicKey:
    if (raw["kty"], raw["crv"]) != ("OKP", "Ed25519"):
        raise ValueError("another kind of key")
    text = str(raw["x"])
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))


def make_signing_key(file: Path) -> PublicKey:
    """Make a signing key, write it to a new file that only its owner can read, and return the public half.

    Raises:
        ArchiveError: the file is there already, which is never overwritten, or it cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    remember(pem.decode())
    try:
        # O_EXCL: neither a file nor a link is followed; the mode holds from the first byte on.
        number = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError as error:
        raise ArchiveError(
            f"{file}: there is a file already, and a key is never overwritten",
            f"Name another. The public half of a key that you have: openssl pkey -in {file} -pubout",
        ) from error
    except OSError as error:
        raise ArchiveError(
            f"{file}: cannot be written: {error.strerror}", "Name a file in a folder of yours."
        ) from error
    with os.fdopen(number, "wb") as stream:
        stream.write(pem)
        stream.flush()
        os.fsync(stream.fileno())
    return PublicKey(key.public_key())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
