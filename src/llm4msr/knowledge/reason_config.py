"""What is asked of the LLM, and how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge import LEVELS, Level
from llm4msr.knowledge.engines.base import Generation
from llm4msr.knowledge.history import Snapshots
from llm4msr.knowledge.prompts import Language, PromptWriter
from llm4msr.validation import Settings


class ReasonConfig(Settings):
    """What is asked of the LLM, and how.

    `snapshots` says when users' prompts are made. `history` is the paper's T: the most positives per scenario in one
    prompt. `items` are those that occur in a row or a history, or all of the table of items. The paper's setting is the
    protocol `train_end`, `history=55`, and for users the pooling `last_generated` without `close_cut`.
    """

    levels: tuple[Level, ...] = LEVELS
    snapshots: Snapshots = Snapshots()
    history: int = Field(default=20, ge=1, le=1000)
    items: Literal["occurring", "all"] = "occurring"
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
        return tuple(level for level in LEVELS if level in levels)

    def generation(self, level: Level) -> Generation:
        """The generation settings of a level."""
        return {"scenario": self.scenario, "user": self.user, "item": self.item}[level]


def make_writer(
    data: PreparedData, special_tokens: Sequence[str], config: ReasonConfig, templates: Path | None
) -> PromptWriter:
    """The writer of a config's prompts, for a model with these special tokens."""
    return PromptWriter(
        data,
        history=config.history,
        templates=templates,
        language=config.language,
        forbidden=special_tokens,
        text_limit=config.text_limit,
    )
