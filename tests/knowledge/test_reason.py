from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.errors import InputError
from llm4msr.folders import sole_writer
from llm4msr.knowledge import LEVELS
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.history import Snapshots, snapshot_times
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.questions import ALWAYS, left_out
from llm4msr.knowledge.readings import reading_path, readings
from llm4msr.knowledge.reason import Progress, Shard, Summary, reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.knowledge.store import Store, answer_key
from llm4msr.knowledge.stores import Stores
from llm4msr.knowledge.upkeep import altered, collect_garbage
from tests.conftest import FAST, shop_frames
from tests.knowledge.kiosk import ROWS, SECOND, Event, kiosk
from tests.knowledge.stub_engine import BATCH, StubEngine, stub_answer
from tests.knowledge.test_upkeep import Picky

CONFIG = ReasonConfig(history=5, snapshots=Snapshots(slices=2))
POSITIVES: list[Event] = [(at, who, what, place) for at, who, what, place, click, _ in ROWS if click]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return kiosk(tmp_path_factory.mktemp("kiosk") / "data")


def test_every_scenario_item_and_user_at_a_snapshot_gets_an_answer(data: PreparedData, tmp_path: Path) -> None:
    engine = StubEngine()
    assert reason(data, engine, tmp_path, CONFIG) == [
        Summary("scenario", 2, 2, 2),
        Summary("user", 4, 3, 3),  # snapshots at 1, 5 and 9 s; bob's prompt is the same at the last two
        Summary("item", 3, 3, 3),
    ]
    index = KnowledgeFolder.open(tmp_path, data).index
    assert index.select("level", "subject", "time").rows() == [
        ("scenario", 0, ALWAYS),
        ("scenario", 1, ALWAYS),
        ("user", 0, 5 * SECOND),
        ("user", 1, 5 * SECOND),
        ("user", 0, 9 * SECOND),
        ("user", 1, 9 * SECOND),
        ("item", 0, ALWAYS),
        ("item", 1, ALWAYS),
        ("item", 2, ALWAYS),
    ]
    writer = PromptWriter(data, history=5)
    with Store(tmp_path / "store.sqlite", read_only=True) as store:
        answer = store.read(index.row(4)[3])
    assert answer is not None
    assert (answer.vector == stub_answer(str(writer.user(0, 9 * SECOND)), CONFIG.user).vector).all()


def test_an_item_that_never_occurs_is_not_asked(tmp_path: Path) -> None:
    without_coffee = [row for row in ROWS if row[2] != "coffee"]
    data = kiosk(tmp_path / "data", rows=without_coffee)
    engine = StubEngine()
    reason(data, engine, tmp_path / "k", ReasonConfig(levels=("item",)))
    assert data.items.height == 3
    assert engine.asked == ['Item: "Sweet bun". Category: "bakery". Made by: "Oven & Co".', 'Item: "item tea".']


def test_all_items_are_asked_about_on_request(shop: PreparedData, tmp_path: Path) -> None:
    frames = shop_frames()
    more = pl.concat([frames["items"], frames["items"].head(3).with_columns(item="new-" + pl.col("item"))])
    data = prepare(from_frames(shop.schema, frames["interactions"], items=more), tmp_path / "data")
    some, every = (FAST.model_copy(update={"levels": ("item",), "items": which}) for which in ("occurring", "all"))
    asked = []
    for config in (some, every):
        (summary,) = reason(data, StubEngine(), tmp_path / "k", config)
        asked.append((summary.prompts, left_out(data, config)))
    occurring = len(set(frames["interactions"]["item"]))
    assert asked == [(occurring, more.height - occurring), (more.height, 0)]
    assert KnowledgeFolder.open(tmp_path / "k", data).subjects("item").height == more.height


