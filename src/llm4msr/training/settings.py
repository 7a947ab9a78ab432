"""A run's settings, read from a TOML file and assignments."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm4msr.errors import InputError
from llm4msr.training.config import RunConfig
from llm4msr.training.identity import read_json
from llm4msr.validation import read_toml


def read_settings(file: Path | None, assignments: Iterable[tuple[str, Any]] = ()) -> RunConfig:
    """The config of a TOML file, or the defaults, overridden by the assignments (dotted path and value).

    The file may also be a run's `config.json`, to repeat the run.

    Raises `InputError` for a file that cannot be read, and for an unknown or invalid setting.
    """
    if file is not None and file.is_dir():
        raise InputError(
            f"{file}: is a folder, expected a file of settings; is it the prepared folder? Give it as --data"
        )
    raw = {} if file is None else _read_run(file) if file.suffix == ".json" else read_toml(file)
    given = list(assignments)
    for path, value in given:
        _put(raw, path, value)
    if "data" not in raw:
        raise InputError("name the prepared folder: --data, or the key data in the file of settings")
    over = f", changed by {', '.join(path for path, _ in given)}" if given else ""
    return RunConfig.checked(raw, "the settings" if file is None else f"{file}{over}")


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
