"""Efficiency, case study, search and sweeps: the matrices beside the benchmark."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.experiments.benchmark import plan, run_matrix
from llm4msr.experiments.case_study import case_study
from llm4msr.experiments.cells import cells_of
from llm4msr.experiments.config import MatrixConfig, Search
from llm4msr.experiments.efficiency import _figures, efficiency
from llm4msr.experiments.estimate import seconds_of
from llm4msr.experiments.search import best_of, propose
from llm4msr.experiments.variants import ablation, sweep_history
from llm4msr.knowledge import LEVELS
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.readings import readings
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.training.step import PlainStep
from tests.knowledge.stub_engine import StubEngine

START = {"learning_rate": 1e-3, "embedding_decay": 1e-5}


@pytest.fixture
def matrix(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> MatrixConfig:
    return MatrixConfig.model_validate(
        {
            "data": {"shop": {"folder": shop.path, "knowledge": shop_knowledge.path}},
            "backbones": {"star": {"hidden": [8, 4], "auxiliary_hidden": [4]}},
            "enhancers": {
                "none": {},
                "ours": {"name": "llm4msr_paper", "settings": {"weights": "low_rank", "hidden": 4, "rank": 2}},
            },
            "seeds": 1,
            "embedding_dim": 4,
            "search": {"trials": 0},
            "train": {"epochs": 1, "batch_size": 128, "validations_per_epoch": 1},
            "knowledge": {"dimensions": 8},
        }
    )


def test_efficiency_shows_seconds_and_ratios_to_the_backbone(matrix: MatrixConfig) -> None:
    (sheet,) = efficiency(matrix, batches=2, rounds=2)
    assert sheet.header == ["backbone", "enhancer", "training s", "ratio", "inference s", "ratio"]
    alone, ours = ([cell.text for cell in line] for line in sheet.lines)
    assert alone[:2] == ["star", "none"]
    assert (alone[3], alone[5]) == ("1.00", "1.00")
    assert float(ours[3]) > 0
    assert "128 rows" in sheet.note


def test_an_estimate_is_a_positive_time_that_jobs_share(matrix: MatrixConfig) -> None:
    cells = cells_of(matrix)[:1]
    seconds, failed = seconds_of(cells, matrix, 1)
    assert not failed
    assert seconds > 0
    assert plan(matrix, Path("absent")).runs == 2


def test_a_case_study_shows_a_prompt_a_text_and_what_changes_in_the_scores(
    matrix: MatrixConfig, shop: PreparedData, tiny_engine: TransformersEngine, tmp_path: Path
) -> None:
    results = run_matrix(matrix, tmp_path)
    runs = {row["enhancer"]: tmp_path / row["folder"] for row in results.iter_rows(named=True)}
    user = shop.users["user"][int(shop.user[-1])]
    found = case_study(runs["ours"], user, lambda _: tiny_engine, most=3)
    assert found.explanation.user == user
    assert list(found.scenarios) == [s.title for s in shop.schema.scenarios]
    assert all(found.scenarios.values())
    assert found.explanation.prompt is not None
    assert found.scores.header[-3:] == ["score", "with the mean knowledge", "change"]
    for line in found.scores.lines:
        own, mean, change = (float(cell.text) for cell in line[-3:])
        assert change == pytest.approx(own - mean, abs=2e-3)
        assert line[-1].strong == ((change > 0) == (line[2].text == "yes")) or abs(change) < 1e-3
    with pytest.raises(InputError, match=f"there is no user '{user}x'; did you mean '{user}'"):
        case_study(runs["ours"], f"{user}x", lambda _: tiny_engine)
    with pytest.raises(InputError, match="its enhancer 'none' reads no knowledge of users"):
        case_study(runs["none"], user, lambda _: tiny_engine)


def test_a_search_begins_with_the_configured_setting_and_stays_within_its_bounds() -> None:
    search = Search(trials=8, learning_rate=(1e-4, 1e-2), embedding_decay=(1e-6, 1e-4))
    history: list[tuple[dict[str, float], float | None]] = []
    for place in range(8):
        settings = propose(search, START, history, seed=3)
        assert propose(search, START, history, seed=3) == settings  # a search that was stopped goes on as it was
        assert 1e-4 <= settings["learning_rate"] <= 1e-2
        assert 1e-6 <= settings["embedding_decay"] <= 1e-4
        history.append((settings, None if place == 2 else 0.5 + place / 100))
    assert history[0][0] == START
    assert len({settings["learning_rate"] for settings, _ in history}) == 8


def test_the_best_trial_is_the_one_of_the_highest_validation_auc_and_the_first_of_equals() -> None:
    a, b, c = ({"learning_rate": rate, "embedding_decay": 0.0} for rate in (1.0, 2.0, 3.0))
    assert best_of([(a, 0.5), (b, 0.7), (c, 0.7)], START) == b
    assert best_of([(a, None)], START) == START
    assert best_of([], START) == START


def test_a_sweep_of_t_reasons_for_each_value(
    matrix: MatrixConfig, shop: PreparedData, tiny_engine: TransformersEngine, tmp_path: Path
) -> None:
    asked: dict[str, int] = {}
    swept = sweep_history(
        matrix,
        None,
        [1, 2],
        tmp_path,
        lambda _: tiny_engine,
        lambda p: asked.update({p.level: asked.get(p.level, 0) + p.asked}),
    )
    assert {"user, T = 1", "user, T = 2"} <= set(asked)
    asked = {level: sum(n for name, n in asked.items() if name.startswith(level)) for level in LEVELS}
    assert (asked["scenario"], asked["item"]) == (0, 0)  # the matrix's own knowledge has these answers
    assert asked["user"] > 0
    assert list(swept.enhancers) == ["none", "T = 1", "T = 2"]
    histories = []
    for choice in list(swept.enhancers.values())[1:]:
        assert choice.knowledge is not None
        histories.append(KnowledgeFolder.open(choice.knowledge, shop).config.history)
    assert histories == [1, 2]
    assert set(run_matrix(swept, tmp_path / "runs")["status"]) == {"done"}


def test_a_sweep_of_t_without_an_engine_is_a_plan(matrix: MatrixConfig, tmp_path: Path) -> None:
    swept = sweep_history(matrix, None, [1, 2], tmp_path, None)
    assert plan(swept, tmp_path).runs == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"source": "composed"}}, "T changes the users' prompts"),
        ({"knowledge": None}, "names no knowledge folder"),
    ],
)
def test_a_sweep_of_t_that_cannot_be_run_says_why(
    matrix: MatrixConfig, tiny_engine: TransformersEngine, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    raw = matrix.model_dump()
    if "settings" in change:
        raw["enhancers"]["ours"] |= change
    else:
        raw["data"]["shop"]["knowledge"] = None
    with pytest.raises(InputError, match=message):
        sweep_history(MatrixConfig.model_validate(raw), None, [1], tmp_path, lambda _: tiny_engine)


@pytest.mark.parametrize("value", [0, -1, 1001])
def test_a_t_that_cannot_be_is_refused_before_anything_is_asked(
    matrix: MatrixConfig, tiny_engine: TransformersEngine, tmp_path: Path, value: int
) -> None:
    with pytest.raises(InputError, match=f"T = {value}: history: Input should be"):
        sweep_history(matrix, None, [1, value], tmp_path, lambda _: tiny_engine)
    assert not list(tmp_path.iterdir())


def test_a_sweep_of_t_takes_the_llm_and_the_words_of_the_matrixs_knowledge(
    matrix: MatrixConfig, shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"another language model or engine: engine transformers, not stub"):
        sweep_history(matrix, None, [1], tmp_path / "other", lambda _: StubEngine())
    templates = tmp_path / "words"
    shutil.copytree(shop_knowledge.path / "templates", templates)
    (templates / "user.j2").write_text("In my words. " + (templates / "user.j2").read_text(encoding="utf-8"))
    engine, knowledge = StubEngine(), tmp_path / "knowledge"
    reason(shop, engine, knowledge, ReasonConfig(history=3), templates=templates)
    reason(shop, engine, knowledge / "readings" / "mine", ReasonConfig(levels=("item",)))
    raw = matrix.model_dump()
    raw["data"]["shop"]["knowledge"] = knowledge
    asked = len(engine.asked)
    swept = sweep_history(MatrixConfig.model_validate(raw), None, [2, 3], tmp_path / "sweep", lambda _: engine)
    again = engine.asked[asked:]
    assert again
    assert all(prompt.startswith("In my words.") for prompt in again)
    for label in ("T = 2", "T = 3"):
        place = swept.enhancers[label].knowledge
        assert place is not None
        assert readings(place) == ["mine"]


def test_every_variant_of_figure_3_runs(matrix: MatrixConfig, tmp_path: Path) -> None:
    found = run_matrix(ablation(matrix, None), tmp_path)
    assert found["enhancer"].to_list() == [
        *("none", "user-bottom", "user-parallel", "domain-bottom", "domain-parallel", "full", "full")
    ]
    assert found["control"].to_list() == ["none"] * 6 + ["random"]
    assert set(found["status"]) == {"done"}


def test_a_model_that_fails_is_named_and_the_others_are_measured(
    matrix: MatrixConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = PlainStep.__call__

    def planted(step: Any, batch: Any) -> int:
        if type(step.model.enhancer).__name__ != "Plain":
            raise ValueError("odd")
        return true(step, batch)

    monkeypatch.setattr(PlainStep, "__call__", planted)
    (sheet,) = efficiency(matrix, batches=1, rounds=1)
    assert [line[1].text for line in sheet.lines] == ["none"]
    assert "ValueError: odd" in sheet.note
    seconds, failed = seconds_of(cells_of(matrix), matrix, 1)
    assert seconds > 0
    assert failed == ["shop: star with ours: ValueError: odd"]


def test_a_ratio_is_ours_over_theirs() -> None:
    assert _figures([2.0, 9.0, 2.0], [1.0]) == ("2.0000", "2.00")
    assert _figures([0.5], None) == ("0.5000", "")
