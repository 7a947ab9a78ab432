"""Upkeep of a knowledge folder: show what it holds, check it, make it smaller, export it.

What changes the folder raises `InputError` if another process is at work in it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST, file_aside, sole_writer
from llm4msr.knowledge import LEVELS, Level
from llm4msr.knowledge.completion import KIND, VERSION, read_index, vectors_kept
from llm4msr.knowledge.eightbit import Scale
from llm4msr.knowledge.store import Store
from llm4msr.knowledge.stores import Stores
from llm4msr.seals import seal

_FEWEST = 1000
"""A level needs at least this many distinct answers for its vectors to be kept in 8 bits."""
_SAMPLE = 20_000
"""About so many vectors say what is usual in a level."""
_FAR = 6.0
"""A vector is far from the others if its distance is this many robust deviations above the median distance."""


@dataclass(frozen=True)
class LevelStats:
    """A level's number of prompts, distinct answers and prompts set aside, mean tokens, and counts of finish reasons.

    `far` are the subjects whose vectors are far from all others, the farthest first.
    """

    level: Level
    prompts: int
    distinct: int
    rejected: int
    prompt_tokens: float
    generated_tokens: float
    endings: dict[str, int]
    far: list[int]


@dataclass(frozen=True)
class Stats:
    """Each store file (name, number of answers, bytes), and each level."""

    files: list[tuple[str, int, int]]
    levels: list[LevelStats]


def stats(folder: Path) -> Stats:
    """Read every answer of the index. Raises `InputError` if the folder is not complete, or an answer is missing."""
    (_, index), rejected = read_index(folder), pl.read_parquet(folder / "rejected.parquet")
    levels = []
    with Stores(folder, read_only=True) as stores:
        files = [(store.path.name, len(store), store.path.stat().st_size) for store in stores.files]
        for level in LEVELS:
            part = index.filter(pl.col("level") == level)
            aside = rejected.filter(pl.col("level") == level).height
            if part.is_empty() and not aside:
                continue
            keys = part["key"].unique(maintain_order=True).to_list()
            endings: Counter[str] = Counter()
            tokens = np.zeros(2)
            for answer in stores.answers(keys):
                endings[answer.finish_reason] += 1
                tokens += (answer.prompt_tokens, answer.generated_tokens)
            far = _far(stores, keys)
            by_distance = pl.DataFrame({"key": far}, schema={"key": pl.Binary})
            subjects = by_distance.join(part, on="key", maintain_order="left")["subject"].unique(maintain_order=True)
            mean = tokens / max(1, len(keys))
            levels.append(
                LevelStats(level, part.height, len(keys), aside, mean[0], mean[1], dict(endings), subjects.to_list())
            )
    return Stats(files, levels)


def _far(stores: Stores, keys: list[bytes], block: int = 16_384) -> list[bytes]:
    """The keys whose standardised vectors are much farther from the mean than most, the farthest first."""
    if len(keys) < 20:  # too few to say what is usual
        return []
    sample = stores.vectors(keys[:: max(1, len(keys) // _SAMPLE)]).astype(np.float32)
    mean, deviation = sample.mean(0), np.maximum(sample.std(0), 1e-6)
    parts = []
    for start in range(0, len(keys), block):
        z = (stores.vectors(keys[start : start + block]).astype(np.float32) - mean) / deviation
        parts.append(np.sqrt(np.square(z).mean(1)))
    distance = np.concatenate(parts)
    middle = np.median(distance)
    spread = max(1.4826 * float(np.median(np.abs(distance - middle))), 1e-3)
    order = np.argsort(-distance, kind="stable")
    return [keys[i] for i in order[: int((distance > middle + _FAR * spread).sum())]]


def altered(folder: Path, *, remove: bool = False) -> dict[str, int]:
    """For each store file, how many answers do not match their checksum; with `remove` they are deleted."""
    found = {}
    with sole_writer(folder) if remove else nullcontext():
        for name in _names(folder):
            with Store(folder / name, read_only=not remove) as store:
                bad = store.altered()
                if bad and remove:
                    store.delete(bad)
                found[name] = len(bad)
    return found


def _names(folder: Path) -> list[str]:
    """The names of the folder's store files; raises `InputError` if there is none."""
    with Stores(folder, read_only=True) as stores:
        return [store.path.name for store in stores.files]


