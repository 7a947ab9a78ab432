"""The times of snapshots, and the positives before a time: the history that a user's knowledge may be made of."""

from __future__ import annotations

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge import SnapshotProtocol
from llm4msr.times import DAY
from llm4msr.validation import Settings

_MOST = 10_000

LEAKS: dict[SnapshotProtocol, str] = {
    "train_end": "protocol train_end: each training row's own label is in its user's prompt",
    "all": "protocol all: every row's own label, those of the test part too, is in its user's prompt",
}
"""The protocols that leak, and what each shows to rows that must not know it."""


class Snapshots(Settings):
    """When snapshots of users' prompted knowledge are taken. A row sees the latest snapshot strictly before it.

    - `slices`: at the start of each of `slices` equal slices of the training period, and at its end.
    - `period`: every `period_days` from the first row on, through validation and test.
    - `times`: at the given moments (microseconds since 1970).
    - `train_start`: once, at the first row. The history then holds no training row: it is what `prepare` keeps with
      `history_share`, or positives from before the impressions.
    - `train_end`: once, at the end of the training period; every row sees it. This is the paper's protocol, which
      shows each training row its own label.
    - `all`: once, after the last row; every row sees it. It exists to measure leakage.
    """

    protocol: SnapshotProtocol = "slices"
    slices: int = Field(default=4, ge=1, le=1000)
    period_days: float = Field(default=30.0, gt=0)
    times: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _has_times(self) -> Snapshots:
        if (self.protocol == "times") != bool(self.times):
            raise ValueError("the protocol 'times' and a list of times go together")
        return self


def snapshot_times(data: PreparedData, snapshots: Snapshots) -> list[int]:
    """The moments (microseconds) of the snapshots, ascending. Raises `InputError` for more than 10,000."""
    first, last, end = int(data.time[0]), int(data.time[-1]), data.split.valid_time
    match snapshots.protocol:
        case "train_start":
            if data.positives.filter(pl.col("time") < first).is_empty():
                raise InputError(
                    f"{data.path}: no positive is before the first row, so the protocol train_start has no history; "
                    "prepare with --history-share, or with --positives that begin earlier"
                )
            return [first]
        case "train_end":
            return [end]
        case "all":
            return [last + 1]
        case "times":
            return sorted(set(snapshots.times))
        case "slices":
            return [int(edge) for edge in np.linspace(first, end, snapshots.slices + 1)[:-1]] + [end]
        case "period":
            step = int(snapshots.period_days * DAY)
            if step < 1 or (last - first) // step >= _MOST:
                raise InputError(f"a snapshot every {snapshots.period_days:g} days is more than {_MOST} of them here")
            return list(range(first, last + 1, step))


def recent_positives(data: PreparedData, before: int, most: int, users: range | None = None) -> pl.DataFrame:
    """For each user and scenario, the `most` latest positives strictly before a time; with `users`, only for these.

    Columns: user, scenario, items and behaviours (lists, oldest first), sorted by user and scenario.
    """
    events = data.positives
    if users is not None:
        first, last = (events["user"].search_sorted(code, side="left") for code in (users.start, users.stop))
        events = events[first:last]
    return (
        events.lazy()
        .filter(pl.col("time") < before)
        .group_by("user", "scenario", maintain_order=True)
        .agg(pl.col("item").tail(most).alias("items"), pl.col("behaviour").tail(most).alias("behaviours"))
        .sort("user", "scenario")
        .collect()
    )
