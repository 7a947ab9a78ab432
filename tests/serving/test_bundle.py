"""Bundles: what is in them, what is refused, and how one takes another's place."""

from __future__ import annotations

import gc
import os
import re
import shutil
import time
import weakref
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.reason import reason
from llm4msr.seals import read_manifest, seal
from llm4msr.serving import current as current_module
from llm4msr.serving.bundle import KIND, VERSION, Bundle
from llm4msr.serving.current import Current
from llm4msr.serving.export import export_bundle
from llm4msr.serving.lookup import LookupWriter, key_of, open_lookup
from llm4msr.serving.requests import RequestError
from llm4msr.serving.server import ServeConfig, serve
from tests.conftest import FAST
from tests.knowledge.stub_engine import SilentOnFirst
from tests.serving.bundles import train_shop
from tests.serving.conftest import TOKEN, eventually, serving
from tests.serving.test_events import ASK


def test_nothing_in_a_bundle_is_pickled_and_it_says_what_it_is(bundle_path: Path, shop: PreparedData) -> None:
    kinds = {file.suffix for file in bundle_path.rglob("*") if file.is_file()}
    assert kinds == {".json", ".safetensors", ".npy", ".mdb", ".md"}
    card = (bundle_path / "card.md").read_text()
    assert all(s.title in card for s in shop.schema.scenarios)
    assert "test AUC" in card
    assert "protocol" not in card
    assert re.search(r"name llm\d+, engine transformers", card)
    assert "slices" in card


def test_fields_of_users_and_items_are_those_of_the_rows(bundle: Bundle, shop: PreparedData) -> None:
    for row in range(0, shop.rows, 37):
        user, item = int(shop.user[row]), int(shop.item[row])
        found = bundle.fields.rows(user, np.array([item], np.int32), 0)
        expected = [int(shop.field(n)[row]) for n in ("user", "item", "colour")]
        assert found["categorical"][0, :3].tolist() == expected
        assert found["multi"][0].tolist() == shop.field("tags")[row].tolist()
        assert found["numeric"][0, 0] == pytest.approx(float(shop.field("price")[row]), nan_ok=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("colour", "red"),
        ("colour", "never seen"),
        ("colour", None),
        ("price", 2.5),
        ("price", "2.5"),
        ("price", "1e1"),
        ("price", " "),
        ("price", None),
    ],
)
def test_values_are_encoded_as_prepare_does(bundle: Bundle, shop: PreparedData, field: str, value: object) -> None:
    import polars as pl

    from llm4msr.data.fields import encode_fitted

    spec = next(f for f in shop.schema.fields if f.name == field)
    vocabulary = None if spec.kind == "numeric" else shop.vocabulary(field)
    dtype = pl.String if isinstance(value, str) or spec.kind == "categorical" else pl.Float64
    series = pl.Series([value], dtype=dtype)
    expected = encode_fitted(spec, shop.records[field], vocabulary, series, "the test")
    np.testing.assert_allclose(np.float32(bundle.fields.encode(field, value)), np.float32(expected[0]))


@pytest.mark.parametrize("value", [" 12 ", "1_000", "１２", "\t3", "0x10", "cheap"])  # noqa: RUF001 - as is
def test_a_text_that_prepare_would_refuse_as_a_number_is_refused(bundle: Bundle, value: str) -> None:
    with pytest.raises(RequestError, match="'price' takes a number"):
        bundle.fields.encode("price", value)


