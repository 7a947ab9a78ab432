"""The identity of a run: its settings, and the content of its data and knowledge. A folder holds one run."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm4msr import __version__
from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import write_json
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.tables import fingerprint
from llm4msr.models.own import source_of
from llm4msr.models.registry import BACKBONES, ENHANCERS
from llm4msr.training.config import RunConfig
from llm4msr.training.opening import open_knowledge

FORMAT = 1
"""The format of a run's files. It changes with every change that makes earlier runs unreadable, or read otherwise."""
_FOLDERS = ("data", "knowledge_folder")


def resolved_config(config: RunConfig, *, places: bool = True) -> dict[str, Any]:
    """Everything that a run depends on: its settings, the fingerprints of data and knowledge, user-defined models.

    Without `places`, the folders' names are left out: the fingerprints identify their content.
    """
    data = PreparedData.open(config.data, check=False)
    found = resolved(config.absolute(), data, open_knowledge(config, data))
    return found if places else _what_matters(found)


def resolved(config: RunConfig, data: PreparedData, reasoned: KnowledgeFolder | None) -> dict[str, Any]:
    """Like `resolved_config`, for data and knowledge that are already open."""
    parts = (BACKBONES.get(config.model.backbone.name), ENHANCERS.get(config.model.enhancer.name))
    code = {kind.__qualname__: found for kind in parts if (found := source_of(kind)) is not None}
    return {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "prepared": data.fingerprint,
        "knowledge": None if reasoned is None else fingerprint(reasoned, config.knowledge),
        **({"code": code} if code else {}),
    }


_BEFORE_WEIGHTS = {"config.json", "versions.json", "metrics.jsonl", "traceback.txt"}
"""The files of a run that failed before its first checkpoint, as with a learning rate that is too high."""


def is_claimed(folder: Path, run: dict[str, Any]) -> bool:
    """Whether the folder already holds this run.

    Raises `InputError` if it holds other files, or another run that has weights or a checkpoint.
    """
    if (folder / "config.json").is_file():
        if {path.name for path in folder.iterdir()} <= _BEFORE_WEIGHTS:
            return False
        if other := _differences(_what_matters(read_json(folder / "config.json")), _what_matters(run)):
            raise InputError(
                f"{folder}: holds a run with other settings or data ({', '.join(other[:5])}); choose another folder or "
                "remove it"
            )
        return True
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and not a run; choose another folder")
    return False


def claim(folder: Path, run: dict[str, Any]) -> None:
    """Mark the folder as this run's. Call it only after everything has been checked for errors."""
    write_json(folder / "config.json", run)
    packages = ("torch", "numpy", "polars", "scikit-learn", "safetensors", "transformers")
    versions = {"llm4msr": __version__, "python": platform.python_version()} | {p: version(p) for p in packages}
    write_json(folder / "versions.json", versions)


def run_config(folder: Path, data: Path | None = None, knowledge: Path | None = None) -> RunConfig:
    """The config of a run; raises `InputError` if the folder is no run, or one of another format.

    `data` and `knowledge` are their present folders, if they were moved since the run.
    """
    path = folder / "config.json"
    moved = {"data": data, "knowledge_folder": knowledge}
    recorded = read_json(path)
    if recorded.get("format") != FORMAT:
        raise InputError(
            f"{path}: the run is of format {recorded.get('format')}, from another version of llm4msr, and this one "
            f"reads format {FORMAT}; train it anew, with {path.name} as its settings"
        )
    config = RunConfig.checked(recorded.get("config"), str(path))
    return config.model_copy(update={name: where for name, where in moved.items() if where is not None}).absolute()


def _what_matters(run: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without the folders' names: the fingerprints identify their content."""
    config = run.get("config")
    rest = {k: v for k, v in config.items() if k not in _FOLDERS} if isinstance(config, dict) else config
    return {**run, "config": rest}


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The settings in which two resolved configs differ, as dotted paths."""
    a, b = _flat(one), _flat(other)
    paths = [path for path in dict.fromkeys([*a, *b]) if path not in a or path not in b or a[path] != b[path]]
    return [path.removeprefix("config.") for path in paths]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    inside = [_flat(part, f"{path}.{key}" if path else key) for key, part in value.items()]
    return {place: found for part in inside for place, found in part.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a run's JSON files; raises `InputError` if it is missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path.parent}: is no run, or not a finished one (it has no {path.name})")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a run's JSON ({error}); is {path.parent} a run?") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is damaged (it holds no object); train the run anew")
    return content
