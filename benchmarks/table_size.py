"""The time of a training step as the number of items grows.

    python -m benchmarks.table_size [--items 70000 700000 6900000] [--rounds 5] [--device cuda]

STAR with 12 fields, one of them the items; embedding 16, layers 256-128-64, batches of 4096 random rows in memory,
whose items follow Zipf's law. The ways of updating the table (`auto` is the default) are timed one after the other.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np
import torch
from torch.nn import functional

from benchmarks.contender import BATCH, HIDDEN, settled
from llm4msr.models.batch import Batch, FieldLayout, KnowledgeWidths
from llm4msr.models.model import ModelConfig, PartChoice, build_model
from llm4msr.training.optim import EmbeddingUpdates, Optimizers

_OTHERS = (25_877, 40, 40, 7, 5, 12, 24, 7, 100, 1000, 3)
_UPDATES: tuple[EmbeddingUpdates, ...] = ("auto", "rows", "exact")


class Trained:
    """A model with an embedding table for `items` items, and batches for it."""

    def __init__(self, items: int, updates: EmbeddingUpdates, device: torch.device) -> None:
        layout = FieldLayout(categorical=(items, *_OTHERS))
        config = ModelConfig(backbone=PartChoice(name="star", settings={"hidden": HIDDEN}))
        self._model = build_model(config, layout, 2, KnowledgeWidths(), seed=0).to(device).train()
        self._optimizers = Optimizers(
            self._model, learning_rate=1e-3, embedding_decay=1e-5, weight_decay=0.0, embedding_updates=updates
        )
        random = np.random.default_rng(0)
        self._batches = [_batch(random, layout, device) for _ in range(6)]

    def seconds(self) -> float:
        """Seconds a step."""
        began = settled()
        for batch in self._batches:
            self._optimizers.zero_grad()
            functional.binary_cross_entropy_with_logits(self._model(batch)[0], batch.label).backward()
            self._optimizers.step()
        return (settled() - began) / len(self._batches)


def _batch(random: np.random.Generator, layout: FieldLayout, device: torch.device) -> Batch:
    items = np.minimum(random.zipf(1.1, BATCH) - 1, layout.categorical[0] - 1)
    others = [random.integers(0, size, BATCH) for size in layout.categorical[1:]]
    half = BATCH // 2
    return Batch(
        categorical=torch.from_numpy(np.stack([items, *others], 1)).to(device),
        multi=torch.empty(BATCH, 0, dtype=torch.int64, device=device),
        numeric=torch.empty(BATCH, 0, device=device),
        offsets=(0, half, BATCH),
        label=torch.from_numpy(random.integers(0, 2, BATCH).astype(np.float32)).to(device),
        rows=torch.arange(BATCH, device=device),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[70_000, 700_000, 6_900_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    first: dict[str, float] = {}
    print("| items | " + " | ".join(f"{u}, ms a step | ratio" for u in _UPDATES) + " |")
    print("|---:|" + "---:|---:|" * len(_UPDATES))
    for items in options.items:
        cells = []
        for updates in _UPDATES:
            trained = Trained(items, updates, torch.device(options.device))
            trained.seconds()
            found = median(trained.seconds() for _ in range(options.rounds)) * 1e3
            first.setdefault(updates, found)
            cells.append(f"{found:.1f} | {found / first[updates]:.2f}")
            del trained
        print(f"| {items:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