def _every_file(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


@pytest.mark.parametrize("how", ["altered", "cut", "removed"])
def test_a_damaged_file_is_refused_by_name(bundle_path: Path, tmp_path: Path, how: str) -> None:
    names = _every_file(bundle_path)
    assert len(names) > 15
    for name in names:
        copy = tmp_path / "copy"
        shutil.copytree(bundle_path, copy)
        path = copy / name
        raw = bytearray(path.read_bytes())
        if how == "altered":
            raw[len(raw) // 2] ^= 1
            path.write_bytes(raw)
        elif how == "cut":
            path.write_bytes(raw[: len(raw) // 2])
        else:
            path.unlink()
        with pytest.raises(InputError, match=path.name if how != "removed" else "missing|has no"):
            Bundle.open(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize("part", ["model", "sources", "states"])
def test_a_bundle_with_a_setting_of_a_later_version_is_refused_by_its_name(
    bundle_path: Path, tmp_path: Path, part: str
) -> None:
    shutil.copytree(bundle_path, tmp_path / "copy")
    manifest = read_manifest(tmp_path / "copy", KIND, VERSION)
    content = {name: value for name, value in manifest.items() if name not in ("kind", "version", "files")}
    seal(tmp_path / "copy", KIND, VERSION, content | {part: {**content[part], "later": 1}})
    with pytest.raises(InputError, match=f"manifest.json: {part}: unknown key 'later'"):
        Bundle.open(tmp_path / "copy")


def test_a_file_that_grew_beside_the_manifest_changes_nothing(bundle_path: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_path, tmp_path / "copy")
    (tmp_path / "copy" / "notes.txt").write_text("mine")
    assert Bundle.open(tmp_path / "copy").fingerprint == Bundle.open(bundle_path).fingerprint


def test_a_run_with_a_control_is_not_served(
    tmp_path: Path, shop: PreparedData, shop_knowledge: KnowledgeFolder
) -> None:
    run = train_shop(tmp_path / "run", shop, shop_knowledge, control="random")
    with pytest.raises(InputError, match="control 'random'"):
        export_bundle(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path, run: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="left alone"):
        export_bundle(run, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_bundle_of_a_time_before_all_else_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1960-01-01.*nothing happened before; the data begin at"):
        export_bundle(run, tmp_path / "bundle", as_of_time=datetime(1960, 1, 1, tzinfo=UTC))
    assert list(tmp_path.iterdir()) == []


def test_a_time_without_a_zone_is_utc(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        bundles = [
            Bundle.open(export_bundle(run, tmp_path / name, as_of_time=moment))
            for name, moment in (("naive", datetime(1970, 1, 20)), ("utc", datetime(1970, 1, 20, tzinfo=UTC)))
        ]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [bundle.manifest["as_of"] for bundle in bundles] == ["1970-01-20T00:00:00+00:00"] * 2


def test_a_scenario_that_the_llm_said_nothing_of_is_served(shop: PreparedData, tmp_path: Path) -> None:
    reason(shop, SilentOnFirst(), tmp_path / "k", FAST)
    knowledge = KnowledgeFolder.open(tmp_path / "k", shop)
    run = train_shop(tmp_path / "run", shop, knowledge, "shared_bottom", "llm4msr", {"scenario": "parallel"})
    bundle = Bundle.open(export_bundle(run, tmp_path / "bundle"))
    assert [(card.text != "", card.similarity) for card in bundle.scenarios] == [
        (False, None),
        (True, None),
        (True, None),
    ]


def test_an_open_address_needs_a_token(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM4MSR_TOKEN", raising=False)
    with pytest.raises(InputError, match="LLM4MSR_TOKEN"):
        serve(ServeConfig(bundle=bundle_path, state=tmp_path, host="0.0.0.0"))


def test_reload_and_the_link_swap_bundles_and_broken_ones_are_refused(
    bundle_path: Path, other_bundle_path: Path, tmp_path: Path
) -> None:
    first, second = Bundle.open(bundle_path).fingerprint, Bundle.open(other_bundle_path).fingerprint
    broken = tmp_path / "broken"
    shutil.copytree(other_bundle_path, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    link = tmp_path / "current"
    link.symlink_to(bundle_path)

    def point(target: Path) -> None:
        (tmp_path / "next").symlink_to(target)
        os.replace(tmp_path / "next", link)

    with serving(link, tmp_path / "server", token=TOKEN) as running:
        ask = running.client.post
        assert ask("/v1/score", json=ASK).json()["bundle"] == first
        point(broken)
        answer = ask("/v1/admin/reload")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "broken_bundle")
        assert str(tmp_path) not in answer.text
        assert ask("/v1/score", json=ASK).json()["bundle"] == first
        assert "model.safetensors" in running.log.read_text()
        point(other_bundle_path)
        eventually(lambda: ask("/v1/score", json=ASK).json()["bundle"] == second)
        point(bundle_path)
        assert ask("/v1/admin/reload").json()["bundle"] == first
        assert ask("/v1/score", json=ASK).json()["bundle"] == first


def test_several_processes_see_each_others_events(bundle_path: Path, tmp_path: Path) -> None:
    with serving(bundle_path, tmp_path, "--workers", "2") as running:
        import httpx

        def fresh() -> dict[str, object]:
            answer: dict[str, object] = httpx.post(f"http://127.0.0.1:{running.port}/v1/score", json=ASK).json()
            return answer

        before = fresh()["scores"]
        event = {"user": "u1", "item": "i5", "scenario": "search"}
        assert running.client.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
        after = [fresh()["scores"] for _ in range(20)]
        assert all(scores == after[0] for scores in after)
        assert after[0] != before
        text = running.client.get("/metrics").text
        assert 'llm4msr_events_total{outcome="accepted"} 1.0' in text


def test_long_and_odd_ids_are_looked_up(tmp_path: Path) -> None:
    ids = ["", "a", "a" * 1000, "ü", "\x00", "a/../b", "é" * 300]
    writer = LookupWriter(tmp_path)
    writer.numbers("user", ids)
    writer.texts("title", enumerate(ids))
    writer.close()
    lookup = open_lookup(tmp_path / "lookup.mdb")
    assert lookup.numbers("user", [*ids, "b"]).tolist() == [*range(len(ids)), -1]
    assert [lookup.text("title", n) for n in range(len(ids))] == ids
    assert lookup.text("title", 99) is None
    assert lookup.starting_with("user", "a", 5) == ["a", "a/../b"]
    assert len({key_of(i) for i in ids}) == len(ids)
    assert open_lookup(tmp_path / "lookup.mdb") is lookup
    with pytest.raises(InputError, match="nowhere"):
        open_lookup(tmp_path / "nowhere.mdb")


def test_a_bundle_that_nobody_answers_from_is_let_go(
    bundle_path: Path, other_bundle_path: Path, tmp_path: Path
) -> None:
    for name, path in (("first", bundle_path), ("second", other_bundle_path)):
        shutil.copytree(path, tmp_path / name)
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "first")
    current = Current(link, tmp_path / "state")
    old = [weakref.ref(part) for part in (current.now.bundle, current.now.bundle.lookup, current.now.live)]
    link.unlink()
    link.symlink_to(tmp_path / "second")
    current.reload()
    gc.collect()
    assert [part() for part in old] == [None, None, None]


def test_a_bundle_of_other_data_does_not_take_over(
    bundle_path: Path, other_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle_path)
    current = Current(link, tmp_path / "state")
    served = current.now
    link.unlink()
    link.symlink_to(other_bundle_path)
    monkeypatch.setattr(current_module, "_data_of", lambda bundle: bundle.fingerprint)
    with pytest.raises(InputError, match=r"is a bundle of other data .* than the one that is served"):
        current.reload()
    assert current.now is served


def test_metrics_say_which_bundle_answers_and_which_could_not(
    bundle_path: Path, other_bundle_path: Path, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle_path)
    current = Current(link, tmp_path / "state")
    first = current.now.bundle.fingerprint
    assert f'llm4msr_bundle{{bundle="{first}"}} 1.0' in current.metrics.text().decode()
    link.unlink()
    with pytest.raises(InputError):
        current.reload()
    link.symlink_to(other_bundle_path)
    second = current.reload().bundle.fingerprint
    current.reload()  # nothing changes
    told = current.metrics.text().decode()
    assert f'llm4msr_bundle{{bundle="{first}"}} 0.0' in told
    assert f'llm4msr_bundle{{bundle="{second}"}} 1.0' in told
    assert 'llm4msr_reloads_total{outcome="failed"} 1.0' in told
    assert 'llm4msr_reloads_total{outcome="changed"} 1.0' in told
