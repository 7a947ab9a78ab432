"""Further vectors of the same items under a name: joined with the LLM's, in their place, and kept apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.experiments.cells import cells_of
from llm4msr.experiments.config import MatrixConfig
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.engines.base import Generation
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.item_vectors import item_vectors
from llm4msr.knowledge.readings import open_reading, reading_path, readings
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.tables import fingerprint, load_knowledge
from tests.conftest import FAST
from tests.knowledge.stub_engine import StubEngine
from tests.knowledge.test_upkeep import Picky

ITEMS = FAST.model_copy(update={"levels": ("item",)})


@pytest.fixture
def folder(shop: PreparedData, shop_knowledge: KnowledgeFolder, tmp_path: Path) -> KnowledgeFolder:
    """The shop's knowledge with a second reading of its items."""
    path = tmp_path / "k"
    shutil.copytree(shop_knowledge.path, path)
    reason(shop, StubEngine(), reading_path(path, "stub"), ITEMS)
    return KnowledgeFolder.open(path, shop)


def test_a_reading_leaves_the_folder_as_it_was(
    shop: PreparedData, shop_knowledge: KnowledgeFolder, folder: KnowledgeFolder
) -> None:
    assert readings(folder.path) == ["stub"]
    assert folder.fingerprint == shop_knowledge.fingerprint
    np.testing.assert_array_equal(folder.level("item")[1], shop_knowledge.level("item")[1])
    assert open_reading(folder, shop, "stub").index.height == 40


def test_vectors_of_several_readings_stand_side_by_side(shop: PreparedData, folder: KnowledgeFolder) -> None:
    own, other = (item_vectors(folder, shop, (kind,), 4).vectors for kind in ("llm", "stub"))
    joined = item_vectors(folder, shop, ("llm", "stub"), 8)
    np.testing.assert_allclose(joined.vectors, np.concatenate([own, other], 1), atol=1e-6)
    assert sorted(joined.reductions) == ["item", "item stub"]
    assert not np.allclose(own, other)


def test_a_reading_as_a_control_takes_the_place_of_the_llms_vectors(
    shop: PreparedData, folder: KnowledgeFolder
) -> None:
    config = KnowledgeConfig(dimensions=4, control="stub")
    found = load_knowledge(folder, shop, config, {"item", "own", "prompted", "scenario"})
    assert found.item is not None
    np.testing.assert_array_equal(found.item.vectors[1:], item_vectors(folder, shop, ("stub",), 4).vectors)
    assert found.users["prompted"].vectors.shape[1] == 4


def test_an_item_that_one_of_the_joined_readings_does_not_know_is_unknown(
    shop: PreparedData, folder: KnowledgeFolder
) -> None:
    reason(shop, Picky(), reading_path(folder.path, "picky"), ITEMS)
    refused = [code for code, title in enumerate(shop.items["title"].to_list()) if title.startswith(("white", "blue"))]
    joined = item_vectors(folder, shop, ("llm", "picky"), 8)
    assert np.flatnonzero(~joined.known).tolist() == refused
    assert not joined.vectors[refused].any()


def test_only_the_readings_that_a_config_names_are_part_of_its_fingerprint(
    shop: PreparedData, folder: KnowledgeFolder
) -> None:
    plain, control = KnowledgeConfig(), KnowledgeConfig(control="stub")
    before = fingerprint(folder, plain), fingerprint(folder, control)
    assert before[0] == folder.fingerprint != before[1]
    other = ITEMS.model_copy(update={"item": Generation(pooling="last_prompt")})
    reason(shop, StubEngine(), reading_path(folder.path, "stub"), other)
    assert fingerprint(folder, plain) == before[0]
    assert fingerprint(folder, control) != before[1]


def test_a_reading_that_is_not_there_is_named_with_those_that_are(shop: PreparedData, folder: KnowledgeFolder) -> None:
    with pytest.raises(InputError, match=r"has no reading 'stubb' \(did you mean 'stub'\?.*--reading stubb"):
        item_vectors(folder, shop, ("stubb",), 4)


@pytest.mark.parametrize("name", ["", "llm", "random", "A", "../up", "a/b", ".x", "x" * 65])
def test_a_reading_has_a_plain_name_of_its_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="expected a name of small letters"):
        reading_path(tmp_path, name)


def test_a_matrix_is_refused_before_it_runs_where_a_reading_is_missing(
    shop: PreparedData, folder: KnowledgeFolder
) -> None:
    def matrix(control: str) -> MatrixConfig:
        return MatrixConfig.model_validate(
            {
                "data": {"shop": {"folder": shop.path, "knowledge": folder.path}},
                "backbones": ["shared_bottom"],
                "enhancers": {"llm4msr": {"controls": [control]}},
            }
        )

    assert [cell.control for cell in cells_of(matrix("stub"))] == ["none", "stub"]
    with pytest.raises(InputError, match=r"the cell shop: shared_bottom with llm4msr, nothing control: .*no reading"):
        cells_of(matrix("nothing"))


def test_a_misspelt_control_is_told_from_a_reading(shop: PreparedData, shop_knowledge: KnowledgeFolder) -> None:
    with pytest.raises(InputError, match=r"no reading 'randon' .did you mean 'random'"):
        open_reading(shop_knowledge, shop, "randon")
    with pytest.raises(InputError, match=r"no reading 'random' .known: llm, text, categories"):
        open_reading(shop_knowledge, shop, "random")
