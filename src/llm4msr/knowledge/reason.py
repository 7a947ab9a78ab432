"""Find out what is missing, let the engine answer it, keep the answers, and say which answer is whose and when."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST, read_manifest, seal, verify, write_text_atomically
from llm4msr.knowledge.engines.base import Answer, Engine, Generation, Outcome, Refusal
from llm4msr.knowledge.history import Snapshots, snapshot_times
from llm4msr.knowledge.prompts import Language, PromptWriter
from llm4msr.knowledge.questions import LEVELS, Block, Level, blocks, count
from llm4msr.knowledge.store import answer_key
from llm4msr.knowledge.stores import MAIN, READINGS, Stores

KIND = "llm4msr knowledge"
VERSION = 2
_INDEX = pa.schema([("level", pa.string()), ("subject", pa.int32()), ("time", pa.int64()), ("key", pa.binary())])
_REJECTED = {"level": pl.String, "subject": pl.Int32, "time": pl.Int64, "reason": pl.String}


class ReasonConfig(BaseModel):
    """What is asked of the LLM, and how.

    `snapshots` says when users' prompts are made; `history` is the paper's T, the most positives a scenario in one
    prompt. The paper's setting is the protocol `train_end`, `history=55`, and for users the pooling `last_generated`
    without `close_cut`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: tuple[Level, ...] = LEVELS
    snapshots: Snapshots = Snapshots()
    history: int = Field(default=20, ge=1, le=1000)
    text_limit: int = Field(default=100, ge=10, le=10_000)
    language: Language = "en"
    scenario: Generation = Generation(pooling="last_generated", max_new_tokens=160)
    user: Generation = Generation(pooling="last_prompt")
    item: Generation = Generation(pooling="mean_prompt", chat=False)

    @field_validator("levels")
    @classmethod
    def _different(cls, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        if not levels or len(set(levels)) < len(levels):
            raise ValueError("name at least one level, and each only once")
        return levels

    def generation(self, level: Level) -> Generation:
        """The generation settings of a level."""
        return {"scenario": self.scenario, "user": self.user, "item": self.item}[level]


@dataclass(frozen=True)
class Shard:
    """The part `number` (from 0) of `of` parts of what is missing, for one worker of several."""

    number: int
    of: int

    def has(self, key: bytes) -> bool:
        """Whether a prompt is this part's to ask."""
        return int.from_bytes(key[:8]) % self.of == self.number

    @property
    def file(self) -> str:
        """The store file that this worker writes."""
        return f"store-{self.number + 1}-of-{self.of}.sqlite"


@dataclass(frozen=True)
class Progress:
    """How far a level is: prompts settled, all of its prompts, and how many the engine was asked."""

    level: Level
    done: int
    total: int
    asked: int


@dataclass(frozen=True)
class Summary:
    """What a level needed: prompts, different ones among them, those the engine answered now, and those set aside."""

    level: Level
    prompts: int
    distinct: int
    answered: int
    rejected: int = 0


def reason(
    data: PreparedData,
    engine: Engine,
    folder: Path,
    config: ReasonConfig,
    *,
    templates: Path | None = None,
    shard: Shard | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Summary]:
    """Answer every prompt that the stores in `folder` do not hold, then write which answer belongs to whom.

    Stop it at any time and start it again: only what is missing is asked. A prompt that gets no answer is set aside in
    `rejected.parquet` with its reason; its subject counts as unknown. With a `shard` only that part of what is missing
    is asked, into a store file of its own, and the folder is not completed: once all parts are there, a call without a
    shard does that. Levels that the config does not name stay as they are, where they were asked of the same model
    about the same data, with the same templates, `text_limit` and `language`; else they go. Raises `InputError` for a
    store or a template that cannot be used, and for a folder that holds anything else than knowledge.
    """
    check_usable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = make_writer(data, engine, config, templates)
    moments = snapshot_times(data, config.snapshots)
    summaries: list[Summary] = []
    kept = _kept(folder, data, engine, config, writer)
    rejected = kept.rejected
    with Stores(folder, writes=MAIN if shard is None else shard.file) as stores, _index(folder, shard, kept) as index:
        for level in config.levels:
            level_ = _Level(level, engine, config.generation(level), stores, shard, progress)
            total = count(level, data, moments)
            progress(Progress(level, 0, total, 0))
            for block in blocks(level, data, writer, moments):
                keys = level_.settle(block, total)
                answered = [place for place, key in enumerate(keys) if key not in level_.refused]
                rejected += [
                    (level, block.subjects[place], block.times[place], level_.refused[key])
                    for place, key in enumerate(keys)
                    if key in level_.refused
                ]
                index(level, block, keys, answered)
            summaries.append(level_.summary())
    if shard is None:
        _complete(data, engine, folder, kept.config, writer, rejected)
    return summaries


def check_usable(folder: Path) -> None:
    """Raise `InputError` unless the folder is absent, empty, or begun by `reason` before, and may be written to."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder for the knowledge")
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: this account may not write there")
    others = [path for path in folder.iterdir() if path.name != READINGS] if folder.is_dir() else []
    if others and not Stores.paths(folder):
        raise InputError(f"{folder}: holds something else than knowledge; name another folder for it")


def vectors_kept(folder: Path) -> dict[str, str]:
    """What the manifest says of vectors that are kept in 8 bits: the knowledge is another one than in 16."""
    with Stores(folder, read_only=True) as stores:
        return {"vectors": "int8"} if any(store.has_eight_bits for store in stores.files) else {}


def make_writer(data: PreparedData, engine: Engine, config: ReasonConfig, templates: Path | None) -> PromptWriter:
    """The prompts of a config for a model."""
    return PromptWriter(
        data,
        history=config.history,
        templates=templates,
        language=config.language,
        forbidden=engine.special_tokens,
        text_limit=config.text_limit,
    )


class _Level:
    """One level while its blocks are settled."""

    def __init__(
        self,
        level: Level,
        engine: Engine,
        generation: Generation,
        stores: Stores,
        shard: Shard | None,
        progress: Callable[[Progress], None],
    ) -> None:
        self.refused: dict[bytes, str] = {}
        self._level: Level = level
        self._engine, self._generation = engine, generation
        self._stores, self._shard, self._progress = stores, shard, progress
        self._done, self._asked, self._answered, self._rejected = 0, 0, 0, 0
        self._seen: list[NDArray[np.uint64]] = []  # 8 bytes of each key: enough to count the different ones

    def settle(self, block: Block, total: int) -> list[bytes]:
        """Have every prompt of a block answered or refused, and give their keys."""
        keys = [answer_key(self._engine.identity, self._generation, prompt) for prompt in block.prompts]
        self._seen.append(np.array([int.from_bytes(key[:8]) for key in keys], np.uint64))
        by_key = dict(zip(keys, block.prompts, strict=True))
        wanted = [key for key in by_key if key not in self.refused]
        missing = self._stores.missing(wanted if self._shard is None else filter(self._shard.has, wanted))
        self._done += len(keys) - len(missing)
        for batch in self._engine.run([by_key[key] for key in missing], self._generation):
            answers = []
            for place, outcome in batch:
                checked = _checked(outcome)
                if isinstance(checked, Refusal):
                    self.refused[missing[place]] = checked.reason
                else:
                    answers.append((missing[place], checked))
            self._stores.write(answers)
            self._done, self._asked = self._done + len(batch), self._asked + len(batch)
            self._answered += len(answers)
            self._progress(Progress(self._level, self._done, total, self._asked))
        self._rejected += sum(key in self.refused for key in keys)
        return keys

    def summary(self) -> Summary:
        """What the level needed."""
        distinct = len(np.unique(np.concatenate(self._seen))) if self._seen else 0
        return Summary(self._level, self._done, distinct, self._answered, self._rejected)


def _checked(outcome: Outcome) -> Outcome:
    if isinstance(outcome, Answer) and not np.isfinite(outcome.vector).all():
        return Refusal("the engine gave a vector that is not finite; try float32, or another model")
    return outcome


@dataclass(frozen=True)
class _Kept:
    """What earlier calls found out of levels that this one does not name, and the config of all levels together."""

    config: ReasonConfig
    index: pa.Table
    rejected: list[tuple[Level, int, int, str]]


def _kept(folder: Path, data: PreparedData, engine: Engine, config: ReasonConfig, writer: PromptWriter) -> _Kept:
    nothing = _Kept(config, _INDEX.empty_table(), [])
    if not (folder / MANIFEST).is_file():
        return nothing
    try:
        manifest = read_manifest(folder, KIND, VERSION)
        verify(folder, manifest)
    except InputError:  # what cannot be relied on is found out anew
        return nothing
    old = ReasonConfig.model_validate(manifest["config"])
    kept = [level for level in old.levels if level not in config.levels]
    now = (data.fingerprint, engine.identity, list(engine.special_tokens), config.text_limit, config.language)
    before = (*(manifest[name] for name in ("prepared", "engine", "special_tokens")), old.text_limit, old.language)
    templates = folder / "templates"
    if now != before or any((templates / f"{n}.j2").read_text(encoding="utf-8") != writer.sources[n] for n in kept):
        return nothing
    update: dict[str, object] = {level: old.generation(level) for level in kept} | {
        "levels": tuple(level for level in LEVELS if level in kept or level in config.levels)
    }
    if "user" in kept:
        update |= {"snapshots": old.snapshots, "history": old.history}
    of_kept = pl.col("level").is_in(kept)
    index = pl.read_parquet(folder / "index.parquet").filter(of_kept).to_arrow().cast(_INDEX)
    rejected = pl.read_parquet(folder / "rejected.parquet").filter(of_kept).rows()
    return _Kept(config.model_copy(update=update), index, rejected)


@contextmanager
def _index(
    folder: Path, shard: Shard | None, kept: _Kept
) -> Iterator[Callable[[Level, Block, list[bytes], list[int]], None]]:
    """Writes whose answer is which, block by block; the file takes its name when the block ends well."""
    if shard is not None:
        yield lambda level, block, keys, answered: None
        return
    aside = folder / "index.parquet.part"
    with pq.ParquetWriter(aside, _INDEX) as file:
        file.write_table(kept.index)

        def write(level: Level, block: Block, keys: list[bytes], answered: list[int]) -> None:
            columns = [
                [level] * len(answered),
                [block.subjects[place] for place in answered],
                [block.times[place] for place in answered],
                [keys[place] for place in answered],
            ]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _INDEX, strict=True)]
            file.write_table(pa.Table.from_arrays(arrays, schema=_INDEX))

        yield write
    aside.replace(folder / "index.parquet")


def _complete(
    data: PreparedData,
    engine: Engine,
    folder: Path,
    config: ReasonConfig,
    writer: PromptWriter,
    rejected: list[tuple[Level, int, int, str]],
) -> None:
    """Write what was set aside and the templates, and seal the folder."""
    pl.DataFrame(rejected, schema=_REJECTED, orient="row").write_parquet(folder / "rejected.parquet")
    (folder / "templates").mkdir(exist_ok=True)
    for name, source in writer.sources.items():
        write_text_atomically(folder / "templates" / f"{name}.j2", source)
    content = {
        "prepared": data.fingerprint,
        "engine": engine.identity,
        "special_tokens": list(engine.special_tokens),
        "config": config.model_dump(mode="json"),
        **vectors_kept(folder),
    }
    files = ["index.parquet", "rejected.parquet", *(f"templates/{n}.j2" for n in writer.sources)]
    seal(folder, KIND, VERSION, content, files=files)
