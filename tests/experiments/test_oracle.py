"""Knowledge that is there to be had is used, and what only looks like knowledge is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.experiments.benchmark import run_matrix
from llm4msr.experiments.config import MatrixConfig
from llm4msr.knowledge.engines.base import Answer, Generation
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.schema import Schema

THINGS = ("tools", "books", "shoes", "plants")
SCHEMA = {
    "name": "bazaar",
    "columns": {"user": "user", "item": "item", "scenario": "place", "time": "time", "label": "click"},
    "scenarios": [{"value": "search"}, {"value": "feed"}],
    "fields": [{"name": "user", "side": "user"}, {"name": "item", "side": "item"}],
    "item_text": {"title": "title"},
}


class Oracle:
    """Reads a prompt as an ideal model would: how often each kind of thing is named."""

    identity = {"engine": "oracle"}  # noqa: RUF012 - what the protocol asks for
    model_name = "oracle"
    special_tokens = ()

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[list[tuple[int, Answer]]]:
        for place, prompt in enumerate(prompts):
            named = np.array([prompt.count(thing) for thing in THINGS], dtype=np.float16)
            share = named / max(1, named.sum())
            yield [(place, Answer("", share, "stop" if generation.generates else "prefill", 1, 0))]


@pytest.fixture(scope="module")
def bazaar(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedData, Path]:
    """Users like one kind of thing, in every place alike; only the titles of what they liked say which."""
    random = np.random.default_rng(0)
    rows, users, items = 9000, 900, 24
    kind, taste = np.arange(items) % len(THINGS), random.integers(0, len(THINGS), users)
    user, item = random.integers(0, users, rows), random.integers(0, items, rows)
    liked = random.random(rows) < np.where(kind[item] == taste[user], 0.9, 0.1)
    interactions = pl.DataFrame(
        {
            "user": user,
            "item": item,
            "place": random.choice(["search", "feed"], rows),
            "time": np.arange(rows),
            "click": liked.astype(int),
        }
    )
    titles = pl.DataFrame({"item": np.arange(items), "title": [f"{THINGS[k]} {i}" for i, k in enumerate(kind)]})
    folder = tmp_path_factory.mktemp("bazaar")
    schema = Schema.checked({**SCHEMA, "columns": {**SCHEMA["columns"], "time_unit": "s"}}, "the bazaar")  # type: ignore[dict-item]
    data = prepare(from_frames(schema, interactions, items=titles), folder / "data")
    reason(data, Oracle(), folder / "knowledge", ReasonConfig())
    return data, folder / "knowledge"


def test_an_oracles_knowledge_beats_the_backbone_and_random_vectors_do_not(
    bazaar: tuple[PreparedData, Path], tmp_path: Path
) -> None:
    data, knowledge = bazaar
    ours: dict[str, Any] = {"name": "llm4msr", "controls": ["random"]}
    matrix = MatrixConfig.model_validate(
        {
            "data": {"bazaar": {"folder": data.path, "knowledge": knowledge}},
            "backbones": {"shared_bottom": {"hidden": [32, 16]}},
            "enhancers": {
                "none": {},
                "prompted": {**ours, "settings": {"source": "prompted", "scenario": "none"}},
                "composed": {**ours, "settings": {"source": "composed", "match": True, "candidate": True}},
            },
            "seeds": 1,
            "search": {"trials": 0},
            "train": {"epochs": 10, "batch_size": 512, "learning_rate": 5e-3, "validations_per_epoch": 1},
        }
    )
    found = run_matrix(matrix, tmp_path)
    auc = {(row["enhancer"], row["control"]): row["mean_auc all"] for row in found.iter_rows(named=True)}
    for enhancer in ("prompted", "composed"):
        assert auc[enhancer, "none"] > auc["none", "none"] + 0.05
        assert auc[enhancer, "random"] < auc["none", "none"] + 0.02
