from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.data.vocabulary import UNKNOWN, Vocabulary

WORDS = st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=30)


def fit(values: list[object], min_count: int = 1) -> Vocabulary:
    return Vocabulary.fit(pl.Series(values, strict=False), min_count)


def test_the_most_frequent_value_comes_first_and_ties_by_value() -> None:
    vocabulary = fit(["c", "b", "a", "b", "c", "d"])
    assert vocabulary.values.to_list() == ["b", "c", "a", "d"]
    assert vocabulary.counts.to_list() == [2, 2, 1, 1]


def test_ids_start_at_one_and_zero_is_unknown() -> None:
    vocabulary = fit(["a", "a", "b"])
    assert vocabulary.encode(pl.Series(["b", "a", "z"])).tolist() == [2, 1, UNKNOWN]
    assert vocabulary.size == 3


def test_rare_values_are_unknown() -> None:
    vocabulary = fit(["a", "a", "b"], min_count=2)
    assert vocabulary.values.to_list() == ["a"]
    assert vocabulary.encode(pl.Series(["a", "b"])).tolist() == [1, 0]


def test_missing_is_a_value_of_its_own() -> None:
    vocabulary = fit([None, None, "a"])
    assert vocabulary.encode(pl.Series([None, "a", "z"])).tolist() == [1, 2, 0]


def test_missing_is_unknown_where_training_has_none() -> None:
    assert fit(["a"]).encode(pl.Series([None], dtype=pl.String)).tolist() == [0]


def test_nan_is_missing() -> None:
    assert fit([float("nan"), None, 1.0]).values.to_list() == ["", "1"]


def test_a_whole_number_is_one_value_as_integer_as_float_and_as_text() -> None:
    vocabulary = fit([12, 12, 7])
    assert vocabulary.encode(pl.Series([12.0, 7.0, 7.5])).tolist() == [1, 2, 0]
    assert vocabulary.encode(pl.Series(["12", "7"])).tolist() == [1, 2]


def test_no_training_value_makes_everything_unknown() -> None:
    vocabulary = Vocabulary.fit(pl.Series([], dtype=pl.String))
    assert vocabulary.size == 1
    assert vocabulary.encode(pl.Series(["a", None])).tolist() == [0, 0]


@pytest.mark.parametrize("value", ["\x00", "a\nb", "\u202e", "é" * 100_000])
def test_any_text_is_a_value(value: str) -> None:
    assert fit([value]).encode(pl.Series([value, "a"])).tolist() == [1, 0]


def test_a_saved_vocabulary_is_the_same_when_loaded(tmp_path: Path) -> None:
    vocabulary = fit(["b", "b", None, "a"])
    vocabulary.save(tmp_path / "v.parquet")
    loaded = Vocabulary.load(tmp_path / "v.parquet")
    assert loaded.values.to_list() == ["b", "", "a"]
    assert loaded.counts.to_list() == [2, 1, 1]
    assert pl.read_parquet(tmp_path / "v.parquet")["id"].to_list() == [1, 2, 3]


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 300), max_size=30), st.integers(1, 3))
def test_ids_get_what_fitting_and_encoding_each_gives_them(times: dict[str, int], least: int) -> None:
    texts = pl.Series(list(times), dtype=pl.String)
    order = texts.arg_sort()
    texts, counts = texts.gather(order), np.array(list(times.values()), dtype=np.int64)[order.to_numpy()]
    expected = Vocabulary.fit(texts, least, counts)
    found, ids = Vocabulary.fit_ids(texts, least, counts)
    assert found.values.to_list() == expected.values.to_list()
    assert found.counts.to_list() == expected.counts.to_list()
    assert ids.tolist() == expected.encode(texts).tolist()


@given(WORDS, WORDS, st.integers(1, 3))
def test_the_id_of_a_value_leads_back_to_it(training: list[str | None], asked: list[str | None], least: int) -> None:
    vocabulary = Vocabulary.fit(pl.Series(training, dtype=pl.String), least)
    known = ["" if v is None else v for v in training]
    for value, code in zip(asked, vocabulary.encode(pl.Series(asked, dtype=pl.String)).tolist(), strict=True):
        text = value or ""
        assert (vocabulary.values[code - 1] == text) if code else (known.count(text) < least)


def test_the_counts_are_read_without_the_values(tmp_path: Path) -> None:
    fitted = Vocabulary.fit(pl.Series(["b", "a", "b", "c"]))
    fitted.save(tmp_path / "v.parquet")
    assert Vocabulary.load_counts(tmp_path / "v.parquet").tolist() == fitted.counts.to_list() == [2, 1, 1]
