from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge.engines.base import Answer, Engine, Generation
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.history import Snapshots
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.knowledge.store import Store
from llm4msr.knowledge.written import FOR_PEOPLE
from llm4msr.report.explain import Explanation, Positive, explain_user
from tests.knowledge.kiosk import SECOND, kiosk
from tests.knowledge.stub_engine import StubEngine


class OtherStub(StubEngine):
    """A stub that is another model."""

    @property
    def identity(self) -> dict[str, str]:
        return {"engine": "another stub"}


def no_engine(_: object) -> Engine:
    raise AssertionError("no text has to be written")


def at(second: int) -> datetime:
    return datetime.fromtimestamp(second, tz=UTC)


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return kiosk(tmp_path / "data")


@pytest.fixture
def folder(data: PreparedData, tmp_path: Path) -> KnowledgeFolder:
    reason(data, StubEngine(), tmp_path / "k", ReasonConfig(snapshots=Snapshots(slices=2)))
    return KnowledgeFolder.open(tmp_path / "k", data)


def test_a_user_is_explained_at_her_latest_snapshot(data: PreparedData, folder: KnowledgeFolder) -> None:
    assert explain_user(data, folder, "ann", lambda _: StubEngine()) == Explanation(
        user="ann",
        snapshot=at(9),
        history=[
            Positive(at(1), "Hall", "bought", "Coffee"),
            Positive(at(4), "App", "clicked", "Sweet bun"),
            Positive(at(6), "Hall", "clicked", "item tea"),
        ],
        prompt=PromptWriter(data, history=20).user(0, 9 * SECOND),
        text="so it is",
        finish_reason="stop",
        on_request=True,
        how="the hidden state of the prompt's last token; the model needs no text",
        counts={"Hall": 3, "App": 1},
    )


def test_the_history_is_the_one_of_the_prompt(data: PreparedData, tmp_path: Path) -> None:
    reason(data, StubEngine(), tmp_path / "short", ReasonConfig(snapshots=Snapshots(slices=2), history=1))
    explanation = explain_user(data, KnowledgeFolder.open(tmp_path / "short", data), "ann", lambda _: StubEngine())
    assert [(p.scenario, p.item) for p in explanation.history] == [("App", "Sweet bun"), ("Hall", "item tea")]
    assert explanation.prompt == PromptWriter(data, history=1).user(0, 9 * SECOND)


def test_a_prompt_is_explained_with_the_templates_it_was_made_by(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "user.j2").write_text("{{ scenarios[0].events | length }} in the hall", encoding="utf-8")
    reason(data, StubEngine(), tmp_path / "own", ReasonConfig(), templates=tmp_path)
    explanation = explain_user(data, KnowledgeFolder.open(tmp_path / "own", data), "ann", lambda _: StubEngine())
    assert explanation.prompt == "2 in the hall"


def test_the_text_is_written_once_and_then_found(data: PreparedData, folder: KnowledgeFolder) -> None:
    first = StubEngine()
    explanation = explain_user(data, folder, "ann", lambda _: first)
    assert first.asked == [explanation.prompt]
    assert explain_user(data, folder, "ann", no_engine) == explanation


def test_a_text_on_request_leaves_the_vectors_as_they_were(data: PreparedData, folder: KnowledgeFolder) -> None:
    before = folder.level("user")[1]
    explain_user(data, folder, "ann", lambda _: StubEngine())
    assert np.array_equal(KnowledgeFolder.open(folder.path, data).level("user")[1], before)


def test_where_the_vectors_came_of_texts_that_text_is_shown(data: PreparedData, tmp_path: Path) -> None:
    config = ReasonConfig(snapshots=Snapshots(slices=2), user=Generation(pooling="last_generated", max_new_tokens=5))
    reason(data, StubEngine(), tmp_path / "texts", config)
    explanation = explain_user(data, KnowledgeFolder.open(tmp_path / "texts", data), "bob", no_engine)
    assert (explanation.text, explanation.finish_reason, explanation.on_request) == ("so it is", "stop", False)
    assert explanation.how == "the hidden state of the last token that the LLM generated"


def test_a_user_without_positives_has_no_prompt(data: PreparedData, folder: KnowledgeFolder) -> None:
    explanation = explain_user(data, folder, "cid", no_engine)
    assert (explanation.snapshot, explanation.history, explanation.prompt, explanation.text) == (None, [], None, None)
    assert explanation.counts == {"Hall": 0, "App": 0}


def test_an_unknown_user_is_refused_and_the_nearest_offered(data: PreparedData, folder: KnowledgeFolder) -> None:
    with pytest.raises(InputError, match="there is no user 'anne'; did you mean 'ann'\\?"):
        explain_user(data, folder, "anne", no_engine)


def test_another_model_is_not_asked(data: PreparedData, folder: KnowledgeFolder) -> None:
    with pytest.raises(InputError, match=r"another language model or engine: engine stub, not another stub"):
        explain_user(data, folder, "ann", lambda _: OtherStub())
    with Store(folder.path / "store.sqlite", read_only=True) as store:
        assert len(store) == 8  # 2 scenarios, 3 prompts of users, 3 items


def test_a_missing_answer_says_what_to_do(data: PreparedData, folder: KnowledgeFolder) -> None:
    (folder.path / "store.sqlite").unlink()
    with pytest.raises(InputError, match=r"store\.sqlite: no such store; run `llm4msr reason` first"):
        explain_user(data, folder, "ann", lambda _: StubEngine())
    Store(folder.path / "store.sqlite").close()
    with pytest.raises(InputError, match="the answer for user 'ann' is missing; run `llm4msr reason` again"):
        explain_user(data, folder, "ann", no_engine)


def test_a_real_model_writes_the_text(shop: PreparedData, tiny_engine: TransformersEngine, tmp_path: Path) -> None:
    reason(shop, tiny_engine, tmp_path, ReasonConfig(levels=("user",), history=1, snapshots=Snapshots(slices=1)))
    explanation = explain_user(shop, KnowledgeFolder.open(tmp_path, shop), "u1", lambda _: tiny_engine)
    (expected,) = next(tiny_engine.run([str(explanation.prompt)], FOR_PEOPLE))
    assert isinstance(expected[1], Answer)
    assert explanation.text == expected[1].text
    assert explanation.finish_reason == "length"
