"""Writes files with KuaiSAR's layout and shape at any scale, to measure size, speed and memory with.

    python -m benchmarks.kuaisar_files FOLDER --scale 0.01

At scale 1 there are 25,877 users, about 6.9 M items, 14,605,712 recommended rows (half of them clicked) and 4,828,690
searched rows (one in eight clicked). The popularity of items follows Zipf's law. Some columns hold lists, and a
malformed line comes now and then. Nothing in the files is real.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

_START, _SPAN = 1_684_713_600_000, 18 * 86_400_000
_CHUNK = 1_000_000
_CATEGORIES = 40


@dataclass(frozen=True)
class Shape:
    """The numbers of users, items and rows, and the rows between malformed lines (0 for no malformed line)."""

    users: int = 25_877
    items: int = 6_890_000
    recommended: int = 14_605_712
    searched: int = 4_828_690
    malformed_every: int = 250_000

    def scaled(self, scale: float) -> Shape:
        """The same shape at another size."""
        users, items, recommended, searched = (
            max(1, round(n * scale)) for n in (self.users, self.items, self.recommended, self.searched)
        )
        every = max(2, round(self.malformed_every * scale)) if self.malformed_every else 0
        return Shape(users, items, recommended, searched, every)


def write_files(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Write `rec_inter.csv`, `src_inter.csv`, `user_features.csv`, `item_features.csv` and `social_network.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    every = shape.malformed_every
    _write(folder / "rec_inter.csv", (_recommended(shape, n, random) for n in _sizes(shape.recommended)), every)
    _write(folder / "src_inter.csv", (_searched(shape, n, random) for n in _sizes(shape.searched)), every)
    users = np.arange(shape.users)
    _write(
        folder / "user_features.csv",
        iter(
            [
                pl.DataFrame(
                    {
                        "user_id": users,
                        "search_active_level": users % 5,
                        "rec_active_level": users % 7,
                        "onehot_feat1": users % 3,
                        "onehot_feat2": users % 8,
                    }
                )
            ]
        ),
        0,
    )
    starts = range(0, shape.items, _CHUNK)
    _write(folder / "item_features.csv", (_items(s, min(s + _CHUNK, shape.items), random) for s in starts), every)
    friends = pl.DataFrame({"user_id": users[:1], "friend_list": ["[1, 2]"]})
    _write(folder / "social_network.csv", iter([friends]), 0)


def _sizes(rows: int) -> Iterator[int]:
    return (min(_CHUNK, rows - start) for start in range(0, rows, _CHUNK))


def _write(path: Path, chunks: Iterator[pl.DataFrame], malformed_every: int) -> None:
    with path.open("wb") as file:
        written = 0
        for place, chunk in enumerate(chunks):
            step = malformed_every or chunk.height
            for start in range(0, chunk.height, step):
                part = chunk[start : start + step]
                part.write_csv(file, include_header=place == 0 and start == 0)
                if malformed_every and part.height == step:
                    file.write(b"1,2,cut\n")
                written += part.height


def _recommended(shape: Shape, count: int, random: np.random.Generator) -> pl.DataFrame:
    time = _START + (np.sort(random.random(count)) * _SPAN).astype(np.int64)
    click = random.random(count) < 0.496
    duration = random.integers(5_000, 120_000, count)
    return pl.DataFrame(
        {
            "user_id": random.integers(0, shape.users, count),
            "item_id": _popular(shape.items, count, random),
            "playing_time": (duration * random.random(count)).astype(np.int64),
            "duration_ms": duration,
            "time": _texts(time),
            "timestamp": time.astype(np.float64),
            "click": click.astype(np.int8),
            "forward": (click & (random.random(count) < 0.002)).astype(np.int8),
            "like": (click & (random.random(count) < 0.03)).astype(np.int8),
            "follow": np.zeros(count, dtype=np.int8),
            "search": np.zeros(count, dtype=np.int8),
            "search_item_related": np.zeros(count, dtype=np.int8),
        }
    )


def _searched(shape: Shape, count: int, random: np.random.Generator) -> pl.DataFrame:
    time = _START + (np.sort(random.random(count)) * _SPAN).astype(np.int64)
    return pl.DataFrame(
        {
            "user_id": random.integers(0, shape.users, count),
            "search_session_id": np.arange(count) // 7,
            "search_session_time": _texts(time),
            "search_session_timestamp": time,
            "keyword": _words(random.integers(0, 30_000, (count, 2))),
            "search_source": _choice(["USER_INPUT", "QUERY_RECO", "HISTORY"], count, random),
            "item_id": _popular(shape.items, count, random),
            "click_cnt": np.where(random.random(count) < 0.121, random.integers(1, 4, count), 0),
            "item_type": _choice(["VIDEO", "USER", "IMAGE_ATLAS", "LIVE"], count, random),
        }
    )


def _items(start: int, stop: int, random: np.random.Generator) -> pl.DataFrame:
    count = stop - start
    first = random.integers(0, _CATEGORIES, count)
    columns: dict[str, object] = {
        "item_id": np.arange(start, stop),
        "caption": _words(random.integers(0, 30_000, (count, 4))),
        "author_id": _popular(2_000_000, count, random),
        "item_type": _choice(["NORMAL", "AD"], count, random),
        "upload_time": _texts(_START - random.integers(0, _SPAN, count)),
        "upload_type": _choice(["ShortImport", "LongImport", "Kmovie", "UNKNOWN"], count, random),
    }
    for place, level in enumerate(("first", "second", "third", "fourth")):
        code = first * 10**place + random.integers(0, 10**place, count)
        known = random.random(count) > 0.1 * (place + 1)
        text = pl.Series(code).cast(pl.String)
        name = pl.select(pl.when(pl.Series(known)).then(pl.lit(f"{level} topic ") + text).otherwise(pl.lit("empty")))
        columns[f"{level}_level_category_id"] = np.where(known, code + 1, 0)
        columns[f"{level}_level_category_name"] = name.to_series()
        columns[f"{level}_level_category_name_en"] = name.to_series()
    return pl.DataFrame(columns)


def _popular(items: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Item ids by Zipf's law with exponent 1: the logarithm of the rank is uniform, ranks are scattered over ids."""
    rank = np.exp(random.random(count) * np.log(items)).astype(np.int64)
    scattered: NDArray[np.int64] = (rank * 2_654_435_761) % items
    return scattered


def _texts(milliseconds: NDArray[np.int64]) -> pl.Series:
    return pl.Series(milliseconds).cast(pl.Datetime("ms")).dt.to_string("%Y-%m-%d %H:%M:%S")


def _words(ids: NDArray[np.int64]) -> pl.Series:
    columns = [pl.Series(str(i), column).cast(pl.String) for i, column in enumerate(ids.T)]
    frame = pl.DataFrame(columns)
    return frame.select(pl.lit("[") + pl.concat_str(pl.all(), separator=", ") + pl.lit("]")).to_series()


def _choice(values: list[str], count: int, random: np.random.Generator) -> pl.Series:
    return pl.Series(values).gather(random.integers(0, len(values), count))


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_files(arguments.folder, Shape().scaled(arguments.scale), arguments.seed)


if __name__ == "__main__":
    main()
