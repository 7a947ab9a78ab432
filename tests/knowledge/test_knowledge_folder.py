"""Which folders of knowledge are opened, and which are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.history import Snapshots
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.knowledge.states import Source
from llm4msr.knowledge.tables import load_knowledge
from tests.knowledge.kiosk import ROWS, kiosk
from tests.knowledge.stub_engine import WIDTH, StubEngine


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return kiosk(tmp_path / "data")


@pytest.fixture
def folder(data: PreparedData, tmp_path: Path) -> Path:
    reason(data, StubEngine(), tmp_path / "k", ReasonConfig(snapshots=Snapshots(slices=2)))
    return tmp_path / "k"


def test_knowledge_of_other_data_is_refused(folder: Path, tmp_path: Path) -> None:
    other = kiosk(tmp_path / "other", rows=[*ROWS, (11, "ann", "tea", "a", 1, 0)])
    with pytest.raises(InputError, match=f"{folder}: was made for other prepared data than {other.path}"):
        KnowledgeFolder.open(folder, other)


@pytest.mark.parametrize(
    ("level", "source"), [("user", "prompted"), ("item", "own"), ("item", "item"), ("scenario", "scenario")]
)
def test_a_missing_level_is_named(data: PreparedData, tmp_path: Path, level: str, source: Source) -> None:
    present = [other for other in ("scenario", "user", "item") if other != level]
    reason(data, StubEngine(), tmp_path / "k", ReasonConfig.model_validate({"levels": present}))
    with pytest.raises(InputError, match=f"holds no knowledge of the level '{level}'; run `llm4msr reason`"):
        load_knowledge(KnowledgeFolder.open(tmp_path / "k", data), data, KnowledgeConfig(), {source})


@pytest.mark.parametrize("name", ["index.parquet", "templates/user.j2"])
def test_an_altered_file_is_refused_by_name(data: PreparedData, folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=f"{folder / name}: its checksum is not the one"):
        KnowledgeFolder.open(folder, data)


def test_a_missing_store_is_refused(data: PreparedData, folder: Path) -> None:
    (folder / "store.sqlite").unlink()
    with pytest.raises(InputError, match=r"store\.sqlite: no such store"):
        KnowledgeFolder.open(folder, data).level("item")


def test_the_prepared_data_are_not_knowledge(data: PreparedData) -> None:
    with pytest.raises(InputError, match="is llm4msr prepared data, expected llm4msr knowledge"):
        KnowledgeFolder.open(data.path, data)


def test_a_copy_elsewhere_is_as_good(data: PreparedData, folder: Path, tmp_path: Path) -> None:
    copy = KnowledgeFolder.open(Path(shutil.copytree(folder, tmp_path / "copy")), data)
    assert copy.fingerprint == KnowledgeFolder.open(folder, data).fingerprint
    assert copy.level("item")[1].shape == (3, WIDTH)
