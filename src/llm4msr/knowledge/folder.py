"""A completed knowledge folder, opened: the index of answers, and their vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST
from llm4msr.knowledge import Level
from llm4msr.knowledge.completion import read_index
from llm4msr.knowledge.engines.base import Engine
from llm4msr.knowledge.history import LEAKS
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.reason_config import ReasonConfig, make_writer
from llm4msr.knowledge.stores import Stores
from llm4msr.knowledge.vectors import Reduction
from llm4msr.seals import checksum

_FITTED = 100_000
_BLOCK = 16_384


@dataclass(frozen=True)
class KnowledgeFolder:
    """A folder that `reason` completed for one prepared data set."""

    path: Path
    manifest: dict[str, Any]
    index: pl.DataFrame

    @classmethod
    def open(cls, path: Path, data: PreparedData) -> KnowledgeFolder:
        """Open it; raises `InputError` if it is of other data, incomplete, altered or of another version."""
        manifest, index = read_index(path)
        if manifest["prepared"] != data.fingerprint:
            raise InputError(
                f"{path}: was made for other prepared data than {data.path}; run `llm4msr reason` for it "
                "(answers that are the same are found again)"
            )
        return cls(path, manifest, index)

    @property
    def fingerprint(self) -> str:
        """Identifies the content: the checksum of the manifest, which holds the checksum of the index of answers."""
        return self.fingerprint_of(self.path)

    @staticmethod
    def fingerprint_of(path: Path) -> str:
        """The fingerprint of a folder, without opening it."""
        return checksum(path / MANIFEST)

    @property
    def config(self) -> ReasonConfig:
        """What was asked, and how."""
        return ReasonConfig.checked(self.manifest["config"], f"{self.path / MANIFEST}: config")

    @property
    def leaks(self) -> str:
        """What the protocol of the users' prompts shows to rows that must not know it; empty if it shows nothing."""
        return LEAKS.get(self.config.snapshots.protocol, "")

    @property
    def llm(self) -> dict[str, Any]:
        """The LLM that made it, for people: its `name`, and what identifies its engine."""
        return {"name": self.manifest.get("model_name", ""), **self.manifest["engine"]}

    def require(self, engine: Engine) -> None:
        """Raise `InputError` unless the engine runs the LLM that the knowledge was made with."""
        if engine.identity != self.manifest["engine"]:
            was, now = self.manifest["engine"], engine.identity
            differ = [f"{k} {was.get(k)}, not {now.get(k)}" for k in {**was, **now} if was.get(k) != now.get(k)]
            raise InputError(f"{self.path}: was made with another language model or engine: {'; '.join(differ)}")

    def subjects(self, level: Level) -> pl.DataFrame:
        """The index rows of a level, with subject, time and key; raises `InputError` if the level is absent."""
        index = self.index.filter(pl.col("level") == level)
        if index.is_empty():
            raise InputError(
                f"{self.path}: holds no knowledge of the level {level!r}; run `llm4msr reason` with that level"
            )
        return index

    def level(self, level: Level) -> tuple[pl.DataFrame, NDArray[np.float16]]:
        """The index rows of a level, and their vectors `(n, d)`."""
        index = self.subjects(level)
        with Stores(self.path, read_only=True) as store:
            return index, store.vectors(index["key"].to_list())

    def scenarios(self) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """The scenarios that have a vector, ascending, and their vectors. One whose prompt was set aside has none."""
        index, vectors = self.level("scenario")
        subjects = index["subject"].to_numpy().astype(np.int64)
        order = np.argsort(subjects)
        return subjects[order], vectors[order]

    def reduced(
        self, level: Level, dimensions: int, training: Callable[[pl.DataFrame], NDArray[np.bool_]]
    ) -> tuple[pl.DataFrame, NDArray[np.float32], Reduction]:
        """The index rows of a level, their reduced vectors `(n, k)`, and the fitted reduction.

        `training` says which index rows the statistics may be fitted on. Of more than 100,000 rows, only every second,
        third and so on is used. The raw vectors are never all in memory.
        """
        index = self.subjects(level)
        keys = index["key"]
        fitted = np.flatnonzero(training(index))
        fitted = fitted[:: -(-len(fitted) // _FITTED) or 1]
        with Stores(self.path, read_only=True) as store:
            reduction = Reduction.fit(store.vectors(keys.gather(fitted).to_list()), dimensions)
            parts = [
                reduction.apply(store.vectors(keys[start : start + _BLOCK].to_list()))
                for start in range(0, len(keys), _BLOCK)
            ]
        return index, np.concatenate(parts), reduction

    def item_texts(self, data: PreparedData, codes: NDArray[np.int32]) -> list[str]:
        """The prompts of items: exactly the texts that the LLM read."""
        return self.writer(data).items(codes.tolist())

    def writer(self, data: PreparedData) -> PromptWriter:
        """A writer that makes the same prompts again, with the templates that were used."""
        return make_writer(data, self.manifest["special_tokens"], self.config, self.path / "templates")
