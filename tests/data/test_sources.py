from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llm4msr.data.sources import SOURCES, find_source, read_source
from llm4msr.errors import InputError


def test_every_source_is_found_by_its_name() -> None:
    assert sorted(SOURCES) == ["amazon2014", "amazon2018", "completejourney", "kuaisar", "movielens"]
    assert [name for name in SOURCES if find_source(name) is not SOURCES[name]] == []


def test_what_must_be_said_of_a_source_is_there() -> None:
    assert "simulated" in find_source("completejourney").notice


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("amazon2015", "did you mean 'amazon2018' or 'amazon2014'?"),
        ("kuaisar-small", "did you mean 'kuaisar'?"),
        ("zzz", "known: amazon2014, amazon2018, completejourney, kuaisar, movielens"),
    ],
)
def test_an_unknown_source_is_named_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError) as found:
        find_source(name)
    with pytest.raises(InputError) as read:
        read_source(name, {})
    assert str(found.value) == str(read.value) == f"there is no source {name!r}; {hint}"


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("kuaisar", {}, "the key 'folder' is missing"),
        ("movielens", {"folder": "x", "seed": 1}, "unknown key 'seed'; known: folder"),
        ("amazon2014", {"folder": "x", "scenarios": []}, "scenarios: Tuple should have at least 1 item"),
        ("amazon2018", {"folder": "x", "overlapping": "perhaps"}, "overlapping: Input should be a valid boolean"),
        ("completejourney", {"households": 0}, "households: Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_named_with_its_source(name: str, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as error:
        read_source(name, settings)
    assert str(error.value).startswith(f"source {name}: {expected}")


@pytest.mark.parametrize("folder_as", [str, Path])
def test_the_settings_reach_the_source(tmp_path: Path, folder_as: type) -> None:
    rows = pl.DataFrame({"scenario": ["a"], "user": ["u"], "item": ["i"], "position": [0], "timestamp": [5]})
    rows.write_parquet(tmp_path / "interactions.parquet")
    texts = ("title", "categories", "brand_and_categories", "text_id")
    pl.DataFrame({"scenario": ["a"], "item": ["i"], **dict.fromkeys(texts, "x")}).write_parquet(
        tmp_path / "items.parquet"
    )
    tables = read_source("amazon2014", {"folder": folder_as(tmp_path), "scenarios": ["a"]})
    assert tables.recipe == {"source": "amazon2014", "scenarios": ["a"], "overlapping": True}
    assert tables.interactions.frame.collect()["item"].to_list() == ["i"]
