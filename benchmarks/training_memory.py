"""Peak memory of training, and the time of an evaluation beside that of an epoch.

    python -m benchmarks.training_memory [PREPARED] [--steps 200] [--window ROWS] [--knowledge]

PREPARED may be the full shape of KuaiSAR: `python -m benchmarks.kuaisar_files FILES`, then `llm4msr prepare --source
kuaisar --set folder=FILES --out PREPARED`. Without it a tenth of that size is made, in another process, whose memory
does not count. The model is a Shared Bottom with the default embedding of 16. With `--knowledge`, LLM4MSR is around it,
with states composed of random vectors of 64 numbers.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from torch.nn import functional

from benchmarks.contender import BATCH
from benchmarks.kuaisar_files import Shape, write_files
from benchmarks.task import knowledge_of_that_shape
from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources import read_source
from llm4msr.knowledge.tables import NO_KNOWLEDGE
from llm4msr.models.model import ModelConfig, PartChoice, build_model
from llm4msr.training.batches import BatchSource
from llm4msr.training.checkpoint import Position, copy_of, save_checkpoint
from llm4msr.training.evaluation import evaluate
from llm4msr.training.optim import Optimizers
from llm4msr.training.order import Drawing


def peak() -> float:
    """The peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Read the command line, prepare the data if none is given, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--window", type=int)
    parser.add_argument("--knowledge", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.prepared
        if folder is None:
            folder = Path(scratch) / "data"
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(make, Path(scratch) / "files", folder).result()
        measure(
            PreparedData.open(folder, check=False),
            options.steps,
            options.window,
            Path(scratch),
            knowledge=options.knowledge,
        )


def make(files: Path, out: Path) -> None:
    """Prepare a tenth of KuaiSAR's shape."""
    write_files(files, Shape().scaled(0.1))
    prepare(read_source("kuaisar", {"folder": str(files)}), out)


def measure(data: PreparedData, steps: int, window: int | None, scratch: Path, *, knowledge: bool) -> None:
    """Train, evaluate and write a checkpoint into `scratch`; print the speed and the peak memory of each."""
    began = time.perf_counter()
    source = BatchSource(data, knowledge_of_that_shape(data) if knowledge else NO_KNOWLEDGE)
    print(f"knowledge: {time.perf_counter() - began:.1f} s, peak {peak():,.0f} MiB")
    parts = PartChoice(name="shared_bottom"), PartChoice(name="llm4msr" if knowledge else "none")
    config = ModelConfig(backbone=parts[0], enhancer=parts[1])
    model = build_model(config, source.layout, data.scenario_count, source.widths, seed=0)
    optimizers = Optimizers(model, learning_rate=1e-3, embedding_decay=1e-5, weight_decay=0.0)
    table = model.embedding.table.weight
    tables = 3 * table.numel() * 4 / 2**20
    print(f"{data.rows:,} rows, {len(data.schema.fields)} fields, {len(table):,} rows of embeddings")
    print(f"table and its optimizer's state: {tables:,.0f} MiB; peak before training {peak():,.0f} MiB")
    began, rows = time.perf_counter(), 0
    for batch in islice(source.epoch(Drawing(BATCH, window=window, together=16), 0), steps):
        optimizers.zero_grad()
        functional.binary_cross_entropy_with_logits(model(batch)[0], batch.label).backward()
        optimizers.step()
        rows += len(batch)
    speed = rows / (time.perf_counter() - began)
    print(f"training: {speed:,.0f} rows/s, peak {peak():,.0f} MiB ({peak() - tables:,.0f} beside the table)")
    began = time.perf_counter()
    evaluate(model, data, source, "valid")
    seconds, scored = time.perf_counter() - began, data.split.test - data.split.valid
    epoch = data.split.valid / speed
    print(
        f"evaluation: {scored / seconds:,.0f} rows/s; {2e6 * seconds / scored:.1f} s for 2 M rows, "
        f"an epoch of training {epoch:.1f} s; peak {peak():,.0f} MiB"
    )
    save_checkpoint(scratch / "checkpoint.safetensors", model, copy_of(model), optimizers, Position())
    print(f"after a checkpoint: peak {peak():,.0f} MiB ({peak() - tables:,.0f} beside the table)")


if __name__ == "__main__":
    main()
