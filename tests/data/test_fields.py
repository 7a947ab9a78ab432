from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.data.fields import PADDING, EncodedField, FieldRecord, encode_field
from llm4msr.data.split import Split
from llm4msr.data.values import Occurrences, RowValues
from llm4msr.errors import InputError
from llm4msr.schema import FieldSpec


def encode(values: Any, training: int | None = None, dtype: Any = None, **spec: Any) -> EncodedField:
    """Encode a field whose first rows are the training part, the next is for validation, the rest for the test."""
    series = values if isinstance(values, pl.Series) else pl.Series(values, dtype=dtype, strict=False)
    valid = len(series) if training is None else training
    split = Split(len(series), valid, min(valid + 1, len(series)), 0, 0)
    given = {"name": "f", "side": "item", "min_count": 1, **spec}
    return encode_field(FieldSpec.model_validate(given), RowValues(series), split, "log.csv")


def test_categories_are_ids_of_the_training_vocabulary() -> None:
    field = encode(["a", "b", "b", "c", "a"], training=3)
    assert field.column.tolist() == [2, 1, 1, 0, 2]


@pytest.mark.parametrize(("different", "dtype"), [(1, "int8"), (127, "int8"), (128, "int16"), (32768, "int32")])
@pytest.mark.parametrize("kind", ["categorical", "multi"])
def test_ids_are_kept_in_the_smallest_type(kind: str, different: int, dtype: str) -> None:
    field = encode([str(n) for n in range(different)], kind=kind)
    assert field.column.dtype == dtype
    assert sorted(field.column[:, 0] if kind == "multi" else field.column) == list(range(1, different + 1))


def test_the_record_says_what_share_of_each_part_is_unknown() -> None:
    field = encode(["a", "a", "b", "b", "z", "a", None], training=4, min_count=2)
    assert field.record.size == 3
    assert field.record.unknown_share == {"train": 0.0, "valid": 1.0, "test": 0.0}


def test_the_share_of_an_empty_part_is_unknown() -> None:
    assert encode(["a", "a"]).record.unknown_share == {"train": 0.0, "valid": None, "test": None}


def test_numbers_are_standardised_by_training_rows() -> None:
    field = encode([1, 3, 100, -2], training=2, kind="numeric")
    assert field.column.tolist() == [-1.0, 1.0, 98.0, -4.0]
    assert field.record == FieldRecord(kind="numeric", side="item", mean=2.0, deviation=1.0)
    assert field.vocabulary is None


def test_a_missing_number_stays_missing_and_counts_for_nothing() -> None:
    field = encode([1.0, None, float("nan"), 3.0, float("inf"), None], training=5, kind="numeric")
    np.testing.assert_array_equal(field.column, np.array([-1, math.nan, math.nan, 1, math.nan, math.nan], np.float32))
    assert field.record.infinite == 1


def test_numbers_may_be_text() -> None:
    assert encode(["1", " ", "3.0", None, ""], kind="numeric").column[[0, 2]].tolist() == [-1.0, 1.0]


def test_a_constant_is_only_centred() -> None:
    field = encode([5, 5, 7], training=2, kind="numeric")
    assert field.column.tolist() == [0.0, 0.0, 2.0]


def test_a_constant_whose_sum_is_rounded_is_only_centred() -> None:
    field = encode([9.99] * 1000 + [10.99], training=1000, kind="numeric")
    assert field.record.deviation == 1.0
    np.testing.assert_allclose(field.column, [0.0] * 1000 + [1.0], atol=1e-6)


def test_a_number_that_training_never_has_keeps_its_scale() -> None:
    field = encode([None, None, 7.0], training=2, kind="numeric")
    assert (field.record.mean, field.record.deviation) == (0.0, 1.0)
    assert field.column[2] == 7.0


def test_a_number_too_large_for_the_column_is_missing() -> None:
    assert math.isnan(encode([1.0, 3.0, 1e300], training=2, kind="numeric").column[2])


def test_text_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError) as error:
        encode(["1", "cheap"], kind="numeric", column="price")
    assert str(error.value) == (
        "log.csv: the numeric field 'f' (column 'price') holds 'cheap', which is not a number; "
        "correct it, or declare the field as categorical"
    )


