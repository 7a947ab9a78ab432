from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.history import Snapshots
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.knowledge.states import Source, StateTable
from llm4msr.knowledge.tables import Knowledge, load_knowledge
from llm4msr.knowledge.vectors import Reduction
from llm4msr.schema import Schema
from tests.conftest import FAST, shop_frames
from tests.knowledge.kiosk import ROWS, kiosk
from tests.knowledge.stub_engine import SilentOnFirst, StubEngine

CONFIG = KnowledgeConfig(dimensions=5, half_life_days=2.0)
ALL: set[Source] = {"scenario", "prompted", "own", "others", "item"}
DAY = 86_400 * 1_000_000.0
Row = tuple[int, int, int]
"""(user, scenario, time)"""


@pytest.fixture(scope="module")
def knowledge(shop_knowledge: KnowledgeFolder, shop: PreparedData) -> Knowledge:
    return load_knowledge(shop_knowledge, shop, CONFIG, ALL)


def seen(table: StateTable, row: int) -> NDArray[np.float32]:
    return np.asarray(table.vectors[table.index[row]])


def sampled(data: PreparedData) -> list[int]:
    """Rows from all parts, scenarios and times."""
    return [*range(40), *range(40, data.rows, 23)]


def by_brute_force(
    data: PreparedData, row: int, vectors: NDArray[np.float32], chosen: Callable[[int, int], bool]
) -> NDArray[np.float64] | None:
    """The recency-weighted mean of the items of the row's user in the chosen scenarios, strictly before the row."""
    user, now, here = int(data.user[row]), int(data.time[row]), int(data.scenario[row])
    events = [
        (time, item)
        for u, item, scenario, time in data.positives.select("user", "item", "scenario", "time").iter_rows()
        if u == user and time < now and chosen(scenario, here)
    ]
    if not events:
        return None
    weights = np.array([2.0 ** (-(now - time) / (CONFIG.half_life_days * DAY)) for time, _ in events])
    return np.asarray((weights[:, None] * vectors[[item for _, item in events]]).sum(0) / weights.sum())


@pytest.mark.parametrize(("source", "own"), [("own", True), ("others", False)])
def test_composed_states_are_the_means_of_what_was_liked_before(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, knowledge: Knowledge, source: Source, own: bool
) -> None:
    index, raw = shop_knowledge.level("item")
    vectors = np.zeros((shop.items.height, 5), dtype=np.float32)
    vectors[index["subject"].to_numpy()] = knowledge.reductions["item"].apply(raw)
    table = knowledge.users[source]
    known = 0
    for row in sampled(shop):
        expected = by_brute_force(shop, row, vectors, lambda scenario, here: (scenario == here) == own)
        assert (table.index[row] == 0) == (expected is None)
        if expected is not None:
            np.testing.assert_allclose(seen(table, row), expected, atol=1e-5)
            known += 1
    assert known > 20


def test_a_prompted_state_is_the_latest_snapshot_before_the_row(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, knowledge: Knowledge
) -> None:
    index, raw = shop_knowledge.level("user")
    reduced = knowledge.reductions["user"].apply(raw)
    snapshots = list(zip(index["subject"].to_list(), index["time"].to_list(), reduced, strict=True))
    table = knowledge.users["prompted"]
    for row in sampled(shop):
        before = [(t, v) for u, t, v in snapshots if u == shop.user[row] and t < shop.time[row]]
        assert (table.index[row] == 0) == (not before)
        if before:
            np.testing.assert_array_equal(seen(table, row), max(before, key=lambda pair: pair[0])[1])


def test_a_candidate_has_its_own_items_vector(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, knowledge: Knowledge
) -> None:
    index, raw = shop_knowledge.level("item")
    reduced = dict(zip(index["subject"].to_list(), knowledge.reductions["item"].apply(raw), strict=True))
    assert knowledge.item is not None
    for row in sampled(shop):
        np.testing.assert_array_equal(seen(knowledge.item, row), reduced[int(shop.item[row])])


def test_scenarios_have_a_standardised_vector_each(shop_knowledge: KnowledgeFolder, knowledge: Knowledge) -> None:
    raw = shop_knowledge.level("scenario")[1].astype(np.float64)
    assert knowledge.scenario is not None
    np.testing.assert_allclose(knowledge.scenario, (raw - raw.mean(0)) / raw.std(0), atol=1e-4)


