"""Events: durable, counted once, part of the next score, and the offline pipeline's states."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.errors import InputError
from llm4msr.schema import Schema
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.export import export_bundle
from llm4msr.serving.harvest import harvest
from llm4msr.serving.live import Live
from llm4msr.serving.log import FILE, EventLog, EventRecord, ItemRecord, read_log
from tests.conftest import SHOP, shop_frames
from tests.serving.bundles import train_shop
from tests.serving.conftest import serving

ASK: dict[str, Any] = {"user": "u1", "scenario": "search", "items": ["i1", "i2", "i3"], "features": {"hour": 12}}
EVENT: dict[str, Any] = {"user": "u1", "item": "i5", "scenario": "feed", "time": "1970-01-25T00:00:00Z"}


def _record(user: str = "u1", item: str = "i5", scenario: str = "feed", time: int = 2_100_000_000_000) -> EventRecord:
    return EventRecord(user, item, scenario, time, "clicked")


def test_an_event_moves_the_next_score_and_counts_once(bundle_path: Path, tmp_path: Path) -> None:
    with serving(bundle_path, tmp_path) as running:
        before = running.client.post("/v1/score", json=ASK).json()["scores"]
        first = running.client.post("/v1/events", json={"events": [EVENT, EVENT]}).json()
        after = running.client.post("/v1/score", json=ASK).json()["scores"]
        again = running.client.post("/v1/events", json={"events": [EVENT]}).json()
        assert (first["accepted"], first["duplicates"]) == (1, 1)
        assert (again["accepted"], again["duplicates"]) == (0, 1)
        assert before != after
        assert running.client.post("/v1/score", json=ASK).json()["scores"] == after
        history = running.client.get("/v1/users/u1/history").json()["scenarios"][1]
        assert history["latest"][0]["since_export"]
        assert history["latest"][0]["item"] == "i5"
        running.kill()
    with serving(bundle_path, tmp_path) as running:
        assert running.client.post("/v1/score", json=ASK).json()["scores"] == after
        again = running.client.post("/v1/events", json={"events": [EVENT]}).json()
        assert (again["accepted"], again["duplicates"]) == (0, 1)


def test_a_stranger_becomes_known_by_her_events(bundle_path: Path, tmp_path: Path) -> None:
    stranger = {**ASK, "user": "a stranger"}
    with serving(bundle_path, tmp_path) as running:
        assert not running.client.post("/v1/score", json=stranger).json()["knowledge_known"]
        running.client.post("/v1/events", json={"events": [{**EVENT, "user": "a stranger"}]})
        assert running.client.post("/v1/score", json=stranger).json()["knowledge_known"]
        assert running.client.get("/v1/users/a stranger/history").json()["scenarios"][1]["count"] == 1
        assert "since the bundle was made" in running.client.get("/v1/users/a stranger/knowledge").json()["note"]
        assert running.client.get("/v1/users/another stranger/knowledge").status_code == 404


def test_new_items_are_scored_by_their_fields_and_wait_for_reason(
    bundle_path: Path, tmp_path: Path, bundle: Bundle
) -> None:
    ask = {**ASK, "items": ["brand new"]}
    with serving(bundle_path, tmp_path) as running:
        blank = running.client.post("/v1/score", json=ask).json()["scores"]
        columns = {"colour": "red", "price": 3.5, "tags": "new|sale", "title": "red thing"}
        answer = running.client.post("/v1/items", json={"items": [{"item": "brand new", "columns": columns}]}).json()
        assert answer == {"queued_items": ["brand new"], "known_items": [], "unread_columns": []}
        more = [{"item": "i1"}, {"item": "i1", "columns": {"titel": "x"}}]
        answer = running.client.post("/v1/items", json={"items": more}).json()
        assert answer == {"queued_items": [], "known_items": ["i1"], "unread_columns": ["titel"]}
        known = running.client.post("/v1/score", json=ask).json()
        assert known["scores"] != blank
        assert known["unknown_items"] == ["brand new"]
        ranked = running.client.post("/v1/rank", json=ask).json()["items"]
        assert [(line["item"], line["title"]) for line in ranked] == [("brand new", "red thing")]
        event = {**EVENT, "item": "brand new"}
        assert running.client.post("/v1/events", json={"events": [event]}).json()["queued_items"] == ["brand new"]
        bad = {"items": [{"item": "another", "columns": {"price": "dear"}}]}
        assert running.client.post("/v1/items", json=bad).status_code == 422
    events, items = harvest(tmp_path / "state" / FILE, bundle.schema)
    assert events["item"].to_list() == ["brand new"]
    assert items.row(0, named=True) == {"item": "brand new", **columns}


def test_the_columns_of_an_item_that_only_events_named_are_kept_for_the_next_night(tmp_path: Path) -> None:
    frames = shop_frames()
    known = frames["items"].filter(pl.col("item") != "i3")  # it is in the logs only
    data = prepare(from_frames(Schema.checked(SHOP, "the shop"), frames["interactions"], items=known), tmp_path / "d")
    bundle = export_bundle(train_shop(tmp_path / "run", data, None, "shared_bottom", "none"), tmp_path / "bundle")
    with serving(bundle, tmp_path / "served") as running:
        sent = [{"item": item, "columns": {"colour": "red", "title": "a thing"}} for item in ("i3", "i4")]
        answer = running.client.post("/v1/items", json={"items": sent}).json()
        assert (answer["queued_items"], answer["known_items"]) == (["i3"], ["i4"])
        assert (
            running.client.post("/v1/events", json={"events": [{**EVENT, "item": "i3"}]}).json()["queued_items"] == []
        )
    _, items = harvest(tmp_path / "served" / "state" / FILE, data.schema)
    assert items.to_dicts() == [{"item": "i3", "colour": "red", "title": "a thing"}]


def test_the_log_becomes_tables_for_prepare(bundle: Bundle, tmp_path: Path, bundle_path: Path) -> None:
    live = Live(bundle, tmp_path / "state")
    live.write([_record(), _record(item="i6"), _record()])
    live.close()
    out = tmp_path / "events.parquet"
    command = [sys.executable, "-m", "llm4msr", "events", str(bundle_path), "--out", str(out)]
    subprocess.run([*command, "--state", str(tmp_path / "state")], check=True, timeout=60, capture_output=True)
    found = pl.read_parquet(out)
    assert found.columns == ["user", "item", "place", "time", "behaviour"]
    assert found["time"].dt.epoch("us").to_list() == [2_100_000_000_000] * 2


def test_a_server_that_was_told_of_nothing_has_empty_tables_for_prepare(
    bundle: Bundle, tmp_path: Path, shop_schema: Schema
) -> None:
    events, items = harvest(tmp_path / "nowhere" / FILE, bundle.schema)
    assert (events.height, items.height) == (0, 0)
    frames = shop_frames()
    catalogue = pl.concat([frames["items"], items], how="diagonal")
    told = from_frames(shop_schema, frames["interactions"], items=catalogue, events=events)
    untold = from_frames(shop_schema, frames["interactions"], items=frames["items"])
    one, other = prepare(told, tmp_path / "one"), prepare(untold, tmp_path / "other")
    assert one.positives.equals(other.positives)


def test_harvested_events_and_items_are_prepared_with_the_logs(
    bundle: Bundle, tmp_path: Path, shop_schema: Schema
) -> None:
    live = Live(bundle, tmp_path / "state")
    columns = {"colour": "red", "price": 3.5, "tags": "new", "title": "red thing"}
    named_otherwise = ItemRecord("brand new", {**columns, "item": "another"})
    live.write([_record(user="a stranger"), named_otherwise, _record(item="brand new")])
    live.close()
    events, items = harvest(tmp_path / "state" / FILE, bundle.schema)
    frames = shop_frames()
    clicks = frames["interactions"].filter(pl.col("click") == 1)
    logged = clicks.select("user", "item", "place", pl.from_epoch("time", time_unit="s").cast(pl.Datetime("us")))
    events = pl.concat([events, logged.head(1).with_columns(behaviour=pl.lit("clicked"))])  # one that the log has, too
    catalogue = pl.concat([frames["items"], items.select(frames["items"].columns)])
    tables = from_frames(shop_schema, frames["interactions"], items=catalogue, events=events)
    data = prepare(tables, tmp_path / "data")
    assert data.positives.height == clicks.height + 2
    assert data.rows == frames["interactions"].height
    assert "a stranger" in data.users["user"]
    assert data.items.filter(pl.col("item") == "brand new")["title"].to_list() == ["red thing"]
    assert data.positives["time"].max() == 2_100_000_000_000


@pytest.mark.parametrize(
    ("values", "expected", "dtype"),
    [
        ([3, None, 5], [3, None, 5], pl.Int64),
        ([3, 2.5], [3.0, 2.5], pl.Float64),
        ([True, False], [True, False], pl.Boolean),
        (["a|b", ["a", "c"]], ["a|b", "a|c"], pl.String),
        ([["a", "c"], ["b"]], [["a", "c"], ["b"]], pl.List(pl.String)),
        ([["a", 1], None, ["b"]], [["a", "1"], None, ["b"]], pl.List(pl.String)),
        ([5, "five", 2.0, True, 1e-7], ["5", "five", "2", "true", "1e-7"], pl.String),
        ([2**70, 1], [str(2**70), "1"], pl.String),
        ([None, None], [None, None], pl.String),
    ],
)
def test_new_items_may_say_the_same_in_several_ways(
    bundle: Bundle, tmp_path: Path, values: list[Any], expected: list[Any], dtype: Any
) -> None:
    log = EventLog(tmp_path)
    log.append([ItemRecord(f"n{place}", {"tags": value}) for place, value in enumerate(values)], 0)
    _, items = harvest(tmp_path / FILE, bundle.schema)
    assert items["item"].to_list() == [f"n{place}" for place in range(len(values))]
    assert items["tags"].dtype == dtype
    assert items["tags"].to_list() == expected


def test_a_log_that_may_only_be_read_is_harvested(bundle: Bundle, tmp_path: Path) -> None:
    EventLog(tmp_path).append([_record()], 0)
    before = (tmp_path / FILE).stat()
    opened: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(EventLog, "__init__", lambda *_: opened.append("to write"))
        events, _ = harvest(tmp_path / FILE, bundle.schema)
    assert (events.height, opened) == (1, [])
    assert (tmp_path / FILE).stat() == before


def test_what_the_bundle_knows_already_is_not_counted_again(bundle: Bundle, tmp_path: Path, shop: PreparedData) -> None:
    user, item, scenario, time, _ = shop.positives.row(7)
    known = EventRecord(
        shop.users["user"][user], shop.items["item"][item], shop.schema.scenarios[scenario].value, time, "clicked"
    )
    live = Live(bundle, tmp_path)
    assert live.write([known, _record()]) == [False, True]
    live.close()


def test_a_cut_line_is_dropped_and_the_rest_is_read(bundle: Bundle, tmp_path: Path) -> None:
    live = Live(bundle, tmp_path)
    live.write([_record(item="i1"), _record(item="i2")])
    state = live.sums("u1", bundle.lookup.number("user", "u1"))
    live.close()
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'0badc0de {"type":"event","us')
    for folder in tmp_path.glob("live-*"):
        for file_ in folder.iterdir():
            file_.unlink()
        folder.rmdir()
    live = Live(bundle, tmp_path)
    again = live.sums("u1", bundle.lookup.number("user", "u1"))
    assert np.array_equal(again.total, state.total)
    assert live.write([_record(item="i3"), _record(item="i2")]) == [True, False]
    assert [record for record, _ in EventLog(tmp_path).read(0)] == [_record(item=f"i{n}") for n in (1, 2, 3)]
    live.close()


def test_a_damaged_line_amid_others_is_named(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    end = log.append([_record(item="i1"), _record(item="i2"), _record(item="i3")], 0)
    raw = bytearray(log.path.read_bytes())
    raw[end // 2] ^= 1
    log.path.write_bytes(raw)
    with pytest.raises(InputError, match=f"the line at byte {end // 3} is damaged.*--skip-damaged"):
        list(log.read(0))
    skipped: list[int] = []
    assert [record.item for record, _ in read_log(log.path, 0, end, skipped.append)] == ["i1", "i3"]
    assert skipped == [end // 3]


def test_a_file_of_states_that_was_cut_off_is_named(bundle: Bundle, tmp_path: Path) -> None:
    live = Live(bundle, tmp_path)
    live.write([_record(user=f"u{n}") for n in range(30)])
    live.close()
    (file,) = tmp_path.glob("live-*/data.mdb")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputError, match=f"{file.parent}: is cut off; remove it"):
        Live(bundle, tmp_path)


@pytest.mark.parametrize("then", ["nothing", "an empty file"])
def test_a_log_that_is_moved_away_stays_as_it_is_and_a_new_one_is_begun(
    bundle: Bundle, tmp_path: Path, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    live, other = Live(bundle, tmp_path), EventLog(tmp_path)
    live.write([_record(item="i1"), _record(item="i2")])
    archive = (tmp_path / FILE).rename(tmp_path / "archive.log")
    before = archive.read_bytes()
    if then == "an empty file":
        (tmp_path / FILE).touch()
    assert live.write([_record(item="i3")]) == [True]
    assert archive.read_bytes() == before
    assert live.history("u1") == [_record(item="i3")]
    with other.locked():  # of another server, which had opened the log before it was moved
        other.append([_record(item="i4")], other.size())
    live.catch_up()
    assert [record.item for record, _ in read_log(tmp_path / FILE, 0, other.size())] == ["i3", "i4"]
    assert [event.item for event in live.history("u1")] == ["i3", "i4"]
    assert archive.read_bytes() == before
    assert "was moved away or replaced" in caplog.text
    live.close()


def test_a_folder_that_is_away_for_a_moment_stops_no_later_event(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    live = Live(bundle, folder)
    live.write([_record(item="i1")])
    folder.rename(tmp_path / "away")
    with pytest.raises(OSError, match="No such file"):
        live.write([_record(item="i2")])
    (tmp_path / "away").rename(folder)
    assert live.write([_record(item="i2")]) == [True]
    assert [record.item for record, _ in EventLog(folder).read(0)] == ["i1", "i2"]
    live.close()


def test_a_damaged_last_line_is_kept_beside_the_log(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(tmp_path)
    first = log.append([_record(item="i1")], 0)
    log.append([_record(item="i2")], first)
    raw = bytearray(log.path.read_bytes())
    raw[-5] ^= 1
    log.path.write_bytes(raw)
    live = Live(bundle, tmp_path)
    live.write([_record(item="i3")])
    live.close()
    assert [record.item for record, _ in log.read(0)] == ["i1", "i3"]
    assert (tmp_path / f"{FILE}.damaged-{first}").read_bytes() == raw[first:]
    assert f"at byte {first}, is damaged" in caplog.text


def test_a_log_is_read_up_to_where_no_line_was_being_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    end = log.append([_record(item="i1"), _record(item="i2")], 0)
    records = read_log(log.path, 0, end - 5)  # a server is amid the second line
    log.append([_record(item="i3")], end)
    assert [record.item for record, _ in records] == ["i1"]


def test_events_are_written_while_another_bundle_reads_the_log(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    log.append([_record(item=f"i{n}") for n in range(1, 6)], 0)
    free: list[bool] = []
    apply = Live._apply

    def watched(live: Live, transaction: Any, records: Any) -> None:
        fcntl.flock(log._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where another holds it
        fcntl.flock(log._file, fcntl.LOCK_UN)
        free.append(True)
        apply(live, transaction, records)

    monkeypatch.setattr(Live, "_apply", watched)
    monkeypatch.setattr("llm4msr.serving.live._CHUNK", 2)
    live = Live(bundle, tmp_path)
    assert free == [True] * 3
    assert len(live.history("u1")) == 5
    live.close()


def test_an_event_of_a_scenario_that_the_new_bundle_lacks_is_kept_in_the_log(bundle: Bundle, tmp_path: Path) -> None:
    live = Live(bundle, tmp_path)
    odd = _record(scenario="closed by now")
    assert live.write([odd, _record()]) == [True, True]
    assert [record for record, _ in EventLog(tmp_path).read(0)] == [odd, _record()]
    assert live.history("u1") == [_record()]
    live.close()


def test_the_files_beside_the_log_are_as_private_as_it(bundle: Bundle, tmp_path: Path) -> None:
    live = Live(bundle, tmp_path)
    live.write([_record()])
    live.close()
    (folder,) = tmp_path.glob("live-*")
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / FILE, folder, folder / "data.mdb")]
    assert modes == [0o600, 0o700, 0o600]


def test_a_log_that_is_not_there_is_told_of(bundle_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llm4msr", "events", str(bundle_path), "--out", str(tmp_path / "e.parquet")]
    found = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert "warning: there is no log" in " ".join((found.stdout + found.stderr).split())


def test_what_was_not_synced_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    live = Live(bundle, tmp_path)
    live.write([_record(item="i1")])
    before = (tmp_path / FILE).read_bytes()

    def full(file: int) -> None:
        assert file > 0
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="No space"):
        live.write([_record(item="i2")])
    assert (tmp_path / FILE).read_bytes() == before
    monkeypatch.undo()
    assert live.write([_record(item="i2")]) == [True]
    live.close()


def test_what_cannot_be_counted_is_not_in_the_log(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(bundle, tmp_path)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(live, "_apply", broken)
    with pytest.raises(ZeroDivisionError):
        live.write([_record()])
    monkeypatch.undo()
    assert (tmp_path / FILE).read_bytes() == b""
    assert live.write([_record()]) == [True]
    live.close()


@pytest.mark.parametrize("torn", [b"", b'0badc0de {"type":"event","us'], ids=["whole", "torn"])
@pytest.mark.parametrize("new", [[], ["i3"], ["i3", "i4", "i5", "i6"]], ids=["empty", "shorter", "longer"])
def test_a_new_log_in_the_place_of_the_old_is_read_from_its_beginning(
    bundle: Bundle, tmp_path: Path, new: list[str], torn: bytes
) -> None:
    live = Live(bundle, tmp_path)
    live.write([_record(item="i1"), _record(item="i2"), ItemRecord("n", {"colour": "red"})])
    live.close()
    (tmp_path / FILE).rename(tmp_path / "old.log")
    if new:
        EventLog(tmp_path).append([_record(item=item) for item in new], 0)
    with (tmp_path / FILE).open("ab") as file:
        file.write(torn)
    live = Live(bundle, tmp_path)
    assert live.write([_record(item="i1"), _record(item="i9")]) == [True, True]
    assert {event.item for event in live.history("u1")} == {*new, "i1", "i9"}
    assert live.new_items(["n"]) == {}
    assert [record.item for record, _ in EventLog(tmp_path).read(0)] == [*new, "i1", "i9"]
    alone = Live(bundle, tmp_path / "alone")
    alone.write([_record(item=item) for item in (*new, "i1", "i9")])
    code = bundle.lookup.number("user", "u1")
    np.testing.assert_allclose(live.sums("u1", code).total, alone.sums("u1", code).total, atol=1e-12)
    for each in (live, alone):
        each.close()


def test_a_log_is_not_written_beyond_its_end(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    with pytest.raises(OSError, match="shorter"):
        log.append([_record()], 1000)
    assert log.size() == 0


def test_two_processes_of_different_bundles_share_one_log(
    bundle: Bundle, other_bundle_path: Path, tmp_path: Path
) -> None:
    other = Bundle.open(other_bundle_path)
    first, second = Live(bundle, tmp_path), Live(other, tmp_path)
    for n in range(20):
        (first if n % 2 else second).write([_record(item=f"i{n}")])
    assert second.write([_record(item="i1")]) == [False]
    first.catch_up()
    second.catch_up()
    assert len(first.history("u1")) == len(second.history("u1")) == 20
    code = bundle.lookup.number("user", "u1")
    assert np.allclose(first.sums("u1", code).total, second.sums("u1", code).total, atol=1e-12)
    first.close()
    second.close()


def test_the_latest_events_of_one_user_are_hers_alone(bundle: Bundle, tmp_path: Path) -> None:
    live = Live(bundle, tmp_path)
    users = [f"u{n}" for n in range(5)]
    live.write([_record(user, f"i{n}", time=2_100_000_000_000 - n) for user in users for n in range(4)])
    for user in users:
        assert [event.item for event in live.history(user)] == ["i3", "i2", "i1", "i0"]
        assert [event.item for event in live.history(user, 2)] == ["i1", "i0"]
        assert {event.user for event in live.history(user)} == {user}
    assert live.history("nobody") == []
    live.close()


def test_an_item_record_is_replaced_by_one_that_says_more(bundle: Bundle, tmp_path: Path) -> None:
    live = Live(bundle, tmp_path)
    assert live.write([ItemRecord("n", {}), ItemRecord("n", {"colour": "red"}), ItemRecord("n", {})]) == [
        True,
        True,
        False,
    ]
    assert live.write([ItemRecord("i1", {"colour": "red"})]) == [False]
    assert live.new_items(["n", "m"]) == {"n": {"colour": "red"}}
    live.close()


def test_a_full_file_of_states_is_an_error_of_the_disk(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(bundle, tmp_path)

    def full(*_: object) -> None:
        raise lmdb.MapFullError("MDB_MAP_FULL")

    monkeypatch.setattr(live, "_apply", full)
    with pytest.raises(OSError, match="MDB_MAP_FULL"):
        live.write([_record()])
    live.close()
