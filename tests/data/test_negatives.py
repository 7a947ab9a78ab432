from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from llm4msr.data.negatives import Negatives, sample_negatives
from llm4msr.data.split import PARTS, Split

CASES = [
    (0, Negatives(ratio=3, window=40)),
    (1, Negatives(ratio=1, window=2, popularity=0)),
    (2, Negatives(ratio=5, window=7, popularity=0.5)),
    (3, Negatives(ratio=4, window=2000)),
    (4, Negatives(ratio=20, window=30, popularity=0.3, seed=7)),
]
"""The seed of a log, and how to sample from it."""


def whole(rows: int) -> Split:
    """Everything is for training."""
    return Split(rows, rows, rows, rows, rows)


def thirds(rows: int) -> Split:
    return Split(rows, rows // 3, 2 * rows // 3, rows // 3, 2 * rows // 3)


def positives(
    user: NDArray[np.int64] | list[int], item: NDArray[np.int64] | list[int], scenario: int = 0
) -> pl.DataFrame:
    return pl.DataFrame({"user": user, "item": item, "time": np.arange(len(user))}).with_columns(
        pl.lit(scenario).alias("scenario")
    )


def strangers(item: NDArray[np.int64] | list[int]) -> pl.DataFrame:
    """Each positive is of another user."""
    return positives(np.arange(len(item)), item)


def random_log(seed: int, rows: int = 300) -> pl.DataFrame:
    """Positives of 40 users and 30 items, some of them popular, in three scenarios."""
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": random.integers(0, 40, rows).astype(np.int32),
            "item": (30 * random.random(rows) ** 2).astype(np.int32),
            "scenario": random.integers(0, 3, rows).astype(np.int16),
            "time": np.arange(rows) // 3,
        }
    )


def first_choices(log: pl.DataFrame) -> pl.DataFrame:
    """The log without what a user chose before."""
    return log.unique(["user", "item", "scenario"], keep="first", maintain_order=True)


def sampled(log: pl.DataFrame, split: Split, config: Negatives, chosen: Sequence[pl.DataFrame] = ()) -> pl.DataFrame:
    return sample_negatives(log, split, config, chosen)[0]


