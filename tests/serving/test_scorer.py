"""A bundle scores as the run that it was made of, whatever the model, and its states move as the pipeline's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.export import export_bundle
from llm4msr.serving.live import Live
from llm4msr.serving.log import EventRecord
from llm4msr.serving.scorer import Scorer
from tests.conftest import shop_frames
from tests.models.zoo import BACKBONES
from tests.serving.bundles import moment_of, replayed, train_shop

ENHANCERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "none": ("none", {}, {}),
    "dynamic_network": ("dynamic_network", {}, {}),
    "epnet": ("epnet", {}, {}),
    "knowledge_field": ("knowledge_field", {}, {}),
    "knowledge_added": ("knowledge_added", {"source": "both"}, {}),
    "llm4msr": ("llm4msr", {}, {}),
    "paper": ("llm4msr_paper", {"hidden": 8}, {}),
    "light": ("llm4msr_light", {}, {}),
    "both-parallel": ("llm4msr", {"source": "both", "user": "parallel", "scenario": "parallel"}, {"counts": True}),
}
EVENTS_AS_CLOCK: dict[str, Any] = {"half_life_events": 3.0, "counts": True}
PAIRS = [(backbone, enhancer) for backbone in BACKBONES for enhancer in ENHANCERS]


@pytest.fixture(scope="session")
def context() -> pl.DataFrame:
    """The hour of each row, in the order of the prepared shop."""
    frame = shop_frames()["interactions"].with_row_index("row")
    return frame.sort("time", "user", "item", "place", "row").select("hour")


def test_the_context_is_in_the_order_of_the_rows(shop: PreparedData, context: pl.DataFrame) -> None:
    encoded = shop.vocabulary("hour").encode(context["hour"])
    assert np.array_equal(encoded, shop.field("hour"))


@pytest.mark.parametrize(("backbone", "enhancer"), PAIRS)
def test_online_scores_are_the_offline_ones(
    tmp_path: Path,
    shop: PreparedData,
    shop_knowledge: KnowledgeFolder,
    context: pl.DataFrame,
    backbone: str,
    enhancer: str,
) -> None:
    name, settings, more = ENHANCERS[enhancer]
    run = train_shop(tmp_path / "run", shop, shop_knowledge, backbone, name, settings, **more)
    online = _replay(tmp_path, run, shop, context)
    offline = 1 / (1 + np.exp(-np.load(run / "test_logits.npy").astype(np.float64)))
    assert offline.std() > 1e-4
    assert np.abs(online - offline).max() < 1e-6


def test_states_by_events_in_place_of_time_are_the_offline_ones(
    tmp_path: Path, shop: PreparedData, shop_knowledge: KnowledgeFolder, context: pl.DataFrame
) -> None:
    run = train_shop(tmp_path / "run", shop, shop_knowledge, "shared_bottom", "llm4msr", **EVENTS_AS_CLOCK)
    online = _replay(tmp_path, run, shop, context)
    offline = 1 / (1 + np.exp(-np.load(run / "test_logits.npy").astype(np.float64)))
    assert np.abs(online - offline).max() < 1e-6
    bundle = Bundle.open(tmp_path / "bundle")
    live = Live(bundle, tmp_path / "state of strangers")
    try:  # events at one time, and one that comes late, of a user whom the bundle does not have
        times = (2_100_000_000_000, 2_100_000_000_000, 2_000_000_000_000)
        events = [EventRecord("a stranger", f"i{n}", "feed", time, "clicked") for n, time in enumerate(times, 1)]
        assert live.write(events[:2]) + live.write(events[2:]) == [True, True, True]
        feed = live.sums("a stranger", -1).count[bundle.scenario_index["feed"]]
        assert feed == 3
    finally:
        live.close()


def _replay(folder: Path, run: Path, data: PreparedData, context: pl.DataFrame) -> np.ndarray:
    start = moment_of(data, data.split.test)
    bundle = Bundle.open(export_bundle(run, folder / "bundle", as_of_time=start))
    live = Live(bundle, folder / "state")
    try:
        return replayed(Scorer(bundle, live), data, context)
    finally:
        live.close()
