"""Have the engine answer the prompts without a stored answer, store the answers, and index them by subject and time."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import sole_writer
from llm4msr.knowledge import Level
from llm4msr.knowledge.completion import complete, index_writer, kept_levels
from llm4msr.knowledge.engines.base import Answer, Engine, Generation, Outcome, Refusal
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.questions import Block, blocks, count
from llm4msr.knowledge.reason_config import ReasonConfig, make_writer
from llm4msr.knowledge.store import answer_key
from llm4msr.knowledge.stores import MAIN, READINGS, Stores


@dataclass(frozen=True)
class Shard:
    """One worker's share of the missing prompts: part `number` (from 0) of `of` parts."""

    number: int
    of: int

    def has(self, key: bytes) -> bool:
        """Whether the prompt with this key belongs to this part."""
        return int.from_bytes(key[:8]) % self.of == self.number

    @property
    def file(self) -> str:
        """The store file that this worker writes."""
        return f"store-{self.number + 1}-of-{self.of}.sqlite"


@dataclass(frozen=True)
class Progress:
    """How far a level is: `done` of `total` prompts are settled; the engine handled `asked` prompts in this call.

    With a shard, the prompts of other shards count as settled.
    """

    level: str
    done: int
    total: int
    asked: int


@dataclass(frozen=True)
class Summary:
    """A level's number of prompts, of distinct ones, of those that the engine answered now, and of those set aside."""

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
    """Answer every prompt that has no answer in the stores of `folder`, then write which answer belongs to whom.

    The call may be stopped at any time and made again: it asks only the prompts that still have no answer. A prompt
    that gets no answer is set aside in `rejected.parquet` with the reason, and its subject counts as unknown.

    With a `shard`, only that part of the missing prompts is asked, the answers go into a store file of its own, and the
    folder is not completed. When all parts are done, a call without a shard completes it. Calls with shards may work in
    one folder side by side; otherwise one process at a time does.

    Levels that the config does not name are kept if they were asked of the same model about the same data, with the
    same templates, `text_limit` and `language`; otherwise they are dropped from the folder's index. Raises `InputError`
    for a store or a template that cannot be used, for a folder that holds anything else than knowledge, and if another
    process is at work in it.
    """
    check_usable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = make_writer(data, engine.special_tokens, config, templates)
    with sole_writer(folder, shared=shard is not None):
        return _reason(data, engine, folder, config, writer, shard, progress)


def _reason(
    data: PreparedData,
    engine: Engine,
    folder: Path,
    config: ReasonConfig,
    writer: PromptWriter,
    shard: Shard | None,
    progress: Callable[[Progress], None],
) -> list[Summary]:
    summaries: list[Summary] = []
    kept = kept_levels(folder, data, engine, config, writer)
    rejected = kept.rejected
    writing = index_writer(folder, kept) if shard is None else nullcontext()
    with Stores(folder, writes=MAIN if shard is None else shard.file) as stores, writing as index:
        for level in config.levels:
            level_ = _Level(level, engine, config.generation(level), stores, shard, progress)
            total = count(level, data, config)
            progress(Progress(level, 0, total, 0))
            for block in blocks(level, data, writer, config):
                keys = level_.settle(block, total)
                answered = [place for place, key in enumerate(keys) if key not in level_.refused]
                rejected += [
                    (level, block.subjects[place], block.times[place], level_.refused[key])
                    for place, key in enumerate(keys)
                    if key in level_.refused
                ]
                if index is not None:
                    index(level, block, keys, answered)
            summaries.append(level_.summary())
    if shard is None:
        complete(data, engine, folder, kept.config, writer, rejected)
    return summaries


def check_usable(folder: Path, *, writes: bool = True) -> None:
    """Raise `InputError` unless the folder is absent, or empty or begun by an earlier `reason`; and writable if it is
    written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder for the knowledge")
    if writes and folder.is_dir() and not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: this account may not write there")
    others = [path for path in folder.iterdir() if path.name != READINGS] if folder.is_dir() else []
    if others and not Stores.paths(folder):
        raise InputError(f"{folder}: holds something else than knowledge; name another folder for it")


class _Level:
    """The state of one level while its prompts are asked block by block."""

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
        self._seen: list[NDArray[np.uint64]] = []  # 8 bytes of each key, to count the distinct ones

    def settle(self, block: Block, total: int) -> list[bytes]:
        """Ask the missing prompts of a block (with a shard, only its part), and return the keys of all its prompts."""
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
        """The counts of the level."""
        distinct = len(np.unique(np.concatenate(self._seen))) if self._seen else 0
        return Summary(self._level, self._done, distinct, self._answered, self._rejected)


def _checked(outcome: Outcome) -> Outcome:
    if isinstance(outcome, Answer) and not np.isfinite(outcome.vector).all():
        return Refusal("the engine gave a vector that is not finite; try float32, or another model")
    return outcome
