from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.kuaisar import KuaiSARConfig, kuaisar
from llm4msr.data.tables import Tables
from llm4msr.errors import InputError

HOUR = 3_600_000
START = 1_684_713_600_000 + 300_000  # five past midnight
FEED_HEADER = (
    "user_id,item_id,playing_time,duration_ms,time,timestamp,click,forward,like,follow,search,search_item_related"
)
SEARCH_HEADER = (
    "user_id,search_session_id,search_session_time,search_session_timestamp,keyword,search_source,item_id,click_cnt,"
    "item_type"
)
LEVELS = ("first", "second", "third", "fourth")


def shown(user: int, item: int, hour: int, click: int = 0, forward: int = 0, like: int = 0) -> str:
    return f"{user},{item},5,9,2023-05-22 00:00:00,{START + hour * HOUR}.0,{click},{forward},{like},0,0,0"


def found(user: int, item: int, hour: int, clicks: str = "0") -> str:
    return f'{user},77,2023-05-22 00:00:00,{START + hour * HOUR},"[11, 12]",USER_INPUT,{item},{clicks},VIDEO'


FEED = [
    shown(1, 10, 0, click=1, like=1, forward=1),
    shown(1, 11, 2),
    "1,2,cut",
    shown(2, 10, 4, click=1, forward=1),
    shown(2, 12, 30, click=1),
    shown(2, 11, 31, like=1),
    "",
    "3,10,5",
]
SEARCH = [
    found(1, 12, 1, "3"),
    "2,77",
    found(2, 99, 3),
    found(1, 10, 32, "1"),
    found(2, 12, 33, ""),
    "1,2,3,4,[11, 12],6,7,8,9",
]
USERS = ["1,2,5,0,7", "2,,6,1,3"]
ITEMS = [
    '10,"[5, 6]",100,NORMAL,2023-05-01,ShortImport,3,Z,Food,31,Z,Noodles,0,empty,empty,0,empty,empty',
    '11,"[5]",0,AD,2023-05-01,LongImport,0,empty,empty,0,empty,empty,0,empty,empty,0,empty,empty',
    '12,[],101,NORMAL,2023-05-01,UNKNOWN,-124,empty,empty,32,empty,empty,312,Z,"Pots, pans",9,Z,Woks',
    "13,cut",
]


def write(folder: Path, **lines: list[str]) -> Path:
    headers = {
        "rec_inter": FEED_HEADER,
        "src_inter": SEARCH_HEADER,
        "user_features": "user_id,search_active_level,rec_active_level,onehot_feat1,onehot_feat2",
        "item_features": "item_id,caption,author_id,item_type,upload_time,upload_type,"
        + ",".join(f"{a}_level_category_{b}" for a in LEVELS for b in ("id", "name", "name_en")),
    }
    contents = {"rec_inter": FEED, "src_inter": SEARCH, "user_features": USERS, "item_features": ITEMS, **lines}
    for name, header in headers.items():
        (folder / f"{name}.csv").write_text("\n".join([header, *contents[name]]) + "\n", encoding="utf-8")
    return folder


