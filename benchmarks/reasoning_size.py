"""Reasoning at scale: memory and rows a second with millions of prompts, store look-ups, and composed states.

    python -m benchmarks.reasoning_size [--items 200000 2000000] [--width 64] [--events 10000000]

The engine is a stub that answers at once with a vector of `--width` numbers, so that only our own work is measured:
planning, rendering, hashing, writing. Each size runs in its own process, whose peak memory is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.knowledge.engines.base import Answer, Generation
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.knowledge.states import compose
from llm4msr.knowledge.stores import Stores
from llm4msr.schema import Schema

_SCHEMA = {
    "name": "big",
    "columns": {
        "user": "user",
        "item": "item",
        "scenario": "place",
        "time": "time",
        "label": "click",
        "time_unit": "s",
    },
    "scenarios": [{"value": "a"}, {"value": "b"}],
    "fields": [{"name": "user", "side": "user"}],
    "item_text": {"title": "title", "category": "category"},
}


class Stub:
    """An engine that answers at once."""

    model_name = "stub"
    special_tokens: Sequence[str] = ()

    def __init__(self, width: int) -> None:
        self._vector = np.linspace(-1, 1, width).astype(np.float16)

    @property
    def identity(self) -> dict[str, Any]:
        """A name."""
        return {"engine": "stub", "width": len(self._vector)}

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[list[tuple[int, Answer]]]:
        """The same vector for all, 256 at a time."""
        del generation
        for start in range(0, len(prompts), 256):
            places = range(start, min(start + 256, len(prompts)))
            yield [(place, Answer("", self._vector, "prefill", 20, 0)) for place in places]


def _prepared(folder: Path, items: int) -> PreparedData:
    random = np.random.default_rng(0)
    interactions = pl.DataFrame(
        {
            "user": random.integers(0, 1000, items),
            "item": np.arange(items),
            "place": random.choice(["a", "b"], items),
            "time": np.arange(items),
            "click": random.integers(0, 2, items),
        }
    )
    titles = pl.select(pl.int_range(items).alias("item")).with_columns(
        pl.format("The thing number {} of the catalogue", "item").alias("title"),
        pl.format("Department {} > Shelf {}", pl.col("item") % 50, pl.col("item") % 1000).alias("category"),
    )
    return prepare(from_frames(Schema.checked(_SCHEMA, "here"), interactions, items=titles), folder)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _reason(data: Path, folder: Path, width: int) -> None:
    """Reason about all items, look some up, and print the speeds and the peak memory."""
    opened = PreparedData.open(data)
    before, began = _peak(), time.perf_counter()
    (summary,) = reason(opened, Stub(width), folder, ReasonConfig(levels=("item",)))
    seconds = time.perf_counter() - began
    print(
        f"{summary.prompts:,} prompts x {width}: {summary.prompts / seconds:,.0f} rows/s, "
        f"peak {_peak():,.0f} MiB ({before:,.0f} with the data open)",
        flush=True,
    )
    index = KnowledgeFolder.open(folder, opened).index
    keys = index["key"].sample(2000, seed=0).to_list()
    times = []
    with Stores(folder, read_only=True) as stores:
        for key in keys:
            began = time.perf_counter()
            stores.read(key)
            times.append(time.perf_counter() - began)
    middle, late = np.quantile(times, [0.5, 0.99]) * 1e3
    print(f"  look-up: median {middle:.3f} ms, 99th percentile {late:.3f} ms", flush=True)


def _compose(events: int) -> None:
    random = np.random.default_rng(0)
    user = np.sort(random.integers(0, events // 100, events)).astype(np.int32)
    time_ = np.arange(events, dtype=np.int64) * 1_000_000
    item = random.integers(0, 100_000, events).astype(np.int32)
    vectors = random.standard_normal((100_000, 64)).astype(np.float32)
    began = time.perf_counter()
    states = compose(user, time_, item, vectors, 30.0)
    seconds = time.perf_counter() - began
    print(
        f"compose: {events:,} events of {events // 100:,} users x 64: {events / seconds * 60 / 1e6:,.0f} M events a "
        f"minute, peak {_peak():,.0f} MiB, of which the states {states.vectors.nbytes / 2**20:,.0f} MiB"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--events", type=int, default=10_000_000)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        for items in options.items:
            folder = Path(scratch) / str(items)
            for work, arguments in (
                (_prepared, (folder / "data", items)),
                (_reason, (folder / "data", folder / "k", options.width)),
            ):
                process = spawn.Process(target=work, args=arguments)
                process.start()
                process.join()
    _compose(options.events)


if __name__ == "__main__":
    main()
