"""Negative sampling for logs that hold only what users chose, never what they were shown and left.

For each positive, `ratio` items of its scenario are drawn from the `window` positives of the scenario nearest to it in
time, with a chance proportional to an item's count among them to the power `popularity`. Popularity that is local in
time matters: drawn from the whole log's popularity, old bestsellers become negatives of today's items, and a model
that knows nothing but age looks clever or foolish by drift alone.

Nothing crosses the split: a positive of the training part draws from the training part, and so on. An item that the
user chose herself in the scenario, at whatever time, be it in the history alone, is never her negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from llm4msr.data.ordering import ROW_ORDER
from llm4msr.data.sampling import hash_keys, uniform
from llm4msr.data.split import PARTS, Split

_ROUNDS = 100


class Negatives(BaseModel):
    """`ratio` negatives a positive, from the `window` nearest positives, chance ~ count ** `popularity`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: int = Field(default=4, ge=1, le=1000)
    popularity: float = Field(default=1.0, ge=0, le=1)
    window: int = Field(default=2000, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**63)


def sample_negatives(
    rows: pl.DataFrame, split: Split, config: Negatives, chosen: Sequence[pl.DataFrame] = ()
) -> pl.DataFrame:
    """Negatives for `rows`: user, item, scenario and time, in order of time, as `split` cuts them.

    `user`, `item` and `scenario` are integer codes; `chosen` have them of what users chose beside the rows. Returns
    `place`, the positive's position, and `item`, the negative drawn for it; at most `ratio` for a place, and none
    twice. There are fewer where the window has too few items that the user did not choose.
    """
    known = pl.concat([frame.select("user", "item", "scenario") for frame in (rows, *chosen)])
    parts = []
    for scenario in sorted(rows["scenario"].unique()):
        here = known.filter(pl.col("scenario") == scenario)
        parts += [_sample(rows, scenario, *split.range(part), config, here) for part in PARTS]
    return pl.concat(parts).sort("place", "item")


def with_negatives(rows: pl.DataFrame, split: Split, config: Negatives, chosen: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The rows and their sampled negatives, in order; a negative has the context of its positive.

    `chosen` have user, item and scenario of what users chose at any time, the history included.
    """
    positives = rows.filter(pl.col("label") == 1)
    drawn = sample_negatives(positives, split.over(positives["time"].to_numpy()), config, chosen)
    sampled = positives[drawn["place"]].with_columns(
        drawn["item"].cast(pl.Int32),
        pl.lit(0, dtype=pl.Int8).alias("label"),
        pl.lit(-1, dtype=pl.Int16).alias("behaviour"),
    )
    return pl.concat([rows, sampled]).sort(ROW_ORDER)


def _sample(
    rows: pl.DataFrame, scenario: int, first: int, last: int, config: Negatives, known: pl.DataFrame
) -> pl.DataFrame:
    """The negatives of one scenario's positives in one part; `known` are the choices of users in the scenario."""
    inside = rows.with_row_index("place")[first:last].filter(pl.col("scenario") == scenario)
    place = inside["place"].to_numpy().astype(np.int64)
    user, item = inside["user"].to_numpy().astype(np.int64), inside["item"].to_numpy().astype(np.int64)
    known_user, known_item = (known[side].to_numpy().astype(np.int64) for side in ("user", "item"))
    items = int(known_item.max()) + 1
    chosen = np.unique(known_user * items + known_item)
    count, half = len(inside), config.window // 2
    centre = np.arange(count)
    low = np.clip(np.minimum(centre - half, count - 2 * half), 0, None)
    high = np.clip(low + 2 * half, None, count)
    occurrence = np.argsort(item * max(count, 1) + centre, kind="stable")  # by item, then time
    by_item = item[occurrence] * max(count, 1) + occurrence
    base = hash_keys(user, item, place, seed=config.seed)

    open_row = np.repeat(centre, config.ratio)
    draw = np.tile(np.arange(config.ratio), count)
    taken = np.empty(0, dtype=np.int64)  # place * items + item of what was drawn
    for turn in range(_ROUNDS):
        if not len(open_row):
            break
        keys = hash_keys(base[open_row].view(np.int64), draw, np.full(len(draw), turn), seed=config.seed)
        position = low[open_row] + (uniform(keys) * (high - low)[open_row]).astype(np.int64)
        candidate = item[position]
        begin = np.searchsorted(by_item, candidate * count + low[open_row])
        local = np.searchsorted(by_item, candidate * count + high[open_row]) - begin
        accepted = uniform(hash_keys(keys.view(np.int64), seed=config.seed)) < local ** (config.popularity - 1.0)
        accepted &= ~_among(user[open_row] * items + candidate, chosen)
        pair = open_row * items + candidate
        accepted &= ~_among(pair, taken)
        fresh = np.flatnonzero(accepted)
        fresh = fresh[np.unique(pair[fresh], return_index=True)[1]]  # two draws of one positive may not agree
        taken = np.union1d(taken, pair[fresh])
        left = np.ones(len(open_row), dtype=bool)
        left[fresh] = False
        open_row, draw = open_row[left], draw[left]
    return pl.DataFrame({"place": place[taken // items], "item": (taken % items).astype(np.int64)})


def _among(values: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `values` are in the sorted array `known`."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    position = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[position] == values)
