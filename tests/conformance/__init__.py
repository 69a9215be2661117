"""What every kind of destination passes. Cases are plain functions, whose assertions pytest is told to explain."""

import pytest

pytest.register_assert_rewrite("tests.conformance.stage", "tests.conformance.copies", "tests.conformance.lake")