def test_a_second_run_asks_nothing_and_gives_the_same_folder(data: PreparedData, tmp_path: Path) -> None:
    reason(data, StubEngine(), tmp_path, CONFIG)
    before = KnowledgeFolder.open(tmp_path, data)
    again = StubEngine()
    assert [s.answered for s in reason(data, again, tmp_path, CONFIG)] == [0, 0, 0]
    assert again.asked == []
    assert KnowledgeFolder.open(tmp_path, data).fingerprint == before.fingerprint


def test_a_changed_history_asks_only_what_is_new(tmp_path: Path) -> None:
    first = kiosk(tmp_path / "first", positives=POSITIVES)
    second = kiosk(tmp_path / "second", positives=[*POSITIVES, (8, "bob", "coffee", "h")])
    reason(first, StubEngine(), tmp_path / "k", CONFIG)
    refresh = StubEngine()
    reason(second, refresh, tmp_path / "k", CONFIG)
    assert refresh.asked == [PromptWriter(second, history=5).user(1, 9 * SECOND)]
    assert KnowledgeFolder.open(tmp_path / "k", second).index.height == 9


def test_equal_prompts_are_asked_once(tmp_path: Path) -> None:
    twins = kiosk(tmp_path / "data", items=[(what, "Same", None, None) for what in ("bun", "coffee", "tea")])
    engine = StubEngine()
    assert reason(twins, engine, tmp_path / "k", ReasonConfig(levels=("item",))) == [Summary("item", 3, 1, 1)]
    assert engine.asked == ['Item: "Same".']
    assert KnowledgeFolder.open(tmp_path / "k", twins).index["key"].n_unique() == 1


def test_the_models_own_tokens_are_taken_out_of_prompts(tmp_path: Path) -> None:
    data = kiosk(tmp_path / "data", items=[(what, "A<sep>B", None, None) for what in ("bun", "coffee", "tea")])
    engine = StubEngine(special_tokens=["<sep>"])
    reason(data, engine, tmp_path / "k", ReasonConfig(levels=("item",)))
    assert engine.asked == ['Item: "A B".']
    assert KnowledgeFolder.open(tmp_path / "k", data).manifest["special_tokens"] == ["<sep>"]


def test_the_templates_used_are_kept_with_the_knowledge(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "item.j2").write_text("{{ title }}", encoding="utf-8")
    reason(data, StubEngine(), tmp_path / "k", CONFIG, templates=tmp_path / "own")
    assert (tmp_path / "k" / "templates" / "item.j2").read_text(encoding="utf-8") == "{{ title }}"
    assert sorted(KnowledgeFolder.open(tmp_path / "k", data).manifest["files"]) == [
        "index.parquet",
        "rejected.parquet",
        "templates/item.j2",
        "templates/scenario.j2",
        "templates/user.j2",
    ]


def test_progress_counts_answers_of_what_was_missing(tmp_path: Path) -> None:
    data = kiosk(tmp_path / "data", positives=[*POSITIVES, (8, "cid", "tea", "a")])
    told: list[Progress] = []
    reason(data, StubEngine(), tmp_path / "k", ReasonConfig(snapshots=Snapshots(slices=8)), progress=told.append)
    assert [(p.level, p.done, p.total, p.asked) for p in told if p.level != "user"] == [
        ("scenario", 0, 2, 0),
        ("scenario", 2, 2, 2),
        ("item", 0, 3, 0),
        ("item", 3, 3, 3),
    ]
    users = [p for p in told if p.level == "user"]
    assert (users[0].done, users[-1].done, users[-1].asked) == (0, users[0].total, 5)


def test_two_processes_do_not_ask_the_same_prompts(data: PreparedData, tmp_path: Path) -> None:
    engine = StubEngine()
    with sole_writer(tmp_path):
        with pytest.raises(InputError, match="another process is at work here"):
            reason(data, engine, tmp_path, CONFIG)
        with pytest.raises(InputError, match="another process is at work here"):
            reason(data, engine, tmp_path, CONFIG, shard=Shard(0, 1))
        assert engine.asked == []
    with sole_writer(tmp_path, shared=True):
        reason(data, engine, tmp_path, CONFIG, shard=Shard(0, 1))  # its file is its own
        with pytest.raises(InputError, match="another process is at work here"):
            reason(data, engine, tmp_path, CONFIG)
    asked = len(engine.asked)
    assert asked > 0
    reason(data, engine, tmp_path, CONFIG)
    assert len(engine.asked) == asked


