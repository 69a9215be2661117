"""Takes secrets out of text before anybody sees it: events, stored errors, what the command line prints.

Two nets. Known values: every secret of the settings and every credential that was opened is remembered in this
process, and found as it is, URL-encoded, JSON-escaped, in hex and in base64 (at any offset, so also inside
`user:password`). Patterns: what looks like a secret wherever it comes from (a password in a URL, `password=…`, AWS
keys, bearer tokens, signatures, private keys), because drivers and vendors put values into their messages that
this process never knew.

A value shorter than ten characters is replaced only where it stands as a word, one shorter than four not at all
by value: it would make every message unreadable. Redacting twice changes nothing more.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MARK = "***"
SHORTEST = 4
_WORD = 10
_ENCODED = 8
_ENVIRONMENT = ("APERIO_ENCRYPTION_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD")

_known: frozenset[str] = frozenset()
_lock = threading.Lock()

_NAMES = (
    r"(?:[A-Za-z0-9_.-]*(?:password|passwd|passphrase|passcode|secret|token|api[_-]?key|private[_-]?key"
    r"|access[_-]?key|encryption[_-]?key|credential|signature)[A-Za-z0-9_.-]*|pwd|sig)"
)
_NOT_MARK = r"(?!\*\*\*)"
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), MARK),
    # The password of a URL may hold an unescaped @: everything up to the last one before the path. What our own
    # hints write is left; who really has that password is found by its value.
    (re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.-]*://[^\s:/@?#'\"]*:)(?!password@|\*\*\*@)[^\s/?#'\"]+(?=@)"),
     rf"\g<head>{MARK}"),
    (re.compile(r"\b(?P<head>(?:bearer|basic)\s+)(?=[A-Za-z0-9._~+/=-]*[0-9.])[A-Za-z0-9._~+/=-]{8,}", re.I),
     rf"\g<head>{MARK}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*"), MARK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), MARK),
    # name=value, name: 'value', "name": "value": quoted up to the quote, bare up to what ends a word.
    (re.compile(rf"(?P<head>(?<![A-Za-z0-9])[\"']?{_NAMES}[\"']?\s*=>?\s*){_NOT_MARK}"
                r"(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.|'')*'|[^\s,;&)\]}\"']+)", re.I), rf"\g<head>{MARK}"),
    (re.compile(rf"(?P<head>[\"']{_NAMES}[\"']\s*:\s*)(?:\"(?!\*\*\*)(?:[^\"\\]|\\.)*\"|'(?!\*\*\*)(?:[^'\\]|\\.)*')",
                re.I), rf'\g<head>"{MARK}"'),
    (re.compile(r"(?P<head>\b(?:X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|Signature|AWSAccessKeyId)=)"
                r"(?!\*\*\*)[^\s&,'\"]+", re.I), rf"\g<head>{MARK}"),
)  # fmt: skip


def remember(secret: str | None) -> None:
    """From now on this value is taken out of everything that is redacted in this process."""
    global _known  # noqa: PLW0603 - one registry a process is the point
    if not secret:
        return
    values = {secret, secret.strip(), *[line.strip() for line in secret.splitlines() if len(line.strip()) >= 16]}
    values = {v for v in values if len(v) >= SHORTEST}
    if values <= _known:
        return
    with _lock:
        _known = _known | values


def remember_all(value: Any) -> None:
    """Remember every text inside a value: a credential's mapping, a list, or the text itself.

    Names of keys are not secrets, nor is what a service account's file says of public addresses.
    """
    if isinstance(value, str):
        remember(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not (isinstance(inner, str) and _PUBLIC.fullmatch(str(key))):
                remember_all(inner)
            remember_url(inner if isinstance(inner, str) else None)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for inner in value:
            remember_all(inner)


_PUBLIC = re.compile(r"(?:region|endpoint|host|port|type|account|user|username|database|schema|warehouse|role|.*_uri"
                     r"|.*_url|uri|url|project_id|client_email|client_id|universe_domain)", re.I)  # fmt: skip


def remember_url(url: str | None) -> None:
    """Remember the password of a URL, as it stands there and decoded."""
    match = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", url or "")
    if match is None:
        return
    password = match[0].partition("://")[2].rpartition("@")[0].partition(":")[2]
    for form in (password, unquote(password)):
        remember(form)
    for parameter in re.findall(r"[?&](?:password|sslpassword)=([^&#]*)", url or ""):
        remember(parameter)
        remember(unquote(parameter))


def remember_settings(settings: Any) -> None:
    """Remember every SecretStr of the settings, and what the environment holds besides."""
    import os

    from pydantic import BaseModel, SecretStr

    def walk(value: Any) -> None:
        if isinstance(value, SecretStr):
            text = value.get_secret_value()
            if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
                remember_url(text)
                return
            remember(text)
            remember(re.sub(r"^(?:base64|base64url|hex):", "", text))
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                walk(getattr(value, name))
        elif isinstance(value, Mapping):
            for inner in value.values():
                walk(inner)

    walk(settings)
    for name in _ENVIRONMENT:
        text = os.environ.get(name, "")
        remember(text)
        remember(re.sub(r"^(?:base64|base64url|hex):", "", text))


def redact(text: str, *, secrets: Iterable[str] = ()) -> str:
    """`text` without secrets: `***` stands where one was. `secrets`: values to take out besides the known ones."""
    found = _compiled(_known | {s for s in secrets if len(s) >= SHORTEST})
    if found is not None:
        text = found.sub(MARK, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_values(value: Any) -> Any:
    """The same value with every text in it redacted, also names of keys: what is about to become JSON."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(k) if isinstance(k, str) else k: redact_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_values(v) for v in value]
    return value


