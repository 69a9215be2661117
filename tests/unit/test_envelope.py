"""Stored credentials are the host's: `envelope_vectors.json` was written by node's own crypto module."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lakehouse.demo.environment import settings_values
from lakehouse.secrets import Vault, destination_place, lake_place
from lakehouse.secrets.envelope import SecretError, parse_key, seal, unseal
from lakehouse.settings import ExplicitSettings, Settings

VECTORS: list[dict[str, str]] = json.loads((Path(__file__).parent / "envelope_vectors.json").read_text())
KEY = "hex:" + "ab" * 32
OTHER = "base64:" + base64.b64encode(bytes(range(32))).decode()
PLACE = destination_place("org-1", "6f1c1f9e-1f0e-4c58-9d1c-0c5a3c5f7a11")

# The host's way, with node's crypto alone: reads {key, place, plain} lines, writes what it opened.
NODE = """
const c = require('crypto');
let all = ''; process.stdin.on('data', d => all += d).on('end', () => {
  for (const line of all.trim().split('\\n')) {
    const { key, place, envelope } = JSON.parse(line);
    const e = JSON.parse(Buffer.from(envelope, 'base64url').toString('utf8'));
    if (e.version !== 1 || e.algorithm !== 'aes-256-gcm') throw new Error('header');
    const k = /^hex:/.test(key) ? Buffer.from(key.slice(4), 'hex')
      : c.scryptSync(key, 'aperio-token-vault', 32, { N: 16384, r: 8, p: 1 });
    const d = c.createDecipheriv('aes-256-gcm', k, Buffer.from(e.iv, 'base64url'));
    d.setAAD(Buffer.from(place, 'utf8')); d.setAuthTag(Buffer.from(e.tag, 'base64url'));
    console.log(JSON.stringify(d.update(Buffer.from(e.ciphertext, 'base64url'), undefined, 'utf8') + d.final('utf8')));
  }
});
"""


def settings(**secrets: Any) -> Settings:
    values = settings_values(
        {
            "LAKEHOUSE_INSTALLATION": "t",
            "LAKEHOUSE_SOURCE__URL": "postgresql://u:p@h/d",
            "LAKEHOUSE_LAKE__WAREHOUSE": "file:///w",
        }
    )
    return ExplicitSettings(**values, secrets=secrets)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['key'][:9]}-{len(v['plain'])}")
def test_what_the_host_wrote_is_read(vector: dict[str, str]) -> None:
    key = parse_key(vector["key"], where="test", environment={})
    assert unseal(vector["envelope"], key, vector["place"], where="test") == vector["plain"]


@pytest.mark.skipif(shutil.which("node") is None, reason="the host's language is not installed")
def test_the_host_reads_what_is_written() -> None:
    cases = [
        {"key": key, "place": PLACE, "envelope": seal(plain, parse_key(key, where="t", environment={}), PLACE)}
        for key in (KEY, "a passphrase of some length")
        for plain in ("", "pässword 🔑", '{"a":"b"}')
    ]
    lines = "\n".join(json.dumps(case) for case in cases)
    done = subprocess.run(["node", "-e", NODE], input=lines, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == ["", "pässword 🔑", '{"a":"b"}'] * 2


def test_the_format_written_out_with_primitives() -> None:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    text = seal("value", bytes.fromhex("ab" * 32), PLACE)
    assert "=" not in text and "+" not in text and "/" not in text

    def decode(part: str) -> bytes:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

    envelope = json.loads(decode(text))
    assert list(envelope) == ["version", "algorithm", "iv", "tag", "ciphertext"]
    assert (envelope["version"], envelope["algorithm"]) == (1, "aes-256-gcm")
    nonce, tag = decode(envelope["iv"]), decode(envelope["tag"])
    assert (len(nonce), len(tag)) == (12, 16)
    opened = Cipher(algorithms.AES256(bytes.fromhex("ab" * 32)), modes.GCM(nonce, tag)).decryptor()
    opened.authenticate_additional_data(b"org-1:warehouse:6f1c1f9e-1f0e-4c58-9d1c-0c5a3c5f7a11:credentials")
    assert opened.update(decode(envelope["ciphertext"])) + opened.finalize() == b"value"
    assert seal("value", bytes.fromhex("ab" * 32), PLACE) != text


def test_a_value_opens_only_where_it_belongs() -> None:
    vault = Vault(settings(keys={"v1": KEY}))
    text, version = vault.seal({"password": "canary-1"}, PLACE)
    assert (json.loads(vault.open(text, version, PLACE)), version) == ({"password": "canary-1"}, "v1")
    for place in (destination_place("org-2", "x"), lake_place("org-1", "x"), destination_place(None, "x")):
        with pytest.raises(SecretError, match="does not open"):
            vault.open(text, version, place)
    assert destination_place(None, "x") == ":warehouse:x:credentials"


def test_a_wrong_or_missing_key_is_named_and_nothing_else() -> None:
    text, _ = Vault(settings(keys={"v1": KEY})).seal("canary-plain-text", PLACE)
    wrong = Vault(settings(keys={"v1": OTHER}))
    with pytest.raises(SecretError) as caught:
        wrong.open(text, "v1", PLACE)
    assert PLACE in str(caught.value) and "key v1" in str(caught.value)
    assert OTHER[7:] not in str(caught.value) and "canary" not in str(caught.value)
    with pytest.raises(SecretError, match=r"no encryption key v9(.|\n)*LAKEHOUSE_SECRETS__KEYS(.|\n)*v1"):
        wrong.open(text, "v9", PLACE)
    with pytest.raises(SecretError, match="known versions: none"):
        Vault(settings(), {}).seal("x", PLACE)


def test_the_hosts_key_is_v1() -> None:
    text, version = Vault(settings(), {"APERIO_ENCRYPTION_KEY": KEY}).seal("x", PLACE)
    assert version == "v1"
    both = Vault(settings(keys={"v2": OTHER}, key_version="v2"), {"APERIO_ENCRYPTION_KEY": KEY})
    assert both.open(text, "v1", PLACE) == "x" and both.seal("x", PLACE)[1] == "v2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hex:abcd", "has 2 bytes"),
        ("hex:zz", "cannot be decoded"),
        ("base64:!!!!", "cannot be decoded"),
        ("base64:" + base64.b64encode(bytes(31)).decode(), "has 31 bytes"),
        ("  ", "is empty"),
    ],
)
def test_bad_keys(text: str, message: str) -> None:
    with pytest.raises(SecretError, match=message) as caught:
        parse_key(text, where="LAKEHOUSE_SECRETS__KEYS, version v1", environment={})
    assert "version v1" in caught.value.detail
    assert "!!!!" not in str(caught.value) and "zz" not in str(caught.value)


def test_both_alphabets_are_read_as_node_reads_them() -> None:
    for text in (base64.b64encode(b"\xff" * 32).decode(), base64.urlsafe_b64encode(b"\xff" * 32).decode().rstrip("=")):
        for kind in ("base64", "base64url"):
            assert parse_key(f"{kind}:{text}", where="x") == b"\xff" * 32


def test_a_passphrase_is_refused_in_production() -> None:
    assert len(parse_key("some words", where="x", environment={"NODE_ENV": "test"})) == 32
    with pytest.raises(SecretError, match="passphrase is refused"):
        parse_key("some words", where="x", environment={"NODE_ENV": "production"})


@pytest.mark.parametrize(
    "text", ["", "not base64 !", "e30", "bnVsbA", "W10", base64.urlsafe_b64encode(b'{"version":2}').decode()]
)
def test_what_is_no_envelope(text: str) -> None:
    with pytest.raises(SecretError, match="is not an envelope"):
        unseal(text, bytes(32), PLACE, where="row")


def test_a_changed_envelope_does_not_open() -> None:
    text = seal("value", bytes(32), PLACE)
    envelope = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    for part in ("iv", "tag", "ciphertext"):
        old = envelope[part]
        changed = envelope | {part: ("A" if old[0] != "A" else "B") + old[1:]}
        with pytest.raises(SecretError, match="does not open"):
            unseal(
                base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("="), bytes(32), PLACE, where=""
            )
