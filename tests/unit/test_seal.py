"""The operator's keys: what is signed, what is refused, and what never leaves this process."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
import shutil
import subprocess
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from lakehouse.archive.installation import ArchiveError
from lakehouse.archive.records import Receipt
from lakehouse.archive.seal import (
    PublicKey,
    ReceiptError,
    Sealer,
    make_signing_key,
    read_public_key,
    read_signing_key,
    unseal,
)
from lakehouse.observe.redact import redact
from lakehouse.settings import ArchiveSettings

HASH_KEY = "base64:" + base64.b64encode(bytes(range(32))).decode()
RECEIPT = Receipt(
    installation="tests",
    organization="org-ä",
    table="events",
    contract_version="1.0",
    batch=uuid.UUID(int=7),
    number=1,
    previous="0" * 64,
    rows=2,
    content_sha256="a" * 64,
    tombstones_sha256="b" * 64,
    lake_table="org_x.events",
    snapshot_id=12,
    files=("s3://b/1.parquet", "s3://b/2.parquet"),
    destinations=({"name": "lake", "kind": "ICEBERG_S3", "sequence": 9},),
    policy="90 days",
    operator="eva@host",
    method="duckdb 1.5.5",
    software="lakehouse 0.1.0",
    archived_at=datetime(2026, 3, 4, 5, 6, 7, 8, tzinfo=UTC),
)


def sealer(file: Path | None, **more: Any) -> Sealer:
    values: dict[str, Any] = {"signing_key_file": file, "tombstone_keys": {"t1": HASH_KEY}} | more
    app: Any = SimpleNamespace(settings=SimpleNamespace(archive=ArchiveSettings(**values)))
    return Sealer(app)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_signing_key(tmp_path / "signing.pem")
    return tmp_path / "signing.pem"


def test_a_receipt_is_a_jws_that_any_library_and_openssl_verify(key: Path, tmp_path: Path) -> None:
    signer = sealer(key)
    text = signer.seal(RECEIPT)
    assert text == signer.seal(RECEIPT)
    head, payload, signature = text.split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    signed = f"{head}.{payload}".encode()
    public = load_pem_public_key(signer.public_key.pem.encode())
    public.verify(raw, signed)  # type: ignore[call-arg,union-attr,arg-type]
    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    assert header == {"alg": "EdDSA", "kid": signer.public_key.thumbprint, "typ": "lakehouse-receipt+jws"}
    assert unseal(text, {signer.public_key.thumbprint: signer.public_key}) == RECEIPT
    assert shutil.which("openssl"), "openssl is part of every machine that this is tested on"
    for name, data in (("key.pem", signer.public_key.pem.encode()), ("text", signed), ("signature", raw)):
        (tmp_path / name).write_bytes(data)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "text"]
    command += ["-sigfile", "signature"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    (tmp_path / "text").write_bytes(signed[:-1] + b"x")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0


def test_the_thumbprint_is_that_of_the_rfc() -> None:
    # RFC 8037, appendix A.2 and A.3.
    public = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = PublicKey(Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(public["x"] + "=")))
    assert found.thumbprint == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert found.jwk == public


def test_whatever_is_altered_is_not_a_receipt_any_more(key: Path, tmp_path: Path) -> None:
    signer = sealer(key)
    keys = {signer.public_key.thumbprint: signer.public_key}
    text = signer.seal(RECEIPT)
    head, payload, signature = text.split(".")
    other = sealer(key, signing_key_file=_other(tmp_path)).seal(RECEIPT)
    with pytest.raises(ReceiptError, match="not among those given"):
        unseal(other, keys)
    forged = dataclasses.replace(RECEIPT, rows=3).payload()
    with pytest.raises(ReceiptError, match="signature"):
        unseal(f"{head}.{_b64(forged)}.{signature}", keys)
    # Another's signature under our key's name.
    with pytest.raises(ReceiptError, match="signature"):
        unseal(f"{head}.{payload}.{other.split('.')[2]}", keys)
    for header in ({"alg": "none"}, {"alg": "HS256"}, {"typ": "JWT"}, {"b64": False, "crit": ["b64"]}, {"extra": 1}):
        changed = _b64(json.dumps({"alg": "EdDSA", "kid": signer.public_key.thumbprint} | header).encode())
        with pytest.raises(ReceiptError, match="not a receipt"):
            unseal(f"{changed}.{payload}.{signature}", keys)
    for broken in ("", "a.b", text + "=", text.replace(".", "..", 1), f"{head}.{payload}"):
        with pytest.raises(ReceiptError):
            unseal(broken, keys)


def test_a_signed_text_in_another_form_is_refused(key: Path) -> None:
    """One receipt has one text: what is signed with the right key and printed otherwise is not one."""
    from jwt.api_jws import PyJWS

    signer = sealer(key)
    payload = json.dumps(json.loads(RECEIPT.payload())).encode()
    header = {"typ": "lakehouse-receipt+jws", "kid": signer.public_key.thumbprint}
    text = PyJWS().encode(payload, read_signing_key(key), algorithm="EdDSA", headers=header)
    with pytest.raises(ReceiptError, match="in the form that is signed"):
        unseal(text, {signer.public_key.thumbprint: signer.public_key})


def test_the_keyed_hash_is_plain_hmac_over_the_text(key: Path) -> None:
    row = hashlib.sha256(b"row").hexdigest()
    expected = hmac.new(bytes(range(32)), row.encode(), hashlib.sha256).hexdigest()
    assert sealer(key).keyed_hash(row) == (expected, "t1")
    more = sealer(key, tombstone_keys={"t1": HASH_KEY, "t2": "hex:" + "11" * 32}, tombstone_key_version="t2")
    assert more.keyed_hash(row)[1] == "t2" and more.keyed_hash(row)[0] != expected


def test_a_key_that_others_can_read_is_refused(key: Path) -> None:
    for mode in (0o640, 0o604, 0o620, 0o666):
        key.chmod(mode)
        with pytest.raises(ArchiveError, match=f"mode {mode:04o}") as caught:
            sealer(key)
        assert f"chmod 600 {key}" in caught.value.hint
    key.chmod(0o400)
    sealer(key)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("genpkey -algorithm x25519", "another kind"),
        ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", "another kind"),
        ("genpkey -algorithm ed25519 -aes256 -pass pass:secret", "encrypted"),
        ("genpkey -algorithm ed25519 -outform DER", "not a private key in PEM"),
        ("rand -base64 32", "not a private key in PEM"),
    ],
)
def test_other_keys_are_refused_by_name(tmp_path: Path, command: str, said: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(subprocess.run(["openssl", *command.split()], capture_output=True, check=True).stdout)
    file.chmod(0o600)
    with pytest.raises(ArchiveError, match=said) as caught:
        sealer(file)
    assert caught.value.hint


def test_openssls_own_key_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    file.chmod(0o600)
    public = sealer(file).public_key
    printed = subprocess.run(["openssl", "pkey", "-in", str(file), "-pubout"], capture_output=True, text=True)
    assert printed.stdout == public.pem


def test_missing_keys_are_named_with_what_makes_one(key: Path, tmp_path: Path) -> None:
    for file, said in ((None, "is not set"), (tmp_path / "absent", "cannot be read"), (tmp_path, "cannot be read")):
        with pytest.raises(ArchiveError, match=said) as caught:
            sealer(file)
        assert "keygen" in caught.value.hint
    (tmp_path / "empty").touch(0o600)
    with pytest.raises(ArchiveError, match="empty"):
        sealer(tmp_path / "empty")
    with pytest.raises(ArchiveError, match="tombstone_keys has no 't2'") as caught:
        sealer(key, tombstone_key_version="t2")
    assert "openssl rand" in caught.value.hint
    with pytest.raises(ArchiveError, match="has 3 bytes"):
        sealer(key, tombstone_keys={"t1": "hex:010203"})


def test_a_key_is_never_overwritten_and_only_its_owners(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    first = make_signing_key(file)
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_bytes()
    with pytest.raises(ArchiveError, match="never overwritten"):
        make_signing_key(file)
    assert file.read_bytes() == before and sealer(file).public_key.thumbprint == first.thumbprint
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArchiveError, match="never overwritten"):
        make_signing_key(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(ArchiveError, match="cannot be written"):
        make_signing_key(tmp_path / "nowhere" / "key.pem")


def test_nothing_that_is_printed_holds_a_private_key(key: Path) -> None:
    private = read_signing_key(key)
    seed = private.private_bytes_raw()
    body = key.read_text().splitlines()[1]
    forms = (body, seed.hex(), _b64(seed), base64.b64encode(seed).decode(), HASH_KEY.partition(":")[2])
    sealer(key)
    for form in forms:
        assert form not in redact(f"a driver says: {form} was wrong"), form
    assert body not in repr(sealer(key).__dict__)


def test_a_public_key_is_read_as_pem_and_as_a_json_web_key(key: Path, tmp_path: Path) -> None:
    public = sealer(key).public_key
    (tmp_path / "public.pem").write_text(public.pem)
    (tmp_path / "public.json").write_text(json.dumps({**public.jwk, "kid": public.thumbprint}))
    for name in ("public.pem", "public.json"):
        assert read_public_key(tmp_path / name).thumbprint == public.thumbprint
    with pytest.raises(ArchiveError, match="not a public key") as caught:
        read_public_key(key)
    assert "-pubout" in caught.value.hint
    for bad in ('{"kty": "RSA"}', "[]", '{"kty": "OKP", "crv": "Ed25519", "x": "AA"}', "{", "text"):
        (tmp_path / "bad").write_text(bad)
        with pytest.raises(ArchiveError, match="not a public key"):
            read_public_key(tmp_path / "bad")


def _other(folder: Path) -> Path:
    make_signing_key(folder / "other.pem")
    return folder / "other.pem"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
