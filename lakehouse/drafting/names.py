"""From the names in a database to lake names and sentences."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from lakehouse.drafting.catalog import HotColumn

_LAKE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z]+[0-9]*(?![a-z])|[A-Z]|[0-9]+")
_AUXILIARIES = (("is",), ("has",), ("can",), ("was",))
_OF_THE_ROW = {"created": "created", "inserted": "inserted", "updated": "last updated"}
_HAPPENS = frozenset(("occurred", "happened", "expires", "expired", "starts", "ends", "ended", "begins"))


def words(name: str) -> tuple[str, ...]:
    """`passwordHash`, `password_hash` and `"Password Hash"` are all (password, hash)."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode()
    plain = plain.replace("OAuth", "Oauth")
    plain = re.sub(r"[A-Z]{2,}s(?![a-z])", lambda match: match[0].capitalize(), plain)  # userIDs, imageURLs
    return tuple(word.lower() for word in _WORD.findall(plain))


def singular(word: str) -> str:
    """The word without the s of a plural; good enough to compare with a list."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def is_lake_name(name: str) -> bool:
    """Whether a contract takes the name as it is."""
    return bool(_LAKE_NAME.fullmatch(name))


def lake_name(name: str) -> str:
    """The name in snake case, never like one of the lake's own (`_op`, `_xmin`); may come out empty."""
    if is_lake_name(name):
        return name
    snake = "_".join(words(name))
    if snake and (name.startswith("_") or not snake[0].isalpha()):
        snake = f"c_{snake}"
    return snake[:63].rstrip("_")


def lake_names(columns: Iterable[HotColumn]) -> dict[str, str]:
    """Lake name of each column by its own name, unique; a name that needs no change keeps it."""
    columns = list(columns)
    taken = {c.name for c in columns if is_lake_name(c.name)}
    names: dict[str, str] = {}
    for column in columns:
        name = wanted = lake_name(column.name) or f"column_{column.number}"
        number = 2
        while name != column.name and name in taken:
            name = f"{wanted[:59]}_{number}"
            number += 1
        taken.add(name)
        names[column.name] = name
    return names


def describe(column: HotColumn) -> str:
    """The column's comment, or a sentence made of its name; the labels of an enum in either case."""
    said = " ".join((column.comment or "").split())
    sentence = said or _sentence(column, words(column.name))
    if not sentence.endswith((".", "!", "?")):
        sentence += "."
    if column.labels and not all(label in said for label in column.labels):
        sentence += f" {'Each one' if column.is_array else 'One'} of: {', '.join(column.labels)}."
    return sentence


def _sentence(column: HotColumn, parts: Sequence[str]) -> str:
    text, rest = " ".join(parts) or f"column {column.number}", " ".join(parts[:-1])
    by = parts[:-1] if parts[-1:] == ("id",) else parts
    if len(by) == 2 and by[1] == "by":
        sentence = f"Who {by[0]} it"
    elif column.base == "bool" and not column.is_array:
        sentence = f"True if {'it ' if parts[:1] in _AUXILIARIES else ''}{text}"
    elif column.base in ("timestamp", "timestamptz") and not column.is_array:
        sentence = f"{_moment(parts, text)} (UTC)"
    elif column.reference and rest and parts[-1] == "id":
        sentence = f"The {rest}"
    elif rest and parts[-1] == "count":
        sentence = f"Number of {singular(rest)}s"
    elif parts[-1:] == ("id",):
        sentence = f"Id of the {rest or 'row'}"
    else:
        sentence = text[:1].upper() + text[1:]
    if column.reference:
        schema, table, target = column.reference
        sentence += f": {target} of {schema}.{table}"
    return sentence


def _moment(parts: Sequence[str], text: str) -> str:
    if len(parts) != 2 or parts[1] not in ("at", "on"):
        return f"Time of {' '.join(parts[:-1]) if parts[1:] and parts[-1] in ('at', 'on', 'time') else text}"
    if parts[0] in _OF_THE_ROW:
        return f"When the row was {_OF_THE_ROW[parts[0]]}"
    return f"When it {'' if parts[0] in _HAPPENS else 'was '}{parts[0]}"
