"""The users and the items of a data set, each with a code: its row number in `users.parquet` or `items.parquet`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from llm4msr.data.ordering import ROW_ORDER, in_order
from llm4msr.data.positions import Positions
from llm4msr.data.raw import as_id, in_text_order
from llm4msr.data.tables import EntitySide, Table, Tables, rejects
from llm4msr.errors import InputError


@dataclass(frozen=True)
class Entities:
    """All ids of one side, sorted, with their raw features and texts.

    `frame` has the id as text in the column `user` or `item`, the text columns, and the field columns of the
    side's own table. A code is a row number of `frame`. `ids` are the same ids in the type that the logs use (text or
    int64); `key_column` is the id column of the raw tables. `without_row` counts the ids of the logs that are missing
    from the side's own table, if there is one.
    """

    side: EntitySide
    key_column: str
    ids: pl.Series
    frame: pl.DataFrame
    rejected: pl.DataFrame
    without_row: int = 0

    def encode(self, ids: pl.Series) -> pl.Series:
        """The code of each id, int32; every id must be present."""
        return pl.Series(self.side, self._positions.of(ids))

    @cached_property
    def _positions(self) -> Positions:
        return Positions(self.ids)


def gather_entities(tables: Tables, side: EntitySide, seen: list[pl.DataFrame]) -> Entities:
    """Collect the ids of a side from its own table and from the frames `seen`, the first of which is the log.

    A text column that only the interactions have is taken from the earliest row of each id. Of several rows for one id
    in the side's own table, all but the first are set aside. Raises `InputError` if a field or text needs another
    column named `user` or `item`, since the id takes that name.
    """
    schema = tables.schema
    key = schema.columns.user if side == "user" else schema.columns.item
    texts = schema.user_text.details if side == "user" else schema.item_text.columns
    fields = [f.source for f in schema.fields if f.side == side]
    wanted = [c for c in dict.fromkeys([*texts, *fields]) if c != key]
    if side in wanted:
        raise InputError(
            f"{tables.interactions.name}: the column {side!r} is a field or a text, but the {side} column is {key!r}; "
            f"rename the column {side!r}"
        )
    table = tables.of(side)
    own = [] if table is None else [c for c in wanted if c in table.columns()]
    ids = pl.concat([frame[side] for frame in seen])
    rejected = rejects({"row": []})
    if table is not None:
        table.require(key, f"the schema's {side} column")
        dtype = table.frame.collect_schema()[key]
        read = as_id(key, dtype, whole=ids.dtype == pl.Int64).alias(side)
        raw = table.collect(read, *(pl.col(c) for c in own))
        first = Positions(raw[side])
        keep = raw[side].is_not_null() & pl.Series(first.of(raw[side]) == np.arange(raw.height))
        rejected = _set_aside(table, raw.with_row_index("__row").filter(~keep), side)
        ids = pl.concat([raw[side].filter(keep), ids.filter(first.of(ids) == -1)])
    frame = in_text_order(ids.unique()).to_frame().with_columns(pl.col(side).cast(pl.String).alias("__text"))
    without_row = 0
    if table is not None:
        places = pl.Series(first.of(frame[side]))
        without_row = int((places == -1).sum())
        if own:
            frame = frame.with_columns(raw.select(pl.col(own).gather(places.set(places == -1, None))))
    lent = [c for c in texts if c not in own and c != key]
    if lent:
        earliest = _earliest(tables.interactions, side, lent, seen[0])
        frame = frame.join(earliest, on=side, how="left", maintain_order="left")
    named = frame.with_columns(pl.col("__text").alias(side)).drop("__text")
    return Entities(side, key, frame[side], named, rejected, without_row)


def _earliest(table: Table, side: EntitySide, columns: list[str], rows: pl.DataFrame) -> pl.DataFrame:
    values = table.collect(*(pl.col(c) for c in columns))
    first = in_order(rows, ROW_ORDER).group_by(side, maintain_order=True).agg(pl.col("row").first())
    return pl.concat([first.select(side), values[first["row"]]], how="horizontal")


def _set_aside(table: Table, rows: pl.DataFrame, side: EntitySide) -> pl.DataFrame:
    missing = rows[side].is_null()
    reasons = pl.DataFrame({"missing": missing}).select(
        pl.when("missing").then(pl.lit(f"{side} id missing")).otherwise(pl.lit(f"second row of one {side}"))
    )
    columns = {
        "table": [f"{side}s"] * rows.height,
        "row": table.numbers(rows["__row"]),
        "reason": reasons.to_series(),
        side: rows[side],
    }
    return pl.concat([table.set_aside(f"{side}s"), rejects(columns)])
