"""Secrets are taken out of text: known values in every encoding, and what only looks like one."""

from __future__ import annotations

import base64
import io
import json
import logging
from urllib.parse import quote

import pytest

from lakehouse.observe import redact as module
from lakehouse.observe.events import Events, describe
from lakehouse.observe.redact import MARK, redact, redact_values, remember, remember_all, remember_url

SECRET = "cAnary-1/2+3 ä'\"x"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_known", frozenset())


@pytest.mark.parametrize(
    "shown",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        repr(SECRET),
        SECRET.encode().hex(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        base64.b64encode(f"u:{SECRET}".encode()).decode(),
        base64.b64encode(f"user:{SECRET}@host".encode()).decode(),
        base64.b64encode(f"a:{SECRET}-".encode()).decode(),
    ],
)
def test_a_known_secret_in_every_form(shown: str) -> None:
    text = f"before {shown} after"
    assert redact(text) == text, "no pattern finds it: only knowing it does"
    remember(SECRET)
    said = redact(text)
    assert MARK in said and said.startswith("before ") and said.endswith(" after")
    for piece in ("anary", quote("1/2", safe=""), base64.b64encode(SECRET.encode()).decode()[4:14]):
        assert piece not in said
    assert redact(said) == said
    assert redact(text, secrets=[SECRET]) == said


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("postgresql://user:p@ss:word@host/db", "user:***@host/db"),
        ("could not connect to postgresql+psycopg://u:hunter2@h:5/d?x=1", "u:***@h:5/d?x=1"),
        ("password=hunter2 host=h", "password=*** host=h"),
        ("PASSWORD = 'hunter 2' x", "PASSWORD = *** x"),
        ("CREATE SECRET (SECRET_ACCESS_KEY='hun''ter2', REGION 'x')", "SECRET_ACCESS_KEY=***, REGION"),
        ('{"secret_access_key": "hunter2", "region": "x"}', '"secret_access_key": "***", "region": "x"'),
        ("{'api_key': 'hunter2'}", "'api_key': "),
        ("https://b.s3/x?X-Amz-Credential=hunter2%2Fus&X-Amz-Signature=hunter2&y=1", "X-Amz-Signature=***&y=1"),
        ("Authorization: Bearer hunter2.abcdefgh", "Bearer ***"),
        ("key AKIAIOSFODNN7EXAMPLE is wrong", "key *** is wrong"),
        ("-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY----- rest", "*** rest"),
        ("-----BEGIN PRIVATE KEY-----\nhunter2 (cut", MARK),
    ],
)
def test_what_looks_like_a_secret(text: str, left: str) -> None:
    said = redact(text)
    assert "hunter" not in said and "AKIAIO" not in said and "ss:word" not in said
    assert left in said
    assert redact(said) == said


@pytest.mark.parametrize(
    "text",
    [
        "Check LAKEHOUSE_LAKE__S3__ACCESS_KEY_ID and LAKEHOUSE_LAKE__S3__SECRET_ACCESS_KEY.",
        "must look like postgresql://user:password@host:5432/database",
        "s3://bucket/warehouse/org_a/events/data/0-1.parquet",
        "line 3: column `token_key_version` is missing; basic facts about bearer of news",
        "at 2026-01-01T10:00:00+00:00 https://host:9000/path@2x",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redact(text) == text


def test_short_values_are_words_and_shorter_ones_are_left() -> None:
    for value in ("app", "lake", "postgres"):
        remember(value)
    assert redact("app lake lakehouse postgres, postgresql") == "app *** lakehouse ***, postgresql"


def test_credentials_are_remembered_but_not_where_they_lead() -> None:
    remember_all({"secret": "s3cr3t-value", "region": "eu-central-1", "nested": [{"private_key": "another-value"}]})
    remember_url("postgresql://u:p%40ssw0rd-1@h/d")
    said = redact("s3cr3t-value eu-central-1 another-value p@ssw0rd-1 p%40ssw0rd-1")
    assert said == "*** eu-central-1 *** *** ***"


def test_events_errors_and_logs() -> None:
    remember(SECRET)
    seen: list[dict[str, object]] = []
    events = Events(seen.append)
    with pytest.raises(ValueError, match="cAnary"), events.unit("x", note=[{SECRET: SECRET}]):
        raise ValueError(f"at {SECRET} " + "x" * 1000)
    assert "anary" not in str(seen) and seen[0]["error"].startswith("ValueError: at *** x")  # type: ignore[attr-defined]
    assert len(describe(ValueError(SECRET * 100 + "x" * 1000))) <= 500
    assert redact_values({"a": (SECRET, 1, None)}) == {"a": [MARK, 1, None]}
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(module.RedactingFormatter())
    logger = logging.Logger("x")
    logger.addHandler(handler)
    try:
        int(SECRET)
    except ValueError:
        logger.exception("with %s", SECRET)
    assert "anary" not in stream.getvalue() and "invalid literal" in stream.getvalue()
