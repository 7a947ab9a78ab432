"""Readings: further vectors of the same items beside the LLM's own, each under a name.

Another model, another layer, other words: `llm4msr reason DATA --knowledge KNOWLEDGE --reading NAME` keeps what it
reads in a folder of knowledge of its own, inside the first. A reading is joined with the LLM's vectors, or takes their
place, by its name.
"""

from __future__ import annotations

import re
from pathlib import Path

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError, nearest
from llm4msr.folders import MANIFEST
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.stores import READINGS

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
OWN = ("none", "random", "shuffled", "counts", "llm", "text", "categories")
"""Names that mean something else: controls, and vectors that every folder has."""


def reading_path(knowledge: Path, name: str) -> Path:
    """Where a reading lies. Raises `InputError` for a name that cannot be one."""
    if not _NAME.fullmatch(name) or name in OWN:
        raise InputError(
            f"the reading {name!r}: expected a name of small letters, digits, '-', '_' and '.', "
            f"and none of {', '.join(OWN)}"
        )
    return knowledge / READINGS / name


def readings(knowledge: Path) -> list[str]:
    """The names of the complete readings of a folder."""
    return sorted(path.parent.name for path in (knowledge / READINGS).glob(f"*/{MANIFEST}"))


def open_reading(folder: KnowledgeFolder, data: PreparedData, name: str) -> KnowledgeFolder:
    """A reading of a folder of knowledge. Raises `InputError`, naming those that there are, where it is absent."""
    known = readings(folder.path)
    if name not in known:
        raise InputError(
            f"{folder.path}: has no reading {name!r}; {nearest(name, [*OWN, *known])}, or make it with "
            f"`llm4msr reason DATA --knowledge {folder.path} --reading {name}`"
        )
    return KnowledgeFolder.open(reading_path(folder.path, name), data)


def fingerprint_with(folder: KnowledgeFolder, names: tuple[str, ...]) -> str:
    """The fingerprint of a folder and of the readings of it that are named; other names are not looked at."""
    known = readings(folder.path)
    read = sorted({*names} & {*known})
    own = [f"{name}:{KnowledgeFolder.fingerprint_of(reading_path(folder.path, name))}" for name in read]
    return " ".join([folder.fingerprint, *own])
