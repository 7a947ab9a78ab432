"""Training on a GPU where some scenarios are rare: steps replayed, and steps run operation by operation.

    python -m benchmarks.rare_scenarios [--rows 1700000] [--backbones star shared_bottom] [--device cuda]

Generated rows with 12 fields; embedding 16, layers 256-128-64, batches of 4096 rows. Both kinds of step take turns, an
epoch each. Shown is the second epoch; "first epoch" is the one with replays in which the steps are recorded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.contender import BATCH, HIDDEN
from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.knowledge.tables import NO_KNOWLEDGE
from llm4msr.models.model import ModelConfig, PartChoice, build_model
from llm4msr.schema import Schema
from llm4msr.training.batches import BatchSource
from llm4msr.training.columns import columns_of
from llm4msr.training.recorded import training_step
from llm4msr.training.train_config import TrainConfig

SHARES = {
    "3 scenarios, one of .5 %": [0.7, 0.295, 0.005],
    "3 scenarios, one of .02 %": [0.7, 0.2998, 0.0002],
    "11 scenarios, 8 of .25 %": [0.6, 0.3, 0.08, *[0.0025] * 8],
    "11 scenarios, 8 of .02 to .3 %": [0.6, 0.3, 0.0902, 0.003, 0.002, 0.0015, 0.001, 0.0008, 0.0007, 0.0006, 0.0002],
}
"""Each scenario's share of the rows."""


def generated(shares: list[float], rows: int, folder: Path) -> PreparedData:
    """Random rows of scenarios with these shares, prepared."""
    random = np.random.default_rng(0)
    names = [f"s{number}" for number in range(len(shares))]
    context = {f"context_{number}": random.integers(0, 50, rows) for number in range(10)}
    frame = pl.DataFrame(
        {
            "user": random.integers(0, 20_000, rows),
            "item": random.integers(0, 30_000, rows),
            "scenario": np.asarray(names)[random.choice(len(shares), rows, p=shares)],
            "time": np.arange(rows) + 1_000_000_000,
            "click": random.integers(0, 2, rows),
            **context,
        }
    )
    schema = {
        "name": "generated",
        "description": "random rows",
        "columns": {k: k for k in ("user", "item", "scenario", "time")} | {"label": "click", "time_unit": "s"},
        "scenarios": [{"value": name, "name": name, "description": name} for name in names],
        "fields": [
            {"name": "user", "side": "user", "min_count": 1},
            {"name": "item", "side": "item", "min_count": 1},
            *({"name": name, "side": "context"} for name in context),
        ],
    }
    return prepare(from_frames(Schema.checked(schema, "the benchmark's schema"), interactions=frame), folder)


class Trained:
    """A model that is trained epoch by epoch."""

    def __init__(self, source: BatchSource, scenarios: int, backbone: str, *, replayed: bool) -> None:
        config = ModelConfig(backbone=PartChoice(name=backbone, settings={"hidden": HIDDEN}))
        model = build_model(config, source.layout, scenarios, source.widths, seed=0).to(source.device).train()
        train = TrainConfig(batch_size=BATCH, cuda_graphs=replayed)
        self._step = training_step(model, train.optimizers(model), source, train)

    def epoch(self, number: int) -> tuple[float, float]:
        """Rows a second, and the share of padded batches."""
        self._step.padded_steps, rows, steps, began = 0, 0, 0, time.perf_counter()
        for batch in self._step.batches(number):
            rows, steps = rows + self._step(batch), steps + 1
        float(self._step.loss_sum)  # wait for the device
        return rows / (time.perf_counter() - began), self._step.padded_steps / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_700_000)
    parser.add_argument("--backbones", nargs="+", default=["star", "shared_bottom"])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    options = parser.parse_args()
    device = torch.device(options.device)
    print("| | one by one, rows/s | with replays | ratio | first epoch | batches replayed |")
    print("|---|---:|---:|---:|---:|---:|")
    for case, shares in SHARES.items():
        with tempfile.TemporaryDirectory() as scratch:
            data = generated(shares, options.rows, Path(scratch) / "data")
            source = BatchSource(data, NO_KNOWLEDGE, device, columns_of(data, NO_KNOWLEDGE, device))
            for backbone in options.backbones:
                plain, replayed = (Trained(source, len(shares), backbone, replayed=r) for r in (False, True))
                first, later = [(plain.epoch(number)[0], *replayed.epoch(number)) for number in range(2)]
                cells = f"{later[0]:,.0f} | {later[1]:,.0f} | {later[1] / later[0]:.1f} | {first[1]:,.0f}"
                print(f"| {case}: {backbone} | {cells} | {later[2]:.0%} |", flush=True)


if __name__ == "__main__":
    main()
