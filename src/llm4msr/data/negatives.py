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
  for certain.

What cannot be a negative would make popular items positives more often than by chance: a positive's own item, and the
user's choices, are popular. So the chance of an item also has a factor, fitted so that items are drawn as often as if
nothing were left out, in each stretch of time. For the same reason an item may be drawn twice for a positive.

Users of a scenario choose items again if, in its training part, earlier choices are at least half as frequent among the
positives as among items drawn by their local popularity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from llm4msr.data.choices import Choices
from llm4msr.data.ordering import ROW_ORDER
from llm4msr.data.sampling import hash_keys, uniform
from llm4msr.data.split import PARTS, Split
from llm4msr.validation import Settings

Array = NDArray[np.float64]
Chosen = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""Whether each user chose the item at or before the time: users, items and times, each `(n,)`, give `(n,)`."""
_ROUNDS = 300
_FITS, _FEW, _LEAST, _STRETCH = 5, 20.0, 1 / 32, 2000
"""To balance the items: how often their chances are fitted, the draws that tell little, the least factor beside the
greatest, and the positives of a stretch of time (or those of a window, if these are more)."""


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
    the position of a positive, and `item`, a negative drawn for it. A place has `ratio` negatives; it has fewer if 300
    rounds of draws do not find enough.
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
        """A positive for each key, from the window of a row, all with the same chance."""
        low, high = self.low[row], self.high[row]
        return np.asarray(low + (uniform(keys) * (high - low)).astype(np.int64))


def _choose_again(training: _Positives, choices: Choices, config: Negatives) -> bool:
    """Whether users choose items again, as far as the training part knows (see the module)."""
    keys = hash_keys(training.user, training.item, training.place, seed=config.seed)
    drawn = training.item[training.drawn(np.arange(len(keys)), keys)]
    by_chance = choices.before(training.user, drawn, training.time).sum()
    found = choices.before(training.user, training.item, training.time).sum()
    return bool(found > 0 and 2 * found >= by_chance)


def _sample(positives: _Positives, chosen: Chosen, config: Negatives) -> pl.DataFrame:
    """Negatives for the positives of a scenario in one part; none that its user has `chosen`."""
    draws = _Draws(positives, config)
    row, drawn = draws.of_all(chosen, _balance(draws, chosen))
    frame = pl.DataFrame({"place": positives.place[row], "item": positives.item[drawn]})
    return frame.sort("place", "item")


def _balance(draws: _Draws, chosen: Chosen) -> Array:
    """For each group of `draws`, a factor on its chance that makes up for the rows for which it cannot be drawn.

    These are the positives of its own item, and of users who chose it. The factors are fitted until the groups are
    drawn as often as if nothing were left out; those of groups that are rarely drawn stay near 1.
    """
    factors = np.ones(draws.groups)
    target = draws.times(None, factors)
    for _ in range(_FITS):
        factors *= (target + _FEW) / (draws.times(chosen, factors) + _FEW)
        factors = np.maximum(factors / factors.max(initial=_LEAST), _LEAST)
    return factors


class _Draws:
    """Draws for the positives of a scenario in one part. The same question gets the same answer.

    What is drawn is a positive, for its item. Its group are the positives of the same item in the same stretch of time;
    `groups` is their number.
    """

    def __init__(self, positives: _Positives, config: Negatives) -> None:
        self._positives, self._config = positives, config
        item, count = positives.item, len(positives.place)
        self._base = hash_keys(positives.user, item, positives.place, seed=config.seed)
        stretch = np.arange(count) // max(_STRETCH, config.window)
        found, self._group = np.unique(item * (count + 1) + stretch, return_inverse=True)
        self.groups = len(found)
        self._stretch_of_row = stretch
        self._stretch_of_group, self._item_of_group = found % (count + 1), found // (count + 1)

    @cached_property
    def _by_item(self) -> NDArray[np.int64]:
        """A number for each positive, ascending by item and then by time."""
        item, count = self._positives.item, len(self._group)
        return np.sort(item * count + np.arange(count))

    def _limits(self, factors: Array, *, own: bool) -> Array:
        """For each row, the greatest factor of an item that it may draw; without `own`, of another item than its own.

        The window of a row reaches at most into the stretches before and after its own.
        """
        stretches = int(self._stretch_of_row[-1]) + 1 if len(self._stretch_of_row) else 0
        order = np.lexsort((-factors, self._stretch_of_group))
        second = np.zeros(stretches)
        begins = np.searchsorted(self._stretch_of_group[order], np.arange(stretches))
        ends = np.append(begins[1:], len(order))
        first, item = factors[order[begins]], self._item_of_group[order[begins]]
        there = np.flatnonzero(ends - begins > 1)
        second[there] = factors[order[begins[there] + 1]]
        limits = np.zeros(len(self._stretch_of_row))
        for step in (-1, 0, 1):
            stretch = np.clip(self._stretch_of_row + step, 0, stretches - 1)
            is_own = (item[stretch] == self._positives.item) & (not own)
            limits = np.maximum(limits, np.where(is_own, second[stretch], first[stretch]))
        return np.where(limits > 0, limits, 1.0)

    def times(self, chosen: Chosen | None, factors: Array) -> NDArray[np.intp]:
        """How often each group is drawn; see `of_all`."""
        return np.bincount(self._group[self.of_all(chosen, factors, _ROUNDS // 10)[1]], minlength=self.groups)

    def of_all(
        self, chosen: Chosen | None, factors: Array, rounds: int = _ROUNDS
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`ratio` draws for each row: the rows, and the positives that are drawn.

        The chance of an item is also proportional to its group's factor. An item that the row's user has `chosen` is
        not drawn; if `chosen` is None, every item may be. A row has fewer draws if the rounds do not find enough.
        """
        p, config, count = self._positives, self._config, len(self._group)
        limits = self._limits(factors, own=chosen is None)
        row, draw = np.repeat(np.arange(count), config.ratio), np.tile(np.arange(config.ratio), count)
        rows, drawn = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for turn in range(rounds):
            if not len(row):
                break
            keys = hash_keys(self._base[row].view(np.int64), draw, np.full(len(draw), turn), seed=config.seed)
            place = p.drawn(row, keys)
            item, chance = p.item[place], factors[self._group[place]]
            if config.popularity != 1:
                begin = np.searchsorted(self._by_item, item * count + p.low[row])
                local = np.searchsorted(self._by_item, item * count + p.high[row]) - begin
                chance = chance * local ** (config.popularity - 1.0)
            accepted = uniform(hash_keys(keys.view(np.int64), seed=config.seed)) * limits[row] < chance
            if chosen is not None:
                accepted &= ~chosen(p.user[row], item, p.time[row])
            rows.append(row[accepted])
            drawn.append(place[accepted])
            row, draw = row[~accepted], draw[~accepted]
        return np.concatenate(rows), np.concatenate(drawn)
