"""The command line from end to end, as a user types it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from llm4msr import __version__
from llm4msr.cli import main
from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.engines.embedded import embedded_model, find_gguf
from llm4msr.knowledge.folder import KnowledgeFolder
from tests.conftest import shop_frames

Run = Callable[..., tuple[int, str]]

SCHEMA = """
name = "shop"
description = "a small shop"

[columns]
user = "user"
item = "item"
scenario = "place"
time = "time"
time_unit = "s"
label = "click"

[[scenarios]]
value = "search"
description = "people type queries"
[[scenarios]]
value = "feed"
[[scenarios]]
value = "mail"

[[fields]]
name = "user"
side = "user"
[[fields]]
name = "item"
side = "item"
[[fields]]
name = "colour"
side = "item"
[[fields]]
name = "price"
side = "item"
kind = "numeric"

[item_text]
title = "title"
category = "colour"
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command; returns its exit code and everything it printed."""

    def typed(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["llm4msr", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return typed


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder with a schema, CSV interactions and Parquet items."""
    frames = shop_frames(rows=500, users=12, items=15)
    frames["interactions"].write_csv(tmp_path / "interactions.csv")
    frames["items"].write_parquet(tmp_path / "items.parquet")
    (tmp_path / "schema.toml").write_text(SCHEMA)
    return tmp_path


def _prepare(run: Run, logs: Path, *more: object) -> tuple[int, str]:
    files = ["--interactions", logs / "interactions.csv", "--items", logs / "items.parquet"]
    return run("prepare", "--schema", logs / "schema.toml", *files, "--out", logs / "data", *more)


@pytest.fixture(scope="session")
def llm(tiny_llm: Path) -> Path:
    """The embedded LLM where it is installed, else the tiny one."""
    return embedded_model() if find_gguf() is not None else tiny_llm


