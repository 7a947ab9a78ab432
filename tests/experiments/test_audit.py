"""The audit holds on sound data, and fails where the future is let in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.experiments import audit as audit_module
from llm4msr.experiments.audit import Check, audit, checks_sheet
from llm4msr.experiments.probes import probes, probes_sheet
from llm4msr.knowledge import composed, states
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.history import Snapshots
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.knowledge.states import StateTable
from llm4msr.schema import Schema
from tests.conftest import shop_frames
from tests.knowledge.kiosk import ROWS, kiosk
from tests.knowledge.stub_engine import StubEngine

CONFIG = KnowledgeConfig(dimensions=6, half_life_days=1.0)
SNAPSHOTS = Snapshots(slices=3)


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.held]


def test_sound_data_pass_every_check(shop: PreparedData) -> None:
    checks = audit(shop, CONFIG, snapshots=SNAPSHOTS, users=10)
    assert failed(checks) == []
    assert len(checks) == 8
    assert "| yes |" in checks_sheet(checks).markdown()


def test_honest_data_of_one_scenario_pass(tmp_path: Path) -> None:
    rows = [(at, who, what, "h", click, paid) for at, who, what, _, click, paid in ROWS]
    data = kiosk(tmp_path / "data", rows=rows, scenarios=[{"value": "h"}])
    checks = audit(data, CONFIG, snapshots=SNAPSHOTS, users=4)
    assert failed(checks) == []
    (others,) = [check for check in checks if "(others) equal" in check.name]
    assert "none with a history" in others.seen


def test_the_marker_is_planted_in_titles_of_any_type(tmp_path: Path, shop_schema: Schema) -> None:
    frames = shop_frames()
    frames["items"] = frames["items"].with_columns(pl.col("title", "colour").cast(pl.Categorical))
    data = prepare(from_frames(shop_schema, **frames), tmp_path / "data")
    assert failed(audit(data, CONFIG, snapshots=SNAPSHOTS, users=10)) == []


def test_states_that_know_nothing_are_found(shop: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object) -> dict[str, StateTable]:
        table = StateTable(np.zeros((1, 3), np.float32), np.zeros(shop.rows, np.int32))
        return {"own": table, "others": table}

    monkeypatch.setattr("llm4msr.experiments.audit.composed_tables", empty)
    found = failed(audit(shop, CONFIG, snapshots=SNAPSHOTS, users=10))
    assert [name for name in found if "brute force" in name] == [
        f"composed states ({source}) equal brute force over the raw events" for source in ("own", "others")
    ]


def test_a_history_that_includes_its_own_moment_is_found(shop: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    true = PromptWriter.user
    later = lambda self, code, before: true(self, code, before + 3_600_000_000)  # noqa: E731
    monkeypatch.setattr(PromptWriter, "user", later)
    assert failed(audit(shop, CONFIG, snapshots=SNAPSHOTS, users=10)) == [
        "prompts know what was before their time alone"
    ]


def test_a_join_that_takes_ties_for_earlier_is_found(shop: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    true = states.as_of
    loose = lambda user, time, row_user, row_time: true(user, time, row_user, row_time + 1)  # noqa: E731
    for module in (states, composed):
        monkeypatch.setattr(module, "as_of", loose)
    names = failed(audit(shop, CONFIG, snapshots=SNAPSHOTS, users=10))
    assert "composed states (own) know what was before their rows alone" in names


def test_a_statistic_over_all_items_is_found(shop: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "trained_items", lambda data: np.ones(data.items.height, dtype=bool))
    names = failed(audit(shop, CONFIG, snapshots=SNAPSHOTS, users=10))
    assert names == ["vectors are standardised by items of the training part alone"]


def test_a_vocabulary_of_the_test_part_is_found(shop: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    true = PreparedData.vocabulary_size
    monkeypatch.setattr(PreparedData, "vocabulary_size", lambda self, name: true(self, name) + 1)
    (name,) = failed(audit(shop, CONFIG, snapshots=SNAPSHOTS, users=10))
    assert name == "vocabularies hold values of the training part alone"


def test_probes_see_what_each_protocol_shows(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> None:
    found = {probe.protocol: probe for probe in probes(shop, shop_knowledge, CONFIG)}
    assert list(found) == ["all", "train_end", "slices", "composed"]
    assert found["all"].leaks
    assert found["train_end"].leaks
    assert not found["slices"].leaks
    assert not found["composed"].leaks
    assert all(0 <= probe.train <= 1 for probe in found.values())
    assert "**train_end**" in probes_sheet(list(found.values())).markdown()


def test_a_protocol_that_shows_a_row_its_own_label_is_found_by_its_gap(tmp_path: Path, shop_schema: Schema) -> None:
    frames = shop_frames(rows=4000, users=200, items=100)
    chance = pl.Series("click", np.random.default_rng(5).integers(0, 2, 4000))
    frames["interactions"] = frames["interactions"].with_columns(chance)  # clicks that nothing can predict
    data = prepare(from_frames(shop_schema, **frames), tmp_path / "data")
    reason(data, StubEngine(), tmp_path / "k", ReasonConfig(history=100))
    config = KnowledgeConfig(vectors=("text",), dimensions=32)
    found = {p.protocol: p for p in probes(data, KnowledgeFolder.open(tmp_path / "k", data), config)}
    assert found["all"].test > 0.6
    assert found["train_end"].gap > 0.1
    for protocol in ("slices", "composed"):
        assert abs(found[protocol].train - 0.5) < 0.05
        assert abs(found[protocol].test - 0.5) < 0.1


def test_the_folders_own_protocol_is_probed_too(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shop_knowledge.config.model_copy(update={"snapshots": Snapshots(protocol="period", period_days=3.0)})
    monkeypatch.setattr(KnowledgeFolder, "config", own)
    assert [p.protocol for p in probes(shop, shop_knowledge, CONFIG)] == [
        "all",
        "train_end",
        "slices",
        "period",
        "composed",
    ]
