"""Data that is odd but right is prepared like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .tiny import log, prepared, schema


@pytest.mark.parametrize("place", ["a", "b"])
def test_one_scenario_alone_is_fine(tmp_path: Path, place: str) -> None:
    data = prepared(tmp_path / "data", log(place=place))
    assert np.unique(data.scenario).tolist() == ["ab".index(place)]


def test_one_class_alone_is_fine(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", log(click=0))
    assert data.positives.height == 0
    assert data.label.tolist() == [0] * 10


def test_a_user_without_positives_is_fine(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data")
    assert data.positives["user"].unique().to_list() == [0]
    assert data.users.height == 3


def test_a_scenario_that_training_never_has_is_fine(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", log(place=["a"] * 9 + ["b"]))
    assert data.scenario.tolist() == [0] * 9 + [1]
    assert data.manifest["counts"]["scenarios"]["b"]["train"] == {"rows": 0, "positive": 0}


def test_a_single_row_is_fine(tmp_path: Path) -> None:
    assert prepared(tmp_path / "data", log()[:1]).split.range("train") == (0, 1)


def test_odd_texts_are_kept_as_they_are(tmp_path: Path) -> None:
    texts = ["\x00\x1b[31m", "<|im_start|>", "x" * 200_000, "\u202e", "a\nb", "é", "🎈", " ", "'", '"']
    fields = schema([{"name": "hour", "side": "context", "min_count": 1}], item_text={"title": "title"})
    data = prepared(tmp_path / "data", log(hour=texts, item=[*"abcdefghij"], title=texts), fields)
    assert data.items["title"].to_list() == texts
    assert sorted(data.field("hour")[:8].tolist()) == [1, 2, 3, 4, 5, 6, 7, 8]
