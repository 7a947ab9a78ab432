"""Composed states of all users against plain loops, however many scenarios share them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.knowledge.composed import composed_tables
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.knowledge.states import COMPOSED, Composed
from llm4msr.schema import Schema

CONFIG = KnowledgeConfig(half_life_events=1e12)


def prepared(folder: Path, scenarios: int) -> PreparedData:
    """A log of 400 rows in which users, items and scenarios are drawn at random, many rows at one time."""
    random = np.random.default_rng(scenarios)
    schema = {
        "name": "drawn",
        "columns": {"user": "u", "item": "i", "scenario": "s", "time": "t", "time_unit": "s", "label": "y"},
        "scenarios": [{"value": str(d)} for d in range(scenarios)],
        "fields": [{"name": "u", "side": "user"}],
    }
    drawn = {"u": 9, "i": 12, "s": scenarios, "t": 90, "y": 2}
    frame = pl.DataFrame({name: random.integers(0, most, 400) for name, most in drawn.items()})
    return prepare(from_frames(Schema.checked(schema, "here"), frame), folder)


@pytest.mark.parametrize("scenarios", [1, 2, 3])
@pytest.mark.parametrize("counts", [False, True])
def test_states_are_the_means_of_what_was_liked_before(tmp_path: Path, scenarios: int, counts: bool) -> None:
    data = prepared(tmp_path / "data", scenarios)
    known = np.arange(data.items.height) % 5 != 0
    items = ItemVectors.of(np.random.default_rng(0).standard_normal((data.items.height, 3)).astype(np.float32), known)
    tables = composed_tables(data, items, CONFIG.model_copy(update={"counts": counts}), COMPOSED)
    events = list(data.positives.select("user", "time", "scenario", "item").iter_rows())
    for source, table in tables.items():
        for row in range(data.rows):
            now, here = int(data.time[row]), int(data.scenario[row])
            liked = [
                i
                for u, t, s, i in events
                if u == data.user[row] and t < now and (s == here) == (source == "own") and known[i]
            ]
            state = table.vectors[table.index[row]]
            if not liked:
                assert table.index[row] == 0
                assert not state.any()
            else:
                np.testing.assert_allclose(state[:3], items.vectors[liked].mean(0), atol=1e-5)
        assert table.vectors.shape[1] == 3 + counts


def test_two_scenarios_share_their_states(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", 2)
    items = ItemVectors.of(np.eye(data.items.height, dtype=np.float32))
    both = composed_tables(data, items, CONFIG, COMPOSED)
    assert both["own"].vectors is both["others"].vectors
    alone: list[Composed] = ["others"]
    single = composed_tables(data, items, CONFIG, alone)["others"]
    np.testing.assert_array_equal(single.vectors[single.index], both["others"].vectors[both["others"].index])
    assert len(single.vectors) == len(both["others"].vectors)