def compact(folder: Path, *, int8: bool = False) -> int:
    """Merge all store files into one, and free unused disk space. Returns how many answers it holds.

    With `int8`, vectors are kept in 8 bits per number, with one scale per level; levels of fewer than 1,000 distinct
    answers stay in float16. This changes the folder's fingerprint, so runs that used the knowledge have to be trained
    again. Raises `InputError` if the folder has no store.
    """
    if not Stores.paths(folder):
        raise InputError(f"{folder}: has no store of answers; name a folder that `llm4msr reason` wrote")
    with sole_writer(folder):
        return _compact(folder, int8)


def _compact(folder: Path, int8: bool) -> int:
    with Stores(folder) as stores:
        main, *others = stores.files
        for other in others:
            for rows in other.everything():
                main.write(rows)
        if int8:
            manifest, index = read_index(folder)
            (folder / MANIFEST).unlink()  # no seal while the vectors change
            _quantise(main, index)
        main.shrink()
        count = len(main)
        paths = [other.path for other in others]
    for path in paths:
        path.unlink()
    if int8:
        content = {name: value for name, value in manifest.items() if name not in ("kind", "version", "files")}
        seal(folder, KIND, VERSION, content | vectors_kept(folder), files=list(manifest["files"]))
    return count


def _quantise(store: Store, index: pl.DataFrame) -> None:
    for level in LEVELS:
        keys = index.filter(pl.col("level") == level)["key"].unique(maintain_order=True).to_list()
        if len(keys) >= _FEWEST:
            sample = store.vectors(keys[:: max(1, len(keys) // _SAMPLE)])
            store.quantise(keys, Scale.fit(sample))


def collect_garbage(folder: Path) -> int:
    """Remove the answers that the folder's index does not name, and return how many they were.

    They belong to earlier prompts or settings, or are texts that `llm4msr explain` had written on request.
    """
    removed = 0
    with sole_writer(folder):
        named = set(read_index(folder)[1]["key"].to_list())
        for name in _names(folder):
            with Store(folder / name) as store:
                unnamed = store.keys() - named
                store.delete(unnamed)
                store.shrink()
                removed += len(unnamed)
    return removed


def export(folder: Path, out: Path) -> int:
    """Write all answers with their subjects as one Parquet file, and return how many rows it has.

    Columns: level, subject (code), time (microseconds; the smallest int64 if always true), text, finish_reason,
    prompt_tokens, generated_tokens, vector (list of float).
    """
    schema = pa.schema(
        [
            ("level", pa.string()),
            ("subject", pa.int32()),
            ("time", pa.int64()),
            ("text", pa.string()),
            ("finish_reason", pa.string()),
            ("prompt_tokens", pa.int32()),
            ("generated_tokens", pa.int32()),
            ("vector", pa.list_(pa.float32())),
        ]
    )
    _, index = read_index(folder)
    with (
        Stores(folder, read_only=True) as stores,
        file_aside(out) as aside,
        pq.ParquetWriter(aside, schema) as file,
    ):
        for part in index.iter_slices(4096):
            rows = []
            subjects = part.select("level", "subject", "time").iter_rows()
            for subject, a in zip(subjects, stores.answers(part["key"].to_list()), strict=True):
                numbers = (a.prompt_tokens, a.generated_tokens)
                rows.append((*subject, a.text, a.finish_reason, *numbers, a.vector.astype(np.float32)))
            columns = [list(column) for column in zip(*rows, strict=True)]
            file.write_table(pa.table(columns, schema=schema))
    return index.height
