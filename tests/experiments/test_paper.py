"""Every table and figure of the paper from one matrix."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.experiments import paper as paper_module
from llm4msr.experiments import runs
from llm4msr.experiments.case_study import telling_user
from llm4msr.experiments.config import MatrixConfig
from llm4msr.experiments.paper import PARTS, Paper, PaperConfig
from llm4msr.experiments.settings_table import settings
from llm4msr.experiments.statistics import statistics
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.report.figures import Panel, draw
from llm4msr.training.run import train_run

SMALL = {"weights": "low_rank", "hidden": 4, "rank": 2}


@pytest.fixture
def matrix(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> MatrixConfig:
    return MatrixConfig.model_validate(
        {
            "data": {"shop": {"folder": shop.path, "knowledge": shop_knowledge.path}},
            "backbones": {
                "star": {"hidden": [8, 4], "auxiliary_hidden": [4]},
                "shared_bottom": {"hidden": [8, 4]},
            },
            "enhancers": {"none": {}, "ours": {"name": "llm4msr_paper", "settings": SMALL}},
            "seeds": 2,
            "embedding_dim": 4,
            "search": {"trials": 0},
            "train": {"epochs": 1, "batch_size": 128, "validations_per_epoch": 1},
            "knowledge": {"dimensions": 8},
        }
    )


def paper(matrix: MatrixConfig, root: Path, engine: TransformersEngine, **wanted: Any) -> Paper:
    return Paper(matrix, PaperConfig(layers=(1, 2), history=(1, 2), **wanted), root, engine=lambda _: engine)


def test_every_part_is_made_and_no_run_twice(
    matrix: MatrixConfig, tiny_engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def counted(config: Any, folder: Path, progress: Any) -> Any:
        trained.append(folder.parent.name)
        return train_run(config, folder, progress)

    monkeypatch.setattr(runs, "train_run", counted)
    sections = {section.part: section for section in paper(matrix, tmp_path, tiny_engine).sections()}
    assert tuple(sections) == PARTS
    assert not any(section.remark for section in sections.values())
    # Table 2 trains 4 cells; of Figure 3 the backbone alone and the full model are among them, of Figure 4(b) K = 2.
    figure_3 = ["user-bottom", "user-parallel", "domain-bottom", "domain-parallel", "full-random"]
    assert sorted(trained) == sorted(2 * ["none", "ours", "none", "ours", *figure_3, "T-1", "T-2", "K-1"])
    document = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert [line for line in document.splitlines() if line.startswith("## ")] == [
        f"## {section.title}" for section in sections.values()
    ]
    for part in ("figure-3", "figure-4a", "figure-4b"):
        assert f"({part}.svg)" in document
        assert (tmp_path / f"{part}.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
        assert (tmp_path / f"{part}.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "paper.tex").read_text(encoding="utf-8").count(r"\includegraphics") == 3
    study = sections["figure-5"].study
    assert study is not None
    assert study.explanation.prompt is not None
    assert "\n".join(f"> {line}" for line in study.explanation.prompt.split("\n")) in document

    monkeypatch.setattr(runs, "train_run", lambda *_: pytest.fail("a finished run was run again"))
    again = {section.part: section for section in paper(matrix, tmp_path, tiny_engine).sections()}
    timed = {"table-3"}
    assert all(again[part].markdown() == sections[part].markdown() for part in PARTS if part not in timed)
    list(
        Paper(matrix, PaperConfig(parts=("figure-4b",), layers=(2,)), tmp_path, engine=lambda _: tiny_engine).sections()
    )
    fewer = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert fewer.count("\n## ") == len(PARTS)
    assert len(fewer) < len(document)
    other = MatrixConfig.model_validate(matrix.model_dump() | {"seeds": 5})
    list(paper(other, tmp_path, tiny_engine, parts=("table-4",)).sections())
    assert (tmp_path / "paper.md").read_text(encoding="utf-8").count("\n## ") == 1


def test_figure_3_is_the_improvement_over_the_backbone_of_the_same_seed(
    matrix: MatrixConfig, tiny_engine: TransformersEngine, tmp_path: Path
) -> None:
    (section,) = paper(matrix, tmp_path, tiny_engine, parts=("figure-3",), backbone="shared_bottom").sections()
    (sheet,) = section.sheets
    assert list(sheet.header) == [
        *("scenario", "user-bottom", "user-parallel", "domain-bottom", "domain-parallel", "full"),
        "full, random control",
    ]
    rows = pl.read_parquet(tmp_path / "figure-3.parquet")
    aucs = {
        enhancer: rows.filter((pl.col("enhancer") == enhancer) & (pl.col("control") == "none"))["mean_auc all"]
        for enhancer in ("none", "full")
    }
    expected = (100 * (aucs["full"] / aucs["none"] - 1)).to_numpy()
    line = sheet.lines[-1]
    assert line[0].text == "mean"
    assert line[5].text == f"{expected.mean():+.2f} ±{expected.std(ddof=1):.2f}"


def test_what_cannot_be_made_is_left_out_with_its_reason(
    matrix: MatrixConfig, tiny_engine: TransformersEngine, tmp_path: Path
) -> None:
    raw = matrix.model_dump() | {"seeds": 1}
    raw["enhancers"]["ours"]["settings"] = {**SMALL, "source": "composed"}
    composed = MatrixConfig.model_validate(raw)
    parts = ("figure-4a", "figure-5")
    made = paper(composed, tmp_path, tiny_engine, parts=parts)
    assert list(made.matrices()) == ["figure-5"]
    without, study = made.sections()
    assert without.remark.startswith("Left out: T changes the users' prompts")
    assert study.study is not None
    assert without.remark in (tmp_path / "paper.md").read_text(encoding="utf-8")


def test_runs_that_failed_leave_gaps_and_are_listed(
    matrix: MatrixConfig, tiny_engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(config: Any, folder: Path, progress: Any) -> Any:
        if folder.parent.name in ("user-bottom", "ours"):
            raise InputError("odd")
        return train_run(config, folder, progress)

    monkeypatch.setattr(runs, "train_run", planted)
    made = paper(matrix, tmp_path, tiny_engine, parts=("figure-5", "figure-3"))
    user, figure = made.sections()
    assert made.failed
    improvements, failed = figure.sheets
    assert "user-bottom" in improvements.header
    assert {line[1].text for line in improvements.lines} == {"undefined"}
    assert [line[-1].text for line in failed.lines] == ["InputError: odd"] * 2
    assert user.remark == "Left out: the run of ours failed: InputError: odd"


def test_a_project_may_be_moved_and_its_document_goes_on(
    matrix: MatrixConfig, tiny_engine: TransformersEngine, tmp_path: Path
) -> None:
    raw = matrix.model_dump(mode="json") | {"seeds": 1}
    (tmp_path / "old").mkdir()
    places = raw["data"]["shop"]
    for name in ("folder", "knowledge"):
        shutil.copytree(places[name], tmp_path / "old" / name)
        places[name] = str(tmp_path / "old" / name)
    before = MatrixConfig.model_validate(raw)
    list(paper(before, tmp_path / "old" / "paper", tiny_engine, parts=("table-4", "figure-5")).sections())
    (tmp_path / "old").rename(tmp_path / "new")
    for name in ("folder", "knowledge"):
        places[name] = str(tmp_path / "new" / name)
    after = MatrixConfig.model_validate(raw)
    (section,) = paper(after, tmp_path / "new" / "paper", tiny_engine, parts=("figure-5",)).sections()
    assert section.study is not None
    assert (tmp_path / "new" / "paper" / "paper.md").read_text(encoding="utf-8").count("\n## ") == 2


@pytest.mark.parametrize("text", ["from $5^$", "$10 & 20% off_$", "_hidden"])
def test_figures_take_any_name(tmp_path: Path, text: str) -> None:
    draw([Panel(text, [text, "b"], {text: [(0.5, 0.1), (math.nan, math.nan)]})], tmp_path / "f", "bars")
    assert text.replace("&", "&amp;") in (tmp_path / "f.svg").read_text(encoding="utf-8")


def test_a_backbone_or_a_user_that_there_is_not_is_refused(
    matrix: MatrixConfig, tiny_engine: TransformersEngine, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no backbone 'ple'; it has star, shared_bottom"):
        paper(matrix, tmp_path, tiny_engine, backbone="ple")
    with pytest.raises(InputError, match="there is no user 'nobody'"):
        paper(matrix, tmp_path, tiny_engine, user="nobody")


def test_table_1_counts_what_each_scenario_has(matrix: MatrixConfig, shop: PreparedData) -> None:
    sheet = statistics(matrix)
    user, item, scenario, label = (np.asarray(c) for c in (shop.user, shop.item, shop.scenario, shop.label))
    assert len(sheet.lines) == shop.scenario_count
    for d, line in enumerate(sheet.lines):
        here, others = scenario == d, scenario != d
        expected = []
        for codes in (user, item):
            expected += [len(set(codes[here])), len(set(codes[here]) & set(codes[others]))]
        expected.append(int(here.sum()))
        assert [cell.text for cell in line[2:7]] == [f"{count:,}" for count in expected]
        assert line[7].text == f"{1 - label[here].mean():.2%}"


def test_table_4_says_what_was_set_and_what_was_searched(matrix: MatrixConfig) -> None:
    searched = MatrixConfig.model_validate(matrix.model_dump() | {"search": {"trials": 3}})
    values = {line[0].text: line[1].text for line in settings(searched, None).lines}
    assert values["batch size"] == "128"
    assert values["hidden layers of the backbones"] == "[8, 4]"
    assert values["K of ours"] == "2"
    assert values["learning rate"].endswith("searched from 0.0002 to 0.01 in 3 trials a model")
    assert values["T of the users' prompts"].isdigit()
    assert re.fullmatch(r"llm\d+, transformers, [0-9a-f]{12}, float32", values["the language model"])


def test_table_4_has_the_settings_that_the_search_chose(
    matrix: MatrixConfig, tiny_engine: TransformersEngine, tmp_path: Path
) -> None:
    raw = matrix.model_dump() | {"search": {"trials": 2}, "enhancers": {"none": {}, "epnet": {}}, "seeds": 1}
    raw["enhancers"]["ours"] = {"name": "llm4msr_paper", "settings": SMALL}
    raw["backbones"] = {"shared_bottom": {"hidden": [8, 4]}}
    searched = MatrixConfig.model_validate(raw)
    before, after = (paper(searched, tmp_path, tiny_engine, parts=p) for p in (("table-4",), ("table-2", "table-4")))
    (only,) = before.sections()
    assert [sheet.title for sheet in only.sheets] == ["Settings"]
    *_, table = after.sections()
    (_, chosen) = table.sheets
    assert [[cell.text for cell in line][:3] for line in chosen.lines] == [
        ["shop", "shared_bottom", name] for name in ("none", "epnet", "ours")
    ]
    assert not after.failed


def test_the_user_of_figure_5_is_of_the_test_part_and_knows_the_most_scenarios(shop: PreparedData) -> None:
    user = telling_user(shop)
    code = shop.users["user"].to_list().index(user)
    first, last = shop.split.range("test")
    tested = set(shop.user[first:last].tolist())
    before = shop.positives.filter(pl.col("time") < shop.split.test_time)
    scenarios = {u: before.filter(pl.col("user") == u)["scenario"].n_unique() for u in tested}
    assert code in tested
    assert scenarios[code] == max(scenarios.values())


def test_a_matrix_without_models_has_those_of_table_2(shop: PreparedData) -> None:
    matrix = MatrixConfig.model_validate({"preset": "paper-amazon", "data": {"shop": {"folder": shop.path}}})
    assert list(matrix.backbones) == ["star", "omoe", "mmoe", "ple", "aitm", "shared_bottom"]
    assert list(matrix.enhancers) == ["none", "dynamic_network", "epnet", "llm4msr_paper", "llm4msr"]
    assert all(tuple(settings["hidden"]) == (64, 32, 16) for settings in matrix.backbones.values())


def test_a_part_that_fails_is_left_out_and_the_others_are_made(
    matrix: MatrixConfig, tiny_engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(*_: Any, **__: Any) -> Any:
        raise ValueError("odd")

    monkeypatch.setattr(paper_module, "efficiency", planted)
    made = paper(matrix, tmp_path, tiny_engine, parts=("table-3", "table-1"))
    times, data = made.sections()
    assert made.failed
    assert times.remark == "Left out: ValueError: odd."
    assert data.sheets


def test_letters_that_no_font_has_are_told_of_once(tmp_path: Path) -> None:
    names = ["\U000f1234", "\U000f1235"]
    with pytest.warns(UserWarning, match="figure: no installed font has all letters") as found:
        draw([Panel("title", names, {"ours": [(0.1, 0.0), (0.2, 0.0)]})], tmp_path / "figure", "bars")
    assert len(found) == 1
    assert (tmp_path / "figure.svg").is_file()
