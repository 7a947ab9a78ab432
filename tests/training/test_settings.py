from __future__ import annotations

from pathlib import Path

import pytest

from llm4msr.errors import InputError
from llm4msr.training.settings import read_settings


def test_assignments_stand_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('data = "d"\n[train]\nseed = 1\nepochs = 3\n')
    config = read_settings(tmp_path / "run.toml", [("train.seed", 9), ("model.backbone.name", "shared_bottom")])
    assert (config.train.seed, config.train.epochs, config.model.backbone.name) == (9, 3, "shared_bottom")


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([("data", "d"), ("data.path", "x")], "data is a value, not a table of settings"),
        ([("data", "d"), ("train.sed", 1)], "unknown key 'train.sed'"),
        ([], "name the prepared folder: --data"),
    ],
)
def test_a_wrong_setting_is_named(assignments: list[tuple[str, object]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_settings(None, assignments)


def test_a_prepared_folder_in_the_place_of_the_settings_is_told_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: is a folder, expected a file of settings.*Give it as --data"):
        read_settings(tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("data = ")
    with pytest.raises(InputError, match=r"run\.toml: is not valid TOML"):
        read_settings(tmp_path / "run.toml")


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"config": 3}'])
def test_a_file_that_is_no_runs_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: "):
        read_settings(tmp_path / "config.json")
