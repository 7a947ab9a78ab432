"""No prompt holds anything from its own time or later."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge import SnapshotProtocol
from llm4msr.knowledge.history import Snapshots, snapshot_times
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.reason_config import ReasonConfig
from tests.knowledge.kiosk import ITEMS, ROWS, SECOND, Event, kiosk
from tests.knowledge.stub_engine import StubEngine

PLANTED = "xylophone"
WITH_PLANT = [*ITEMS, (PLANTED, PLANTED.capitalize(), PLANTED, PLANTED)]
EARLY: list[Event] = [(at, who, what, place) for at, who, what, place, click, _ in ROWS if click]


def user_prompts(data: PreparedData, slices: int = 4) -> dict[int, list[tuple[int, str]]]:
    """All prompts of users by snapshot (seconds)."""
    writer = PromptWriter(data, history=5)
    return {time // SECOND: list(writer.users(time)) for time in snapshot_times(data, Snapshots(slices=slices))}


@pytest.mark.parametrize("protocol", ["slices", "train_end"])
def test_a_word_of_the_validation_part_reaches_no_users_and_no_scenarios_prompt(
    tmp_path: Path, protocol: SnapshotProtocol
) -> None:
    rows = [row if row[0] < 9 else (row[0], row[1], PLANTED, row[3], 1, 1) for row in ROWS]
    data = kiosk(tmp_path / "data", rows=rows, items=WITH_PLANT)
    engine = StubEngine()
    reason(
        data, engine, tmp_path / "k", ReasonConfig(levels=("scenario", "user"), snapshots=Snapshots(protocol=protocol))
    )
    assert len(engine.asked) > 2
    assert not any(PLANTED in prompt.lower() for prompt in engine.asked)


def test_a_word_planted_in_training_appears_in_the_snapshots_after_it_only(tmp_path: Path) -> None:
    rows = [*ROWS, (5, "ann", PLANTED, "a", 1, 1)]
    prompts = user_prompts(kiosk(tmp_path / "data", rows=rows, items=WITH_PLANT), slices=8)
    seen = {second: any(PLANTED in text.lower() for _, text in texts) for second, texts in prompts.items()}
    assert seen == {second: second > 5 for second in range(1, 10)}


def test_rows_after_training_change_no_scenarios_prompt(tmp_path: Path) -> None:
    changed = [row if row[0] < 9 else (row[0], "cid", "coffee", "a", 0, 0) for row in ROWS]
    plain, other = kiosk(tmp_path / "plain"), kiosk(tmp_path / "other", rows=changed)
    assert PromptWriter(other, history=5).scenarios() == PromptWriter(plain, history=5).scenarios()


def test_a_history_wider_than_the_impressions_changes_no_scenarios_prompt(tmp_path: Path) -> None:
    wide = kiosk(tmp_path / "wide", positives=[*EARLY, (2, "zoe", PLANTED, "a")], items=WITH_PLANT)
    assert PromptWriter(wide, history=5).scenarios() == PromptWriter(kiosk(tmp_path / "plain"), history=5).scenarios()


EVENTS = st.tuples(
    st.integers(1, 12),
    st.sampled_from(["ann", "bob", "cid"]),
    st.sampled_from(["bun", "coffee", "tea"]),
    st.sampled_from(["h", "a"]),
)


@settings(max_examples=25, deadline=None)
@given(before=st.lists(EVENTS, min_size=1, max_size=8), later=st.lists(EVENTS, max_size=8))
def test_positives_at_or_after_a_snapshot_change_no_prompt_of_it(
    tmp_path_factory: pytest.TempPathFactory, before: list[Event], later: list[Event]
) -> None:
    folder = tmp_path_factory.mktemp("leak")
    snapshot = 7
    kept = [event for event in before if event[0] < snapshot]
    added = [event for event in later if event[0] >= snapshot]
    one = user_prompts(kiosk(folder / "one", positives=[*kept, (snapshot, "cid", "tea", "a")]))
    other = user_prompts(kiosk(folder / "other", positives=[*kept, *added, (99, "bob", "tea", "h")]))
    assert {second: one[second] for second in (1, 3, 5, 7)} == {second: other[second] for second in (1, 3, 5, 7)}
