"""Slices of the test rows. Every metric is also shown on them: for which users and items does a model help?"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.states import as_of

Mask = NDArray[np.bool_]

NEW = "new to the scenario, known in another"
LIGHT, HEAVY = "light users", "heavy users"
COLD = "cold items"
EARLY, LATE = "first half of the test time", "second half of the test time"


def test_slices(data: PreparedData) -> dict[str, Mask]:
    """Masks over the test rows, `(n,)` each.

    A user is new to a scenario if they have no positive in it before the row, and known in another if they have one
    there. Light and heavy users are those at or below the first, and above the second, tercile of the test rows, by the
    number of the user's positives before the test part; with many equal numbers they are more or fewer than a third. A
    cold item has no row in the training part.
    """
    first, last = data.split.range("test")
    user, item = np.asarray(data.user[first:last]), np.asarray(data.item[first:last])
    time, scenario = np.asarray(data.time[first:last]), np.asarray(data.scenario[first:last])
    own, others = np.zeros(last - first, bool), np.zeros(last - first, bool)
    events = data.positives
    for d in range(data.scenario_count):
        part = events.filter(pl.col("scenario") == d)
        had = as_of(part["user"].to_numpy(), part["time"].to_numpy(), user, time) > 0
        own |= had & (scenario == d)
        others |= had & (scenario != d)
    before = events.filter(pl.col("time") < data.split.test_time)["user"].to_numpy()
    count = np.bincount(before, minlength=data.users.height)[user]
    trained = np.zeros(data.items.height, dtype=bool)
    trained[data.item[: data.split.valid]] = True
    slices = {NEW: others & ~own, COLD: ~trained[item]}
    if len(count):
        low, high = np.quantile(count, [1 / 3, 2 / 3])
        slices |= {LIGHT: count <= low, HEAVY: count > high}
        middle = (int(time[0]) + int(time[-1])) / 2
        slices |= {EARLY: time < middle, LATE: time >= middle}
    return slices
