"""The generator of files of KuaiSAR's layout, in `benchmarks`, at a tiny size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from benchmarks.kuaisar_files import Shape, write_files

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.kuaisar import KuaiSARConfig, kuaisar

SHAPE = Shape(users=50, items=300, recommended=2000, searched=1000, malformed_every=190)
LAYOUT = {
    "rec_inter": [
        *("user_id", "item_id", "playing_time", "duration_ms", "time", "timestamp", "click", "forward", "like"),
        *("follow", "search", "search_item_related"),
    ],
    "src_inter": [
        *("user_id", "search_session_id", "search_session_time", "search_session_timestamp", "keyword"),
        *("search_source", "item_id", "click_cnt", "item_type"),
    ],
    "user_features": ["user_id", "search_active_level", "rec_active_level", "onehot_feat1", "onehot_feat2"],
    "item_features": [
        *("item_id", "caption", "author_id", "item_type", "upload_time", "upload_type"),
        *(f"{a}_level_category_{b}" for a in ("first", "second", "third", "fourth") for b in ("id", "name", "name_en")),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generated")
    write_files(path / "files", SHAPE)
    return path / "files"


@pytest.fixture(scope="module")
def data(folder: Path) -> PreparedData:
    return prepare(kuaisar(KuaiSARConfig(folder=folder)), folder.parent / "data")


def lines(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()


def test_the_files_are_those_of_the_archive(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*(f"{name}.csv" for name in LAYOUT), "social_network.csv"}


@pytest.mark.parametrize("name", list(LAYOUT))
def test_the_columns_are_those_of_the_archive(folder: Path, name: str) -> None:
    assert lines(folder, name)[0].split(",") == LAYOUT[name]


@pytest.mark.parametrize(
    ("name", "rows", "malformed"),
    [("rec_inter", 2000, 10), ("src_inter", 1000, 5), ("user_features", 50, 0), ("item_features", 300, 1)],
)
def test_there_are_as_many_lines_as_asked_and_a_malformed_one_now_and_then(
    folder: Path, name: str, rows: int, malformed: int
) -> None:
    assert lines(folder, name).count("1,2,cut") == malformed
    assert len(lines(folder, name)) == 1 + rows + malformed


def test_values_are_written_as_in_the_archive(folder: Path) -> None:
    feed = pl.read_csv(folder / "rec_inter.csv", infer_schema=False, truncate_ragged_lines=True)
    search = pl.read_csv(folder / "src_inter.csv", infer_schema=False, truncate_ragged_lines=True)
    assert feed["timestamp"].drop_nulls().str.contains(r"^168\d{10}\.0$").all()
    assert search["search_session_timestamp"].drop_nulls().str.contains(r"^168\d{10}$").all()
    assert search["keyword"].drop_nulls().str.contains(r"^\[\d+, \d+\]$").all()
    assert set(search["item_type"].drop_nulls()) == {"VIDEO", "USER", "IMAGE_ATLAS", "LIVE"}


def test_the_files_can_be_prepared_and_what_is_malformed_is_set_aside(data: PreparedData) -> None:
    counts = data.manifest["counts"]
    assert counts["rows"] == 3000
    assert counts["rejected"] == {"malformed line": 16}
    rejected = pl.read_parquet(data.path / "rejected.parquet")
    feed = [190 + 191 * k for k in range(10)]
    search = [2010 + 190 + 191 * k for k in range(5)]
    assert rejected.filter(pl.col("table") == "interactions")["row"].to_list() == feed + search
    assert rejected.filter(pl.col("table") == "items")["row"].to_list() == [190]
    assert (data.users.height, data.items.height) == (50, 300)


def test_the_shares_of_clicks_are_those_of_the_archive(data: PreparedData) -> None:
    shares = [float(np.mean(data.label[data.scenario == scenario])) for scenario in (0, 1)]
    assert shares == [pytest.approx(0.496, abs=0.04), pytest.approx(0.121, abs=0.04)]


def test_a_few_items_are_popular(data: PreparedData) -> None:
    counts = np.sort(np.bincount(data.item, minlength=300))[::-1]
    assert counts[:10].sum() > 0.3 * 3000


def test_a_seed_repeats_the_files_and_another_changes_them(folder: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "again", SHAPE, seed=0)
    write_files(tmp_path / "other", SHAPE, seed=1)
    names = [f"{name}.csv" for name in LAYOUT]
    assert [n for n in names if (tmp_path / "again" / n).read_bytes() != (folder / n).read_bytes()] == []
    assert (tmp_path / "other" / "rec_inter.csv").read_bytes() != (folder / "rec_inter.csv").read_bytes()


def test_a_shape_can_be_scaled() -> None:
    assert Shape().scaled(0.01) == Shape(259, 68_900, 146_057, 48_287, 2_500)
    assert Shape().scaled(0) == Shape(1, 1, 1, 1, 2)