def window(log: pl.DataFrame, split: Split, place: int, size: int) -> set[int]:
    """The items of the `size` positives of the place's scenario and part that are nearest to it in time."""
    numbered = log.with_row_index("place")
    part = next(p for p in PARTS if split.range(p)[0] <= place < split.range(p)[1])
    first, last = split.range(part)
    inside = numbered[first:last].filter(pl.col("scenario") == log["scenario"][place])
    centre, even = inside["place"].to_list().index(place), size // 2 * 2
    start = max(min(centre - even // 2, inside.height - even), 0)
    return set(inside["item"][start : start + even])


@pytest.mark.parametrize(("seed", "config"), CASES)
def test_each_positive_has_at_most_the_ratio(seed: int, config: Negatives) -> None:
    log = random_log(seed)
    drawn = sampled(log, thirds(300), config)
    assert drawn.height > 100
    assert 1 <= int(drawn.group_by("place").len()["len"].max()) <= config.ratio  # type: ignore[arg-type]
    assert drawn.equals(drawn.sort("place", "item"))


def negatives_beside(log: pl.DataFrame, drawn: pl.DataFrame) -> pl.DataFrame:
    """Each negative that its user chose in its scenario at some time, with the time of the row and of each choice."""
    rows = log[drawn["place"]].with_columns(drawn["item"].cast(log["item"].dtype))
    return rows.join(log, on=["user", "item", "scenario"], suffix="_chosen")


@pytest.mark.parametrize(("seed", "config"), CASES)
def test_what_a_user_chose_up_to_then_is_never_her_negative_where_nobody_chooses_again(
    seed: int, config: Negatives
) -> None:
    log = first_choices(random_log(seed))
    drawn, again = sample_negatives(log, thirds(log.height), config)
    assert again == []
    beside = negatives_beside(log, drawn)
    assert beside.height > 0  # what she chooses later may be
    assert beside.filter(pl.col("time_chosen") <= pl.col("time")).height == 0
    elsewhere = log[drawn["place"]].with_columns(drawn["item"].cast(pl.Int32)).join(log, on=["user", "item"])
    assert elsewhere.filter(pl.col("time_right") < pl.col("time")).height > 0


@pytest.mark.parametrize(("seed", "config"), CASES)
def test_where_users_choose_again_an_earlier_choice_may_be_a_negative_and_one_of_the_moment_may_not(
    seed: int, config: Negatives
) -> None:
    log = random_log(seed, rows=3000)
    drawn, again = sample_negatives(log, thirds(3000), config)
    assert again == [0, 1, 2]
    times = negatives_beside(log, drawn).select(pl.col("time_chosen") - pl.col("time")).to_series()
    assert (times < 0).any()
    assert (times > 0).any()
    assert not (times == 0).any()


def test_each_scenario_has_its_own_habit() -> None:
    log = pl.concat(
        [random_log(0).with_columns(scenario=pl.lit(0)), first_choices(random_log(0).with_columns(scenario=pl.lit(1)))]
    )
    log = log.sort("time", maintain_order=True)
    assert sample_negatives(log, whole(log.height), Negatives())[1] == [0]


def test_a_few_repeats_beside_many_choices_are_no_habit() -> None:
    log = first_choices(random_log(0, rows=2000).with_columns(scenario=pl.lit(0)))
    few = pl.concat([log, log.head(3).with_columns(time=pl.lit(700, dtype=pl.Int64))])
    assert sample_negatives(few, whole(few.height), Negatives())[1] == []


def test_no_later_choice_changes_anything() -> None:
    log = random_log(0)
    later = random_log(1).with_columns(pl.col("time") + 1000)
    assert sampled(log, thirds(300), Negatives(), [later]).equals(sampled(log, thirds(300), Negatives()))


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize(
    ("users", "items", "ratio"),
    [(1000, 1000, 2), (4000, 50, 4), (4000, 1000, 10), (400, 100, 4)],
    ids=["many items", "few items", "many negatives", "users who have chosen a third of the items"],
)
def test_the_sampling_alone_tells_nothing_of_the_label(users: int, items: int, ratio: int, again: bool) -> None:
    """Users who choose at random: neither an item's popularity nor an earlier choice says which row is positive."""
    random = np.random.default_rng(0)
    rows, chance = 30_000, random.permutation(1 / np.arange(1, items + 1))
    log = positives(random.choice(users, rows), random.choice(items, rows, p=chance / chance.sum()))
    log = log if again else first_choices(log)
    split = Split(log.height, log.height // 2, log.height // 2, log.height // 2, log.height // 2)
    drawn, found = sample_negatives(log, split, Negatives(ratio=ratio))
    assert bool(found) is again
    rows_ = pl.concat(
        [
            log.with_columns(label=pl.lit(1)),
            log[drawn["place"]].with_columns(pl.Series("item", drawn["item"]), label=pl.lit(0)),
        ]
    )
    late = rows_.filter(pl.col("time") >= int(log["time"][split.valid]))
    popular = log[: split.valid]["item"].value_counts()
    scores = late.join(popular, on="item", how="left")["count"].fill_null(0)
    assert roc_auc_score(late["label"], scores) == pytest.approx(0.5, abs=0.02)
    earliest = log.group_by("user", "item").agg(pl.col("time").min().alias("first"))
    before = (
        late.join(earliest, on=["user", "item"], how="left")
        .select((pl.col("first") < pl.col("time")).fill_null(False))
        .to_series()
    )
    assert roc_auc_score(late["label"], before) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("seed", "config"), CASES)
def test_candidates_are_of_the_same_scenario_and_part_and_within_the_window(seed: int, config: Negatives) -> None:
    log = random_log(seed)
    drawn = sampled(log, thirds(300), config)
    outside = [(p, i) for p, i in drawn.rows() if i not in window(log, thirds(300), p, config.window)]
    assert drawn.height > 100
    assert outside == []


def test_each_part_and_each_scenario_draws_from_its_own_items() -> None:
    rows = 120
    part, scenario = np.arange(rows) // 40, np.arange(rows) % 2
    log = strangers(part * 100 + scenario * 10 + np.arange(rows) % 7).with_columns(pl.Series("scenario", scenario))
    drawn = sampled(log, Split(rows, 40, 80, 40, 80), Negatives(ratio=6))
    place, item = drawn["place"].to_numpy(), drawn["item"].to_numpy()
    assert drawn.height == 6 * rows
    assert (item // 100 == part[place]).all()
    assert (item % 100 // 10 == scenario[place]).all()


def test_enough_candidates_give_exactly_the_ratio() -> None:
    drawn = sampled(strangers(np.arange(200) % 50), whole(200), Negatives(ratio=9))
    assert drawn["place"].to_list() == np.repeat(np.arange(200), 9).tolist()


def test_the_window_is_as_wide_at_both_ends_as_in_the_middle() -> None:
    drawn = sampled(strangers(list(range(10))), whole(10), Negatives(ratio=9, window=4))
    items = dict(drawn.unique().group_by("place").agg(pl.col("item").sort()).iter_rows())
    assert (items[0], items[1], items[5], items[9]) == ([1, 2, 3], [0, 2, 3], [3, 4, 6], [6, 7, 8])


def test_an_item_popular_only_long_ago_is_not_drawn_now() -> None:
    items = [0] * 500 + [1 + k % 6 for k in range(500)]
    drawn = sampled(strangers(items), whole(1000), Negatives(ratio=4, window=100))
    places = drawn.filter(pl.col("item") == 0)["place"].to_list()
    assert len(places) > 10
    assert set(places) <= set(range(500, 550))
    assert drawn.filter(pl.col("place") >= 550).height == 4 * 450


@pytest.mark.parametrize("popularity", [1.0, 0.5, 0.0])
def test_chances_go_by_the_local_count_to_the_power_of_popularity(popularity: float) -> None:
    items = [0, 0, 0, 1, 1, 1, 2, 2, 3] * 1000
    drawn = sampled(strangers(items), whole(9000), Negatives(ratio=1, window=18, popularity=popularity))
    weights = np.array([3.0, 3.0, 2.0, 1.0]) ** popularity
    assert drawn.height == 9000
    np.testing.assert_allclose(np.bincount(drawn["item"]) / 9000, weights / weights.sum(), atol=0.02)


def test_a_count_is_that_of_the_window_not_of_the_log() -> None:
    items = [1, 1, 1, 2, 3, 3] * 1000 + [1, 2, 2, 2, 0, 0] * 1000
    drawn = sampled(strangers(items), whole(12_000), Negatives(ratio=1, window=600))
    late = drawn.filter(pl.col("place") > 6500)["item"].to_numpy()
    assert np.mean(late == 2) == pytest.approx(1 / 2, abs=0.06)
    assert np.mean(late == 1) == pytest.approx(1 / 6, abs=0.06)


def test_a_seed_repeats_the_draw_and_another_changes_it() -> None:
    log = random_log(0)
    first = sampled(log, thirds(300), Negatives(seed=1))
    assert first.equals(sampled(log, thirds(300), Negatives(seed=1)))
    assert not first.equals(sampled(log, thirds(300), Negatives(seed=2)))


def test_few_candidates_are_drawn_again() -> None:
    drawn = sampled(positives([0, 0, 1, 2], [0, 1, 2, 2]), whole(4), Negatives(ratio=20))
    assert drawn.unique(maintain_order=True).rows() == [(0, 1), (0, 2), (1, 2), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert drawn.height == 80


def test_a_user_who_chose_everything_has_no_negative() -> None:
    drawn = sampled(positives([7] * 3, [0, 1, 2]), whole(3), Negatives())
    assert drawn["place"].to_list() == [0] * 4 + [1] * 4  # the last row has none
    assert sampled(positives([0], [0]), whole(1), Negatives()).shape == (0, 2)


def test_what_is_chosen_later_may_be_a_negative_before() -> None:
    log = positives([0, 1, 1, 0], [0, 1, 2, 2])
    drawn = sampled(log, Split(4, 3, 3, 3, 3), Negatives(ratio=3))
    assert set(drawn.filter(pl.col("place") == 0)["item"]) == {1, 2}


def test_a_part_without_rows_is_left_out() -> None:
    drawn = sampled(strangers([0, 1]), Split(2, 2, 2, 9, 9), Negatives(ratio=1))
    assert drawn.rows() == [(0, 1), (1, 0)]


def test_a_scenario_may_be_absent_from_a_part() -> None:
    log = strangers([0, 1, 2, 3]).with_columns(pl.Series("scenario", [0, 0, 5, 5]))
    assert sampled(log, Split(4, 2, 4, 2, 4), Negatives(ratio=1)).rows() == [(0, 1), (1, 0), (2, 3), (3, 2)]


@pytest.mark.parametrize(
    "wrong",
    [{"ratio": 0}, {"ratio": 1001}, {"popularity": -0.1}, {"popularity": 1.1}, {"window": 1}, {"seed": -1}, {"x": 1}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Negatives.model_validate(wrong)
