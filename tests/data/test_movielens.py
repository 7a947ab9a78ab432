from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.sources.movielens import MovieLensConfig, movielens
from llm4msr.data.tables import Tables
from llm4msr.errors import InputError

from .real import SHARED, needs

RATINGS = """user_id:token	item_id:token	rating:float	timestamp:float
1	10	5	881250900
2	10	3	881250901
1	20	4	881250902
3	30	2	881250903
2	20
2	40	3.5	881250904
3	50	5	881250905
3	99	5	881250906
"""
FILMS = """item_id:token	movie_title:token_seq	release_year:token	class:token_seq
10	Toy Story	1995	Animation Children's Comedy
20	GoldenEye	1995	Action Adventure Thriller
30	Brazil		Sci-Fi Drama
40	Fargo	1996	unknown Crime Drama Thriller
50	unknown	1971	unknown
"""
USERS = """user_id:token	age:token	gender:token	occupation:token	zip_code:token
1	24	M	technician	85711
2	53	F	other	94043
3	23	M	writer	32067
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "ml-100k"
    path.mkdir()
    for kind, text in (("inter", RATINGS), ("item", FILMS), ("user", USERS)):
        (path / f"ml-100k.{kind}").write_text(text, encoding="utf-8")
    return path


def read(folder: Path) -> Tables:
    return movielens(MovieLensConfig(folder=folder))


def test_a_rating_is_in_the_scenario_of_the_films_first_genre_that_has_one(folder: Path) -> None:
    tables = read(folder)
    ratings = tables.interactions.frame.collect()
    assert ratings.select("user_id", "item_id", "rating", "timestamp", "group").rows() == [
        ("1", "10", 5.0, 881250900.0, "comedy"),
        ("2", "10", 3.0, 881250901.0, "comedy"),
        ("1", "20", 4.0, 881250902.0, "action"),
        ("3", "30", 2.0, 881250903.0, "action"),
        ("2", "40", 3.5, 881250904.0, "drama"),
        ("3", "50", 5.0, 881250905.0, "of no group"),
        ("3", "99", 5.0, 881250906.0, None),
    ]
    assert tables.interactions.malformed.tolist() == [4]


def test_films_and_users_are_as_in_the_files(folder: Path) -> None:
    tables = read(folder)
    assert tables.items is not None
    assert tables.users is not None
    columns = ("item_id", "movie_title", "release_year", "class", "group")
    assert tables.items.frame.select(columns).collect().rows()[1:4] == [
        ("20", "GoldenEye", "1995", "Action Adventure Thriller", "action"),
        ("30", "Brazil", None, "Sci-Fi Drama", "action"),
        ("40", "Fargo", "1996", "unknown Crime Drama Thriller", "drama"),
    ]
    assert tables.users.frame.collect().rows() == [
        ("1", 24.0, "M", "technician"),
        ("2", 53.0, "F", "other"),
        ("3", 23.0, "M", "writer"),
    ]
    assert tables.recipe == {"source": "movielens"}
    assert tables.negatives is None


def test_the_tables_can_be_prepared(folder: Path, tmp_path: Path) -> None:
    data = prepare(read(folder), tmp_path / "data", ratios=(3, 1, 1), max_rejected=0.5)
    assert data.users["user"].gather(data.user).to_list() == ["1", "2", "1", "3", "2"]
    assert data.items["item"].gather(data.item).to_list() == ["10", "10", "20", "30", "40"]
    assert data.scenario.tolist() == [1, 1, 2, 2, 0]
    assert data.label.tolist() == [1, 0, 1, 0, 1]
    assert data.vocabulary("genres").values.to_list() == ["Animation", "Children's", "Comedy"]
    rejected = pl.read_parquet(data.path / "rejected.parquet")
    assert rejected.select("row", "reason", "item").rows() == [
        (4, "malformed line", None),
        (6, "scenario unknown", "50"),
        (7, "scenario unknown", "99"),
    ]


@pytest.mark.parametrize("kind", ["inter", "item", "user"])
def test_a_missing_file_is_named(folder: Path, kind: str) -> None:
    (folder / f"ml-100k.{kind}").unlink()
    with pytest.raises(InputError, match=rf"ml-100k\.{kind}: no such file; the folder of MovieLens-100K holds"):
        read(folder)


def test_a_missing_column_is_named_with_its_file(folder: Path) -> None:
    (folder / "ml-100k.item").write_text(FILMS.replace("class:", "genre:"), encoding="utf-8")
    with pytest.raises(InputError, match=r"ml-100k\.item: has no column 'class'; known: item_id, movie_title, release"):
        read(folder)


@needs("ml-100k")
def test_the_real_files_can_be_prepared(tmp_path: Path) -> None:
    data = prepare(read(SHARED / "ml-100k"), tmp_path / "data")
    counts = data.manifest["counts"]
    assert counts["rejected"] == {"scenario unknown": 10}
    assert (counts["rows"], counts["users"], counts["items"]) == (99_990, 943, 1_682)
    assert counts["positives"] == data.label.sum() == 55_370
    assert {s: sum(part["rows"] for part in parts.values()) for s, parts in counts["scenarios"].items()} == {
        "drama": 35_416,
        "comedy": 29_734,
        "action": 34_840,
    }
