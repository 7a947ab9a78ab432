"""A user's composed states, kept as sums to which events are added one at a time.

`llm4msr.knowledge.states.compose` gives the state at every moment of a log. Serving needs only the latest state, and
needs it again after each event. It is `total / weight` of a stream's sums, which an event updates in one step:

    total <- total * decay + w v,    weight <- weight * decay + w

where `v` is the item's vector, `w` the weight of the behaviour, and `decay` the factor that remains after the time (or
the one further event) since the stream's last event. A stream is the events that one kind of state is computed from:
those of one scenario (`own`), or those of all other scenarios (`others`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm4msr.knowledge.states import Composed, begins_of, whole_users
from llm4msr.times import DAY
from llm4msr.validation import Settings


class StateRule(Settings):
    """How composed states are computed: which `sources` a model reads, and how events are weighted.

    `behaviour_weights` has a weight for each behaviour of the schema. If the logarithm of the number of events is part
    of the state, `counts` has the mean and the deviation that standardise it, for each source; otherwise it is empty.
    """

    sources: tuple[Composed, ...]
    scenarios: int
    width: int
    half_life_days: float
    half_life_events: float | None
    behaviour_weights: tuple[float, ...]
    counts: tuple[tuple[float, float], ...] = ()

    @property
    def streams(self) -> int:
        """The number of a user's streams: one per scenario or, with a half-life in events, two.

        The second stream has the events of all other scenarios. With a half-life in days it is not needed: all
        events of a user decay at the same rate, so its sums follow from the other scenarios' streams.
        """
        return 0 if not self.sources else self.scenarios * (1 if self.half_life_events is None else 2)

    @property
    def state_width(self) -> int:
        """The length of a state's vector."""
        return self.width + bool(self.counts)

    def streams_of(self, scenario: int) -> list[int]:
        """The streams that an event of a scenario belongs to."""
        if self.half_life_events is None:
            return [scenario]
        return [scenario, *(self.scenarios + d for d in range(self.scenarios) if d != scenario)]

    def decay(self, older: int, newer: int) -> float:
        """The factor that remains of an event's weight after the time from `older` to `newer`."""
        return float(np.exp2((older - newer) / DAY / self.half_life_days))


@dataclass
class Sums:
    """The sums of a user's `S` streams: `total` `(S, k)`; `weight`, `time` (of the last event) and `count`, `(S,)`."""

    total: NDArray[np.float64]
    weight: NDArray[np.float64]
    time: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def empty(cls, rule: StateRule) -> Sums:
        """The sums of a user without events."""
        streams = rule.streams
        return cls(
            np.zeros((streams, rule.width)), np.zeros(streams), np.zeros(streams, np.int64), np.zeros(streams, np.int64)
        )

    @classmethod
    def from_bytes(cls, raw: bytes, rule: StateRule) -> Sums:
        """The sums from the bytes that `to_bytes` returned."""
        sums = cls.empty(rule)
        start = 0
        for part in (sums.total, sums.weight, sums.time, sums.count):
            part[...] = np.frombuffer(raw, part.dtype, part.size, start).reshape(part.shape)
            start += part.nbytes
        return sums

    def to_bytes(self) -> bytes:
        """The sums as bytes for storage."""
        return b"".join(part.tobytes() for part in (self.total, self.weight, self.time, self.count))

    def can_add(self, scenario: int, time: int, rule: StateRule) -> bool:
        """Whether `add` can add an event, or the sums must be computed from the whole history.

        With a half-life in events, an event that is not later than all before it changes the weights of others.
        """
        if rule.half_life_events is None:
            return True
        return all(not self.count[s] or time > self.time[s] for s in rule.streams_of(scenario))

    def add(self, scenario: int, time: int, vector: NDArray[np.float32], weight: float, rule: StateRule) -> None:
        """Add an event of an item with this vector `(k,)`."""
        for s in rule.streams_of(scenario):
            before, after = 1.0, 1.0
            if rule.half_life_events is not None:
                before = float(np.exp2(-1.0 / rule.half_life_events))
            elif not self.count[s]:
                pass
            elif time >= self.time[s]:
                before = rule.decay(int(self.time[s]), time)
            else:
                after = rule.decay(time, int(self.time[s]))
            self.total[s] = self.total[s] * before + weight * after * vector.astype(np.float64)
            self.weight[s] = self.weight[s] * before + weight * after
            self.time[s] = max(time, int(self.time[s])) if self.count[s] else time
            self.count[s] += 1

    def state(self, scenario: int, source: Composed, rule: StateRule, out: NDArray[np.float32]) -> None:
        """Write the state's vector and its flag (1 if it is unknown) into `out` `(state_width + 1,)`."""
        total, weight, count = self._of(scenario, source, rule)
        if not count:
            out[:-1], out[-1] = 0.0, 1.0
            return
        out[: rule.width] = total / weight
        if rule.counts:
            mean, deviation = rule.counts[rule.sources.index(source)]
            out[rule.width] = np.clip((np.float32(np.log1p(count)) - mean) / deviation, -4.0, 4.0)
        out[-1] = 0.0

    def _of(self, scenario: int, source: Composed, rule: StateRule) -> tuple[NDArray[np.float64], float, int]:
        if source == "own" or rule.half_life_events is not None:
            s = scenario if source == "own" else rule.scenarios + scenario
            return self.total[s], float(self.weight[s]), int(self.count[s])
        others = [d for d in np.flatnonzero(self.count) if d != scenario]
        if not others:
            return self.total[0], 0.0, 0
        latest = max(int(self.time[d]) for d in others)
        shares = [rule.decay(int(self.time[d]), latest) for d in others]
        total = sum((share * self.total[d] for share, d in zip(shares, others, strict=True)), np.zeros(rule.width))
        weight = sum(share * self.weight[d] for share, d in zip(shares, others, strict=True))
        return total, float(weight), int(self.count[others].sum())


