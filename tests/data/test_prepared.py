from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm4msr.data.prepared import KIND, VERSION, PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST

from .tiny import log, prepared, schema


def test_an_opened_folder_is_what_was_prepared(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data")
    opened = PreparedData.open(tmp_path / "data")
    assert opened.schema == schema() == data.schema
    assert (opened.rows, opened.scenario_count, opened.vocabulary_size("hour")) == (10, 2, 4)
    assert opened.fingerprint == data.fingerprint


def test_columns_are_mapped_and_compact(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data")
    columns = (data.user, data.item, data.scenario, data.time, data.label, data.field("hour"))
    assert [str(column.dtype) for column in columns] == ["int32", "int32", "int16", "int64", "int8", "int8"]
    assert all(isinstance(column, np.memmap) and not column.flags.writeable for column in columns)


def test_fields_are_found_by_kind(tmp_path: Path) -> None:
    fields = schema([{"name": "hour", "side": "context"}, {"name": "price", "side": "context", "kind": "numeric"}])
    data = prepared(tmp_path / "data", log(price=1.0), fields)
    assert [spec.name for spec in data.fields_of("numeric")] == ["price"]
    assert [spec.name for spec in data.fields_of("categorical")] == ["hour"]
    assert data.fields_of("multi") == ()


def test_the_files_are_those_of_the_manifest(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data")
    assert list(data.manifest["files"]) == [
        "columns/field.hour.npy",
        "columns/item.npy",
        "columns/label.npy",
        "columns/scenario.npy",
        "columns/time.npy",
        "columns/user.npy",
        "items.parquet",
        "positives.parquet",
        "rejected.parquet",
        "users.parquet",
        "vocabulary/hour.parquet",
    ]


def test_the_same_log_has_the_same_fingerprint_and_another_has_not(tmp_path: Path) -> None:
    fingerprints = [
        prepared(tmp_path / "a").fingerprint,
        prepared(tmp_path / "b").fingerprint,
        prepared(tmp_path / "c", log(hour="9")).fingerprint,
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize("name", ["columns/label.npy", "vocabulary/hour.parquet", "items.parquet"])
@pytest.mark.parametrize("harm", ["altered", "truncated", "missing"])
def test_a_harmed_file_is_named(tmp_path: Path, name: str, harm: str) -> None:
    prepared(tmp_path / "data")
    path = tmp_path / "data" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(content if harm == "altered" else content[:-1])
    with pytest.raises(InputError, match=f"{name}: .*; make the folder again"):
        PreparedData.open(tmp_path / "data")


def test_the_check_can_be_left_out(tmp_path: Path) -> None:
    prepared(tmp_path / "data")
    (tmp_path / "data" / "rejected.parquet").unlink()
    assert PreparedData.open(tmp_path / "data", check=False).rows == 10


def test_a_column_that_holds_objects_is_not_unpickled(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data")
    np.save(tmp_path / "data" / "columns" / "label.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Array can't be memory-mapped: Python objects"):
        _ = data.label


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", VERSION + 1, f"has format version {VERSION + 1}, this program reads {VERSION}"),
        ("kind", "llm4msr run", f"is llm4msr run, expected {KIND}"),
    ],
)
def test_another_kind_or_version_is_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    data = prepared(tmp_path / "data")
    (tmp_path / "data" / MANIFEST).write_text(json.dumps({**data.manifest, key: value}), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        PreparedData.open(tmp_path / "data")
