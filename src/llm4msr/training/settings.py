"""A run's settings, read from a TOML file and `path=value` assignments."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm4msr.errors import InputError
from llm4msr.training.config import RunConfig, parse_config
from llm4msr.training.identity import read_json
from llm4msr.validation import read_toml


def read_settings(file: Path | None, assignments: Iterable[tuple[str, Any]] = ()) -> RunConfig:
    """The config of a TOML file, or the defaults, overridden by the assignments (dotted path and value).

    The file may also be a run's `config.json`, to repeat the run.

    Raises `InputError` for a file that cannot be read, and for an unknown or invalid setting.
    """
    raw = {} if file is None else _read_run(file) if file.suffix == ".json" else read_toml(file)
    for path, value in assignments:
        _put(raw, path, value)
    return parse_config(raw, "the settings" if file is None else str(file))


def parse_assignment(text: str) -> tuple[str, Any]:
    """Read `path=value`. The value is JSON, a TOML list or table, or otherwise text.

    >>> parse_assignment("train.seed=3"), parse_assignment("model.backbone.name=star")
    (('train.seed', 3), ('model.backbone.name', 'star'))
    >>> parse_assignment("model.backbone.settings={hidden = [64, 32]}")
    ('model.backbone.settings', {'hidden': [64, 32]})
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise InputError(f"{text!r} is not a setting; write path=value, as in train.seed=3")
    text = value.strip()
    with suppress(ValueError):
        return path.strip(), json.loads(text)
    if text.startswith(("[", "{")):
        with suppress(tomllib.TOMLDecodeError):
            return path.strip(), tomllib.loads(f"value = {text}")["value"]
    return path.strip(), text


def _read_run(path: Path) -> dict[str, Any]:
    config = read_json(path).get("config")
    if not isinstance(config, dict):
        raise InputError(f"{path}: has no table of settings under 'config'; is it the config.json of a run?")
    return config


def _put(raw: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise InputError(f"the setting {path}: {name} is a value, not a table of settings")
    raw[last] = value
