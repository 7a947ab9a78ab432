"""Upkeep of a folder of knowledge, and reasoning in parts."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import sole_writer
from llm4msr.knowledge.engines.base import Answer, Generation, Outcome, Refusal
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.plan import plan
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.reason import Shard, reason
from llm4msr.knowledge.stores import Stores
from llm4msr.knowledge.upkeep import altered, collect_garbage, compact, export, stats
from tests.conftest import FAST
from tests.knowledge.stub_engine import StubEngine, stub_answer


@pytest.fixture
def folder(shop: PreparedData, tmp_path: Path) -> Path:
    reason(shop, StubEngine(), tmp_path / "k", FAST)
    return tmp_path / "k"


def test_parts_ask_everything_once_and_are_completed_by_a_call_without_a_part(
    shop: PreparedData, folder: Path, tmp_path: Path
) -> None:
    parts = [StubEngine() for _ in range(3)]
    for number, engine in enumerate(parts):
        reason(shop, engine, tmp_path / "parts", FAST, shard=Shard(number, 3))
    asked = [prompt for engine in parts for prompt in engine.asked]
    whole = StubEngine()
    reason(shop, whole, tmp_path / "whole", FAST)
    assert sorted(asked) == sorted(whole.asked)
    assert all(len(engine.asked) > len(asked) // 6 for engine in parts)
    with pytest.raises(InputError, match="is not finished"):
        KnowledgeFolder.open(tmp_path / "parts", shop)
    again = StubEngine()
    assert [s.answered for s in reason(shop, again, tmp_path / "parts", FAST)] == [0, 0, 0]
    assert again.asked == []
    opened, expected = KnowledgeFolder.open(tmp_path / "parts", shop), KnowledgeFolder.open(folder, shop)
    assert opened.index.equals(expected.index)
    np.testing.assert_array_equal(opened.level("item")[1], expected.level("item")[1])

    assert compact(tmp_path / "parts") == len(asked)
    assert [path.name for path in (tmp_path / "parts").glob("*.sqlite")] == ["store.sqlite"]
    np.testing.assert_array_equal(opened.level("user")[1], expected.level("user")[1])


class Picky(StubEngine):
    """Refuses what names a white thing, and has no number for what names a blue one."""

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[list[tuple[int, Outcome]]]:  # type: ignore[override]
        for batch in super().run(prompts, generation):
            yield [(place, self._outcome(prompts[place], answer)) for place, answer in batch]

    def _outcome(self, prompt: str, answer: Answer) -> Outcome:
        if prompt.startswith('Item: "white'):
            return Refusal("too white")
        if prompt.startswith('Item: "blue'):
            return Answer("", np.full(6, np.nan, np.float16), "prefill", 1, 0)
        return answer


def test_a_prompt_without_an_answer_is_set_aside_with_its_reason_and_the_rest_is_there(
    shop: PreparedData, tmp_path: Path
) -> None:
    (summary,) = reason(shop, Picky(), tmp_path, FAST.model_copy(update={"levels": ("item",)}))
    titles = shop.items["title"].to_list()
    refused = [code for code, title in enumerate(titles) if title.startswith(("white", "blue"))]
    assert (summary.prompts, summary.rejected, summary.answered) == (40, len(refused), 40 - len(refused))
    rejected = pl.read_parquet(tmp_path / "rejected.parquet")
    assert rejected["subject"].to_list() == refused
    assert set(rejected["reason"]) == {
        "too white",
        "the engine gave a vector that is not finite; try float32, or another model",
    }
    index, vectors = KnowledgeFolder.open(tmp_path, shop).level("item")
    assert index["subject"].to_list() == [code for code in range(40) if code not in refused]
    assert bool(np.isfinite(vectors).all())
    assert [level.rejected for level in stats(tmp_path).levels] == [len(refused)]
    again = StubEngine()
    reason(shop, again, tmp_path, FAST.model_copy(update={"levels": ("item",)}))
    assert len(again.asked) == len(refused)  # what got no answer is asked again


def test_stats_count_what_is_there(shop: PreparedData, folder: Path) -> None:
    found = stats(folder)
    index = KnowledgeFolder.open(folder, shop).index
    ((name, answers, size),) = found.files
    assert (name, answers) == ("store.sqlite", index["key"].n_unique())
    assert size > 0
    assert [(level.level, level.prompts) for level in found.levels] == [
        (level, index.filter(pl.col("level") == level).height) for level in ("scenario", "user", "item")
    ]
    assert found.levels[0].endings == {"stop": 3}
    assert found.levels[2].far == []


def test_a_vector_far_from_all_others_is_named(shop: PreparedData, tmp_path: Path) -> None:
    (seven,) = (code for code, title in enumerate(shop.items["title"].to_list()) if title.endswith(" 7"))

    class Odd(StubEngine):
        def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[list[tuple[int, Answer]]]:
            for batch in super().run(prompts, generation):
                for place, answer in batch:
                    vector = np.full(6, 300, np.float16) if ' 7"' in prompts[place] else answer.vector
                    yield [(place, Answer("", vector, "prefill", 1, 0))]

    reason(shop, Odd(), tmp_path, FAST.model_copy(update={"levels": ("item",)}))
    assert stats(tmp_path).levels[0].far == [seven]


def test_the_farthest_vector_is_named_first(shop: PreparedData, tmp_path: Path) -> None:
    titles = shop.items["title"].to_list()
    (near, one), (far, other) = sorted((n, t.split()[-1]) for n, t in enumerate(titles) if t[-2:] in (" 3", " 5"))

    class Odd(StubEngine):
        def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[list[tuple[int, Answer]]]:
            for batch in super().run(prompts, generation):
                for place, answer in batch:
                    scale = 200 * (f' {one}"' in prompts[place]) + 400 * (f' {other}"' in prompts[place])
                    vector = np.full(6, scale, np.float16) if scale else answer.vector
                    yield [(place, Answer("", vector, "prefill", 1, 0))]

    reason(shop, Odd(), tmp_path, FAST.model_copy(update={"levels": ("item",)}))
    assert stats(tmp_path).levels[0].far == [far, near]


def test_altered_answers_are_counted_and_can_be_removed_to_be_asked_again(shop: PreparedData, folder: Path) -> None:
    assert altered(folder) == {"store.sqlite": 0}
    with sqlite3.connect(folder / "store.sqlite") as db:
        db.execute("UPDATE answers SET text = 'no' WHERE rowid IN (SELECT rowid FROM answers LIMIT 3)")
    db.close()
    assert altered(folder) == {"store.sqlite": 3}
    assert altered(folder, remove=True) == {"store.sqlite": 3}
    again = StubEngine()
    reason(shop, again, folder, FAST)
    assert len(again.asked) == 3
    assert altered(folder) == {"store.sqlite": 0}


def test_garbage_is_what_the_index_does_not_name(shop: PreparedData, folder: Path) -> None:
    with Stores(folder) as stores:
        before = len(stores.files[0])
        stores.write([(b"x" * 32, stub_answer("nobody asks", FAST.item))])
    assert collect_garbage(folder) == 1
    with Stores(folder, read_only=True) as stores:
        assert len(stores.files[0]) == before
    KnowledgeFolder.open(folder, shop).level("user")


@pytest.mark.parametrize("change", [compact, collect_garbage, lambda folder: altered(folder, remove=True)])
def test_a_folder_at_work_is_not_changed(folder: Path, change: Callable[[Path], object]) -> None:
    before = {path.name: path.read_bytes() for path in folder.glob("store*")}
    with sole_writer(folder, shared=True):  # as a worker with a shard holds it
        with pytest.raises(InputError, match=f"{folder}: another process is at work here"):
            change(folder)
        assert {path.name: path.read_bytes() for path in folder.glob("store*")} == before
        assert not any(altered(folder).values())
    change(folder)


def test_an_export_has_a_row_a_subject(shop: PreparedData, folder: Path, tmp_path: Path) -> None:
    assert export(folder, tmp_path / "all.parquet") == KnowledgeFolder.open(folder, shop).index.height
    items = pl.read_parquet(tmp_path / "all.parquet").filter(pl.col("level") == "item")
    _, vectors = KnowledgeFolder.open(folder, shop).level("item")
    np.testing.assert_array_equal(np.array(items["vector"].to_list()), vectors.astype(np.float32))


def test_a_plan_counts_what_would_be_asked_and_stores_nothing(shop: PreparedData, folder: Path, tmp_path: Path) -> None:
    new = plan(shop, StubEngine(), tmp_path / "new", FAST)
    assert not (tmp_path / "new").exists()
    summaries = reason(shop, StubEngine(), tmp_path / "new", FAST)
    assert [(p.level, p.prompts, p.distinct, p.stored) for p in new] == [
        (s.level, s.prompts, s.distinct, 0) for s in summaries
    ]
    items = PromptWriter(shop, history=3).items(list(range(40)))
    tokens = sum(map(len, items))  # the stub's tokens are letters
    assert new[2].tokens == pytest.approx(tokens, rel=0.05)
    assert new[2].seconds > 0
    assert new[2].bytes > 40 * 12
    done = plan(shop, StubEngine(), folder, FAST)
    assert [p.missing for p in done] == [0, 0, 0]
    assert [p.tokens for p in done] == [0, 0, 0]


def test_a_compact_folder_in_eight_bits_says_nearly_the_same(
    shop: PreparedData, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm4msr.knowledge.upkeep._FEWEST", 20)
    opened = KnowledgeFolder.open(folder, shop)
    before = {level: opened.level(level)[1].astype(np.float32) for level in ("scenario", "user", "item")}
    fingerprint = opened.fingerprint
    compact(folder)
    assert opened.fingerprint == fingerprint
    compact(folder, int8=True)
    assert opened.fingerprint != fingerprint  # runs that read other vectors are not taken for runs of these
    fingerprint = opened.fingerprint
    reason(shop, StubEngine(), folder, FAST)
    assert opened.fingerprint == fingerprint
    KnowledgeFolder.open(folder, shop)
    np.testing.assert_array_equal(opened.level("scenario")[1], before["scenario"])  # too few for a scale
    for level in ("user", "item"):
        after = opened.level(level)[1].astype(np.float32)
        deviation = before[level].std(0)
        assert 0 < (np.abs(after - before[level]) / deviation).max() < 0.05
    assert altered(folder) == {"store.sqlite": 0}


def test_a_folder_without_a_store_is_not_made_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="has no store of answers"):
            compact(path)
    assert list(tmp_path.iterdir()) == []