def test_a_scenario_whose_prompt_was_set_aside_is_as_the_mean_of_the_others(shop: PreparedData, tmp_path: Path) -> None:
    reason(shop, SilentOnFirst(), tmp_path, FAST.model_copy(update={"levels": ("scenario",)}))
    folder = KnowledgeFolder.open(tmp_path, shop)
    found = load_knowledge(folder, shop, KnowledgeConfig(), {"scenario"}).scenario
    assert found is not None
    assert found.shape[0] == shop.scenario_count
    assert (found[0] == 0).all()
    rest = folder.level("scenario")[1]
    np.testing.assert_array_equal(found[1:], Reduction.fit(rest, 0).apply(rest))


def test_the_unknown_state_is_the_first_of_every_table(knowledge: Knowledge) -> None:
    assert knowledge.item is not None
    for table in [knowledge.item, *knowledge.users.values()]:
        assert not table.vectors[0].any()
        assert int(table.index.max()) < len(table.vectors)


def test_the_first_row_of_a_user_sees_the_unknown_states(shop: PreparedData, knowledge: Knowledge) -> None:
    for user in range(shop.users.height):
        first = int(np.flatnonzero(shop.user == user)[0])
        assert [int(knowledge.users[source].index[first]) for source in ("own", "others")] == [0, 0]


def test_only_what_is_needed_is_built(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> None:
    some = load_knowledge(shop_knowledge, shop, CONFIG, {"own"})
    assert (some.scenario, some.item, list(some.users), list(some.reductions)) == (None, None, ["own"], ["item"])


def test_items_after_training_are_not_in_the_statistics(tmp_path: Path, shop_schema: Schema) -> None:
    frames = shop_frames(rows=300, users=10, items=20)
    late = pl.int_range(pl.len()) >= 250  # of the last rows, 30 validate and 30 test
    frames["interactions"] = frames["interactions"].with_columns(
        pl.when(late).then(pl.lit("late")).otherwise(pl.col("item")).alias("item")
    )
    data = prepare(from_frames(shop_schema, **frames), tmp_path / "data")
    reason(data, StubEngine(), tmp_path / "k", ReasonConfig(levels=("item",)))
    folder = KnowledgeFolder.open(tmp_path / "k", data)
    index, raw = folder.level("item")
    before = index["subject"].to_numpy() != data.items["item"].to_list().index("late")
    assert before.sum() == len(raw) - 1
    found = load_knowledge(folder, data, CONFIG, {"item"}).reductions["item"]
    for name, array in vars(Reduction.fit(raw[before], 5)).items():
        np.testing.assert_array_equal(getattr(found, name), array)


def test_no_user_knows_anything_of_a_scenario_without_history(tmp_path: Path) -> None:
    data = kiosk(tmp_path / "data")
    reason(data, StubEngine(), tmp_path / "k", ReasonConfig(snapshots=Snapshots(slices=2)))
    users = load_knowledge(KnowledgeFolder.open(tmp_path / "k", data), data, CONFIG, ALL).users
    at = [row[0] - 1 for row in ROWS]
    assert [int(users["own"].index[i] > 0) for i in at] == [0, 1, 0, 0, 0, 1, 0, 0, 1, 1]
    assert [int(users["others"].index[i] > 0) for i in at] == [0, 0, 0, 1, 1, 1, 1, 0, 1, 0]
    assert [int(users["prompted"].index[i] > 0) for i in at] == [0, 0, 0, 0, 0, 1, 1, 0, 1, 1]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    folder = tmp_path_factory.mktemp("paper")
    data = kiosk(folder / "data")
    reason(data, StubEngine(), folder / "k", ReasonConfig(snapshots=Snapshots(protocol="train_end")))
    return load_knowledge(KnowledgeFolder.open(folder / "k", data), data, CONFIG, ALL)


def test_every_row_of_a_user_sees_her_one_snapshot(paper: Knowledge) -> None:
    ann, bob, nobody = 1, 2, 0
    expected = [{"ann": ann, "bob": bob, "cid": nobody}[row[1]] for row in ROWS]
    assert paper.users["prompted"].index.tolist() == expected


def test_it_says_that_it_leaks(paper: Knowledge) -> None:
    assert paper.leaks == "protocol train_end: each training row's own label is in its user's prompt"


def test_composed_states_stay_exact_in_time(paper: Knowledge) -> None:
    assert paper.users["own"].index[0] == 0


def test_slices_do_not_leak(knowledge: Knowledge) -> None:
    assert knowledge.leaks == ""
