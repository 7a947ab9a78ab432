from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.errors import InputError
from llm4msr.folders import sole_writer
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.reason import reason
from llm4msr.schema import Schema
from llm4msr.serving.export import export_bundle
from llm4msr.training.config import RunConfig
from llm4msr.training.identity import run_config
from llm4msr.training.opening import open_run
from llm4msr.training.run import evaluate_run, train_run
from llm4msr.training.settings import read_settings
from tests.conftest import FAST, shop_frames


def _raw(data: PreparedData, knowledge: KnowledgeFolder | None = None, **settings: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "data": str(data.path),
        "model": {"embedding_dim": 4, "backbone": {"name": "star", "settings": {"hidden": [8]}}},
        "train": {"epochs": 1, "batch_size": 128, "device": "cpu"},
    }
    if knowledge is not None:
        raw["knowledge_folder"] = str(knowledge.path)
        raw["knowledge"] = {"dimensions": 8}
        raw["model"]["enhancer"] = {"name": "llm4msr", "settings": {"hidden": 4, "rank": 2, **settings}}
    return raw


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "prompted", "weights": "full"},
        {"source": "composed"},
        {"source": "both", "candidate": True, "match": True},
    ],
)
def test_a_run_trains_and_scores_the_same_when_evaluated_anew(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = RunConfig.checked(_raw(shop, shop_knowledge, **settings), "test")
    result = train_run(config, tmp_path / "run")
    assert evaluate_run(tmp_path / "run") == result.scores
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "config.json",
        "test_logits.npy",
        "versions.json",
        "metrics.jsonl",
        "model.safetensors",
        "knowledge.safetensors",
        "result.json",
    }


def test_a_finished_run_is_not_trained_again(shop: PreparedData, tmp_path: Path) -> None:
    config = RunConfig.checked(_raw(shop), "test")
    first = train_run(config, tmp_path / "run")
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert train_run(config, tmp_path / "run") == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_run_is_repeated_by_its_own_config(shop: PreparedData, tmp_path: Path) -> None:
    first = train_run(RunConfig.checked(_raw(shop), "test"), tmp_path / "run")
    again = train_run(read_settings(tmp_path / "run" / "config.json"), tmp_path / "again")
    assert again.scores == first.scores


def test_a_folder_of_another_config_is_refused(shop: PreparedData, tmp_path: Path) -> None:
    raw = _raw(shop)
    train_run(RunConfig.checked(raw, "test"), tmp_path / "run")
    raw["train"]["seed"] = 9
    with pytest.raises(InputError, match=r"holds a run with other settings or data \(train\.seed\)"):
        train_run(RunConfig.checked(raw, "test"), tmp_path / "run")