@pytest.mark.parametrize(
    "values",
    [["a|b", "b", "", None], [["a", "b"], ["b"], [], None], [["a", None, "b"], ["b", ""], [None], None]],
)
def test_many_values_are_ids_padded_at_the_end(values: list[Any]) -> None:
    field = encode(values, kind="multi", max_values=3)
    assert field.column.tolist() == [[2, 1, PADDING], [1, PADDING, PADDING], [PADDING] * 3, [PADDING] * 3]


def test_a_fixed_size_list_is_a_list() -> None:
    field = encode([["a", "b"], ["b", "b"]], dtype=pl.Array(pl.String, 2), kind="multi", max_values=2)
    assert field.column.tolist() == [[2, 1], [1, 1]]


def test_the_first_values_are_kept_and_empty_ones_do_not_count() -> None:
    assert encode(["|a| |b|c", "c"], kind="multi", max_values=2).column.tolist() == [[1, 2], [3, PADDING]]


def test_another_separator_cuts() -> None:
    assert encode(["a, b", "a|b"], kind="multi", max_values=2, separator=",").column.tolist() == [
        [1, 3],
        [2, PADDING],
    ]


def test_many_values_are_counted_in_training_rows_only() -> None:
    field = encode(["a|a|b", "b|c", "c|c|c"], training=2, kind="multi", max_values=3, min_count=2)
    assert field.vocabulary is not None
    assert field.vocabulary.values.to_list() == ["a", "b"]
    assert field.column.tolist() == [[1, 1, 2], [2, 0, PADDING], [0, 0, 0]]
    assert field.record.unknown_share == {"train": 0.5, "valid": 1.0, "test": None}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("categorical", [["a"], ["b"]]),
        ("categorical", [{"a": 1}, {"a": 2}]),
        ("categorical", [b"\xff", b"\xfe"]),
        ("numeric", [[1.0], [2.0]]),
        ("multi", [[["a"]], [["b"]]]),
        ("multi", [{"a": 1}, {"a": 2}]),
    ],
)
def test_a_column_of_a_type_that_does_not_fit_is_refused(kind: str, values: list[Any]) -> None:
    with pytest.raises(InputError, match=rf"log\.csv: column 'f' of the {kind} field 'f' is .*convert the column"):
        encode(values, kind=kind)


@given(
    kind=st.sampled_from(["categorical", "numeric", "multi", "whole"]),
    values=st.lists(st.sampled_from([None, "", "1", "2", "30", "1|2", "7|7|30"]), min_size=1, max_size=8),
    data=st.data(),
)
def test_values_listed_once_are_encoded_as_values_at_each_row(
    kind: str, values: list[Any], data: st.DataObject
) -> None:
    if kind in ("numeric", "whole"):
        values = [None if v in (None, "") else int(v.partition("|")[0]) for v in values]
    rows = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=30))
    valid = data.draw(st.integers(0, len(rows)))
    split = Split(len(rows), valid, data.draw(st.integers(valid, len(rows))), 0, 0)
    field = {"name": "f", "side": "item", "min_count": 2, "kind": "categorical" if kind == "whole" else kind}
    spec = FieldSpec.model_validate(field)
    listed = pl.Series(values, dtype=pl.Int64 if kind in ("numeric", "whole") else pl.String)
    occurrences = Occurrences(np.array(rows, np.int32), len(listed), split)
    once = encode_field(spec, RowValues(listed.gather(occurrences.seen), occurrences), split, "log.csv")
    each = encode_field(spec, RowValues(listed.gather(rows)), split, "log.csv")
    np.testing.assert_array_equal(once.column, each.column)
    assert once.record == each.record
    if kind != "numeric":
        assert once.vocabulary is not None
        assert each.vocabulary is not None
        assert once.vocabulary.values.to_list() == each.vocabulary.values.to_list()
        assert once.vocabulary.counts.to_list() == each.vocabulary.counts.to_list()


def test_categories_of_polars_are_plain_values() -> None:
    assert encode(["a", "b", "b"], dtype=pl.Categorical).column.tolist() == [2, 1, 1]
