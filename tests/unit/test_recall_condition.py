"""`--where` is one condition over a table's columns: whatever else it might be is refused, with what is wrong."""

from __future__ import annotations

import duckdb
import pytest

from lakehouse.recall.condition import check_condition
from lakehouse.recall.request import RecallError

COLUMNS = {
    "id": "VARCHAR",
    "severity": "VARCHAR",
    "payload": "VARCHAR",
    "seen": "TIMESTAMP",
    "score": "DOUBLE",
    "tags": "VARCHAR[]",
}

ALLOWED = (
    "severity = 'LOW'",
    "Severity IN ('a', 'b') AND \"seen\" >= '2026-01-01' -- and nothing else",
    "payload->>'$.n' = '1' OR json_extract_string(payload, '$.a') = 'x'",
    "list_contains(tags, 'x') AND len(list_filter(tags, lambda e: e = id)) > 0 AND tags[1] = 'x'",
    "score BETWEEN 1 AND 2 OR CASE WHEN score > 1 THEN true ELSE false END",
    "id LIKE 'a%' AND lower(severity) ILIKE 'b' AND NOT (score IS NULL) AND id IS DISTINCT FROM 'x'",
    "seen > now() - INTERVAL 1 DAY AND extract(year FROM seen) = 2026 AND date_trunc('day', seen) = DATE '2026-01-01'",
    "score::int = 3 AND try_cast(id AS int) > 1 AND (id, severity) = ('a', 'b')",
    "severity COLLATE nocase = 'low' AND position('a' IN id) > 0 AND id[1:3] = 'abc' AND regexp_matches(id, '^a')",
    "true /* all of it */",
)
REFUSED = {
    "id IN (SELECT 1)": "a subquery",
    "id = (SELECT content FROM read_text('/etc/hostname'))": "a subquery",
    "EXISTS (FROM rows)": "a subquery",
    "list_transform(tags, lambda e: (SELECT 1)) IS NULL": "a subquery",
    "id = ANY(['a'])": "a subquery",
    "1 = 1; DROP TABLE rows": "more than one statement",
    "true;": "syntax error",
    "true) OR (true": "syntax error",
    "true UNION SELECT * FROM rows": "more than one condition",
    "true ORDER BY 1": "more than one condition",
    "true LIMIT 1": "more than one condition",
    "true GROUP BY id": "more than one condition",
    "true QUALIFY true": "more than one condition",
    "true WINDOW w AS ()": "syntax error",
    "row_number() OVER () = 1": "a window function",
    "count(*) > 1": "the function count_star",
    "sum(score) > 1": "the function sum",
    "unnest(tags) = 'x'": "the function unnest",
    "random() > 0.5": "the function random",
    "current_setting('temp_directory') = 'x'": "the function current_setting",
    "getvariable('a') = 1": "the function getvariable",
    "query('SELECT 1')": "the function query",
    "other = 1": "no column 'other'",
    "rows.id = 'x'": "no column 'rows.id'",
    "e = 'x' AND list_filter(tags, lambda e: true) IS NULL": "no column 'e'",
    "COLUMNS(*) = 1": "a star",
    "id = ?": "a parameter",
    "#1 = 1": "positional reference",
    "id = 'a": "unterminated",
    "true /*": "unterminated",
    "": "syntax error",
}


@pytest.mark.parametrize("condition", ALLOWED)
def test_one_condition_over_columns_is_allowed(condition: str) -> None:
    assert check_condition(condition, COLUMNS) == condition
    with duckdb.connect() as engine:
        columns = ", ".join(f"NULL::{kind} AS {name}" for name, kind in COLUMNS.items())
        engine.execute(f"SELECT * FROM (SELECT {columns}) AS rows WHERE (\n{condition}\n)")


@pytest.mark.parametrize(("condition", "said"), REFUSED.items())
def test_whatever_else_is_refused(condition: str, said: str) -> None:
    with pytest.raises(RecallError, match=r"^--where: ") as caught:
        check_condition(condition, COLUMNS)
    assert said in caught.value.detail
    assert caught.value.hint
