"""The prompts of a level, block by block, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge import Level
from llm4msr.knowledge.history import snapshot_times
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.knowledge.states import begins_of

ALWAYS = np.iinfo(np.int64).min
"""The time of knowledge that was always true, which is all knowledge of scenarios and items."""


@dataclass(frozen=True)
class Block:
    """Subjects (codes), the times of their prompts, and the prompts: three lists of the same length."""

    subjects: list[int]
    times: list[int]
    prompts: list[str]


def count(level: Level, data: PreparedData, config: ReasonConfig) -> int:
    """The number of prompts of a level."""
    if level == "scenario":
        return data.scenario_count
    if level == "item":
        return len(_items(data, config))
    user, time = data.positives["user"].to_numpy(), data.positives["time"].to_numpy()
    first = time[begins_of(user)]  # each user's earliest positive
    return int(sum((first < moment).sum() for moment in snapshot_times(data, config.snapshots)))


def blocks(
    level: Level, data: PreparedData, writer: PromptWriter, config: ReasonConfig, size: int = 4096
) -> Iterator[Block]:
    """Every prompt of a level: all scenarios, all users at their snapshots, all items or those that occur."""
    if level == "scenario":
        prompts = writer.scenarios()
        yield Block(list(range(len(prompts))), [ALWAYS] * len(prompts), prompts)
        return
    if level == "item":
        codes = _items(data, config)
        for start in range(0, len(codes), size):
            some = codes[start : start + size].tolist()
            yield Block(some, [ALWAYS] * len(some), writer.items(some))
        return
    for moment in snapshot_times(data, config.snapshots):
        for start in range(0, data.users.height, size):
            found = list(writer.users(moment, range(start, min(start + size, data.users.height))))
            if found:
                yield Block([code for code, _ in found], [moment] * len(found), [prompt for _, prompt in found])


def left_out(data: PreparedData, config: ReasonConfig) -> int:
    """The number of items that are not asked about."""
    return data.items.height - len(_items(data, config)) if "item" in config.levels else 0


def _items(data: PreparedData, config: ReasonConfig) -> NDArray[np.intp]:
    """The codes of the items to ask about: all, or those that occur in a row or in a user's history."""
    asked = np.full(data.items.height, config.items == "all")
    asked[data.item] = True
    asked[data.positives["item"].to_numpy()] = True
    return np.flatnonzero(asked)
