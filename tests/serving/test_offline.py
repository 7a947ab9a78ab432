"""Scoring a table with a bundle: what a server answers for the same rows."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.sources.frames import from_frames, read_table
from llm4msr.errors import InputError
from llm4msr.schema import Schema
from llm4msr.serving import offline
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.export import export_bundle
from llm4msr.serving.live import open_live
from llm4msr.serving.log import FILE, EventLog, EventRecord
from llm4msr.serving.offline import Counts, score_table
from llm4msr.serving.requests import ScoreRequest
from llm4msr.serving.scorer import Scorer
from tests.conftest import SHOP, shop_frames
from tests.serving.bundles import train_shop


@pytest.fixture
def rows() -> pl.DataFrame:
    return shop_frames()["interactions"].sample(200, seed=1, shuffle=True).with_columns(note=pl.lit("kept"))


@pytest.mark.parametrize("block", [7, 200])
def test_the_scores_are_those_of_single_requests_in_the_order_of_the_rows(
    bundle_path: Path, bundle: Bundle, rows: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(offline, "_BLOCK", block)
    monkeypatch.setattr(offline, "_PASS", 5)
    seen: list[tuple[int, int]] = []
    counts = score_table(
        bundle_path, read_table(rows, "rows"), tmp_path / "out.parquet", progress=lambda *at: seen.append(at)
    )
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found.drop("score").equals(rows)
    assert counts == Counts(rows=200)
    assert seen[-1] == (200, 200)
    scorer = Scorer(bundle, open_live(bundle, tmp_path))
    for row in found.iter_rows(named=True):
        request = ScoreRequest(
            user=row["user"], scenario=row["place"], items=[row["item"]], features={"hour": row["hour"]}
        )
        assert scorer.score([request])[0].scores[0] == pytest.approx(row["score"], abs=1e-6)


def test_rows_without_a_score_are_kept_and_counted(bundle_path: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    odd = rows.head(6).with_columns(
        user=pl.Series(["u1", None, "nobody", "u1", "u1", ""]),
        item=pl.Series(["i1", "i1", "i1", "nothing", "i1", "i1"]),
        place=pl.Series(["feed", "feed", "feed", "feed", "attic", "feed"]),
    )
    counts = score_table(bundle_path, read_table(odd, "rows"), tmp_path / "out.parquet")
    assert counts == Counts(rows=6, without=3, unknown_users=1, unknown_items=1)
    scores = pl.read_parquet(tmp_path / "out.parquet")["score"]
    assert scores.is_null().to_list() == [False, True, False, False, True, True]
    assert scores.drop_nulls().is_between(0, 1).all()


def test_the_events_of_a_log_count_where_its_folder_is_named(
    bundle_path: Path, rows: pl.DataFrame, tmp_path: Path
) -> None:
    state, event = tmp_path / "state", EventRecord("u1", "i5", "feed", 2_100_000_000_000, "clicked")
    EventLog(state).append([event], 0)
    pairs = rows.with_columns(user=pl.lit(event.user))
    for name, folder in (("before", None), ("after", state)):
        score_table(bundle_path, read_table(pairs, "rows"), tmp_path / f"{name}.parquet", state=folder)
    assert [path.name for path in state.iterdir()] == [FILE]  # nothing is written there
    before, after = (pl.read_parquet(tmp_path / f"{name}.parquet")["score"].to_numpy() for name in ("before", "after"))
    assert np.abs(before - after).max() > 1e-6


def test_values_of_any_type_are_those_that_the_model_was_trained_with(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    size = 900
    given = pl.DataFrame(
        {
            "discount": pl.Series(random.choice([0.1, 0.2, 2.0, np.nan], size), dtype=pl.Float32),
            "day": pl.Series([date(2026, 1, 1 + d) for d in random.integers(0, 5, size)]),
            "member": pl.Series(random.random(size) < 0.5),
            "sizes": pl.Series(
                [random.choice([0.1, 12.0, 0.3], n).tolist() for n in random.integers(0, 3, size)],
                dtype=pl.List(pl.Float32),
            ),
        }
    )
    rows = shop_frames(rows=size)["interactions"].with_columns(*given, time=pl.int_range(size) + 1_000_000)
    schema = {
        **{key: SHOP[key] for key in ("name", "columns", "scenarios")},
        "fields": [
            {"name": "discount", "side": "context"},
            {"name": "day", "side": "context"},
            {"name": "member", "side": "context", "kind": "numeric"},
            {"name": "date", "column": "day", "side": "context", "kind": "numeric"},
            {"name": "sizes", "side": "context", "kind": "multi"},
        ],
    }
    data = prepare(from_frames(Schema.checked(schema, "a shop"), rows), tmp_path / "data")
    run = train_shop(tmp_path / "run", data, None, "shared_bottom", "none")
    logits = np.load(run / "test_logits.npy")
    score_table(
        export_bundle(run, tmp_path / "bundle"), read_table(rows.tail(len(logits)), "rows"), tmp_path / "out.parquet"
    )
    found = pl.read_parquet(tmp_path / "out.parquet")["score"].to_numpy()
    assert found.std() > 1e-4
    assert found == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"user": ["u1"], "item": ["i1"]}), "has no column 'place'"),
        (
            pl.DataFrame({"user": ["u1"], "item": ["i1"], "place": ["feed"], "score": [1]}),
            "has a column 'score' already",
        ),
        (pl.DataFrame({"user": ["u1"], "item": ["i1"], "place": ["attic"]}), "no row has ids and a scenario"),
        (
            pl.DataFrame({"user": ["u1"], "item": ["i1"], "place": ["feed"], "hour": [[1, 2]]}),
            "the frame rows: the field 'hour' takes one value, not a list",
        ),
    ],
)
def test_a_table_that_cannot_be_scored_is_refused(
    bundle_path: Path, tmp_path: Path, frame: pl.DataFrame, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score_table(bundle_path, read_table(frame, "rows"), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