@dataclass(frozen=True)
class Events:
    """Positive events as columns `(n,)`: `user` and `item` (codes), `time`, `scenario` and `behaviour`."""

    user: NDArray[np.int32]
    time: NDArray[np.int64]
    item: NDArray[np.int32]
    scenario: NDArray[np.int16]
    behaviour: NDArray[np.int16]

    def __getitem__(self, chosen: Any) -> Events:
        return Events(*(column[chosen] for column in vars(self).values()))

    def __len__(self) -> int:
        return len(self.user)


def sums_of_users(
    events: Events, vectors: NDArray[np.float32], rule: StateRule, *, block: int = 100_000
) -> tuple[NDArray[np.int64], Sums]:
    """The sums of every user and stream that has events; `events` are sorted by user and time.

    Returns `user * streams + stream` for each of them, ascending, `(n,)`, and their sums, one row each.
    """
    keys, parts = [np.zeros(0, np.int64)], [Sums.empty(rule)]
    for start, stop in whole_users(events.user, np.arange(len(events)), block):
        chosen = events[start:stop]
        lists = [_stream(chosen, s, rule) for s in range(rule.streams)]
        found = [(s, chosen[there]) for s, there in enumerate(lists) if len(there)]
        sums = [_sums(part, vectors, rule) for _, part in found]
        key = [np.unique(part.user).astype(np.int64) * rule.streams + s for s, part in found]
        if key:
            order = np.argsort(np.concatenate(key), kind="stable")
            keys.append(np.concatenate(key)[order])
            parts.append(_joined(sums, order))
    empty = np.zeros(0, np.int64)
    parts[0] = Sums(np.zeros((0, rule.width)), np.zeros(0), empty, empty)
    return np.concatenate(keys), _joined(parts, slice(None))


def sums_of_user(events: Events, vectors: NDArray[np.float32], rule: StateRule) -> Sums:
    """The sums of one user from all of the user's events, in order of time."""
    sums = Sums.empty(rule)
    keys, found = sums_of_users(events, vectors, rule)
    streams = keys % max(1, rule.streams)
    for name, part in vars(sums).items():
        part[streams] = getattr(found, name)
    return sums


def _stream(events: Events, stream: int, rule: StateRule) -> NDArray[np.int64]:
    own = stream < rule.scenarios
    same = events.scenario == stream % rule.scenarios
    return np.flatnonzero(same if own else ~same)


def _sums(events: Events, vectors: NDArray[np.float32], rule: StateRule) -> Sums:
    """The sums of one stream, one row per user that has events in it."""
    begins = begins_of(events.user)
    lengths = np.diff(np.append(begins, len(events)))
    last = events.time[begins + lengths - 1]
    weight = np.asarray(rule.behaviour_weights)[events.behaviour]
    if rule.half_life_events is None:
        age = (events.time - np.repeat(last, lengths)) / DAY / rule.half_life_days
    else:  # an event's age is the number of events after its moment, the same for all events of one moment
        place = np.arange(len(events))
        later = np.append((np.diff(events.time) != 0) | (np.diff(events.user) != 0), [True])
        ends = np.flatnonzero(later)
        number = ends[np.searchsorted(ends, place)] - np.repeat(begins, lengths) + 1
        age = (number - np.repeat(lengths, lengths)) / rule.half_life_events
    weight = weight * np.exp2(age)
    total = np.add.reduceat(weight[:, None] * vectors[events.item].astype(np.float64), begins, axis=0)
    return Sums(total, np.add.reduceat(weight, begins), last, lengths)


def _joined(parts: Sequence[Sums], order: Any) -> Sums:
    return Sums(*(np.concatenate(columns)[order] for columns in zip(*(vars(p).values() for p in parts), strict=True)))