def test_a_folder_that_is_no_run_is_left_alone(shop: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty and not a run"):
        train_run(RunConfig.checked(_raw(shop), "test"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_two_processes_do_not_train_in_one_folder(shop: PreparedData, tmp_path: Path) -> None:
    config = RunConfig.checked(_raw(shop), "test")
    folder = tmp_path / "run"
    folder.mkdir()
    with sole_writer(folder), pytest.raises(InputError, match=f"{folder}: another process is at work here"):
        train_run(config, folder)
    assert not any(folder.iterdir())  # not even its settings, which would replace those of the other process
    assert evaluate_run(train_run(config, folder).folder).mean_auc is not None


def test_knowledge_that_is_needed_must_be_named(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path
) -> None:
    raw = _raw(shop, shop_knowledge)
    del raw["knowledge_folder"]
    with pytest.raises(InputError, match="reads item, others, own knowledge; name the folder"):
        train_run(RunConfig.checked(raw, "test"), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": {}}, "unknown key 'trian'"),
        ({"train": {"epochs": 0}}, "train.epochs: Input should be greater than or equal to 1"),
        ({"model": {"backbone": {"name": "stra"}}}, "there is no backbone 'stra'; did you mean 'star'"),
        ({"model": {"enhancer": {"name": "llm4msr", "settings": {"rnak": 2}}}}, "llm4msr: unknown key 'rnak'"),
    ],
)
def test_a_wrong_setting_is_named(shop: PreparedData, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_run(RunConfig.checked({**_raw(shop), **change}, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_wrong_setting_does_not_block_the_corrected_command(shop: PreparedData, tmp_path: Path) -> None:
    raw = _raw(shop)
    raw["model"]["backbone"]["settings"] = {"hidden": [-3]}
    with pytest.raises(InputError, match="backbone star: hidden #1: "):
        train_run(RunConfig.checked(raw, "test"), tmp_path / "run")
    train_run(RunConfig.checked(_raw(shop), "test"), tmp_path / "run")
    assert (tmp_path / "run" / "result.json").is_file()


def test_a_run_can_be_evaluated_and_found_again_from_anywhere(
    shop: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop.path.parent)
    result = train_run(RunConfig.checked({**_raw(shop), "data": shop.path.name}, "test"), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert evaluate_run(tmp_path / "run") == result.scores
    assert train_run(RunConfig.checked(_raw(shop), "test"), tmp_path / "run") == result


def test_without_a_validation_row_training_is_refused(shop_schema: Schema, tmp_path: Path) -> None:
    data = prepare(from_frames(shop_schema, **shop_frames(rows=300)), tmp_path / "data", ratios=(9, 0, 1))
    with pytest.raises(InputError, match="has no validation row"):
        train_run(RunConfig.checked(_raw(data), "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "content"), [("config.json", "5"), ("result.json", "{}"), ("result.json", "[]")])
def test_a_damaged_run_is_named(shop: PreparedData, tmp_path: Path, name: str, content: str) -> None:
    config = RunConfig.checked(_raw(shop), "test")
    train_run(config, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}: is damaged"):
        train_run(config, tmp_path / "run")


def test_a_run_of_another_format_is_named_and_can_be_repeated(shop: PreparedData, tmp_path: Path) -> None:
    config, path = RunConfig.checked(_raw(shop), "test"), tmp_path / "run" / "config.json"
    train_run(config, tmp_path / "run")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    with pytest.raises(InputError, match=r"config\.json: the run is of format 0, .* reads format 1; train it anew"):
        evaluate_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"holds a run with other settings or data \(format\)"):
        train_run(config, tmp_path / "run")
    assert read_settings(path).model == config.model


def test_altered_weights_are_refused_by_name(shop: PreparedData, tmp_path: Path) -> None:
    train_run(RunConfig.checked(_raw(shop), "test"), tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read as safetensors"):
        evaluate_run(tmp_path / "run")


def test_data_prepared_anew_is_noticed(shop_schema: Schema, tmp_path: Path) -> None:
    data = prepare(from_frames(shop_schema, **shop_frames(rows=400)), tmp_path / "data")
    train_run(RunConfig.checked(_raw(data), "test"), tmp_path / "run")
    prepare(from_frames(shop_schema, **shop_frames(rows=410)), tmp_path / "data", overwrite=True)
    with pytest.raises(InputError, match="the prepared data changed since the run was trained"):
        evaluate_run(tmp_path / "run")


def test_one_scenario_and_one_class_train_and_are_reported_as_undefined(shop_schema: Schema, tmp_path: Path) -> None:
    frames = shop_frames(rows=300)
    frames["interactions"] = frames["interactions"].with_columns(click=0)
    data = prepare(from_frames(shop_schema, **frames), tmp_path / "data")
    result = train_run(RunConfig.checked(_raw(data), "test"), tmp_path / "run")
    assert result.scores.mean_auc is None
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["test"]["scenarios"]["search"]["auc"] is None
    assert stored["test"]["overall"]["log_loss"] > 0


def test_a_single_scenario_has_no_others_and_trains(
    tiny_engine: TransformersEngine, shop_schema: Schema, tmp_path: Path
) -> None:
    schema = shop_schema.model_copy(update={"scenarios": shop_schema.scenarios[:1]})
    frames = shop_frames(rows=400)
    frames["interactions"] = frames["interactions"].with_columns(place=pl.lit("search"))
    data = prepare(from_frames(schema, **frames), tmp_path / "data")
    reason(data, tiny_engine, tmp_path / "knowledge", FAST)
    knowledge = KnowledgeFolder.open(tmp_path / "knowledge", data)
    result = train_run(RunConfig.checked(_raw(data, knowledge, match=True), "test"), tmp_path / "run")
    assert result.scores.scenarios[0] == result.scores.overall


def test_items_may_start_from_their_knowledge(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path
) -> None:
    raw = _raw(shop)
    raw |= {"knowledge_folder": str(shop_knowledge.path), "knowledge": {"dimensions": 4}}
    raw["model"]["item_start"] = True
    data, source, model = open_run(RunConfig.checked(raw, "test"))
    assert data.fields_of("categorical")[1].name == "item"
    rows = np.arange(20)
    batch = source.make(rows)
    assert batch.item is not None
    started = model.embedding(batch)[:, 4:8]
    vectors = batch.item[:, :4]  # without the number that says whether there is one
    torch.testing.assert_close(started / started.std(), vectors / vectors.std(), rtol=1e-4, atol=1e-4)
    result = train_run(RunConfig.checked(raw, "test"), tmp_path / "run")
    assert evaluate_run(tmp_path / "run") == result.scores


def test_items_without_a_field_of_their_own_cannot_start_from_knowledge(
    shop_schema: Schema, tiny_engine: TransformersEngine, tmp_path: Path
) -> None:
    fields = tuple(f for f in shop_schema.fields if f.source != "item")
    schema = shop_schema.model_copy(update={"fields": fields})
    data = prepare(from_frames(schema, **shop_frames(rows=400)), tmp_path / "data")
    reason(data, tiny_engine, tmp_path / "knowledge", FAST)
    raw = _raw(data) | {"knowledge_folder": str(tmp_path / "knowledge")}
    raw["model"]["item_start"] = True
    with pytest.raises(InputError, match=r"item_start needs a categorical field of the item's id \(column 'item'\)"):
        open_run(RunConfig.checked(raw, "test"))


def test_a_run_is_opened_on_whatever_device_there_is(shop: PreparedData, tmp_path: Path) -> None:
    raw = _raw(shop)
    raw["train"] = {**raw["train"], "device": "cpu"}
    result = train_run(RunConfig.checked(raw, "test"), tmp_path / "run")
    assert "device" not in json.loads((tmp_path / "run" / "config.json").read_text())["config"]["train"]
    assert run_config(tmp_path / "run").train.device == "auto"
    assert evaluate_run(tmp_path / "run") == result.scores


def test_a_run_is_evaluated_where_its_data_and_knowledge_lie_now(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path
) -> None:
    data, knowledge = (
        Path(shutil.copytree(p, tmp_path / n)) for p, n in ((shop.path, "d"), (shop_knowledge.path, "k"))
    )
    raw = _raw(shop, shop_knowledge) | {"data": str(data), "knowledge_folder": str(knowledge)}
    result = train_run(RunConfig.checked(raw, "test"), tmp_path / "run")
    shutil.rmtree(data)
    shutil.rmtree(knowledge)
    with pytest.raises(InputError, match="no such folder"):
        evaluate_run(tmp_path / "run")
    moved = run_config(tmp_path / "run", shop.path, shop_knowledge.path)
    assert evaluate_run(tmp_path / "run", moved) == result.scores
    bundle = export_bundle(tmp_path / "run", tmp_path / "bundle", config=moved)
    assert (bundle / "card.md").is_file()


def test_a_control_of_what_is_not_read_is_refused(shop: PreparedData, tmp_path: Path) -> None:
    raw = _raw(shop) | {"knowledge": {"control": "random"}}
    with pytest.raises(InputError, match="'none' reads no knowledge that the control 'random' could replace"):
        train_run(RunConfig.checked(raw, "test"), tmp_path / "run")


def test_the_metrics_are_those_of_the_stored_scores(shop: PreparedData, tmp_path: Path) -> None:
    result = train_run(RunConfig.checked(_raw(shop), "test"), tmp_path / "run")
    logits = np.load(tmp_path / "run" / "test_logits.npy")
    first, last = shop.split.range("test")
    label, scenario = np.asarray(shop.label[first:last]), np.asarray(shop.scenario[first:last])
    for d, score in enumerate(result.scores.scenarios):
        here = scenario == d
        assert (score.rows, score.positive) == (here.sum(), label[here].sum())
        assert score.auc == pytest.approx(roc_auc_score(label[here], logits[here]))
        assert score.log_loss == pytest.approx(log_loss(label[here], 1 / (1 + np.exp(-logits[here].astype(float)))))
    assert result.scores.overall.auc == pytest.approx(roc_auc_score(label, logits))
    assert len({score.auc for score in result.scores.scenarios}) == shop.scenario_count


def test_a_run_that_failed_before_its_first_weights_does_not_keep_its_folder(
    shop: PreparedData, tmp_path: Path
) -> None:
    raw = _raw(shop)
    raw["train"]["learning_rate"] = 1e20
    with pytest.raises(InputError, match="lower the learning rate"):
        train_run(RunConfig.checked(raw, "test"), tmp_path / "run")
    raw["train"]["learning_rate"] = 1e-3
    assert train_run(RunConfig.checked(raw, "test"), tmp_path / "run").scores.overall.auc is not None
    raw["train"]["learning_rate"] = 2e-3
    with pytest.raises(InputError, match="holds a run with other settings"):
        train_run(RunConfig.checked(raw, "test"), tmp_path / "run")
