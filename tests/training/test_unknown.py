"""Values that training never saw get the mean embedding of those that it saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.schema import Schema
from llm4msr.training.config import RunConfig
from llm4msr.training.opening import open_run
from llm4msr.training.run import train_run
from llm4msr.training.unknown import UnknownValues
from tests.conftest import shop_frames


@pytest.fixture
def seen(shop_schema: Schema, tmp_path: Path) -> PreparedData:
    """The shop, with every value in its vocabularies and new items in the test part."""
    frames = shop_frames()
    late = (pl.col("time") > frames["interactions"]["time"].quantile(0.95)) & (pl.col("item") == "i1")
    frames["interactions"] = frames["interactions"].with_columns(
        item=pl.when(late).then(pl.lit("i-new")).otherwise("item")
    )
    fields = tuple(f.model_copy(update={"min_count": 1}) for f in shop_schema.fields)
    return prepare(from_frames(shop_schema.model_copy(update={"fields": fields}), **frames), tmp_path / "seen")


def config_of(data: PreparedData) -> RunConfig:
    return RunConfig.checked(
        {
            "data": str(data.path),
            "model": {"embedding_dim": 4, "backbone": {"name": "shared_bottom", "settings": {"hidden": [8]}}},
            "train": {"epochs": 2, "batch_size": 128, "device": "cpu", "learning_rate": 0.02},
        },
        "test",
    )


def test_the_row_of_unknown_items_is_the_mean_over_training_rows(seen: PreparedData, tmp_path: Path) -> None:
    train_run(config_of(seen), tmp_path / "run")
    table = load_file(tmp_path / "run" / "model.safetensors")["embedding.table.weight"]
    _, _, model = open_run(config_of(seen))
    place = [f.name for f in seen.fields_of("categorical")].index("item")
    start = int(model.embedding.offsets[place])
    ids = np.asarray(seen.field("item")[: seen.split.valid])
    assert (np.asarray(seen.field("item")[seen.split.test :]) == 0).any()
    np.testing.assert_allclose(table[start], table[start + ids].mean(0), rtol=1e-4, atol=1e-6)


def test_an_unknown_row_that_training_learns_is_left_alone(shop: PreparedData) -> None:
    _, _, model = open_run(config_of(shop))
    before = model.embedding.table.weight.detach().clone()
    unknown = UnknownValues(shop, model.embedding)
    unknown.give(model.embedding)
    changed = (model.embedding.table.weight != before).any(1).nonzero()[:, 0].tolist()
    specs = [*shop.fields_of("categorical"), *shop.fields_of("multi")]
    starts = dict(zip((s.name for s in specs), model.embedding.offsets.tolist(), strict=True))
    learned = {s.name for s in specs if (shop.records[s.name].unknown_share or {})["train"]}
    assert changed == sorted(start for name, start in starts.items() if name not in learned)


def test_training_does_not_depend_on_it(seen: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_run(config_of(seen), tmp_path / "with")
    monkeypatch.setattr(UnknownValues, "give", lambda *_: None)
    train_run(config_of(seen), tmp_path / "without")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without"))
    rows = (ours["embedding.table.weight"] != theirs["embedding.table.weight"]).any(1)
    assert 0 < rows.sum() <= len(seen.schema.fields)
    for name in ours.keys() - {"embedding.table.weight"}:
        torch.testing.assert_close(torch.from_numpy(ours[name]), torch.from_numpy(theirs[name]), rtol=0, atol=0)
