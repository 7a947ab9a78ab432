"""The users and the items of a data set, each with a code: its row in `users.parquet` or `items.parquet`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.tables import Table, Tables, as_id, rejects
from llm4msr.errors import InputError


@dataclass(frozen=True)
class Entities:
    """All ids of one side, sorted, with their raw features and texts.

    `frame` has the id as text in the column `user` or `item`, then the columns that fields and texts read. A code is
    a position in it. `key_column` is the id's name in the raw tables.
    """

    side: Literal["user", "item"]
    key_column: str
    frame: pl.DataFrame
    rejected: pl.DataFrame

    def encode(self, ids: pl.Series) -> NDArray[np.int32]:
        """The code of each id, shape `(n,)`; every id must be present."""
        codes = pl.DataFrame({"id": self.frame[self.side], "code": np.arange(self.frame.height, dtype=np.int32)})
        joined = pl.DataFrame({"id": ids}).join(codes, on="id", how="left", maintain_order="left")
        return joined["code"].to_numpy().astype(np.int32)


def gather_entities(tables: Tables, side: Literal["user", "item"], seen: list[pl.DataFrame]) -> Entities:
    """Collect the ids of a side from its own table and from the rows that were `seen`.

    A text column that only the interactions have is taken from the id's earliest row. A second row of one id in the
    side's own table is set aside. Raises `InputError` for a column whose name is taken by the id.
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
    table = tables.users if side == "user" else tables.items
    own = [] if table is None else [c for c in wanted if c in table.columns()]
    ids = pl.concat([frame.select(pl.col(side)) for frame in seen])
    rejected = rejects({"row": []})
    features = None
    if table is not None:
        table.require(key, f"the schema's {side} column")
        dtype = table.frame.collect_schema()[key]
        raw = table.collect(as_id(key, dtype).alias(side), *(pl.col(c) for c in own)).with_row_index("__row")
        keep = pl.col(side).is_not_null() & pl.col(side).is_first_distinct()
        rejected = _set_aside(table, raw.filter(~keep), side)
        features = raw.filter(keep).drop("__row")
        ids = pl.concat([ids, features.select(side)])
    frame = ids.unique().sort(side)
    if features is not None:
        frame = frame.join(features, on=side, how="left", maintain_order="left")
    lent = [c for c in texts if c not in own and c != key]
    if lent:
        frame = frame.join(_earliest(tables.interactions, side, lent, seen[0]), on=side, how="left")
        frame = frame.sort(side)
    return Entities(side, key, frame, rejected)


def _earliest(table: Table, side: str, columns: list[str], rows: pl.DataFrame) -> pl.DataFrame:
    values = table.collect(*(pl.col(c) for c in columns))
    first = rows.group_by(side, maintain_order=True).agg(pl.col("row").first())
    return pl.concat([first.select(side), values[first["row"]]], how="horizontal")


def _set_aside(table: Table, rows: pl.DataFrame, side: str) -> pl.DataFrame:
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
