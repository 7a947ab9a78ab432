"""Positives before a time: the history that knowledge of a user may be made of."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

from llm4msr.data.prepared import PreparedData

Protocol = Literal["slices", "train_end"]


def snapshot_times(data: PreparedData, protocol: Protocol, slices: int = 4) -> list[int]:
    """The moments (microseconds) at which prompted knowledge of users is taken.

    `slices`: the start of each of that many equal slices of the training period, and its end. `train_end`: its end
    alone, as in the paper; a training row then sees no snapshot at all unless it is given the end's (see
    `llm4msr.knowledge.sources`), which shows it its own label.
    """
    end = data.split.valid_time
    if protocol == "train_end":
        return [end]
    start = int(data.time[0])
    edges = np.linspace(start, end, slices + 1)
    return [int(edge) for edge in edges[:-1]] + [end]


def recent_positives(data: PreparedData, before: int, most: int) -> pl.DataFrame:
    """The `most` latest positives of each user and scenario strictly before a time.

    Columns: user, scenario, items and behaviours (lists, oldest first), in order of user and scenario.
    """
    return (
        data.positives.lazy()
        .filter(pl.col("time") < before)
        .group_by("user", "scenario", maintain_order=True)
        .agg(pl.col("item").tail(most).alias("items"), pl.col("behaviour").tail(most).alias("behaviours"))
        .sort("user", "scenario")
        .collect()
    )
