"""Values of a request are read as `prepare` reads those of a log."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.data.raw import as_text
from llm4msr.serving.fields import raw_text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_the_text_that_a_logs_column_of_numbers_gives(value: float) -> None:
    column = pl.Series("value", [value, None])
    assert raw_text(value) == column.to_frame().select(as_text(pl.col("value"), column.dtype)).item(0, 0)


@pytest.mark.parametrize(("value", "text"), [(None, ""), (True, "true"), (3, "3"), (3.0, "3"), ("a", "a")])
def test_other_values_as_texts(value: Any, text: str) -> None:
    assert raw_text(value) == text