def test_from_raw_logs_to_scores_and_an_explanation(run: Run, logs: Path, llm: Path) -> None:
    code, out = _prepare(run, logs)
    assert code == 0
    assert "500 rows, 12 users, 15 items" in out

    reasoning = ["reason", logs / "data", "--knowledge", logs / "k", "--model", llm, "--slices", 1, "--history", 2]
    code, out = run(*reasoning, "--max-new-tokens", 4)
    assert code == 0
    assert "scenario: 3 prompts, 3 different, 3 answered now" in out
    code, out = run(*reasoning, "--max-new-tokens", 4)
    assert code == 0
    assert "scenario: 3 prompts, 3 different, 0 answered now" in out

    settings = ["--set", "train.epochs=1", "--set", "model.embedding_dim=4", "--set", "knowledge.dimensions=8"]
    data = ["--data", logs / "data", "--knowledge", logs / "k", "--backbone", "star", "--enhancer", "llm4msr"]
    code, trained = run("train", "--out", logs / "run", *data, *settings)
    assert code == 0
    code, evaluated = run("evaluate", logs / "run")
    assert code == 0
    assert re.findall(r"0\.\d{4}", evaluated) == re.findall(r"0\.\d{4}", trained)
    record = json.loads((logs / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert set(record["validation"]["scenarios"]) == {"search", "feed", "mail"}

    user = PreparedData.open(logs / "data").users["user"][0]
    explain = ["explain", user, "--data", logs / "data", "--knowledge", logs / "k", "--model", llm]
    code, out = run(*explain)
    assert code == 0
    assert f"user {user}" in out
    assert "A user of the platform" in out
    assert "the hidden state of the prompt's last token" in out


def test_ctrl_c_is_answered_and_ends_with_its_own_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llm4msr.data.sources.read_source", stop)
    code, out = run("prepare", "--source", "amazon2014", "--out", "data")
    assert (code, out.splitlines()[-1]) == (130, "stopped")


def test_an_interrupted_reasoning_is_refused_by_training_with_what_to_do(run: Run, logs: Path) -> None:
    _prepare(run, logs)
    (logs / "k").mkdir()
    code, out = run(
        "train", "--out", logs / "run", "--data", logs / "data", "--knowledge", logs / "k", "--enhancer", "llm4msr"
    )
    assert code == 2
    assert "has no manifest.json" in out
    assert not (logs / "run").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "schema.toml").write_text(SCHEMA + "colour = 1\n"), "unknown key 'item_text.colour'"),
        (lambda d: (d / "schema.toml").write_text(SCHEMA.replace('"click"', '"clik"')), "no column 'clik'"),
        (lambda d: (d / "schema.toml").write_text(SCHEMA.replace('"colour"', '"color"')), "did you mean 'colour'"),
        (lambda d: (d / "schema.toml").write_text("name = "), "not valid TOML"),
        (lambda d: (d / "schema.toml").unlink(), "cannot be read"),
        (
            lambda d: (d / "interactions.csv").write_text("user,item,place,time,click\nu1,i1,feed,5,3\n"),
            "neither 0 nor 1",
        ),
        (lambda d: (d / "interactions.csv").write_text("user,item,place,time,click,hour\n"), "no rows are left"),
        (lambda d: (d / "interactions.csv").unlink(), "no such file"),
        (lambda d: (d / "items.parquet").write_bytes((d / "items.parquet").read_bytes()[:-40]), "cannot be read"),
        (lambda d: (d / "items.parquet").write_bytes(b"PAR1 garbage"), "cannot be read"),
    ],
)
def test_bad_input_is_one_error_with_exit_code_2_and_no_folder(
    run: Run, logs: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(logs)
    before = {p.name for p in logs.iterdir()}
    code, out = _prepare(run, logs)
    assert code == 2
    assert message in " ".join(out.split())
    assert "Traceback" not in out
    assert {p.name for p in logs.iterdir()} == before


def test_too_many_rejected_rows_stop_the_run_and_a_larger_share_lets_it_pass(run: Run, logs: Path) -> None:
    frame = shop_frames(rows=500)["interactions"]
    spoilt = frame.with_columns(place=pl.when(pl.int_range(500) < 100).then(pl.lit("moon")).otherwise("place"))
    spoilt.write_csv(logs / "interactions.csv")
    code, out = _prepare(run, logs)
    assert code == 2
    assert "100 x scenario unknown" in " ".join(out.split())
    code, out = _prepare(run, logs, "--max-rejected", 0.5)
    assert code == 0
    assert "set aside: 100 x scenario unknown" in out
    assert pl.read_parquet(logs / "data" / "rejected.parquet").height == 100


def test_an_existing_folder_is_only_replaced_on_request(run: Run, logs: Path) -> None:
    assert _prepare(run, logs)[0] == 0
    code, out = _prepare(run, logs)
    assert code == 2
    assert "exists already" in out
    assert _prepare(run, logs, "--overwrite")[0] == 0


def test_an_altered_prepared_folder_is_refused_by_file(run: Run, logs: Path) -> None:
    _prepare(run, logs)
    column = logs / "data" / "columns" / "label.npy"
    column.write_bytes(column.read_bytes()[:-1] + b"\x07")
    code, out = run("train", "--out", logs / "run", "--data", logs / "data")
    assert code == 2
    assert "label.npy: its checksum is not the one in manifest.json" in " ".join(out.split())


def test_a_model_folder_without_weights_is_refused(run: Run, logs: Path, tmp_path: Path) -> None:
    _prepare(run, logs)
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text("{}")
    code, out = run("reason", logs / "data", "--knowledge", logs / "k", "--model", tmp_path / "llm")
    assert code == 2
    assert "holds no weights" in out


def test_a_folder_of_other_things_is_refused_before_the_model_is_read(run: Run, logs: Path, tmp_path: Path) -> None:
    _prepare(run, logs)
    code, out = run("reason", logs / "data", "--knowledge", logs, "--model", tmp_path / "no-model")
    assert code == 2
    assert "holds something else than knowledge" in " ".join(out.split())


def test_a_scenario_with_one_class_is_reported_not_refused(run: Run, logs: Path) -> None:
    frame = shop_frames(rows=500, users=12, items=15)["interactions"]
    frame.with_columns(click=pl.when(pl.col("place") == "mail").then(0).otherwise("click")).write_csv(
        logs / "interactions.csv"
    )
    code, out = _prepare(run, logs)
    assert code == 0
    assert "mail has one class or no row in the test part" in out
    code, out = run("train", "--out", logs / "run", "--data", logs / "data", "--set", "train.epochs=1")
    assert code == 0
    assert "undefined" in out


def test_an_unknown_user_is_answered_with_the_nearest(
    run: Run, shop: PreparedData, shop_knowledge: KnowledgeFolder
) -> None:
    code, out = run("explain", "u99x", "--data", shop.path, "--knowledge", shop_knowledge.path)
    assert code == 2
    assert "there is no user 'u99x'" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--out", "x"], "give --schema and --interactions"),
        (["prepare", "--out", "x", "--source", "completejourney", "--split", "8:2"], "expected three numbers"),
        (["prepare", "--out", "x", "--source", "completejourney", "--max-rejected", "nan"], "max-rejected"),
        (["reason", "nowhere", "--knowledge", "k", "--max-new-tokens", "0"], "greater than or equal to 1"),
        (["train", "--out", "x", "--data", "d", "--set", "train.seed=-1"], "train.seed"),
        (["evaluate", "nowhere"], "nowhere: is no run, or not a finished one"),
        (["train", "--out", "x", "--data", "nowhere"], "no such folder"),
        (["train", "--out", "x", "--data", "d", "--set", "train.epochs=many"], "train.epochs"),
        (["train", "--out", "x", "--data", "d", "--set", "train.epoch=2"], "did you mean 'epochs'?"),
        (["train", "--out", "x", "--data", "d", "--set", "epochs=2"], "did you mean 'train.epochs'?"),
        (["train", "--out", "x", "--data", "d", "--set", "knowledge.vectors=llm"], "expected a list, as in"),
        (["prepare", "--out", "x", "--source", "movielens", "--items", "i.csv"], "--items: is for data of your own"),
        (
            ["prepare", "--out", "x", "--source", "movielens", "--events", "e.parquet"],
            "--events: is for data of your own",
        ),
        (["prepare", "--out", "x", "--window", "5"], "--window 5: goes with --negatives only"),
        (["reason", "nowhere", "--knowledge", "k", "--period", "7"], "--period 7.0: goes with --protocol period only"),
        (["reason", "nowhere", "--knowledge", "k", "--ray-gpus", "1"], "--ray-gpus 1.0: goes with --ray only"),
        (["prepare", "--out", "x", "--set", "folder=y"], "--set folder=y: is a setting of a --source"),
        (["events", "nowhere", "--out", "x", "--state", "s"], "--state s: no such folder"),
        (["events", "nowhere", "--out", "x.csv"], "--out x.csv: expected a file name that ends in .parquet"),
        (["paper", "m.toml", "--out", "x", "--only", "figure-33"], "no part 'figure-33'; did you mean 'figure-3'"),
        (["paper", "m.toml", "--out", "x", "--layers", "1;2"], "--layers 1;2: expected whole numbers"),
        (["paper", "m.toml", "--out", "x"], "m.toml: cannot be read"),
    ],
)
def test_a_wrong_command_says_what_to_do(
    run: Run, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out = run(*arguments)
    assert code == 2
    assert message in " ".join(out.split())
    assert not list(tmp_path.iterdir())


def test_an_unknown_scenario_is_named(run: Run, logs: Path) -> None:
    text = (logs / "interactions.csv").read_text().replace(",mail,", ",mial,", 3)
    (logs / "interactions.csv").write_text(text)
    _, out = _prepare(run, logs)
    assert "the schema has no scenario 'mial', and 3 rows name it; did you mean 'mail'?" in " ".join(out.split())


def test_data_are_prepared_without_loading_torch(logs: Path) -> None:
    arguments = ["--schema", "schema.toml", "--interactions", "interactions.csv", "--items", "items.parquet"]
    script = (
        "import sys; from llm4msr.cli.base import app; import llm4msr.cli; app(sys.argv[1:], standalone_mode=False);"
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    command = [sys.executable, "-c", script, "prepare", "--out", "data", *arguments]
    assert subprocess.run(command, cwd=logs, timeout=60, check=False).returncode == 0
    assert (logs / "data" / "manifest.json").is_file()


def test_times_are_shown_and_an_odd_unit_is_asked_about(run: Run, logs: Path) -> None:
    code, out = _prepare(run, logs)
    assert code == 0
    assert re.search(r"from 1970-01-\d\d to 1970-01-\d\d, validation from 1970-01-\d\d, test from 1970-01-\d\d", out)
    assert "is the schema's time_unit right?" in out


def test_the_unit_that_fits_the_times_is_named(run: Run, logs: Path) -> None:
    frame = pl.read_csv(logs / "interactions.csv").with_columns(pl.col("time") + 1_700_000_000_000)
    frame.write_csv(logs / "interactions.csv")
    (logs / "schema.toml").write_text(SCHEMA.replace('time_unit = "s"', 'time_unit = "us"'))
    code, out = _prepare(run, logs)
    assert code == 0
    assert "With 'ms', the log would end on 2023-11-" in " ".join(out.split())


def test_a_scenario_that_no_row_has_is_told_of(run: Run, logs: Path) -> None:
    (logs / "schema.toml").write_text(
        SCHEMA.replace('value = "mail"', 'value = "mail"\n[[scenarios]]\nvalue = "shelf"')
    )
    code, out = _prepare(run, logs)
    assert code == 0
    assert "no row is of the scenario 'shelf'" in out
    assert "shelf has one class" not in out


def test_nothing_is_prepared_into_a_folder_that_is_read(run: Run, logs: Path) -> None:
    (logs / "days").mkdir()
    code, out = run(
        "prepare", "--schema", logs / "shop.toml", "--interactions", logs / "days", "--out", logs / "days" / "data"
    )
    assert code == 2
    assert f"lies in --interactions {logs / 'days'}, all of whose files are read" in " ".join(out.split())


def test_the_version_is_shown(run: Run) -> None:
    assert run("--version") == (0, f"llm4msr {__version__}\n")


def test_a_table_is_scored_from_the_command_line(run: Run, logs: Path) -> None:
    _prepare(run, logs)
    run("train", "--out", logs / "run", "--data", logs / "data", "--set", "train.epochs=1")
    run("export", logs / "run", "--out", logs / "bundle")
    code, out = run("score", logs / "bundle", logs / "interactions.csv", "--out", logs / "scores.parquet")
    assert code == 0
    scores = pl.read_parquet(logs / "scores.parquet")
    assert scores.height == pl.read_csv(logs / "interactions.csv").height
    assert scores["score"].is_between(0, 1).all()
    assert f"{scores.height} rows; the bundle does not know the user of 0" in " ".join(out.split())


def test_scores_worse_than_the_click_rate_get_advice_that_fits(run: Run, logs: Path) -> None:
    _prepare(run, logs)
    options = ("--set", "train.batch_size=8192", "--set", "train.learning_rate=1e-4")
    code, out = run("train", "--out", logs / "run", "--data", logs / "data", "--set", "train.epochs=3", *options)
    assert code == 0
    assert "the log loss is above that of the click rate alone" in " ".join(out.split())
    assert "it was still falling at the end, so try more epochs" in " ".join(out.split())
    metrics = logs / "run" / "metrics.jsonl"
    metrics.write_text('{"validation": {"overall": {"log_loss": 0.01}}}\n' + metrics.read_text())
    assert "try a lower learning rate or fewer epochs" in " ".join(run("evaluate", logs / "run")[1].split())


def test_knowledge_that_no_one_reads_is_told_of(run: Run, logs: Path, shop_knowledge: KnowledgeFolder) -> None:
    _prepare(run, logs)
    options = ("--set", "train.epochs=1", "--knowledge", shop_knowledge.path)
    code, out = run("train", "--out", logs / "run", "--data", logs / "data", *options)
    assert code == 0
    assert "warning: the enhancer 'none' reads no knowledge; --enhancer llm4msr does" in " ".join(out.split())


def test_a_port_that_is_taken_is_said_before_anything_is_served(run: Run, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out = run("serve", tmp_path / "bundle", "--port", port)
    assert code == 2
    assert f"127.0.0.1:{port}: " in out
    assert "choose another --port" in " ".join(out.split())


@pytest.mark.parametrize(("file", "message"), [("items.j2", "did you mean 'item.j2'"), ("notes.txt", "no template")])
def test_templates_that_no_one_reads_are_refused(
    run: Run, shop: PreparedData, llm: Path, tmp_path: Path, file: str, message: str
) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / file).write_text("x")
    options = ("--model", llm, "--templates", tmp_path / "words", "--levels", "item")
    code, out = run("reason", shop.path, "--knowledge", tmp_path / "k", *options)
    assert code == 2
    assert message in " ".join(out.split())
