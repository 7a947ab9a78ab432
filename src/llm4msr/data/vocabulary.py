"""The values of a categorical field that training has seen, and their ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.raw import as_text

UNKNOWN = 0
MISSING = ""
"""The text of a missing value. Missing is a value like any other, not the same as a value that training never saw."""


@dataclass(frozen=True)
class Vocabulary:
    """Values with ids 1, 2, ...; all other values have id 0. `counts` says how often training has each value."""

    values: pl.Series
    counts: pl.Series

    @classmethod
    def fit(cls, training: pl.Series, min_count: int = 1, times: NDArray[np.int64] | None = None) -> Vocabulary:
        """Keep the values seen at least `min_count` times, the most frequent first, ties in order of the value.

        `times` `(n,)` gives how often each value of `training` was seen, which may be 0. By default each was seen once.

        >>> Vocabulary.fit(pl.Series(["b", "a", "b", "c"]), min_count=1).values.to_list()
        ['b', 'a', 'c']
        """
        seen = np.ones(len(training), np.int64) if times is None else times
        counted = (
            _values(training.filter(seen > 0))
            .with_columns(pl.Series("count", seen[seen > 0]))
            .group_by("value")
            .agg(pl.col("count").sum())
            .filter(pl.col("count") >= min_count)
            .sort("count", "value", descending=[True, False])
        )
        return cls(counted["value"], counted["count"])

    @classmethod
    def fit_ids(
        cls, texts: pl.Series, min_count: int, times: NDArray[np.int64]
    ) -> tuple[Vocabulary, NDArray[np.int32]]:
        """Return what `fit` and `encode` would, without look-ups: `texts` `(n,)` are ids, all different and sorted.

        >>> Vocabulary.fit_ids(pl.Series(["1", "10", "9"]), min_count=1, times=np.array([2, 0, 3]))[1]
        array([2, 0, 1], dtype=int32)
        """
        kept = np.flatnonzero(times >= max(min_count, 1))
        rarity = times[kept].max(initial=0) - times[kept]
        places = kept[np.argsort(rarity.astype(np.min_scalar_type(rarity.max(initial=0))), kind="stable")]
        ids = np.full(len(texts), UNKNOWN, dtype=np.int32)
        ids[places] = np.arange(1, len(places) + 1, dtype=np.int32)
        return cls(texts.gather(places).rename("value"), pl.Series("count", times[places])), ids

    @property
    def size(self) -> int:
        """The number of ids, including the id of unknown values."""
        return len(self.values) + 1

    def encode(self, values: pl.Series) -> NDArray[np.int32]:
        """The id of each value, shape `(n,)`."""
        table = pl.DataFrame({"value": self.values, "id": np.arange(1, self.size, dtype=np.int32)})
        joined = _values(values).join(table, on="value", how="left", maintain_order="left")
        return joined["id"].fill_null(UNKNOWN).to_numpy(writable=True)

    def save(self, path: Path) -> None:
        """Write value, id and count as Parquet."""
        ids = np.arange(1, self.size, dtype=np.int32)
        pl.DataFrame({"value": self.values, "id": ids, "count": self.counts}).write_parquet(path)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote."""
        table = pl.read_parquet(path).sort("id")
        return cls(table["value"], table["count"])

    @staticmethod
    def load_counts(path: Path) -> NDArray[np.int64]:
        """The `counts` of what `save` wrote, without reading the values."""
        return pl.read_parquet(path, columns=["id", "count"]).sort("id")["count"].to_numpy().astype(np.int64)


def _values(raw: pl.Series) -> pl.DataFrame:
    return raw.to_frame("value").select(as_text(pl.col("value"), raw.dtype).fill_null(MISSING))
