from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge.history import Snapshots, recent_positives, snapshot_times
from tests.knowledge.kiosk import ROWS, SECOND, kiosk

ANN, BOB = 0, 1
BUN, COFFEE, TEA = 0, 1, 2
HALL, APP = 0, 1
BOUGHT, CLICKED = 0, 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return kiosk(tmp_path_factory.mktemp("kiosk") / "data")


@pytest.mark.parametrize(
    ("slices", "seconds"), [(1, [1, 9]), (2, [1, 5, 9]), (4, [1, 3, 5, 7, 9]), (8, [1, 2, 3, 4, 5, 6, 7, 8, 9])]
)
def test_slices_cut_the_training_period_into_equal_parts(data: PreparedData, slices: int, seconds: list[int]) -> None:
    assert snapshot_times(data, Snapshots(slices=slices)) == [s * SECOND for s in seconds]


def test_the_papers_protocol_takes_the_end_of_training_alone(data: PreparedData) -> None:
    assert snapshot_times(data, Snapshots(protocol="train_end")) == [9 * SECOND]


def test_the_last_snapshot_is_the_first_moment_of_validation(data: PreparedData) -> None:
    assert snapshot_times(data, Snapshots(slices=3))[-1] == data.split.valid_time


def test_a_history_is_strictly_before_its_time(data: PreparedData) -> None:
    assert recent_positives(data, 6 * SECOND, 9).rows() == [
        (ANN, HALL, [COFFEE], [BOUGHT]),
        (ANN, APP, [BUN], [CLICKED]),
        (BOB, APP, [TEA], [CLICKED]),
    ]


def test_a_history_is_in_order_of_time_the_oldest_first(data: PreparedData) -> None:
    assert recent_positives(data, 11 * SECOND, 9).rows() == [
        (ANN, HALL, [COFFEE, TEA, BUN], [BOUGHT, CLICKED, BOUGHT]),
        (ANN, APP, [BUN], [CLICKED]),
        (BOB, APP, [TEA, TEA], [CLICKED, BOUGHT]),
    ]


def test_a_history_keeps_the_latest_positives_of_each_scenario(data: PreparedData) -> None:
    assert recent_positives(data, 11 * SECOND, 2).rows() == [
        (ANN, HALL, [TEA, BUN], [CLICKED, BOUGHT]),
        (ANN, APP, [BUN], [CLICKED]),
        (BOB, APP, [TEA, TEA], [CLICKED, BOUGHT]),
    ]


def test_before_the_first_positive_there_is_no_history(data: PreparedData) -> None:
    empty = recent_positives(data, 1 * SECOND, 9)
    assert empty.rows() == []
    assert empty.columns == ["user", "scenario", "items", "behaviours"]


def test_a_history_may_begin_before_the_impressions(tmp_path: Path) -> None:
    wide = kiosk(tmp_path / "data", positives=[(0, "cid", "bun", "a"), (1, "cid", "tea", "a")])
    assert recent_positives(wide, 1 * SECOND, 9).rows() == [(2, APP, [BUN], [BOUGHT])]


def test_a_period_goes_on_through_validation_and_test(data: PreparedData) -> None:
    two_seconds = 2 / 86_400
    expected = [at * SECOND for at in (1, 3, 5, 7, 9)]
    assert snapshot_times(data, Snapshots(protocol="period", period_days=two_seconds)) == expected


def test_a_period_that_is_too_short_is_refused(data: PreparedData) -> None:
    with pytest.raises(InputError, match=r"a snapshot every 1e-09 days is more than 10000 of them here"):
        snapshot_times(data, Snapshots(protocol="period", period_days=1e-9))


def test_given_times_are_taken_in_order_and_once(data: PreparedData) -> None:
    assert snapshot_times(data, Snapshots(protocol="times", times=(7, 3, 7))) == [3, 7]
    with pytest.raises(ValidationError, match="go together"):
        Snapshots(protocol="times")


def test_all_is_after_the_last_row(data: PreparedData) -> None:
    assert snapshot_times(data, Snapshots(protocol="all")) == [10 * SECOND + 1]


def test_a_range_of_users_has_their_histories_alone(data: PreparedData) -> None:
    whole = recent_positives(data, 11 * SECOND, 9)
    parts = [recent_positives(data, 11 * SECOND, 9, range(start, start + 1)) for start in range(3)]
    assert pl.concat(parts).equals(whole)


def test_before_training_there_is_a_snapshot_only_where_something_was_liked_before_it(
    data: PreparedData, tmp_path: Path
) -> None:
    protocol = Snapshots(protocol="train_start")
    with pytest.raises(InputError, match=r"no positive is before the first row.*--history-share"):
        snapshot_times(data, protocol)
    later = kiosk(tmp_path / "later", history_share=0.3)
    assert snapshot_times(later, protocol) == [4 * SECOND]
    assert recent_positives(later, 4 * SECOND, 9)["items"].to_list() == [[COFFEE], [TEA]]


def test_a_clock_may_begin_at_zero(tmp_path: Path) -> None:
    rows = [(at - 1, who, what, where, click, paid) for at, who, what, where, click, paid in ROWS]
    assert rows[0][0] == 0
    data = kiosk(tmp_path / "data", rows=rows, history_share=0.3)
    assert snapshot_times(data, Snapshots(protocol="train_start")) == [3 * SECOND]
