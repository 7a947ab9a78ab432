"""Negative sampling for logs that have only the items users chose, not those they were shown and did not choose.

For each positive, `ratio` items are drawn from the `window` positives of the same scenario that are nearest in time.
The chance of an item is proportional to its count among them, to the power `popularity`. Popularity must be local in
time. With popularity over the whole log, old bestsellers would become negatives of today's items, and a model that
knows only the age of items would score well or badly by drift alone.

Sampling never crosses the split: positives of the training part draw from the training part, and so on. No later
choice has any influence: an item that the user chooses later may be her negative now, as in a log of impressions. An
item that she chose at the same time never is. Whether her earlier choices, even if only in the history, may be
negatives depends on whether they may be positives. Otherwise a model would learn from the sampling alone:

- where users do not choose items again, an earlier choice is never a positive, and so it is never a negative;
- where they do, it may be both. If it could not be a negative, an item that a user chose before would be her positive
  for certain, and popular items would be positives more often than by chance.

Users of a scenario choose items again if, in its training part, earlier choices are at least half as frequent among the
positives as among items drawn by their local popularity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from llm4msr.data.choices import Choices, among
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
) -> tuple[pl.DataFrame, list[int]]:
    """Draw negatives for `rows` (user, item, scenario and time), which are in order of time and cut by `split`.

    `user`, `item` and `scenario` are integer codes; the frames `chosen` have the same columns for the users' further
    choices. Returns a frame and the scenarios where users choose items again (see the module). The frame has `place`,
    the position of a positive, and `item`, a negative drawn for it. A place has at most `ratio` negatives, all
    different; it has fewer if 100 rounds of draws do not find enough items.
    """
    known = pl.concat([frame.select("user", "item", "scenario", "time") for frame in (rows, *chosen)])
    parts, again = [], []
    for scenario in sorted(rows["scenario"].unique()):
        choices = Choices(known.filter(pl.col("scenario") == scenario))
        inside = [_Positives.of(rows, scenario, split.range(part), config) for part in PARTS]
        habit = _choose_again(inside[0], choices, config)
        again += [int(scenario)] * habit
        not_these = choices.at if habit else choices.until
        parts += [_sample(positives, not_these, config) for positives in inside]
    return pl.concat(parts).sort("place", "item"), again


def with_negatives(
    rows: pl.DataFrame, split: Split, config: Negatives, chosen: Sequence[pl.DataFrame]
) -> tuple[pl.DataFrame, list[int]]:
    """The rows and negatives sampled for the positives, in `ROW_ORDER`, and the scenarios where users choose again.

    A negative has the context of its positive. The frames `chosen` have user, item, scenario and time of the users'
    choices, including the history.
    """
    positives = rows.filter(pl.col("label") == 1)
    drawn, again = sample_negatives(positives, split.over(positives["time"].to_numpy()), config, chosen)
    sampled = positives[drawn["place"]].with_columns(
        drawn["item"].cast(pl.Int32),
        pl.lit(0, dtype=pl.Int8).alias("label"),
        pl.lit(-1, dtype=pl.Int16).alias("behaviour"),
    )
    return pl.concat([rows, sampled]).sort(ROW_ORDER), again


@dataclass(frozen=True)
class _Positives:
    """The positives of a scenario in one part: their places in all rows, and the window `[low, high)` of each."""

    place: NDArray[np.int64]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    @classmethod
    def of(cls, rows: pl.DataFrame, scenario: int, between: tuple[int, int], config: Negatives) -> _Positives:
        inside = rows.with_row_index("place")[slice(*between)].filter(pl.col("scenario") == scenario)
        place, user, item, time = (
            inside[name].to_numpy().astype(np.int64) for name in ("place", "user", "item", "time")
        )
        count, half = len(inside), config.window // 2
        low = np.clip(np.minimum(np.arange(count) - half, count - 2 * half), 0, None)
        return cls(place, user, item, time, low, np.clip(low + 2 * half, None, count))

    def drawn(self, row: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """An item for each key, from the window of a row: each positive there with the same chance."""
        low, high = self.low[row], self.high[row]
        return np.asarray(self.item[low + (uniform(keys) * (high - low)).astype(np.int64)])


def _choose_again(training: _Positives, choices: Choices, config: Negatives) -> bool:
    """Whether users choose items again, as far as the training part knows (see the module)."""
    keys = hash_keys(training.user, training.item, training.place, seed=config.seed)
    by_chance = choices.before(training.user, training.drawn(np.arange(len(keys)), keys), training.time).sum()
    found = choices.before(training.user, training.item, training.time).sum()
    return bool(found > 0 and 2 * found >= by_chance)


def _sample(positives: _Positives, chosen: Callable[..., NDArray[np.bool_]], config: Negatives) -> pl.DataFrame:
    """Negatives for the positives of a scenario in one part; none that its user has `chosen` (user, item, time)."""
    p, count = positives, len(positives.place)
    items = int(p.item.max(initial=0)) + 1
    centre = np.arange(count)
    occurrence = np.argsort(p.item * max(count, 1) + centre, kind="stable")  # by item, then time
    by_item = p.item[occurrence] * max(count, 1) + occurrence
    base = hash_keys(p.user, p.item, p.place, seed=config.seed)

    open_row = np.repeat(centre, config.ratio)
    draw = np.tile(np.arange(config.ratio), count)
    taken = np.empty(0, dtype=np.int64)  # row * items + item, for each pair drawn
    for turn in range(_ROUNDS):
        if not len(open_row):
            break
        keys = hash_keys(base[open_row].view(np.int64), draw, np.full(len(draw), turn), seed=config.seed)
        candidate = p.drawn(open_row, keys)
        begin = np.searchsorted(by_item, candidate * count + p.low[open_row])
        local = np.searchsorted(by_item, candidate * count + p.high[open_row]) - begin
        accepted = uniform(hash_keys(keys.view(np.int64), seed=config.seed)) < local ** (config.popularity - 1.0)
        accepted &= ~chosen(p.user[open_row], candidate, p.time[open_row])
        pair = open_row * items + candidate
        accepted &= ~among(pair, taken)
        fresh = np.flatnonzero(accepted)
        fresh = fresh[np.unique(pair[fresh], return_index=True)[1]]  # drop equal draws for one positive
        taken = np.union1d(taken, pair[fresh])
        left = np.ones(len(open_row), dtype=bool)
        left[fresh] = False
        open_row, draw = open_row[left], draw[left]
    return pl.DataFrame({"place": p.place[taken // items], "item": (taken % items).astype(np.int64)})
