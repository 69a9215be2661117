"""What must stay out of the lake, and who may read what goes in: guesses from names, types and comments.

When in doubt a column is left out: a person can let it in, but nobody can call a published secret back.
"""

from __future__ import annotations

import re

from lakehouse.drafting import vocabulary as known
from lakehouse.drafting.catalog import HotColumn, HotTable
from lakehouse.drafting.names import singular, words
from lakehouse.drafting.types import is_text, map_type
from schemas.contract import Sensitivity

_SAYS_SECRET = re.compile(
    r"\b(secrets?|passwords?|credentials?|encrypted|ciphertext|bearer|(access|api|refresh) (token|key))\b",
    re.I,
)


def secret_reason(column: HotColumn, table: HotTable) -> str | None:
    """Why the column may hold a secret, or None."""
    parts = words(column.name)
    why = None
    if (found := _secret_word(parts)) and not _cannot_hold_a_secret(column, parts):
        why = f"It may be a secret by its name ({found})"
    elif not _opaque(column):
        return None
    elif parts and set(parts) <= known.SECRET_IN_A_TABLE_OF_SECRETS and (of := _secret_word(words(table.name))):
        why = f"It may be a secret, in a table named {of}"
    elif {"webhook", "url"} <= set(parts):
        why = "Whoever knows a webhook URL may post to it"
    elif column.base in ("json", "jsonb") and set(parts[-1:]) & known.JSON_OF_SECRETS:
        why = f"Such JSON often holds credentials ({parts[-1]})"
    elif says := _SAYS_SECRET.search(column.comment or ""):
        why = f"It may be a secret: its comment says {says[0].lower()!r}"
    return why and f"{why}; left out until a person decides."


def _secret_word(parts: tuple[str, ...]) -> str | None:
    one = tuple(singular(part) for part in parts)
    for phrase in known.SECRET_PHRASES:
        if any(one[at : at + len(phrase)] == phrase for at in range(len(one))):
            return " ".join(phrase)
    if word := next((part for part in one if part in known.SECRET), None):
        return word
    # Per word, not over their joints: "compass words" hides no password.
    return next((secret for secret in known.SECRET_RUN_TOGETHER if any(secret in part for part in parts)), None)


def _opaque(column: HotColumn) -> bool:
    return is_text(column) or (column.built_in and column.base in ("bytea", "json", "jsonb"))


def _cannot_hold_a_secret(column: HotColumn, parts: tuple[str, ...]) -> bool:
    """Numbers, times, flags and labels cannot (but a card number may be a number), nor can a column that only
    tells about one (`token_key_version`) or that points to a row (`api_key_id`, a foreign key to `api_keys.id`).
    """
    if parts[0] == "encrypted" and _opaque(column):
        return False
    if column.kind == "e" or (column.reference and words(column.reference[2])[-1:] == ("id",)):
        return True
    if column.category in "BDT":
        return True
    if column.category == "N":
        return not known.SECRET_NUMBERS & set(parts)
    return parts[-1] in known.ABOUT_A_SECRET


def sensitivity(column: HotColumn, table: HotTable) -> Sensitivity:
    """`personal` for what names, reaches or places somebody; `confidential` for free text, documents and
    addresses, which may carry more than they should.
    """
    parts = words(column.name)
    if column.base in ("inet", "cidr", "macaddr", "macaddr8") or _points_to_people(column):
        return "personal"
    if map_type(column).type in ("json", "binary") or column.base in ("xml", "tsvector", "hstore"):
        return "confidential"
    if known.BIRTH & set(parts):
        return "personal"
    if column.kind == "e" or column.category in "BDT":
        return "internal"
    if known.PERSONAL & set(parts) or parts[-1:] == ("by",) or _names_a_person(parts, table):
        return "personal"
    return "confidential" if known.FREE_TEXT & set(parts) and is_text(column) else "internal"


def _names_a_person(parts: tuple[str, ...], table: HotTable) -> bool:
    if parts[-1:] != ("name",):
        return False
    of_people = known.PEOPLE & {singular(word) for word in words(table.name)}
    return bool(known.NAME_OF_A_PERSON & set(parts)) or (len(parts) == 1 and bool(of_people))


def _points_to_people(column: HotColumn) -> bool:
    if column.reference:
        return bool(known.PEOPLE & {singular(word) for word in words(column.reference[1])})
    parts = words(column.name)
    return parts[-1:] == ("id",) and "user" in parts