@pytest.mark.parametrize("levels", [[], ["item", "item"], ["basket"]])
def test_levels_are_known_and_different(levels: list[str]) -> None:
    with pytest.raises(ValidationError, match="levels"):
        ReasonConfig.model_validate({"levels": levels})


def test_an_interrupted_run_leaves_no_knowledge_and_loses_only_the_batch_in_flight(
    data: PreparedData, tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.level == "user" and progress.done:
            raise KeyboardInterrupt

    engine = StubEngine()
    with pytest.raises(KeyboardInterrupt):
        reason(data, engine, tmp_path, CONFIG, progress=stop)
    with pytest.raises(InputError, match="is not finished"):
        KnowledgeFolder.open(tmp_path, data)
    rest = StubEngine()
    reason(data, rest, tmp_path, CONFIG)
    assert set(engine.asked).isdisjoint(rest.asked)
    assert KnowledgeFolder.open(tmp_path, data).index.height == 9


def test_a_killed_run_asks_nothing_twice_that_was_stored(shop: PreparedData, tmp_path: Path) -> None:
    log, folder = tmp_path / "asked.jsonl", tmp_path / "knowledge"
    log.touch()
    in_flight: set[str] = set()
    for asked in (10, 50):
        _reason_and_kill(shop, folder, log, asked)
        with pytest.raises(InputError, match="is not finished"):
            KnowledgeFolder.open(folder, shop)
        with Store(folder / "store.sqlite", read_only=True) as store:
            lost = [prompt for prompt in _prompts(log) if store.missing([_key(prompt)])]
        assert len(lost) <= BATCH
        in_flight.update(lost)
    reason(shop, StubEngine(log=log), folder, FAST)
    times = Counter(_prompts(log))
    assert {prompt for prompt, count in times.items() if count > 1} <= in_flight
    writer = PromptWriter(shop, history=FAST.history)
    users = [p for t in snapshot_times(shop, FAST.snapshots) for _, p in writer.users(t)]
    assert set(times) == {*writer.scenarios(), *users, *writer.items(list(range(shop.items.height)))}
    complete = KnowledgeFolder.open(folder, shop)
    assert complete.index.group_by("level").len().sort("level").rows() == [
        ("item", shop.items.height),
        ("scenario", 3),
        ("user", len(users)),
    ]
    assert [len(complete.level(level)[1]) for level in LEVELS] == [3, len(users), shop.items.height]


@pytest.mark.slow
def test_fifty_kills_lose_and_repeat_nothing_but_the_batch_in_flight(shop: PreparedData, tmp_path: Path) -> None:
    config = FAST.model_copy(update={"snapshots": Snapshots(slices=40)})
    log, folder = tmp_path / "asked.jsonl", tmp_path / "knowledge"
    log.touch()
    random = np.random.default_rng(0)
    in_flight: Counter[str] = Counter()
    for _ in range(50):
        _reason_and_kill(shop, folder, log, len(_prompts(log)) + int(random.integers(1, 15)), config)
        with Stores(folder, read_only=True) as stores:
            in_flight.update({prompt for prompt in _prompts(log) if stores.missing([_key(prompt)])})
        assert altered(folder) == {"store.sqlite": 0}
    reason(shop, StubEngine(log=log), folder, config)
    times = Counter(_prompts(log))
    assert all(count <= 1 + in_flight[prompt] for prompt, count in times.items())
    assert [len(KnowledgeFolder.open(folder, shop).level(level)[1]) for level in ("scenario", "item")] == [3, 40]


def _reason_and_kill(data: PreparedData, folder: Path, log: Path, asked: int, config: ReasonConfig = FAST) -> None:
    """Reason in another process and kill it once that many prompts were asked in all."""
    arguments = [str(data.path), str(folder), str(log), config.model_dump_json()]
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-m", "tests.knowledge.stub_engine", *arguments], cwd=root)
    try:
        limit = time.monotonic() + 60
        while len(_prompts(log)) < asked:
            assert process.poll() is None, "reasoning ended before it was killed"
            assert time.monotonic() < limit, "reasoning did not begin"
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def _prompts(log: Path) -> list[str]:
    """The prompts asked so far; a line that was cut by the kill is not one."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _key(prompt: str) -> bytes:
    generation = FAST.item if prompt.startswith("Item") else FAST.user if prompt.startswith("A user") else FAST.scenario
    return answer_key(StubEngine().identity, generation, prompt)


def test_a_folder_of_something_else_is_left_alone(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (data.path, tmp_path):
        before = sorted(folder.iterdir())
        with pytest.raises(InputError, match="holds something else than knowledge"):
            reason(data, StubEngine(), folder, CONFIG)
        assert sorted(folder.iterdir()) == before
    with pytest.raises(InputError, match="is a file"):
        reason(data, StubEngine(), tmp_path / "notes.txt", CONFIG)


def test_levels_that_are_not_named_stay_where_nothing_they_are_made_of_changed(tmp_path: Path) -> None:
    data = kiosk(tmp_path / "data")
    items = CONFIG.model_copy(update={"levels": ("item", "scenario"), "history": 7})
    users = CONFIG.model_copy(update={"levels": ("user",)})
    reason(data, StubEngine(), tmp_path / "k", items)
    assert len(reason(data, StubEngine(), tmp_path / "k", users)) == 1
    reason(data, StubEngine(), tmp_path / "whole", CONFIG)
    found, whole = (KnowledgeFolder.open(tmp_path / name, data) for name in ("k", "whole"))
    assert found.config == CONFIG
    order = ["level", "subject", "time"]
    assert found.index.sort(order).equals(whole.index.sort(order))
    assert collect_garbage(tmp_path / "k") == 0
    again = StubEngine()
    reason(data, again, tmp_path / "k", CONFIG.model_copy(update={"levels": ("scenario",), "history": 1}))
    assert again.asked == []
    assert KnowledgeFolder.open(tmp_path / "k", data).config.history == 5  # the users' own
    reason(data, StubEngine(), tmp_path / "k", items.model_copy(update={"levels": ("item",), "text_limit": 50}))
    assert set(KnowledgeFolder.open(tmp_path / "k", data).index["level"]) == {"item"}


def test_what_was_set_aside_of_a_level_that_is_not_named_stays_so(shop: PreparedData, tmp_path: Path) -> None:
    reason(shop, Picky(), tmp_path, FAST.model_copy(update={"levels": ("item",)}))
    before = (tmp_path / "rejected.parquet").read_bytes()
    reason(shop, StubEngine(), tmp_path, FAST.model_copy(update={"levels": ("scenario",)}))
    assert (tmp_path / "rejected.parquet").read_bytes() == before


def test_a_reading_may_be_made_first(data: PreparedData, tmp_path: Path) -> None:
    reason(data, StubEngine(), reading_path(tmp_path, "other"), CONFIG.model_copy(update={"levels": ("item",)}))
    reason(data, StubEngine(), tmp_path, CONFIG)
    assert readings(tmp_path) == ["other"]
    assert KnowledgeFolder.open(tmp_path, data).index.height == 9


def test_the_order_in_which_levels_are_named_changes_nothing(data: PreparedData, tmp_path: Path) -> None:
    for folder, levels in (("a", ("item", "scenario")), ("b", ("scenario", "item"))):
        config = ReasonConfig(levels=levels)
        reason(data, StubEngine(), tmp_path / folder, config)
        first = (tmp_path / folder / "manifest.json").read_bytes()
        reason(data, StubEngine(), tmp_path / folder, config)
        assert (tmp_path / folder / "manifest.json").read_bytes() == first
    (a, b) = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("a", "b"))
    assert a == b
