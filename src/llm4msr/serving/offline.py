"""Scores a table of users, items and scenarios with a bundle: what a server would answer, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llm4msr.data.raw import as_id, as_text, as_texts
from llm4msr.data.tables import Table
from llm4msr.errors import InputError, nearest
from llm4msr.folders import Scratch, file_aside
from llm4msr.schema import FieldSpec
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.live import open_live
from llm4msr.serving.log import FILE, copy_log
from llm4msr.serving.requests import RequestError, ScoreRequest
from llm4msr.serving.scorer import Scorer

SCORE = "score"
_BLOCK = 200_000
"""Rows that are read, scored and written at a time."""
_PASS = 4_096
"""About how many rows go through the model at once."""


@dataclass
class Counts:
    """The rows of a table, those without a score, and those whose user or whose item the bundle does not know."""

    rows: int = 0
    without: int = 0
    unknown_users: int = 0
    unknown_items: int = 0


def score_table(
    bundle: Path,
    table: Table,
    out: Path,
    *,
    state: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> Counts:
    """Write `table` with one more column, `score`, as a Parquet file, in the order of its rows.

    The columns are named as in the bundle's schema: user, item, scenario and, if they are there, the context fields'
    columns. A row without an id or with a scenario that the schema lacks has no score (null). The users' states are
    those of the export or, with `state`, those that also know the events of that server's log.

    Raises `InputError` for a missing column, a column named `score`, a value that a context field cannot have, or if no
    row has a known scenario.
    """
    scorer, keeps = _scorer(bundle, state)
    columns = scorer.bundle.schema.columns
    for column, role in ((columns.user, "user"), (columns.item, "item"), (columns.scenario, "scenario")):
        table.require(column, f"the schema's {role} column")
    if SCORE in table.columns():
        raise InputError(f"{table.name}: has a column {SCORE!r} already; rename it")
    rows, counts = int(table.collect(pl.len()).item()), Counts()
    with file_aside(out) as aside:
        writer: pq.ParquetWriter | None = None
        for start in range(0, max(rows, 1), _BLOCK):
            block = table.replace(table.frame.slice(start, _BLOCK)).collect(pl.all())
            try:
                found = block.with_columns(_scored(scorer, block, counts)).to_arrow()
            except RequestError as error:
                raise InputError(f"{table.name}: {error.message}") from error
            writer = writer or pq.ParquetWriter(aside, found.schema)
            writer.write_table(found)
            progress(counts.rows, rows)
        assert writer is not None
        writer.close()
        if rows and counts.without == rows:
            known = nearest("", [s.value for s in scorer.bundle.schema.scenarios])
            raise InputError(f"{table.name}: no row has ids and a scenario of the schema ({known})")
    del keeps
    return counts


def _scorer(bundle: Path, state: Path | None) -> tuple[Scorer, Scratch]:
    """A scorer, and the temporary folder of its states, which must outlive it.

    The folder has a copy of the log of `state`: a server's own folder is only read.
    """
    opened, scratch = Bundle.open(bundle), Scratch()
    if state is not None:
        if not state.is_dir():
            raise InputError(f"--state {state}: no such folder; a server keeps its log of events in it")
        if (state / FILE).is_file():
            copy_log(state / FILE, scratch.path / FILE)
    try:
        return Scorer(opened, open_live(opened, scratch.path)), scratch
    except InputError as error:
        raise InputError(str(error).replace(str(scratch.path), str(state))) from error


def _scored(scorer: Scorer, block: pl.DataFrame, counts: Counts) -> pl.Series:
    """The scores of a block's rows, null where there is none."""
    out = np.full(block.height, np.nan, dtype=np.float32)
    pending: list[tuple[ScoreRequest, NDArray[np.intp]]] = []
    size = 0
    for request, rows in _requests(scorer.bundle, block):
        pending.append((request, rows))
        size += len(rows)
        if size >= _PASS:
            _score(scorer, pending, out, counts)
            pending, size = [], 0
    _score(scorer, pending, out, counts)
    counts.rows += block.height
    counts.without += int(np.isnan(out).sum())
    return pl.Series(SCORE, out, nan_to_null=True)


def _score(
    scorer: Scorer, pending: list[tuple[ScoreRequest, NDArray[np.intp]]], out: NDArray[np.float32], counts: Counts
) -> None:
    if not pending:
        return
    for (request, rows), found in zip(pending, scorer.score([request for request, _ in pending]), strict=True):
        out[rows] = found.scores
        unknown = set(found.unknown_items)
        counts.unknown_users += 0 if found.user_known else len(rows)
        counts.unknown_items += sum(item in unknown for item in request.items) if unknown else 0


def _as_prepared(field: FieldSpec, dtype: pl.DataType) -> pl.Expr:
    """A context field's values: texts as `prepare` makes them of this type, or numbers."""
    value = pl.col(field.source)
    if field.kind == "numeric":
        return value if dtype == pl.String or dtype.is_nested() else value.cast(pl.Float64)
    if not dtype.is_nested():
        return as_text(value, dtype)
    return as_texts(value, dtype) if field.kind == "multi" else value


def _requests(bundle: Bundle, block: pl.DataFrame) -> Iterator[tuple[ScoreRequest, NDArray[np.intp]]]:
    """A request for each user and scenario of a block, of at most `_PASS` items, and its rows in the block."""
    schema, types = bundle.schema, block.schema
    columns = schema.columns
    scenario = as_text(pl.col(columns.scenario), types[columns.scenario])
    raw = block.select(
        as_id(columns.user, types[columns.user]).alias("user"),
        as_id(columns.item, types[columns.item]).alias("item"),
        pl.when(scenario.is_in(list(bundle.scenario_index))).then(scenario).alias("scenario"),
    ).with_row_index("row")
    given = [f for f in schema.fields if f.side == "context" and f.source in types and f.source != columns.scenario]
    context = block.select(_as_prepared(f, types[f.source]).alias(f.name) for f in given)
    usable = raw.drop_nulls().sort("user", "scenario", maintain_order=True)
    if usable.is_empty():
        return
    rows = usable["row"].to_numpy().astype(np.intp)
    users, items, scenarios = (usable[name].to_list() for name in ("user", "item", "scenario"))
    first = usable.select(
        (pl.col("user") != pl.col("user").shift()) | (pl.col("scenario") != pl.col("scenario").shift())
    ).to_series()
    starts = [0, *(np.flatnonzero(first.fill_null(False).to_numpy())).tolist(), len(rows)]
    for begin, end in pairwise(starts):
        for start in range(begin, end, _PASS):
            stop = min(end, start + _PASS)
            chosen = rows[start:stop]
            features: list[Any] | None = list(context[chosen].iter_rows(named=True)) if context.width else None
            yield (
                ScoreRequest.model_construct(
                    user=users[start], scenario=scenarios[start], items=items[start:stop], item_features=features
                ),
                chosen,
            )
