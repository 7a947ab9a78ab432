"""MovieLens-100K as RecBole's atomic files: films rated by users, in scenarios made of groups of genres.

Every film belongs to the scenario of its first genre that has one, so scenarios share users but not films. A rating
above 3 is a positive; all other ratings are true negatives. GroupLens allows use in research but no redistribution.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from llm4msr.data.sources.delimited import read_delimited
from llm4msr.data.tables import Table, Tables
from llm4msr.errors import InputError
from llm4msr.schema import Schema
from llm4msr.validation import Settings

_GROUPS = {
    "drama": ("Drama", "War", "Film-Noir", "Documentary", "Mystery", "Crime"),
    "comedy": ("Comedy", "Romance", "Musical", "Children's", "Animation"),
    "action": ("Action", "Adventure", "Sci-Fi", "Thriller", "Horror", "Fantasy", "Western"),
}
_ABOUT = {
    "drama": "serious films: drama, war, crime, mystery and documentaries",
    "comedy": "light films: comedy, romance, musicals and films for children",
    "action": "exciting films: action, adventure, science fiction, thrillers and horror",
}


class MovieLensConfig(Settings):
    """`folder` holds `ml-100k.inter`, `ml-100k.item` and `ml-100k.user`."""

    folder: Path


def movielens(config: MovieLensConfig) -> Tables:
    """Read the tables; raises `InputError` if a file or a column is missing."""
    text = pa.string()
    ratings = _read(
        config.folder,
        "inter",
        {"user_id": text, "item_id": text, "rating": pa.float32(), "timestamp": pa.float64()},
    )
    films = _read(config.folder, "item", {"item_id": text, "movie_title": text, "release_year": text, "class": text})
    users = _read(config.folder, "user", {"user_id": text, "age": pa.float32(), "gender": text, "occupation": text})
    of_genre = {genre: group for group, genres in _GROUPS.items() for genre in genres}
    genres = pl.col("class").str.split(" ")
    group = genres.list.eval(pl.element().replace_strict(of_genre, default=None, return_dtype=pl.String))
    films = films.replace(films.frame.with_columns(group.list.drop_nulls().list.first().alias("group")))
    place = films.frame.select("item_id", pl.col("group").fill_null("of no group"))
    return Tables(
        schema=Schema.checked(_SCHEMA, "MovieLens"),
        interactions=ratings.replace(ratings.frame.join(place, on="item_id", how="left", maintain_order="left")),
        users=users,
        items=films,
        recipe={"source": "movielens"},
    )


def _read(folder: Path, kind: str, types: dict[str, pa.DataType]) -> Table:
    path = folder / f"ml-100k.{kind}"
    if not path.is_file():
        raise InputError(f"{path}: no such file; the folder of MovieLens-100K holds ml-100k.inter, .item and .user")
    return read_delimited([path], "\t", types=types, header=lambda name: name.partition(":")[0])


_SCHEMA = {
    "name": "MovieLens 100K",
    "description": "a site where people rate films they have seen",
    "user_description": "people who rate films",
    "item_description": "films",
    "columns": {
        "user": "user_id",
        "item": "item_id",
        "scenario": "group",
        "time": "timestamp",
        "time_unit": "s",
        "label_rule": "rating > 3",
    },
    "scenarios": [{"value": name, "description": about} for name, about in _ABOUT.items()],
    "fields": [
        {"name": "user_id", "side": "user"},
        {"name": "item_id", "side": "item"},
        {"name": "genres", "column": "class", "side": "item", "kind": "multi", "separator": " "},
        {"name": "release_year", "side": "item"},
        {"name": "age", "side": "user", "kind": "numeric"},
        {"name": "gender", "side": "user"},
        {"name": "occupation", "side": "user"},
    ],
    "item_text": {"title": "movie_title", "category": "class", "details": ["release_year"]},
    "user_text": {"details": ["age", "gender", "occupation"]},
    "behaviours": [{"name": "liked"}],
}
