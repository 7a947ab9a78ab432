from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import typer
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from llm4msr.cli import studies
from llm4msr.data import classes
from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.experiments import runs, slices
from llm4msr.experiments.benchmark import RESULTS, plan, run_matrix
from llm4msr.experiments.cells import cells_of
from llm4msr.experiments.config import MatrixConfig, read_matrix
from llm4msr.experiments.tables import sheets
from llm4msr.experiments.variants import VARIANTS, ablation, sweep_layers
from llm4msr.folders import sole_writer
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.models.backbones.shared_bottom import SharedBottom
from llm4msr.models.registry import BACKBONES, ENHANCERS, ModelPartConfig
from llm4msr.training.run import train_run

TIMED = ["seconds", "process_peak_memory_mb"]


@pytest.fixture
def matrix(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> MatrixConfig:
    ours = {"name": "llm4msr", "settings": {"hidden": 4, "rank": 2}, "controls": ["random"]}
    return MatrixConfig.model_validate(
        {
            "data": {"shop": {"folder": shop.path, "knowledge": shop_knowledge.path}},
            "backbones": {"shared_bottom": {"hidden": [8, 4]}, "mmoe": {"hidden": [8, 4]}},
            "enhancers": {"none": {}, "epnet": {}, "ours": ours},
            "seeds": 2,
            "embedding_dim": 4,
            "search": {"trials": 2},
            "train": {"epochs": 1, "batch_size": 64, "validations_per_epoch": 1},
            "knowledge": {"dimensions": 8},
        }
    )


def test_a_matrix_has_a_row_a_run_and_runs_nothing_twice(
    matrix: MatrixConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_matrix(matrix, tmp_path)
    assert first.height == 2 * 4 * (2 + 2)
    assert set(first["status"]) == {"done"}
    assert plan(matrix, tmp_path).done == first.height
    monkeypatch.setattr(runs, "train_run", lambda *_: pytest.fail("a finished run was run again"))
    assert run_matrix(matrix, tmp_path).equals(first)
    titles = [sheet.title for sheet in sheets(first, matrix, tmp_path)]
    assert titles[:2] == ["Test AUC: shop", "Difference from the backbone alone: shop"]
    compared = [line[1].text for line in sheets(first, matrix, tmp_path)[1].lines]
    assert compared[:4] == ["epnet", "ours", "ours, random control", "ours over its random control"]
    for sheet in sheets(first, matrix, tmp_path):
        assert "ours, random control" in sheet.markdown()
        assert r"\bottomrule" in sheet.latex()


def test_the_tables_show_the_scores_of_the_stored_logits(
    matrix: MatrixConfig, shop: PreparedData, tmp_path: Path
) -> None:
    small = {"search": {"trials": 0}, "backbones": {"shared_bottom": {"hidden": [8, 4]}}}
    config = MatrixConfig.model_validate(matrix.model_dump() | small)
    results = run_matrix(config, tmp_path)
    first, last = shop.split.range("test")
    label, scenario = np.asarray(shop.label[first:last]), np.asarray(shop.scenario[first:last])
    masks = {"all": np.ones(last - first, bool), **slices.test_slices(shop)}
    means: dict[str, list[float]] = {}
    for row in results.iter_rows(named=True):
        logits = np.load(tmp_path / row["folder"] / "test_logits.npy")
        for place, mask in masks.items():
            assert row[f"rows {place}"] == mask.sum()
            for d, declared in enumerate(shop.schema.scenarios):
                here = mask & (scenario == d)
                assert row[f"rows {place}: {declared.title}"] == here.sum()
                if len(set(label[here])) == 2:
                    auc = row[f"auc {place}: {declared.title}"]
                    assert auc == pytest.approx(roc_auc_score(label[here], logits[here]))
        column = row["enhancer"] + (", random control" if row["control"] == "random" else "")
        means.setdefault(column, []).append(row["mean_auc all"])
    _, differences, sliced = sheets(results, config, tmp_path)
    shown = {line[1].text: float(line[2].text) for line in differences.lines}
    for name in ("epnet", "ours", "ours, random control"):
        assert shown[name] == pytest.approx(np.mean(means[name]) - np.mean(means["none"]), abs=6e-5)
    over = np.mean(means["ours"]) - np.mean(means["ours, random control"])
    assert shown["ours over its random control"] == pytest.approx(over, abs=6e-5)
    assert {line[1].text for line in sliced.lines} == {
        f"{place} ({mask.sum():,} rows)" for place, mask in masks.items() if place != "all"
    }


def test_a_smaller_matrix_does_not_take_the_tables_of_a_larger_one(matrix: MatrixConfig, tmp_path: Path) -> None:
    small = {"search": {"trials": 0}, "seeds": 1, "backbones": {"shared_bottom": {"hidden": [8, 4]}}}
    raw = matrix.model_dump() | small
    two = MatrixConfig.model_validate({**raw, "enhancers": {"none": {}, "epnet": {}}})
    run_matrix(two, tmp_path)
    one = MatrixConfig.model_validate({**raw, "enhancers": {"none": {}}})
    with pytest.raises(InputError, match="1 cells that this matrix does not have, such as shop/shared_bottom/epnet"):
        run_matrix(one, tmp_path)
    assert run_matrix(two, tmp_path).height == 2


def test_scenarios_are_marked_where_the_difference_is_not_by_chance(
    matrix: MatrixConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = matrix.model_dump() | {"backbones": {"shared_bottom": {"hidden": [8, 4]}}, "search": {"trials": 0}}
    raw["enhancers"] = {"none": {}, "better": {"name": "none"}, "worse": {"name": "none"}, "chance": {"name": "none"}}
    config = MatrixConfig.model_validate({**raw, "seeds": 3})
    results = run_matrix(config, tmp_path)
    change: dict[str, list[float]] = {
        "none": [0, 0, 0],
        "better": [0.01, 0.011, 0.012],
        "worse": [-0.01, -0.02, -0.015],
        "chance": [0.1, -0.1, 0],
    }
    moved = pl.Series([0.5 + change[row["enhancer"]][row["number"]] for row in results.to_dicts()])
    results = results.with_columns(moved.alias("mean_auc all"))
    monkeypatch.setattr(classes, "FEWEST", 1000)
    (few, *_) = sheets(results, config, tmp_path)
    assert "★" not in few.markdown().partition("Mean over seeds")[0]  # all scenarios have too few rows
    assert re.search(r"mail \(\d+ rows, \d+ positive\)", few.markdown())
    monkeypatch.setattr(classes, "FEWEST", 1)
    sheet = sheets(results, config, tmp_path)[0]
    line = dict(zip(sheet.header, [cell.text[-1] for cell in sheet.lines[-1]], strict=True))
    assert (line["better"], line["worse"]) == ("★", "↓")
    assert line["chance"].isdigit()
    assert line["none"].isdigit()
    assert r"$\star$" in sheet.latex()


def test_a_folder_of_other_things_is_refused(matrix: MatrixConfig, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else than runs"):
        run_matrix(matrix, tmp_path)
    with pytest.raises(InputError, match=r"mine\.txt: is a file"):
        run_matrix(matrix, tmp_path / "mine.txt")


def test_two_processes_do_not_run_matrices_in_one_folder(matrix: MatrixConfig, tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(InputError, match="another process is at work here"):
        run_matrix(matrix, tmp_path)
    assert not (tmp_path / RESULTS).exists()


def test_models_are_compared_on_the_seeds_that_neither_failed(matrix: MatrixConfig, tmp_path: Path) -> None:
    raw = matrix.model_dump() | {"backbones": {"shared_bottom": {"hidden": [8, 4]}}, "search": {"trials": 0}}
    twice = MatrixConfig.model_validate({**raw, "enhancers": {"none": {}, "again": {"name": "none"}}, "seeds": 3})
    results = run_matrix(twice, tmp_path)
    failed = (pl.col("enhancer") == "again") & (pl.col("number") == 0)
    results = results.with_columns(pl.when(failed).then(pl.lit("failed")).otherwise("status").alias("status"))
    differences = next(s for s in sheets(results, twice, tmp_path) if s.title.startswith("Difference"))
    assert [cell.text for cell in differences.lines[0][2:4]] == ["+0.0000", "+0.0000 to +0.0000"]


def test_the_backbone_alone_is_found_under_any_label(matrix: MatrixConfig, tmp_path: Path) -> None:
    raw = matrix.model_dump() | {"backbones": {"shared_bottom": {"hidden": [8, 4]}}, "search": {"trials": 0}}
    config = MatrixConfig.model_validate({**raw, "enhancers": {"gated": {"name": "epnet"}, "plain": {"name": "none"}}})
    assert config.baseline == "plain"
    results = run_matrix(config, tmp_path)
    table, differences, _ = sheets(results, config, tmp_path)
    assert "nothing is compared" not in table.note
    assert [[cell.text for cell in line[:2]] for line in differences.lines] == [["shared_bottom", "gated"]]
    without = config.model_copy(update={"enhancers": {"gated": config.enhancers["gated"]}})
    titles = [sheet.title for sheet in sheets(results.filter(pl.col("enhancer") == "gated"), without, tmp_path)]
    assert titles == ["Test AUC: shop", "Mean test AUC over scenarios, on slices: shop"]
    assert "nothing is compared" in sheets(results, without, tmp_path)[0].note


def test_the_label_of_the_backbone_alone_is_its_own(matrix: MatrixConfig) -> None:
    with pytest.raises(ValidationError, match="the label 'none' is the backbone's alone; give epnet another label"):
        MatrixConfig.model_validate(matrix.model_dump() | {"enhancers": {"none": {"name": "epnet"}}})


def test_each_runs_progress_is_told_by_its_name(matrix: MatrixConfig, tmp_path: Path) -> None:
    raw = matrix.model_dump() | {"backbones": {"shared_bottom": {"hidden": [8, 4]}}, "search": {"trials": 1}}
    one = MatrixConfig.model_validate({**raw, "enhancers": {"none": {}}, "seeds": 2})
    told: list[tuple[str, int, int]] = []
    run_matrix(one, tmp_path, progress=lambda name, p: told.append((name, p.step, p.steps)))
    cell = "shop: shared_bottom with none"
    assert list(dict.fromkeys(name for name, *_ in told)) == [f"{cell}, trial 0", f"{cell}, seed 1"]
    assert all(step == steps for _, step, steps in (told[-1], told[0]))


def test_a_matrix_that_was_stopped_gives_the_same_table(matrix: MatrixConfig, tmp_path: Path) -> None:
    def stop(message: str) -> None:
        if message.startswith("3 of 8"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_matrix(matrix, tmp_path / "stopped", say=stop)
    resumed = run_matrix(matrix, tmp_path / "stopped")
    whole = run_matrix(matrix, tmp_path / "whole")
    assert resumed.drop(TIMED).equals(whole.drop(TIMED))


def test_a_failure_is_recorded_and_the_others_go_on(
    matrix: MatrixConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = train_run

    def planted(config: Any, folder: Path, progress: Any) -> Any:
        if config.model.backbone.name == "mmoe" and config.model.enhancer.name == "epnet":
            raise InputError("the loss is not a number")
        return true(config, folder, progress)

    monkeypatch.setattr(runs, "train_run", planted)
    found = run_matrix(matrix, tmp_path)
    failed = found.filter(pl.col("status") == "failed")
    assert set(failed.select("backbone", "enhancer").rows()) == {("mmoe", "epnet")}
    assert set(failed["reason"]) == {"InputError: the loss is not a number"}
    assert found.filter((pl.col("kind") == "seed") & (pl.col("status") == "done")).height == 7 * 2
    assert sheets(found, matrix, tmp_path)[-1].title == "Runs that failed"
    monkeypatch.setattr(runs, "train_run", true)
    assert set(run_matrix(matrix, tmp_path)["status"]) == {"done"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"backbones": {"stra": {}}},
            "the cell shop: stra with none: there is no backbone 'stra'; did you mean 'star'",
        ),
        ({"enhancers": {"epnt": {}}}, "there is no enhancer 'epnt'; did you mean 'epnet'"),
        ({"enhancers": {"epnet": {"controls": ["random"]}}}, "reads no knowledge that a control could replace"),
    ],
)
def test_an_impossible_cell_is_named_before_anything_runs(
    matrix: MatrixConfig, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    raw = matrix.model_dump()
    with pytest.raises(InputError, match=message):
        run_matrix(MatrixConfig.model_validate({**raw, **change}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_knowledge_that_no_folder_gives_is_named(matrix: MatrixConfig, shop: PreparedData, tmp_path: Path) -> None:
    without = MatrixConfig.model_validate({**matrix.model_dump(), "data": {"shop": {"folder": shop.path}}})
    with pytest.raises(InputError, match=r"shared_bottom with ours: needs .* but its data set names no knowledge"):
        plan(without, tmp_path)


def test_variants_are_the_papers(matrix: MatrixConfig) -> None:
    enhancers = ablation(matrix, "ours").enhancers
    assert list(enhancers) == ["none", *VARIANTS]
    for name, placement in VARIANTS.items():
        found = ENHANCERS.config("llm4msr", enhancers[name].settings)
        assert {key: getattr(found, key) for key in placement} == placement
        assert (found.hidden, found.rank) == (4, 2)
    assert [e.settings.get("layers") for e in sweep_layers(matrix, None, [1, 3]).enhancers.values()] == [None, 1, 3]
    with pytest.raises(InputError, match="no llm4msr enhancer 'our'; did you mean 'ours'"):
        ablation(matrix, "our")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('backbones = ["star", "ple", "star"]\n[data.a]\nfolder = "d"', "backbones: star is named twice"),
        ('preset = "paper-amazon"\ntrain = 3\n[data.a]\nfolder = "d"', "train: expected a table of keys"),
        ('preset = "paper-amazon"\n[data.a]\nfolder = "d"\n[backbones]\nstar = 3', "star: expected a table of keys"),
        ('backbones = [["star"]]\n[data.a]\nfolder = "d"', "backbones: expected a table of keys"),
        ('[data.a]\nfoldr = "d"', "unknown key 'data.a.foldr'; did you mean 'folder'?"),
        ('[data.a]\nfolder = "d"\n[train]\nepoch = 2', "unknown key 'train.epoch'; did you mean 'epochs'?"),
        ('[data.a]\nfolder = "d"\n[enhancers.x]\nzzz = 2', "'enhancers.x.zzz'; known: name, settings, controls, know"),
    ],
)
def test_what_is_wrong_with_a_matrix_is_named_by_its_key(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "matrix.toml").write_text(lines, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)):
        read_matrix(tmp_path / "matrix.toml")


def test_a_label_that_begins_like_another_is_no_control_of_it(matrix: MatrixConfig, tmp_path: Path) -> None:
    raw = matrix.model_dump() | {
        "backbones": {"shared_bottom": {"hidden": [8, 4]}},
        "search": {"trials": 0},
        "seeds": 1,
    }
    ours = raw["enhancers"]["ours"]
    raw["enhancers"] = {"none": {}, "ours": ours, "ours, gated": {**ours, "controls": []}}
    config = MatrixConfig.model_validate(raw)
    differences = sheets(run_matrix(config, tmp_path), config, tmp_path)[1]
    assert [line[1].text for line in differences.lines] == [
        *("ours", "ours, random control", "ours, gated", "ours over its random control")
    ]


def test_tables_say_which_models_read_what_they_must_not(matrix: MatrixConfig, tmp_path: Path) -> None:
    raw = matrix.model_dump() | {
        "backbones": {"shared_bottom": {"hidden": [8, 4]}},
        "search": {"trials": 0},
        "seeds": 1,
    }
    config = MatrixConfig.model_validate(raw)
    results = run_matrix(config, tmp_path)
    assert "leaks" not in sheets(results, config, tmp_path)[0].note
    leaking = pl.when(pl.col("enhancer") == "ours").then(pl.lit("labels of the test part")).otherwise(pl.lit(""))
    found = sheets(results.with_columns(leaking.alias("leaks")), config, tmp_path)
    assert found[0].note.endswith("ours leaks: labels of the test part.")


def test_a_file_with_a_preset(tmp_path: Path) -> None:
    text = (
        'preset = "paper-amazon"\nbackbones = ["star"]\n[data.a]\nfolder = "d"\n[enhancers.none]\n[train]\nepochs = 2\n'
    )
    (tmp_path / "matrix.toml").write_text(text, encoding="utf-8")
    found = read_matrix(tmp_path / "matrix.toml")
    assert found.data["a"].folder == tmp_path / "d"
    assert found.train.model_dump(include={"epochs", "batch_size", "learning_rate"}) == {
        "epochs": 2,
        "batch_size": 1024,
        "learning_rate": 2e-3,
    }
    assert found.backbones == {"star": {"hidden": (64, 32, 16)}}
    (tmp_path / "matrix.toml").write_text(text.replace("amazon", "amazn"), encoding="utf-8")
    with pytest.raises(InputError, match="there is no preset 'paper-amazn'; did you mean 'paper-amazon'"):
        read_matrix(tmp_path / "matrix.toml")


def test_a_preset_leaves_a_backbone_alone_that_has_other_settings() -> None:
    class OneWidthConfig(ModelPartConfig):
        """A width that is no list."""

        hidden: int = 64

    class OneWidth(SharedBottom):
        """A backbone of one's own."""

    BACKBONES.register("one_width", OneWidthConfig)(OneWidth)
    try:
        raw = {"preset": "paper-amazon", "backbones": ["one_width", "star"], "data": {"a": {"folder": "d"}}}
        found = MatrixConfig.model_validate(raw).backbones
        assert "hidden" not in found["one_width"]
        assert "hidden" in found["star"]
    finally:
        del BACKBONES._types["one_width"]


def test_failed_runs_end_the_command_with_an_error(
    matrix: MatrixConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(*_: Any) -> Any:
        raise InputError("odd")

    monkeypatch.setattr(runs, "train_run", planted)
    with pytest.raises(typer.Exit) as end:
        studies._run(matrix, tmp_path, 1, dry_run=False)
    assert end.value.exit_code == 1
    assert (tmp_path / "results.parquet").is_file()


LONG = """
seeds = 1
backbones = ["shared_bottom", "star", "mmoe", "ple"]
[enhancers.none]
[search]
trials = 0
[train]
epochs = 20000
patience = 20000
batch_size = 64
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupt_ends_a_matrix_at_once(shop: PreparedData, tmp_path: Path, jobs: str) -> None:
    (tmp_path / "m.toml").write_text(f'{LONG}\n[data.shop]\nfolder = "{shop.path}"\n')
    command = [sys.executable, "-m", "llm4msr", "benchmark", str(tmp_path / "m.toml"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--jobs", jobs], start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/**/checkpoint.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 130


@pytest.mark.slow
def test_no_worker_outlives_a_command_that_is_killed(shop: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(f'{LONG}\n[data.shop]\nfolder = "{shop.path}"\n')
    command = [sys.executable, "-m", "llm4msr", "benchmark", str(tmp_path / "m.toml"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--jobs", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (found := list(tmp_path.glob("out/**/checkpoint.safetensors"))) and time.monotonic() < deadline:
        time.sleep(0.2)
    with pytest.raises(InputError, match="at work here"), sole_writer(found[0].parent):
        pass
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with sole_writer(found[0].parent):
                return
        except InputError:
            time.sleep(0.2)
    pytest.fail("a worker trains on")


DEADLY = """
import os
from llm4msr.models.backbones.star import STAR, STARConfig
from llm4msr.models.registry import BACKBONES

@BACKBONES.register("deadly", STARConfig)
class Deadly(STAR):
    def forward(self, x, offsets):
        os._exit(9)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_costs_its_cell_alone(
    shop: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly_models.py").write_text(DEADLY)
    monkeypatch.setenv("LLM4MSR_MODELS", "deadly_models")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    raw = {
        "data": {"shop": {"folder": shop.path}},
        "backbones": {"deadly": {}, "shared_bottom": {"hidden": [8, 4]}, "mmoe": {"hidden": [8, 4]}},
        "enhancers": {"none": {}},
        "seeds": 1,
        "search": {"trials": 0},
        "train": {"epochs": 1, "batch_size": 64},
    }
    results = run_matrix(MatrixConfig.model_validate(raw), tmp_path / "out", jobs=2)
    states = dict(results.select("backbone", "status").rows())
    assert states == {"deadly": "failed", "shared_bottom": "done", "mmoe": "done"}
    (reason,) = results.filter(pl.col("status") == "failed")["reason"]
    assert "its process was killed" in reason


def test_the_seed_that_a_trial_had_is_that_trial(
    matrix: MatrixConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []

    def counted(config: Any, folder: Path, progress: Any) -> Any:
        trained.append(folder)
        return train_run(config, folder, progress)

    monkeypatch.setattr(runs, "train_run", counted)
    one = MatrixConfig.model_validate(matrix.model_dump() | {"enhancers": {"none": {}}, "seeds": 2})
    results = run_matrix(one, tmp_path)
    assert results.height == 2 * 4
    assert len(trained) == 2 * 3
    seeds = results.filter(pl.col("kind") == "seed")
    assert seeds["auc all"].null_count() == 0
    assert sorted(Path(folder).name[:5] for folder in seeds["folder"]) == ["seed-", "seed-", "trial", "trial"]
    assert run_matrix(one, tmp_path).equals(results)
    assert len(trained) == 2 * 3
    assert not [sheet for sheet in sheets(results, one, tmp_path) if sheet.title == "Runs that failed"]


def test_a_control_that_draws_at_random_draws_anew_for_every_seed(matrix: MatrixConfig) -> None:
    raw = matrix.model_dump() | {"enhancers": {"ours": {"name": "llm4msr", "controls": ["random", "counts"]}}}
    drawn = {
        cell.control: [cell.config(0.1, 0.0, cell.base.train.seed + n).knowledge.control_seed for n in range(3)]
        for cell in cells_of(MatrixConfig.model_validate(raw))
    }
    assert drawn == {"none": [0, 0, 0], "random": [0, 1, 2], "counts": [0, 0, 0]}


BROKEN = """
from llm4msr.models.registry import BACKBONES, Backbone, ModelPartConfig

@BACKBONES.register("broken", ModelPartConfig)
class Broken(Backbone):
    def __init__(self, config, width, scenarios):
        super().__init__()

    def forward(self, x, offsets):
        return x.no_such_thing
"""


def test_a_failed_run_says_where_and_a_changed_model_is_run_again(
    shop: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_models.py").write_text(BROKEN)
    monkeypatch.setattr(BACKBONES, "_types", dict(BACKBONES._types))
    monkeypatch.setenv("LLM4MSR_MODELS", "broken_models")
    monkeypatch.syspath_prepend(tmp_path)
    raw = {
        "data": {"shop": {"folder": shop.path}},
        "backbones": {"broken": {}},
        "enhancers": {"none": {}},
        "seeds": 1,
        "search": {"trials": 0},
        "train": {"epochs": 1, "batch_size": 64},
    }
    (row,) = run_matrix(MatrixConfig.model_validate(raw), tmp_path / "out").to_dicts()
    assert "no_such_thing" in row["reason"]
    assert "(broken_models.py, line 10;" in row["reason"]
    assert "broken_models.py" in (tmp_path / "out" / row["folder"] / "traceback.txt").read_text()
    (tmp_path / "broken_models.py").write_text(BROKEN + "# changed")
    (again,) = run_matrix(MatrixConfig.model_validate(raw), tmp_path / "out").to_dicts()
    assert again["settings"] != row["settings"]
