"""States (a knowledge vector and the moment from which it is true), and the choice of the state that a row sees.

A row sees the latest state of its user from strictly before its own time. A state made of an event has the event's
time. So a state with the row's own time counts as later, and no row ever sees a state made from itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.times import DAY

Source = Literal["scenario", "prompted", "own", "others", "item"]
"""A kind of knowledge: of a scenario; of a user, by their prompts (`prompted`), by their events in the row's scenario
(`own`) or by those in all `others`; of an item."""
Composed = Literal["own", "others"]
COMPOSED: tuple[Composed, ...] = ("own", "others")
UNKNOWN = 0
"""The index of the unknown state. Its vector is zero; models get a flag beside it that says `unknown`."""


@dataclass(frozen=True)
class StateTable:
    """States `(n + 1, d)` float32, and the index of the state that each impression sees, `(N,)`.

    Row 0 of the states is the unknown state.
    """

    vectors: NDArray[np.float32]
    index: NDArray[np.int32]


@dataclass(frozen=True)
class States:
    """States sorted by user and time: `user` and `time` are `(n,)`, `vectors` `(n, d)`.

    `count` `(n,)` is the number of events that each composed state is made of; empty for other states.
    """

    user: NDArray[np.int32]
    time: NDArray[np.int64]
    vectors: NDArray[np.float32]
    count: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def seen_by(self, row_user: NDArray[np.int32], row_time: NDArray[np.int64]) -> StateTable:
        """The as-of join: for each row the latest state of its user strictly before its time, else `UNKNOWN`."""
        index = as_of(self.user, self.time, row_user, row_time)
        blank = np.zeros((1, self.vectors.shape[1]), dtype=np.float32)
        return StateTable(np.concatenate([blank, self.vectors]), index)


def as_of(
    user: NDArray[np.int32], time: NDArray[np.int64], row_user: NDArray[np.int32], row_time: NDArray[np.int64]
) -> NDArray[np.int32]:
    """1 + the position of the latest state strictly before each row, 0 if there is none, `(N,)`.

    The states must be sorted by user, then time.

    >>> as_of(np.array([0, 0], dtype=np.int32), np.array([5, 9]),
    ...       np.array([0, 0, 0, 1], dtype=np.int32), np.array([5, 6, 10, 10]))
    array([0, 1, 2, 0], dtype=int32)
    """
    states = pl.DataFrame({"user": user, "time": time, "state": np.arange(1, len(user) + 1, dtype=np.int32)})
    rows = pl.DataFrame({"user": row_user, "time": row_time, "row": np.arange(len(row_user))})
    found = rows.sort("time").join_asof(
        states.sort("time", maintain_order=True),
        on="time",
        by="user",
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    seen = np.full(len(row_user), UNKNOWN, dtype=np.int32)
    seen[found["row"].to_numpy()] = found["state"].fill_null(UNKNOWN).to_numpy()
    return seen


def compose(
    user: NDArray[np.int32],
    time: NDArray[np.int64],
    item: NDArray[np.int32],
    vectors: NDArray[np.float32],
    half_life_days: float,
    *,
    half_life_events: float | None = None,
    weight: NDArray[np.float64] | None = None,
    block: int = 50_000,
    out: NDArray[np.float32] | None = None,
) -> States:
    """Weighted means of the vectors of a user's items: one state per moment at which the user has an event.

    At a moment t the state is `sum_e w_e v_e / sum_e w_e` over the user's events up to and including t, with
    `w_e = weight_e * 2 ** -((t - t_e) / half_life)`. It stays true until the next event, since time alone scales all
    weights by the same factor. With `half_life_events`, `t` is not the time but the number of the user's events up to
    and including the moment. So events of one moment weigh the same, and three of them move `t` by three.

    Args:
        user, time, item: the events, `(n,)`, sorted by user, then time (microseconds).
        vectors: a vector per item, `(items, d)`, indexed by `item`.
        half_life_days: the days after which an event weighs half.
        half_life_events: the number of further events after which an event weighs half; replaces `half_life_days`.
        weight: the weight of each event, above 0; by default 1.
        block: about how many events are handled at once, to bound memory.
        out: an array `(states, d)` for the states' vectors; by default a new one.
    """
    first = begins_of(user, time)
    state_user, state_time = user[first], time[first]
    events_at = np.diff(np.append(first, len(user)))
    begins = np.searchsorted(state_user, state_user, side="left")
    total = np.cumsum(events_at)
    count = total - (total - events_at)[begins] if len(first) else total
    weights = np.ones(len(user)) if weight is None else weight
    clock = state_time / DAY / half_life_days if half_life_events is None else count / half_life_events
    if out is None:
        out = np.empty((len(first), vectors.shape[1]), dtype=np.float32)
    for start, stop in whole_users(state_user, first, block):
        events = slice(first[start], first[stop] if stop < len(first) else len(user))
        inside = first[start:stop] - first[start]
        weighted = vectors[item[events]].astype(np.float64)
        if weight is not None:
            weighted *= weights[events][:, None]
        sums, masses = weighted, weights[events]
        if len(inside) < len(weighted):  # several events at one moment
            sums, masses = np.add.reduceat(sums, inside, axis=0), np.add.reduceat(masses, inside)
        out[start:stop] = _decayed_means(state_user[start:stop], clock[start:stop], sums, masses)
    return States(state_user, state_time, out, count)


def begins_of(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """The start of each run of equal keys: for events sorted by user, the place of each user's first event.

    With user and time as keys it is each user's first event of each moment; `compose` makes one state per moment.

    >>> begins_of(np.array([-1, -1, 4, 7, 7])).tolist()
    [0, 2, 3]
    """
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.flatnonzero(new)


def whole_users(user: NDArray[np.int32], first: NDArray[np.int64], block: int) -> list[tuple[int, int]]:
    """Split entries (states or events, sorted by user) into ranges `(start, stop)` of about `block` events.

    A user is never split. `first` is the place of each entry's first event.
    """
    begins, cuts = begins_of(user), [0]
    places = first[begins]
    while cuts[-1] < len(user):
        following = np.searchsorted(places, first[cuts[-1]] + block)
        cuts.append(int(begins[following]) if following < len(begins) else len(user))
    return list(pairwise(cuts))


def _decayed_means(
    user: NDArray[np.int32],
    clock: NDArray[np.float64],
    sums: NDArray[np.float64],
    masses: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The running mean at each state, with `clock` in half-lives.

    Vectorised over users: one step for the first states of all users, one for the second states, and so on.
    """
    begins = begins_of(user)
    lengths = np.diff(np.append(begins, len(user)))
    order = np.argsort(-lengths, kind="stable")  # users with more states first: those still active are a prefix
    begins, lengths = begins[order], lengths[order]
    means = np.empty_like(sums)
    total, weight = sums[begins].copy(), masses[begins].copy()
    means[begins] = total / weight[:, None]
    for step in range(1, int(lengths[0]) if len(lengths) else 0):
        active = int(np.searchsorted(-lengths, -step, side="left"))
        here = begins[:active] + step
        decay = np.exp2(clock[here - 1] - clock[here])
        total, weight = total[:active], weight[:active]
        total = total * decay[:, None] + sums[here]
        weight = weight * decay + masses[here]
        means[here] = total / weight[:, None]
    return means
