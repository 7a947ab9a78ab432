"""Completes a knowledge folder: writes the index of answers, the prompts set aside, the templates and the seal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST, file_aside, write_text_atomically
from llm4msr.knowledge import LEVELS, Level
from llm4msr.knowledge.engines.base import Engine
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.questions import Block
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.knowledge.stores import Stores
from llm4msr.seals import read_manifest, seal, verify

KIND = "llm4msr knowledge"
VERSION = 2
IndexWriter = Callable[[Level, Block, list[bytes], list[int]], None]
_INDEX = pa.schema([("level", pa.string()), ("subject", pa.int32()), ("time", pa.int64()), ("key", pa.binary())])
_REJECTED = {"level": pl.String, "subject": pl.Int32, "time": pl.Int64, "reason": pl.String}


@dataclass(frozen=True)
class Kept:
    """Index rows and rejected prompts of levels kept from an earlier call, and the config of all levels together."""

    config: ReasonConfig
    index: pa.Table
    rejected: list[tuple[Level, int, int, str]]


def read_index(folder: Path) -> tuple[dict[str, Any], pl.DataFrame]:
    """The manifest and the index of a completed folder, checked; raises `InputError` if it is not complete or altered.

    The index has the columns level, subject (code), time (microseconds) and key (of the answer).
    """
    if Stores.paths(folder) and not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: is not finished; give the `llm4msr reason` command for it again")
    manifest = read_manifest(folder, KIND, VERSION)
    verify(folder, manifest)
    return manifest, pl.read_parquet(folder / "index.parquet")


def kept_levels(folder: Path, data: PreparedData, engine: Engine, config: ReasonConfig, writer: PromptWriter) -> Kept:
    """The levels of an earlier, finished call that this one keeps, since it does not name them; see `reason`."""
    nothing = Kept(config, _INDEX.empty_table(), [])
    if not (folder / MANIFEST).is_file():
        return nothing
    try:
        manifest = read_manifest(folder, KIND, VERSION)
        verify(folder, manifest)
        old = ReasonConfig.checked(manifest["config"])
    except InputError:  # incomplete, altered or of another version: keep nothing
        return nothing
    kept = [level for level in old.levels if level not in config.levels]
    now = (data.fingerprint, engine.identity, list(engine.special_tokens), config.text_limit, config.language)
    before = (*(manifest[name] for name in ("prepared", "engine", "special_tokens")), old.text_limit, old.language)
    templates = folder / "templates"
    if now != before or any((templates / f"{n}.j2").read_text(encoding="utf-8") != writer.sources[n] for n in kept):
        return nothing
    update: dict[str, object] = {level: old.generation(level) for level in kept} | {
        "levels": tuple(level for level in LEVELS if level in kept or level in config.levels)
    }
    if "user" in kept:
        update |= {"snapshots": old.snapshots, "history": old.history}
    if "item" in kept:
        update |= {"items": old.items}
    of_kept = pl.col("level").is_in(kept)
    index = pl.read_parquet(folder / "index.parquet").filter(of_kept).to_arrow().cast(_INDEX)
    rejected = pl.read_parquet(folder / "rejected.parquet").filter(of_kept).rows()
    return Kept(config.model_copy(update=update), index, rejected)


@contextmanager
def index_writer(folder: Path, kept: Kept) -> Iterator[IndexWriter]:
    """Yields a function that appends one block to index.parquet: subject, time and key of each answered prompt.

    Its arguments are the level, the block, the keys of all its prompts, and the places of those that have an answer.
    The index begins with the rows of the `kept` levels. An old index.parquet is replaced only if the `with` block ends
    without an error.
    """
    with file_aside(folder / "index.parquet", "part") as aside, pq.ParquetWriter(aside, _INDEX) as file:
        file.write_table(kept.index)

        def write(level: Level, block: Block, keys: list[bytes], answered: list[int]) -> None:
            columns = [
                [level] * len(answered),
                [block.subjects[place] for place in answered],
                [block.times[place] for place in answered],
                [keys[place] for place in answered],
            ]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _INDEX, strict=True)]
            file.write_table(pa.Table.from_arrays(arrays, schema=_INDEX))

        yield write


def complete(
    data: PreparedData,
    engine: Engine,
    folder: Path,
    config: ReasonConfig,
    writer: PromptWriter,
    rejected: list[tuple[Level, int, int, str]],
) -> None:
    """Write the prompts set aside and the templates, and seal the folder."""
    pl.DataFrame(rejected, schema=_REJECTED, orient="row").write_parquet(folder / "rejected.parquet")
    (folder / "templates").mkdir(exist_ok=True)
    for name, source in writer.sources.items():
        write_text_atomically(folder / "templates" / f"{name}.j2", source)
    content = {
        "prepared": data.fingerprint,
        "engine": engine.identity,
        "model_name": engine.model_name,
        "special_tokens": list(engine.special_tokens),
        "config": config.model_dump(mode="json"),
        **vectors_kept(folder),
    }
    files = ["index.parquet", "rejected.parquet", *(f"templates/{n}.j2" for n in writer.sources)]
    seal(folder, KIND, VERSION, content, files=files)


def vectors_kept(folder: Path) -> dict[str, str]:
    """The manifest's entry for 8-bit vectors, which gives the folder another fingerprint; empty for float16 vectors."""
    with Stores(folder, read_only=True) as stores:
        return {"vectors": "int8"} if any(store.has_eight_bits for store in stores.files) else {}
