"""A user's sums computed from the whole history, for an event that came too late to be added to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm4msr.serving.bundle import Bundle
from llm4msr.serving.log import EventRecord
from llm4msr.serving.states import Events, Sums, sums_of_user


def sums_anew(bundle: Bundle, user: int, since: Sequence[EventRecord]) -> Sums:
    """The sums of a user, by code, from the bundle's history and the events `since` the export, in any order."""
    old = bundle.history(user)
    new = Events(
        np.full(len(since), user, np.int32),
        np.array([e.time for e in since], np.int64),
        bundle.lookup.numbers("item", [e.item for e in since]),
        np.array([bundle.scenario_index[e.scenario] for e in since], np.int16),
        np.array([bundle.behaviours[e.behaviour] for e in since], np.int16),
    )
    pairs = zip(vars(old).values(), vars(new).values(), strict=True)
    events = Events(*(np.concatenate(pair) for pair in pairs))
    weighs = np.asarray(bundle.rule.behaviour_weights)[events.behaviour] > 0
    events = events[weighs & (bundle.vectors[events.item, -1] == 0)]  # an item without a vector changes no state
    return sums_of_user(events[np.argsort(events.time, kind="stable")], bundle.vectors[:, :-1], bundle.rule)