def read(folder: Path) -> Tables:
    return kuaisar(KuaiSARConfig(folder=folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("kuaisar")
    return prepare(read(write(folder)), folder / "data", max_rejected=0.6)


def words(data: PreparedData, field: str) -> list[str | None]:
    """The field's value of each row, None where it is unknown."""
    known: list[Any] = [None, *data.vocabulary(field).values]
    return [known[number] for number in data.field(field).tolist()]


def test_both_logs_are_one_in_order_of_time(data: PreparedData) -> None:
    assert data.users["user"].gather(data.user).to_list() == ["1", "1", "1", "2", "2", "2", "2", "1"]
    assert data.items["item"].gather(data.item).to_list() == ["10", "12", "11", "99", "10", "12", "11", "10"]
    assert ["rec" if s == 0 else "src" for s in data.scenario] == ["rec", "src", "rec", "src", *["rec"] * 3, "src"]
    assert ((data.time // 1000 - START) // HOUR).tolist() == [0, 1, 2, 3, 4, 30, 31, 32]


def test_a_searched_item_is_clicked_when_it_has_clicks(data: PreparedData) -> None:
    assert data.label.tolist() == [1, 1, 0, 0, 1, 1, 0, 1]


def test_a_positive_has_its_strongest_behaviour_like_forward_or_click(data: PreparedData) -> None:
    assert [behaviour.name for behaviour in data.schema.behaviours] == ["like", "forward", "click"]
    named = data.positives.join(data.users.with_row_index("user_code"), left_on="user", right_on="user_code")
    hours = named.select("user_right", (pl.col("time") // 1000 - START) // HOUR, "behaviour").rows()
    assert sorted(hours) == [("1", 0, 0), ("1", 1, 2), ("1", 32, 2), ("2", 4, 1), ("2", 30, 2), ("2", 31, 0)]


def test_rows_set_aside_are_numbered_over_both_files(data: PreparedData) -> None:
    rejected = pl.read_parquet(data.path / "rejected.parquet").sort("table", "row")
    assert rejected.select("table", "row", "reason", "user", "item").rows() == [
        ("interactions", 2, "malformed line", None, None),
        ("interactions", 6, "malformed line", None, None),
        ("interactions", 8, "malformed line", None, None),
        ("interactions", 11, "label missing", "2", "12"),
        ("interactions", 12, "malformed line", None, None),
        ("items", 3, "malformed line", None, None),
    ]


def test_the_fields_of_users_items_and_the_hour(data: PreparedData) -> None:
    # A value, missing ("") or not, is known when it was seen twice among the six rows of the training part.
    assert data.split.valid == 6
    assert words(data, "user_id") == ["1", "1", "1", "2", "2", "2", "2", "1"]
    assert words(data, "search_active_level") == ["2", "2", "2", "", "", "", "", "2"]
    assert words(data, "item_id") == ["10", "12", None, None, "10", "12", None, "10"]
    assert words(data, "author_id") == ["100", "101", "", "", "100", "101", "", "100"]
    assert words(data, "first_level_category_id") == ["3", "", "", "", "3", "", "", "3"]
    assert words(data, "hour") == [None] * 8


def test_the_hour_is_that_of_the_day(tmp_path: Path) -> None:
    tables = read(write(tmp_path))
    hours = tables.interactions.frame.collect()["hour"].to_list()
    assert hours == [0, 2, 4, 6, 7, 1, 3, 8, 9]


def test_categories_that_are_none_are_missing_and_the_others_make_a_path(data: PreparedData) -> None:
    assert data.items.select(
        "item", "category", "first_level_category_id", "second_level_category_id", "author_id"
    ).rows() == [
        ("10", "Food > Noodles", "3", "31", "100"),
        ("11", None, None, None, None),
        ("12", "Pots, pans > Woks", None, "32", "101"),
        ("99", None, None, None, None),
    ]


def test_the_source_says_what_it_is(tmp_path: Path) -> None:
    tables = read(write(tmp_path))
    assert tables.recipe == {"source": "kuaisar"}
    assert tables.interactions.name == f"{tmp_path / 'rec_inter.csv'}, {tmp_path / 'src_inter.csv'}"
    assert tables.negatives is None


def test_columns_may_stand_in_another_order_and_more_may_be_there(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "user_features.csv"
    pl.read_csv(path, infer_schema=False).select(pl.lit("x").alias("new"), pl.all().reverse()).write_csv(path)
    users = read(tmp_path).users
    assert users is not None
    assert users.frame.select("user_id", "rec_active_level").collect().rows() == [(2, "6"), (1, "5")]


@pytest.mark.parametrize("name", ["rec_inter", "src_inter", "user_features", "item_features"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write(tmp_path) / f"{name}.csv").unlink()
    with pytest.raises(InputError) as error:
        read(tmp_path)
    path = tmp_path / f"{name}.csv"
    assert str(error.value) == f"{path}: no such file; KuaiSAR's archive has it beside rec_inter.csv"


@pytest.mark.parametrize(
    ("name", "column"), [("rec_inter", "like"), ("src_inter", "click_cnt"), ("item_features", "author_id")]
)
def test_a_missing_column_is_named_with_its_file(tmp_path: Path, name: str, column: str) -> None:
    path = write(tmp_path) / f"{name}.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(column, column[:-2], 1), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{name}\.csv: has no column '{column}'; did you mean '{column[:-2]}'"):
        read(tmp_path)


def test_a_value_that_is_no_number_sets_its_row_aside(tmp_path: Path) -> None:
    broken = shown(1, 10, 5).replace("1,10,", "one,10,")
    late = shown(2, 10, 6).replace(f"{START + 6 * HOUR}.0", "yesterday")
    folder = write(tmp_path, rec_inter=[*FEED[:2], broken, late, shown(3, 10, 7)], src_inter=SEARCH[:1])
    data = prepare(read(folder), tmp_path / "data", max_rejected=0.6)
    rejected = pl.read_parquet(data.path / "rejected.parquet").filter(pl.col("table") == "interactions")
    assert rejected.select("row", "reason").rows() == [(2, "user id missing"), (3, "time missing")]
    assert data.users["user"].to_list() == ["1", "2", "3"]


def test_a_log_may_be_empty(tmp_path: Path) -> None:
    data = prepare(read(write(tmp_path, src_inter=[])), tmp_path / "data", max_rejected=0.6)
    assert np.unique(data.scenario).tolist() == [0]
    assert data.manifest["counts"]["scenarios"]["search"]["train"] == {"rows": 0, "positive": 0}
