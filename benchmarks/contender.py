"""What takes part in a benchmark of training: a model, the loader that feeds it, and one step of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

BATCH = 4096
HIDDEN = (256, 128, 64)
DIM = 16


class NotHereError(Exception):
    """A peer that cannot take part, and why."""


@dataclass(frozen=True)
class Contender:
    """A model that learns. `batches` gives shuffled batches of `BATCH` rows, its own way; `step` trains on one."""

    name: str
    batches: Callable[[], Iterator[Any]]
    step: Callable[[Any], None]

    def end_to_end(self, steps: int) -> float:
        """Rows a second, loader included, from when its first batch is there."""
        batches = self.batches()
        first = next(batches)
        began = time.perf_counter()
        self.step(first)
        for batch in islice(batches, steps - 1):
            self.step(batch)
        seconds = time.perf_counter() - began
        del batches
        return steps * BATCH / seconds

    def compute(self, held: list[Any]) -> float:
        """Rows a second of forward, backward and update, on batches in memory."""
        began = time.perf_counter()
        for batch in held:
            self.step(batch)
        return len(held) * BATCH / (time.perf_counter() - began)
