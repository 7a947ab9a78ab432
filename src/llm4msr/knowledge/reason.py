"""Find out what is missing, let the engine answer it, keep the answers, and say which answer is whose and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator

from llm4msr.data.prepared import PreparedData
from llm4msr.folders import seal, write_text_atomically
from llm4msr.knowledge.engines.base import Engine, Generation
from llm4msr.knowledge.history import Protocol, snapshot_times
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.store import Store, answer_key

Level = Literal["scenario", "user", "item"]
LEVELS: tuple[Level, ...] = ("scenario", "user", "item")
KIND = "llm4msr knowledge"
VERSION = 1
ALWAYS = np.iinfo(np.int64).min
"""The time of knowledge that was always true: a scenario's or an item's."""


class ReasonConfig(BaseModel):
    """What is asked of the LLM, and how.

    `protocol` and `slices` set the snapshots of users' prompts; `history` is the paper's T, the most positives a
    scenario in one prompt. The paper's setting is `protocol="train_end"`, `history=55` and the pooling
    `last_generated` for users.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: tuple[Level, ...] = LEVELS
    protocol: Protocol = "slices"
    slices: int = Field(default=4, ge=1, le=1000)
    history: int = Field(default=20, ge=1, le=1000)
    text_limit: int = Field(default=100, ge=10, le=10_000)
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
class Progress:
    """How far a level is: prompts to be answered by the engine, and those answered."""

    level: Level
    done: int
    total: int


@dataclass(frozen=True)
class Summary:
    """What a level needed: prompts, different ones among them, and how many of those the store had not yet."""

    level: Level
    prompts: int
    distinct: int
    answered: int


def reason(
    data: PreparedData,
    engine: Engine,
    folder: Path,
    config: ReasonConfig,
    *,
    templates: Path | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Summary]:
    """Answer every prompt that the store in `folder` does not hold, then write which answer belongs to whom.

    Stop it at any time and start it again: only what is missing is asked. Raises `InputError` for a store or a
    template that cannot be used, and for a prompt that does not fit the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = PromptWriter(
        data,
        history=config.history,
        templates=templates,
        forbidden=engine.special_tokens,
        text_limit=config.text_limit,
    )
    summaries, index = [], []
    with Store(folder / "store.sqlite") as store:
        for level in config.levels:
            subjects, times, prompts = _plan(level, data, writer, config)
            generation = config.generation(level)
            keys = [answer_key(engine.identity, generation, prompt) for prompt in prompts]
            by_key = dict(zip(keys, prompts, strict=True))
            missing = store.missing(keys)
            progress(Progress(level, 0, len(missing)))
            done = 0
            for batch in engine.run([by_key[key] for key in missing], generation):
                store.write([(missing[position], answer) for position, answer in batch])
                done += len(batch)
                progress(Progress(level, done, len(missing)))
            summaries.append(Summary(level, len(keys), len(by_key), len(missing)))
            index.append(
                pl.DataFrame(
                    {
                        "level": pl.Series([level] * len(keys), dtype=pl.String),
                        "subject": pl.Series(subjects, dtype=pl.Int32),
                        "time": pl.Series(times, dtype=pl.Int64),
                        "key": pl.Series(keys, dtype=pl.Binary),
                    }
                )
            )
    aside = folder / "index.parquet.part"
    pl.concat(index).write_parquet(aside)
    aside.replace(folder / "index.parquet")
    (folder / "templates").mkdir(exist_ok=True)
    for name, source in writer.sources.items():
        write_text_atomically(folder / "templates" / f"{name}.j2", source)
    content = {
        "prepared": data.fingerprint,
        "engine": engine.identity,
        "special_tokens": list(engine.special_tokens),
        "config": config.model_dump(mode="json"),
    }
    seal(folder, KIND, VERSION, content, files=["index.parquet", *(f"templates/{n}.j2" for n in writer.sources)])
    return summaries


def _plan(
    level: Level, data: PreparedData, writer: PromptWriter, config: ReasonConfig
) -> tuple[list[int], list[int], list[str]]:
    """Subjects, times and prompts of a level: all scenarios, all users at their snapshots, all items that occur."""
    if level == "scenario":
        prompts = writer.scenarios()
        return list(range(len(prompts))), [ALWAYS] * len(prompts), prompts
    if level == "item":
        seen = np.zeros(data.items.height, dtype=bool)
        seen[data.item] = True
        seen[data.positives["item"].to_numpy()] = True
        codes = np.flatnonzero(seen).tolist()
        return codes, [ALWAYS] * len(codes), writer.items(codes)
    subjects, times, prompts = [], [], []
    for time in snapshot_times(data, config.protocol, config.slices):
        for user, prompt in writer.users(time):
            subjects.append(user)
            times.append(time)
            prompts.append(prompt)
    return subjects, times, prompts
