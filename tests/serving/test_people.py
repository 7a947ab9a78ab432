"""What is told of users when there is little to tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.export import export_bundle
from llm4msr.serving.live import Live
from llm4msr.serving.people import knowledge_of
from llm4msr.serving.requests import RequestError
from tests.serving.bundles import train_shop


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, shop: PreparedData) -> Bundle:
    """A bundle of a backbone alone."""
    folder = tmp_path_factory.mktemp("plain")
    run = train_shop(folder / "run", shop, None, "shared_bottom", "none")
    return Bundle.open(export_bundle(run, folder / "bundle"))


@pytest.fixture
def live(bundle: Bundle, tmp_path: Path) -> Iterator[Live]:
    """That nobody told of anything."""
    live = Live(bundle, tmp_path)
    yield live
    live.close()


def test_a_model_without_knowledge_says_so(plain: Bundle, live: Live) -> None:
    found = knowledge_of(plain, live, "u1")
    assert found.note == "The model was trained without knowledge."
    assert (found.snapshot, found.text, found.history) == (None, "", [])


def test_a_model_that_reads_items_alone_says_so(plain: Bundle, live: Live) -> None:
    of_items = replace(plain, manifest={**plain.manifest, "knowledge": {"protocol": "composed"}})
    assert knowledge_of(of_items, live, "u1").note.startswith("The LLM read no prompts of users")


def test_a_user_with_a_text_has_no_note_and_one_without_has(bundle: Bundle, live: Live) -> None:
    users = bundle.lookup.starting_with("user", "u", 1000)
    found = [knowledge_of(bundle, live, user) for user in users]
    assert {bool(k.note) for k in found if k.snapshot} == {False}
    assert all(k.note.startswith("No prompt was made") for k in found if not k.snapshot)
    with pytest.raises(RequestError, match="there is no user 'nobody'"):
        knowledge_of(bundle, live, "nobody")
