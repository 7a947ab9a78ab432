"""A contender in a benchmark of training: a model, its loader, and its training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from llm4msr.data.prepared import PreparedData

BATCH = 4096
HIDDEN = (256, 128, 64)
DIM = 16


class NotHereError(Exception):
    """A peer cannot take part; the message says why."""


@dataclass(frozen=True)
class Task:
    """What all contenders train on: the data, the batch size and the device."""

    data: PreparedData
    batch: int
    device: torch.device


def settled() -> float:
    """The time now, after a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Contender:
    """A model to train. `batches` is its own loader of shuffled batches of `rows` rows; `step` trains on one batch."""

    name: str
    rows: int
    batches: Callable[[], Iterator[Any]]
    step: Callable[[Any], object]

    def end_to_end(self, steps: int) -> float:
        """Rows a second, loader included; the clock starts when the first batch is there."""
        batches = self.batches()
        first = next(batches)
        began = settled()
        self.step(first)
        for batch in islice(batches, steps - 1):
            self.step(batch)
        seconds = settled() - began
        del batches
        return steps * self.rows / seconds

    def compute(self, held: list[Any]) -> float:
        """Rows a second of forward, backward and update, on batches in memory."""
        began = settled()
        for batch in held:
            self.step(batch)
        return len(held) * self.rows / (settled() - began)
