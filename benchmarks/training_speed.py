"""Training speed beside public libraries, in turn in one run: end to end, and with batches in memory.

    python -m benchmarks.training_speed [PREPARED] [--steps 30] [--rounds 2] [--backbones star ...]
                                        [--device cuda] [--batch 4096]

`PREPARED` is a prepared folder; without it the full Complete Journey task (2.3 M rows, 14 fields) is prepared into a
temporary folder. Embedding 16, layers 256-128-64, Adam, fp32. A step is batch, forward, backward and update. The clock
starts when a loader has its first batch, so that starting its workers does not count. On a CPU, the floor of each of
our backbones is printed too: its matrix products and look-ups alone, back to back. On a GPU, launching these one by one
would be slower than our recorded steps. There, "step by step" is our model without recorded steps; "sent by batch" also
does not keep the columns on the GPU; "compiled" is `compile = true`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.contender import BATCH, HIDDEN, Contender, NotHereError, Task
from benchmarks.floor import floor_of
from benchmarks.peers import fuxictr, scenario_wise_rec, torch_rechub
from benchmarks.task import prepared
from llm4msr.allocation import keep_freed_memory
from llm4msr.knowledge.tables import NO_KNOWLEDGE
from llm4msr.models.model import ModelConfig, PartChoice, build_model
from llm4msr.training.batches import BatchSource
from llm4msr.training.columns import columns_of
from llm4msr.training.recorded import training_step
from llm4msr.training.train_config import TrainConfig

BACKBONES: dict[str, Callable[[int], dict[str, Any]]] = {
    "star": lambda scenarios: {},
    "shared_bottom": lambda scenarios: {},
    "mmoe": lambda scenarios: {"experts": scenarios},
    "ple": lambda scenarios: {"levels": 1, "specific_experts": 2, "shared_experts": 1},
    "ple, two levels": lambda scenarios: {"levels": 2, "specific_experts": 2, "shared_experts": 2},
}
"""Our backbones, with the settings of Scenario-Wise-Rec's scripts for that number of scenarios, and a deeper PLE."""
PEERS = (scenario_wise_rec, fuxictr, torch_rechub)


def ours(source: BatchSource, task: Task, backbone: str, more: str = "", **training: Any) -> Contender:
    """One of our backbones, as `fit` trains it."""
    scenarios = task.data.scenario_count
    settings = {"hidden": HIDDEN, **BACKBONES[backbone](scenarios)}
    config = ModelConfig(backbone=PartChoice(name=backbone.partition(",")[0], settings=settings))
    model = build_model(config, source.layout, scenarios, source.widths, seed=0).to(task.device).train()
    train = TrainConfig(batch_size=task.batch, **training)
    step = training_step(model, train.optimizers(model), source, train)
    epoch = iter(range(1_000_000))
    return Contender(f"llm4msr {backbone}{more}", task.batch, lambda: step.batches(next(epoch)), step)


def measure(task: Task, backbones: list[str], steps: int, rounds: int) -> None:
    """Print a table for each backbone."""
    data = task.data
    if len(data.fields_of("categorical")) < len(data.schema.fields) or data.split.valid < steps * task.batch:
        raise SystemExit(f"the benchmark needs categorical fields only, and {steps * task.batch:,} training rows")
    keep_freed_memory()  # as `llm4msr train` does; this also applies to the peers
    peers: list[dict[str, list[Contender]]] = []
    for peer in PEERS:
        try:
            peers.append(peer.contenders(task))
        except NotHereError as error:
            print(f"skipped: {peer.NAME} ({error})")
    on_gpu = task.device.type == "cuda"
    source = BatchSource(data, NO_KNOWLEDGE, task.device, columns_of(data, NO_KNOWLEDGE, task.device))
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    print(f"{data.rows:,} rows, {len(data.schema.fields)} fields, batch {task.batch}, {where}\n")
    for backbone in backbones:
        first = ours(source, task, backbone)
        field = [first, *(one for peer in peers for one in peer.get(backbone, []))]
        if on_gpu:
            field.append(ours(source, task, backbone, ", step by step", cuda_graphs=False))
            sent = BatchSource(data, device=task.device)
            field.append(ours(sent, task, backbone, ", step by step, sent by batch"))
            field.append(ours(source, task, backbone, ", compiled", compile=True))
        if on_gpu or torch.backends.cpu.get_cpu_capability() == "AVX512":
            field.append(ours(source, task, backbone, ", bf16", precision="bfloat16"))
        _table(field, steps, rounds, with_floor=not on_gpu)


def _table(field: list[Contender], steps: int, rounds: int, *, with_floor: bool) -> None:
    first = field[0]
    held: dict[str, list[Any]] = {c.name: list(islice(c.batches(), 8)) for c in field}
    whole: dict[str, list[float]] = {c.name: [] for c in field}
    alone: dict[str, list[float]] = {c.name: [] for c in field}
    floor = floor_of(lambda: first.step(next(first.batches()))) if with_floor else None
    floors: list[float] = []
    for number in range(rounds + 1):  # the first round warms up
        found = [(c.name, c.compute(held[c.name]), c.end_to_end(steps)) for c in field]
        lowest = first.rows / median(floor() for _ in range(5)) if floor else 0.0
        if number:
            floors.append(lowest)
            for name, compute, end_to_end in found:
                alone[name].append(compute)
                whole[name].append(end_to_end)
    print(f"| {first.name} | end to end, rows/s | ours : theirs | batch in memory | ours : theirs |")
    print("|---|---:|---:|---:|---:|")
    for c in field:
        ratio = _ratio(whole[first.name], whole[c.name]), _ratio(alone[first.name], alone[c.name])
        print(f"| {c.name} | {median(whole[c.name]):,.0f} | {ratio[0]} | {median(alone[c.name]):,.0f} | {ratio[1]} |")
    if floor:
        share = [median(a / b for a, b in zip(part[first.name], floors, strict=True)) for part in (whole, alone)]
        print(f"| floor: products and look-ups | {median(floors):,.0f} | {share[0]:.0%} | | {share[1]:.0%} |")
    print(flush=True)


def _ratio(mine: list[float], theirs: list[float]) -> str:
    return f"{median(a / b for a, b in zip(mine, theirs, strict=True)):.2f}"


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=BACKBONES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=BATCH)
    a = parser.parse_args()
    with prepared(a.prepared) as data:
        measure(Task(data, a.batch, torch.device(a.device)), a.backbones, a.steps, a.rounds)


if __name__ == "__main__":
    main()
