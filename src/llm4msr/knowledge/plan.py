"""Estimates what a `reason` call would cost: prompts, tokens, time on this machine, disk."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge import Level
from llm4msr.knowledge.engines.base import Answer, Engine, Generation
from llm4msr.knowledge.questions import Block, blocks
from llm4msr.knowledge.reason_config import ReasonConfig, make_writer
from llm4msr.knowledge.store import answer_key
from llm4msr.knowledge.stores import Stores

_SAMPLE = 32
"""The number of prompts per level that are run to measure the cost; their answers are not stored."""
_ROW = 250
"""Bytes of a stored answer, without its vector and text."""


@dataclass(frozen=True)
class LevelPlan:
    """A level's number of prompts, of distinct ones and of already stored ones, and the cost of those that are missing.

    `tokens` (read and written), `seconds` and `bytes` are estimates from a sample of the missing prompts.
    """

    level: Level
    prompts: int
    distinct: int
    stored: int
    tokens: int
    seconds: float
    bytes: int

    @property
    def missing(self) -> int:
        """The number of prompts that the engine would have to answer."""
        return self.distinct - self.stored


def plan(
    data: PreparedData, engine: Engine, folder: Path, config: ReasonConfig, *, templates: Path | None = None
) -> list[LevelPlan]:
    """Plan `reason` with the same arguments. Nothing is stored; a few prompts per level are run to measure time.

    Raises `InputError` for a store or a template that cannot be used.
    """
    writer = make_writer(data, engine.special_tokens, config, templates)
    with Stores(folder, read_only=True) if Stores.paths(folder) else nullcontext() as stores:
        return [
            _level(level, engine, config.generation(level), blocks(level, data, writer, config), stores)
            for level in config.levels
        ]


def _level(
    level: Level, engine: Engine, generation: Generation, asked: Iterable[Block], stores: Stores | None
) -> LevelPlan:
    """Count a level's prompts, and measure what the missing ones cost."""
    seen: set[bytes] = set()
    prompts, stored, sample = 0, 0, _Sample()
    for block in asked:
        keys = [answer_key(engine.identity, generation, prompt) for prompt in block.prompts]
        prompts += len(keys)
        new = {key: prompt for key, prompt in zip(keys, block.prompts, strict=True) if key[:12] not in seen}
        seen.update(key[:12] for key in new)
        absent = list(new) if stores is None else stores.missing(new)
        stored += len(new) - len(absent)
        for key in absent:
            sample.offer(new[key])
    costs = _calibrate(engine, sample.prompts, generation)
    tokens, seconds, size = (sample.offered / max(1, len(sample.prompts)) * cost for cost in costs)
    return LevelPlan(level, prompts, len(seen), stored, round(tokens), seconds, round(size))


class _Sample:
    """Up to `_SAMPLE` of the offered prompts, each equally likely (reservoir sampling)."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.offered = 0
        self._random = np.random.default_rng(0)

    def offer(self, prompt: str) -> None:
        self.offered += 1
        if len(self.prompts) < _SAMPLE:
            self.prompts.append(prompt)
        elif (place := int(self._random.integers(self.offered))) < _SAMPLE:
            self.prompts[place] = prompt


def _calibrate(engine: Engine, sample: list[str], generation: Generation) -> tuple[float, float, float]:
    """Tokens, seconds and bytes of the sample. One prompt is run before, to warm the engine up."""
    if not sample:
        return 0.0, 0.0, 0.0
    list(engine.run(sample[:1], generation))
    began = time.perf_counter()
    answers = [a for batch in engine.run(sample, generation) for _, a in batch if isinstance(a, Answer)]
    seconds = time.perf_counter() - began
    tokens = sum(a.prompt_tokens + a.generated_tokens for a in answers)
    return tokens, seconds, sum(a.vector.nbytes + len(a.text.encode()) + _ROW for a in answers)