@functools.lru_cache(maxsize=8)
def _compiled(secrets: frozenset[str]) -> re.Pattern[str] | None:
    forms = {form for secret in secrets for form in _forms(secret)}
    if not forms:
        return None
    parts = []
    for form in sorted(forms, key=lambda f: (-len(f), f)):
        pattern = re.escape(form)
        as_word = len(form) < _ENCODED or (len(form) < _WORD and form in secrets)
        parts.append(rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])" if as_word else pattern)
    return re.compile("|".join(parts))


def _forms(secret: str) -> set[str]:
    raw = secret.encode(errors="surrogatepass")
    hexed = raw.hex()
    forms = {
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        re.sub(r"%[0-9A-F]{2}", lambda m: m[0].lower(), quote(secret, safe="")),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        secret.replace("'", "''"),
    }
    if len(raw) >= _ENCODED:
        forms |= {hexed, hexed.upper(), *_base64_forms(raw)}
    return {f for f in forms if len(f) >= SHORTEST}


def _base64_forms(raw: bytes) -> set[str]:
    """What base64 of any text that holds these bytes must contain, whatever stands before and after them."""
    forms = set()
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + raw).decode().rstrip("=")
        # Characters that mix in a neighbour's bits are left out.
        inner = encoded[(0, 2, 3)[offset] : (offset + len(raw)) * 8 // 6]
        if len(inner) >= _ENCODED:
            forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    return forms


class _Record(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 - logging's own name
        return redact(super().getMessage())


class RedactingFormatter(logging.Formatter):
    """Formats a log record with its traceback and takes secrets out of the whole."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def install() -> None:
    """Redact what Python itself prints: uncaught errors of any thread, warnings, log records."""

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.stderr.write("interrupted\n")
            return
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))

    def in_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_type is not SystemExit and arguments.exc_value is not None:
            uncaught(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)

    def unraisable(arguments: Any) -> None:
        if arguments.exc_value is not None:
            uncaught(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)

    show = warnings.formatwarning
    warnings.formatwarning = lambda *a, **k: redact(show(*a, **k))
    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
    logging.setLogRecordFactory(_Record)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(RedactingFormatter())
