"""Readings: further vectors of the same items beside the LLM's own, each with a name.

A reading may come from another model, another layer or other templates. `llm4msr reason DATA --knowledge KNOWLEDGE
--reading NAME` keeps it in a knowledge folder of its own, inside the first. A config joins a reading with the LLM's
vectors, or replaces them by it, by its name.
"""

from __future__ import annotations

import re
from pathlib import Path

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError, nearest
from llm4msr.folders import MANIFEST
from llm4msr.knowledge.controls import CONTROLS
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.stores import READINGS

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
VECTORS = ("llm", "text", "categories")
"""The kinds of item vectors that every folder has."""
RESERVED = tuple(dict.fromkeys(("none", *VECTORS, *CONTROLS)))
"""Names that a reading cannot have."""


def reading_path(knowledge: Path, name: str) -> Path:
    """The folder of a reading. Raises `InputError` for a name that cannot be one."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise InputError(
            f"the reading {name!r}: expected a name of small letters, digits, '-', '_' and '.', "
            f"and none of {', '.join(RESERVED)}"
        )
    return knowledge / READINGS / name


def readings(knowledge: Path) -> list[str]:
    """The names of the complete readings of a folder."""
    return sorted(path.parent.name for path in (knowledge / READINGS).glob(f"*/{MANIFEST}"))


def open_reading(folder: KnowledgeFolder, data: PreparedData, name: str) -> KnowledgeFolder:
    """Open a reading of a knowledge folder. Raises `InputError`, with the names that exist, if it is absent."""
    known = readings(folder.path)
    if name not in known:
        others = [other for other in (*RESERVED, *known) if other not in ("none", name)]
        raise InputError(
            f"{folder.path}: has no reading {name!r} ({nearest(name, others)}); make it "
            f"with `llm4msr reason DATA --knowledge {folder.path} --reading {name}`"
        )
    return KnowledgeFolder.open(reading_path(folder.path, name), data)


def fingerprint_with(folder: KnowledgeFolder, names: tuple[str, ...]) -> str:
    """The fingerprint of a folder and of those of its readings that `names` has; other names are ignored."""
    known = readings(folder.path)
    read = sorted({*names} & {*known})
    own = [f"{name}:{KnowledgeFolder.fingerprint_of(reading_path(folder.path, name))}" for name in read]
    return " ".join([folder.fingerprint, *own])
