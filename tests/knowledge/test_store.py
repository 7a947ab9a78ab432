from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4msr.errors import InputError
from llm4msr.knowledge.eightbit import Scale
from llm4msr.knowledge.engines.base import Answer, Generation
from llm4msr.knowledge.store import Store, answer_key
from llm4msr.knowledge.stores import Stores

A, B, C = (bytes([letter]) * 32 for letter in (10, 11, 12))


def answer(*vector: float, text: str = "yes") -> Answer:
    return Answer(text, np.array(vector, dtype=np.float16), "stop", 7, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with the answers A and B."""
    path = tmp_path / "store.sqlite"
    with Store(path) as store:
        store.write([(A, answer(1, 2)), (B, answer(3, 4, text="no"))])
    return path


def alter(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement, values)
    db.close()


def test_what_is_written_is_read(path: Path) -> None:
    with Store(path, read_only=True) as store:
        found = store.read(B)
        assert found is not None
        assert (found.text, found.finish_reason, found.prompt_tokens, found.generated_tokens) == ("no", "stop", 7, 3)
        assert found.vector.dtype == np.float16
        assert found.vector.tolist() == [3, 4]
        assert store.read(C) is None
        assert len(store) == 2


@settings(max_examples=25, deadline=None)
@given(text=st.text(), vector=st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1))
def test_every_text_and_vector_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, text: str, vector: list[float]
) -> None:
    with Store(tmp_path_factory.mktemp("store") / "s.sqlite") as store:
        store.write([(A, answer(*vector, text=text))])
        found = store.read(A)
    assert found is not None
    assert (found.text, found.vector.tolist()) == (text, vector)


def test_missing_keys_come_in_order_and_once(path: Path) -> None:
    with Store(path) as store:
        assert store.missing([C, A, b"z", C, B]) == [C, b"z"]


def test_more_keys_than_one_query_holds_are_found(tmp_path: Path) -> None:
    keys = [number.to_bytes(32) for number in range(1201)]
    with Store(tmp_path / "s.sqlite") as store:
        store.write([(key, answer(i)) for i, key in enumerate(keys[:-1])])
        assert store.missing(keys) == keys[-1:]
        assert store.vectors(keys[:-1]).tolist() == [[float(np.float16(i))] for i in range(1200)]


def test_an_answer_that_is_there_stays(path: Path) -> None:
    with Store(path) as store:
        store.write([(A, answer(9, 9)), (C, answer(5, 6))])
        assert store.vectors([A, C]).tolist() == [[1, 2], [5, 6]]


def test_vectors_come_in_the_order_asked_and_as_often(path: Path) -> None:
    with Store(path) as store:
        assert store.vectors([B, A, B]).tolist() == [[3, 4], [1, 2], [3, 4]]
        assert store.vectors([]).shape == (0, 0)


def test_missing_vectors_are_counted(path: Path) -> None:
    with Store(path) as store, pytest.raises(InputError, match="1 answers are missing"):
        store.vectors([A, C, C])


def test_vectors_of_several_widths_do_not_go_together(path: Path) -> None:
    with Store(path) as store:
        store.write([(C, answer(1))])
        with pytest.raises(InputError, match="vectors of several widths"):
            store.vectors([A, C])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_with_its_whole_batch(path: Path, value: float) -> None:
    with Store(path) as store:
        with pytest.raises(InputError, match="not finite"):
            store.write([(C, answer(1, 2)), (b"z", answer(1, value))])
        assert len(store) == 2


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("text", "nO"),
        ("text", b"no"),
        ("vector", np.array([3, 5], dtype=np.float16).tobytes()),
        ("vector", "not bytes"),
        ("vector", b"\x00"),
        ("finish_reason", "length"),
        ("prompt_tokens", 8),
        ("generated_tokens", b"x"),
        ("checksum", b"x"),
    ],
)
def test_an_altered_row_is_refused_by_name(path: Path, column: str, value: object) -> None:
    alter(path, f"UPDATE answers SET {column} = ? WHERE key = ?", value, B)
    with Store(path, read_only=True) as store:
        assert store.vectors([A]).tolist() == [[1, 2]]
        with pytest.raises(InputError, match=rf"{path}: the answer {B.hex()[:16]} was altered on disk"):
            store.vectors([A, B])


def test_text_that_is_not_utf8_any_more_is_refused_by_name(path: Path) -> None:
    alter(path, "UPDATE answers SET text = CAST(x'6eff' AS TEXT) WHERE key = ?", B)
    with Store(path, read_only=True) as store, pytest.raises(InputError, match=f"{B.hex()[:16]} was altered on disk"):
        store.read(B)


def test_deleting_the_altered_row_as_told_makes_it_missing(path: Path) -> None:
    alter(path, f"DELETE FROM answers WHERE hex(key) LIKE '{B.hex()[:16].upper()}%'")
    with Store(path) as store:
        assert store.missing([A, B]) == [B]


def test_a_store_of_another_version_is_refused(path: Path) -> None:
    alter(path, "PRAGMA user_version = 3")
    with pytest.raises(InputError, match="has format version 3, this program reads 2"):
        Store(path)


@pytest.mark.parametrize("content", [b"hello", b"x" * 5000])
def test_a_file_that_is_not_sqlite_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"store\.sqlite: is not a knowledge store"):
        Store(path)
    assert path.read_bytes() == content


def test_another_programs_sqlite_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    alter(path, "CREATE TABLE mine (x)")
    with pytest.raises(InputError, match="is an SQLite file but not a knowledge store"):
        Store(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, share: float) -> None:
    path = tmp_path / "store.sqlite"
    keys = [number.to_bytes(32) for number in range(200)]
    with Store(path) as store:
        store.write([(key, answer(*range(50))) for key in keys])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    def use() -> None:
        with Store(path, read_only=True) as store:
            assert len(store.missing(keys)) < 200
            store.vectors(keys)

    with pytest.raises(InputError, match=f"{path}: "):
        use()


@pytest.mark.parametrize("use", [len, lambda store: store.missing([A]), lambda store: store.read(A)])
def test_a_file_overwritten_behind_its_header_is_refused_by_name(path: Path, use: Callable[[Store], object]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with Store(path, read_only=True) as store, pytest.raises(InputError, match=f"{path}: the store cannot be used"):
        use(store)


def test_reading_needs_a_store_that_exists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no store, or an empty one; run `llm4msr reason` first"):
        Store(tmp_path / "absent.sqlite", read_only=True)
    assert not (tmp_path / "absent.sqlite").exists()


def test_an_empty_file_of_another_worker_is_no_store_yet(tmp_path: Path) -> None:
    (tmp_path / "store-1-of-2.sqlite").touch()
    with Stores(tmp_path) as stores:
        assert [store.path.name for store in stores.files] == ["store.sqlite"]
    with pytest.raises(InputError, match="there is no store, or an empty one"):
        Store(tmp_path / "store-1-of-2.sqlite", read_only=True)


def test_a_store_may_be_made_by_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "s.sqlite") as one:
        monkeypatch.setattr("llm4msr.knowledge.store.is_empty", lambda path: True)  # as it was a moment before
        with Store(tmp_path / "s.sqlite") as other:
            assert len(one) == len(other) == 0


def test_a_store_opened_for_reading_refuses_to_write(path: Path) -> None:
    with Store(path, read_only=True) as store, pytest.raises(InputError, match="cannot be used: attempt to write"):
        store.write([(C, answer(1, 2))])


def test_two_readers_and_a_writer_share_a_store(path: Path) -> None:
    with Store(path, read_only=True) as reader, Store(path) as writer:
        writer.write([(C, answer(5, 6))])
        assert reader.vectors([C]).tolist() == [[5, 6]]


def test_a_store_that_another_process_holds_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm4msr.knowledge.store._PATIENCE", 0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match=f"{path}: .*database is locked"):
        Store(path).write([(C, answer(1, 2))])
    other.execute("ROLLBACK")
    other.close()
    with Store(path) as store:
        store.write([(C, answer(1, 2))])
        assert len(store) == 3


def test_what_a_killed_write_left_is_taken_back_by_whoever_reads(path: Path) -> None:
    script = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size = 1')\n"  # so that what is not committed goes to the file
        "db.execute('BEGIN')\n"
        "db.execute('UPDATE answers SET text = ?', ('x' * 100_000,))\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert path.with_name(f"{path.name}-journal").is_file()
    with Store(path, read_only=True) as store:
        assert store.altered() == []
        assert len(store) == 2


def test_a_store_that_may_not_be_opened_now_is_not_to_be_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm4msr.knowledge.store._PATIENCE", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match=r"cannot be opened now \(database is locked\)"):
            Store(path, read_only=True)


def test_a_full_disk_is_named_and_what_was_stored_stays(path: Path) -> None:
    with Store(path) as store:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        many = [(number.to_bytes(32), answer(*range(500))) for number in range(50)]
        with pytest.raises(InputError, match=f"{path}: the store cannot be used: database or disk is full"):
            store.write(many)
    with Store(path) as store:
        assert len(store) == 2
        store.write(many)
        assert (len(store), store.altered()) == (52, [])


PAPER = Generation(pooling="last_generated", max_new_tokens=64)


def key(identity: dict[str, Any] | None = None, generation: Generation = PAPER, prompt: str = "tea?") -> bytes:
    return answer_key({"model": "m", "dtype": "float32"} if identity is None else identity, generation, prompt)


def test_a_key_is_32_bytes_and_does_not_depend_on_the_order_of_the_identity() -> None:
    assert len(key()) == 32
    assert key({"dtype": "float32", "model": "m"}) == key()


def test_keys_are_those_of_the_stores_that_exist() -> None:
    """Other keys, as after a new setting, would ask every prompt again that was ever answered."""
    vectors = Generation(pooling="mean_prompt", chat=False)
    assert key().hex() == "ee755e907f65a7094c4562554926fedfee421a1d81599b16cd80318fe0fd3076"
    assert key(generation=vectors).hex() == "d2fecfa02a7833b1a53886a2cfb19fb03c90e5ac3122f51d3e2f18e49591e628"


@pytest.mark.parametrize(
    "other",
    [
        key(identity={"model": "n", "dtype": "float32"}),
        key(identity={"model": "m", "dtype": "bfloat16"}),
        key(prompt="tea!"),
        *[
            key(generation=PAPER.model_copy(update=change))
            for change in (
                {"pooling": "closing"},
                {"pooling": "last_prompt"},
                {"max_new_tokens": 65},
                {"repetition_penalty": 1.1},
                {"chat": False},
            )
        ],
    ],
)
def test_whatever_an_answer_depends_on_is_in_its_key(other: bytes) -> None:
    assert other != key()


def test_where_nothing_is_generated_the_limits_of_generation_do_not_matter() -> None:
    short = Generation(pooling="last_prompt", max_new_tokens=8, repetition_penalty=1.5)
    assert key(generation=short) == key(generation=Generation(pooling="last_prompt"))
    assert key(generation=short) != key(generation=Generation(pooling="last_prompt", chat=False))


def test_vectors_in_eight_bits_are_within_half_a_step_of_what_they_were(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = (random.standard_normal((200, 16)) * np.geomspace(1e-2, 500, 16) + 3).astype(np.float16)
    keys = [bytes([place]) * 32 for place in range(200)]
    scale = Scale.fit(vectors)
    with Store(tmp_path / "s.sqlite") as store:
        store.write([(key, answer(*vector)) for key, vector in zip(keys, vectors, strict=True)])
        assert store.quantise([*keys[:150], C + b"x"], scale) == 150
        assert store.quantise(keys[:150], scale) == 0  # they are that already
    with Store(tmp_path / "s.sqlite", read_only=True) as store:
        found = store.vectors(keys).astype(np.float32)
        assert store.altered() == []
    difference = np.abs(found - vectors.astype(np.float32))
    assert (difference[:150] <= scale.step * 0.5 + np.abs(vectors[:150]).astype(np.float32) * 1e-3).all()
    assert difference[:150].max() > 0
    assert not difference[150:].any()


@pytest.mark.parametrize("table", ["answers SET vector = zeroblob(2)", "scales SET step = zeroblob(8)"])
def test_altered_eight_bits_are_noticed(path: Path, table: str) -> None:
    with Store(path) as store:
        store.quantise([A], Scale.fit(np.eye(2, dtype=np.float32)))
    alter(path, f"UPDATE {table}")
    with Store(path, read_only=True) as store, pytest.raises(InputError, match="altered on disk"):
        store.read(A)


def test_a_store_without_eight_bits_is_brought_up_to_this_version_when_it_is_written_to(path: Path) -> None:
    alter(path, "ALTER TABLE answers DROP COLUMN scale")
    alter(path, "DROP TABLE scales")
    alter(path, "PRAGMA user_version = 1")
    with pytest.raises(InputError, match="has format version 1, this program reads 2; run `llm4msr reason` again"):
        Store(path, read_only=True)
    with Store(path) as store:
        assert store.altered() == []
        found = store.read(A)
    assert found is not None
    assert found.vector.tolist() == [1, 2]
