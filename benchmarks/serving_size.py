"""Memory and speed of a server with many users and items: a bundle is enlarged by repeating its own rows.

    python -m benchmarks.serving_size BUNDLE OUT [--users 1000000] [--items 5000000] [--seconds 60]

writes OUT (several GB) and serves it: steady scoring of 100 candidates and, at the same time, 2,000 events a second.
Users and items are drawn by Zipf's law. Titles, vectors and states repeat the bundle's own.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.serving import finished, report, server, started, write_bodies
from llm4msr.folders import MANIFEST
from llm4msr.schema import Schema
from llm4msr.seals import read_manifest, seal
from llm4msr.serving.bundle import KIND, VERSION
from llm4msr.serving.fields import is_id, places, vocabulary_table
from llm4msr.serving.lookup import FILE, LookupWriter, open_lookup
from llm4msr.training.checkpoint import read_tensors, write_tensors

_BLOCK = 250_000


def main() -> None:
    """Enlarge the bundle, serve it and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=5_000_000)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    if not options.out.exists():
        began = time.perf_counter()
        blow_up(options.bundle, options.out, options.users, options.items)
        print(f"made in {time.perf_counter() - began:.0f} s")
    size = sum(f.stat().st_size for f in options.out.rglob("*") if f.is_file())
    print(f"{options.users:,} users, {options.items:,} items, {size / 1e9:.1f} GB on disk", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scores, events = write_bodies(options.out, folder, skewed=True)
        began = time.perf_counter()
        with server(options.out, folder / "state") as process:
            print(f"ready after {time.perf_counter() - began:.0f} s, checksums included")
            say_memory("at the start", process.pid)
            both = [
                started(folder, path, bodies, options.seconds, pause=98)
                for path, bodies in (("/v1/score", scores), ("/v1/events", events))
            ]
            report("steady scoring beside events", finished(both[0]))
            report("those events", finished(both[1]))
            say_memory("after both", process.pid)


def blow_up(source: Path, out: Path, users: int, items: int) -> None:
    """Write a bundle like `source` with more users and items."""
    manifest = read_manifest(source, KIND, VERSION)
    schema = Schema.checked(manifest["schema"], str(source))
    counts = {"users": users, "items": items}
    for name, count in counts.items():
        (out / name).mkdir(parents=True)
        entity_arrays(source / name, out / name, count)
    states_and_histories(source / "users", out / "users", users)
    for popular in (source / "items").glob("popular_*.npy"):
        shutil.copy(popular, out / "items")
    look_ups(source, out, schema, counts)
    for name in ("scenarios.json", "card.md", "means.safetensors", "knowledge.safetensors"):
        if (source / name).is_file():
            shutil.copy(source / name, out)
    sizes = embedding(source, out, schema, manifest, counts)
    manifest["layout"]["categorical"] = sizes
    manifest["counts"] |= counts
    content = {k: v for k, v in manifest.items() if k not in ("kind", "version", "files")}
    assert not (out / MANIFEST).exists()
    seal(out, KIND, VERSION, content)


def entity_arrays(source: Path, out: Path, count: int) -> None:
    """Write fields, vectors and prompted states: the rows of the source over and over, with its last row at the end."""
    for name in ("categorical", "multi", "numeric", "vectors", "prompted"):
        if not (source / f"{name}.npy").is_file():
            continue
        old = np.load(source / f"{name}.npy")
        new = np.lib.format.open_memmap(out / f"{name}.npy", "w+", old.dtype, (count + 1, old.shape[1]))
        for start in range(0, count, _BLOCK):
            stop = min(count, start + _BLOCK)
            new[start:stop] = old[np.arange(start, stop) % (len(old) - 1)]
        new[count] = old[-1]
        new.flush()


def states_and_histories(source: Path, out: Path, users: int) -> None:
    """Give the state sums and the latest 20 history events of the source's users to all users in turn."""
    rows_in_turn(source, out, users, "state", ("stream", "total", "weight", "time", "count"), most=1_000)
    rows_in_turn(source, out, users, "history", ("time", "item", "scenario", "behaviour"), most=20)


def rows_in_turn(source: Path, out: Path, users: int, what: str, columns: tuple[str, ...], most: int) -> None:
    """Repeat the users of the source, with the last `most` rows of each in these columns, until there are `users`."""
    offsets = np.load(source / f"{what}_offsets.npy")
    lengths = np.minimum(np.diff(offsets), most)
    chosen = np.concatenate([np.arange(stop - n, stop) for stop, n in zip(offsets[1:], lengths, strict=True)])
    rounds = -(-users // len(lengths))
    new_offsets = np.append(0, np.cumsum(np.tile(lengths, rounds)[:users]))
    np.save(out / f"{what}_offsets.npy", new_offsets)
    for name in columns:
        repeated(np.load(source / f"{what}_{name}.npy")[chosen], out / f"{what}_{name}.npy", int(new_offsets[-1]))


def repeated(old: NDArray[np.generic], path: Path, rows: int) -> None:
    """Write an array of `rows` rows that repeats the rows of `old`."""
    new = np.lib.format.open_memmap(path, "w+", old.dtype, (rows, *old.shape[1:]))
    for start in range(0, rows, _BLOCK):
        stop = min(rows, start + _BLOCK)
        new[start:stop] = old[np.arange(start, stop) % len(old)]
    new.flush()


def look_ups(source: Path, out: Path, schema: Schema, counts: dict[str, int]) -> None:
    """Write the ids of all users and items, titles, and the source's vocabularies."""
    old = open_lookup(source / FILE)
    writer = LookupWriter(out)
    for side, count in (("user", counts["users"]), ("item", counts["items"])):
        writer.numbers(side, [f"{n:08d}" for n in range(count)])
    writer.texts("item id", ((n, f"{n:08d}") for n in range(counts["items"])))
    titles = [old.text("title", n) or "" for n in range(1000)]
    writer.texts("title", ((n, titles[n % 1000]) for n in range(counts["items"])))
    writer.texts("knowledge", iter(()))
    for spec in schema.fields:
        if spec.kind != "numeric":
            values = [] if is_id(spec, schema) else old.starting_with(vocabulary_table(spec.name), "", 1_000_000)
            numbers = old.numbers(vocabulary_table(spec.name), values).tolist()
            writer.numbers(vocabulary_table(spec.name), values, numbers)
    writer.close()


def embedding(
    source: Path, out: Path, schema: Schema, manifest: dict[str, dict[str, list[int]]], counts: dict[str, int]
) -> list[int]:
    """Write the weights with an embedding row for each user and item; returns the sizes of the categorical fields."""
    tensors, _ = read_tensors(source / "model.safetensors")
    old = tensors["embedding.table.weight"]
    fields = [p.spec for p in places(schema).values() if p.spec.kind == "categorical"]
    starts = np.append(0, np.cumsum(manifest["layout"]["categorical"]))
    parts, sizes = [], []
    for spec, start, stop in zip(fields, starts, starts[1:], strict=False):
        part = old[int(start) : int(stop)]
        size = len(part)
        if is_id(spec, schema):
            size = counts[f"{spec.side}s"] + 1
            part = part[torch.arange(size) % len(part)]
            codes = np.load(out / f"{spec.side}s" / "categorical.npy", mmap_mode="r+")
            own = [s.name for s in fields if s.side == spec.side].index(spec.name)
            codes[:-1, own] = np.arange(1, size)
            codes.flush()
        parts.append(part)
        sizes.append(size)
    rest = old[int(starts[-1]) :]
    tensors["embedding.table.weight"] = torch.cat([*parts, rest])
    write_tensors(out / "model.safetensors", tensors)
    return sizes


def say_memory(when: str, pid: int) -> None:
    """Print the resident memory of a process, and the part of it that is not pages of files."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {name: int(value) / 1024 for name, value in _numbers(text)}
    print(f"{when}: resident {found['Rss']:.0f} MiB, of that not of files {found['Anonymous']:.0f} MiB", flush=True)


def _numbers(text: str) -> Iterator[tuple[str, str]]:
    for line in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE):
        yield line[1], line[2]


if __name__ == "__main__":
    main()
