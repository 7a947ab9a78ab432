"""Negative sampling for logs that have only the items users chose, not those they were shown and did not choose.

For each positive, `ratio` items are drawn from the `window` positives of the same scenario that are nearest in time.
The chance of an item is proportional to its count among them, to the power `popularity`. Popularity must be local in
time. With popularity over the whole log, old bestsellers would become negatives of today's items, and a model that
knows only the age of items would score well or badly by drift alone.

Sampling never crosses the split: positives of the training part draw from the training part, and so on. An item that
the user chose in the scenario at any time, even if only in the history, is never a negative for this user.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from llm4msr.data.ordering import ROW_ORDER
from llm4msr.data.sampling import hash_keys, uniform
from llm4msr.data.split import PARTS, Split
from llm4msr.validation import Settings

_ROUNDS = 100


class Negatives(Settings):
    """Draw `ratio` negatives per positive from the `window` nearest positives, with chance ~ count ** `popularity`."""

    ratio: int = Field(default=4, ge=1, le=1000)
    popularity: float = Field(default=1.0, ge=0, le=1)
    window: int = Field(default=2000, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**63)


def sample_negatives(
    rows: pl.DataFrame, split: Split, config: Negatives, chosen: Sequence[pl.DataFrame] = ()
) -> pl.DataFrame:
    """Draw negatives for `rows` (user, item, scenario and time), which are in order of time and cut by `split`.

    `user`, `item` and `scenario` are integer codes; the frames `chosen` have the same three columns for the users'
    further choices. Returns `place`, the position of a positive, and `item`, a negative drawn for it. A place has at
    most `ratio` negatives, all different; it has fewer if 100 rounds of draws do not find enough items that the user
    did not choose.
    """
    known = pl.concat([frame.select("user", "item", "scenario") for frame in (rows, *chosen)])
    parts = []
    for scenario in sorted(rows["scenario"].unique()):
        here = known.filter(pl.col("scenario") == scenario)
        parts += [_sample(rows, scenario, *split.range(part), config, here) for part in PARTS]
    return pl.concat(parts).sort("place", "item")


def with_negatives(rows: pl.DataFrame, split: Split, config: Negatives, chosen: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The rows and negatives sampled for the positives, in `ROW_ORDER`; a negative has the context of its positive.

    The frames `chosen` have user, item and scenario of the users' choices at any time, including the history.
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
    """Negatives for a scenario's positives in `rows[first:last]`; `known` are all choices of users in the scenario."""
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
    taken = np.empty(0, dtype=np.int64)  # row of `inside` * items + item, for each pair drawn
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
        fresh = fresh[np.unique(pair[fresh], return_index=True)[1]]  # drop equal draws for one positive
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
