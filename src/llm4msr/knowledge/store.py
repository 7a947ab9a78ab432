"""The knowledge store: every answer of the LLM, with a key made of the prompt and of how it was run.

One SQLite file. A batch of answers is one transaction, so a killed job loses at most the batch in flight. An answer's
key covers the model, its number format, the generation settings and the prompt, but not the template that made the
prompt. Vectors are float16 or, after `quantise`, int8 with a scale that many rows share.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm4msr.errors import InputError
from llm4msr.knowledge.eightbit import Scale
from llm4msr.knowledge.engines.base import Answer, Generation

_APPLICATION = 0x4D5352  # "MSR"
_VERSION = 2
_SCALES = """CREATE TABLE IF NOT EXISTS scales (
  id INTEGER PRIMARY KEY, mean BLOB NOT NULL, step BLOB NOT NULL, checksum BLOB NOT NULL
);"""
_TABLES = f"""{_SCALES}
CREATE TABLE IF NOT EXISTS answers (
  key BLOB PRIMARY KEY, text TEXT NOT NULL, vector BLOB NOT NULL, finish_reason TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, generated_tokens INTEGER NOT NULL, checksum BLOB NOT NULL, scale INTEGER NOT NULL
);
"""
_UPGRADE = _SCALES + "ALTER TABLE answers ADD COLUMN scale INTEGER NOT NULL DEFAULT 0;"
"""Turns a store of version 1, which had no 8-bit vectors, into one of this version."""
_HALF = 0
"""The `scale` of rows whose vectors are float16, and so need none."""
_COLUMNS = "key, text, vector, finish_reason, prompt_tokens, generated_tokens, scale, checksum"
_PATIENCE = 30.0
"""Seconds to wait for another process that writes the same file."""
_TYPES = [str, bytes, str, int, int, int]


def answer_key(identity: dict[str, Any], generation: Generation, prompt: str) -> bytes:
    """The key of an answer: a hash (32 bytes) of the engine's identity, the generation settings and the prompt."""
    relevant = None if generation.generates else {"pooling", "chat"}  # the rest only affects generated text
    settings = generation.model_dump(mode="json", include=relevant)
    asked = json.dumps([identity, settings, prompt], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).digest()


def is_empty(path: Path) -> bool:
    """Whether a store's file is missing or has no bytes."""
    return not path.is_file() or path.stat().st_size == 0


class Store:
    """Answers on disk. Raises `InputError` for a file that is not a store, or of another version.

    Args:
        path: the SQLite file; created if absent, unless `read_only`.
        read_only: refuse to write.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        if read_only and is_empty(path):
            raise InputError(f"{path}: there is no store, or an empty one; run `llm4msr reason` first")
        fresh = not read_only and is_empty(path)
        if read_only:
            _finish_a_killed_write(path)
        try:
            self._db = _connected(path, "ro" if read_only else "rwc")
            self._db.text_factory = lambda raw: raw.decode("utf-8", "replace")  # damaged text then fails its checksum
            if fresh:
                marks = f"PRAGMA application_id={_APPLICATION}; PRAGMA user_version={_VERSION};"
                self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES}{marks} COMMIT;")
            application = self._db.execute("PRAGMA application_id").fetchone()[0]
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            raise InputError(f"{path}: {_advice(error)}") from error
        if application != _APPLICATION:
            self._db.close()
            raise InputError(f"{path}: is an SQLite file but not a knowledge store; choose another path")
        if version == 1 and not read_only:
            with self._explained():
                self._db.executescript(f"BEGIN; {_UPGRADE}PRAGMA user_version={_VERSION}; COMMIT;")
            version = _VERSION
        self._scales: dict[int, Scale] = {}
        if version != _VERSION:
            self._db.close()
            raise InputError(
                f"{path}: has format version {version}, this program reads {_VERSION}; run `llm4msr reason` again"
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._explained():
            return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """The keys that have no answer yet, in order and without duplicates."""
        wanted = list(dict.fromkeys(keys))
        present: set[bytes] = set()
        for chunk in _chunks(wanted):
            marks = ",".join("?" * len(chunk))
            with self._explained():
                found = self._db.execute(f"SELECT key FROM answers WHERE key IN ({marks})", chunk)
                present.update(row[0] for row in found)
        return [key for key in wanted if key not in present]

    def write(self, answers: Sequence[tuple[bytes, Answer]]) -> None:
        """Add a batch in one transaction; an answer that is already there is kept."""
        rows = []
        for key, a in answers:
            if not np.isfinite(a.vector).all():
                raise InputError("a vector that is not finite cannot be stored")
            vector = np.ascontiguousarray(a.vector, dtype=np.float16).tobytes()
            numbers = (a.finish_reason, a.prompt_tokens, a.generated_tokens, _HALF)
            rows.append((key, a.text, vector, *numbers, _row_checksum(key, a.text, vector, *numbers)))
        with self._explained(), self._db:
            self._db.executemany(f"INSERT OR IGNORE INTO answers ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def read(self, key: bytes) -> Answer | None:
        """One answer, or None. Raises `InputError` for a row that was altered."""
        return self.answers([key]).get(key)

    def answers(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """The answers of the keys that this file has. Raises `InputError` for a row that was altered."""
        return dict(self._rows(list(dict.fromkeys(keys))))

    def vectors(self, keys: Sequence[bytes]) -> NDArray[np.float16]:
        """The vectors of the keys, `(n, d)`. Raises `InputError` if one is missing, altered or of another width."""
        return stacked(self.vectors_of(keys), keys, self.path)

    def vectors_of(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float16]]:
        """The vectors of the keys that this file has. Raises `InputError` for a row that was altered."""
        return {key: answer.vector for key, answer in self.answers(keys).items()}

    def altered(self) -> list[bytes]:
        """The keys of all answers that do not match their checksum. Reads every answer."""
        with self._explained():
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM answers")
            return [bytes(row[0]) for row in rows if not _is_sound(row)]

    def everything(self, size: int = 1000) -> Iterator[list[tuple[bytes, Answer]]]:
        """All answers, `size` at a time. Raises `InputError` for a row that was altered."""
        with self._explained():
            keys = [row[0] for row in self._db.execute("SELECT key FROM answers ORDER BY key")]
        for start in range(0, len(keys), size):
            yield list(self._rows(keys[start : start + size]))

    def quantise(self, keys: Sequence[bytes], scale: Scale) -> int:
        """Convert the float16 vectors of the keys to 8 bits per number, and return how many were converted.

        Keys that this file does not have, and vectors that already have 8 bits, are skipped.
        """
        mean, step = scale.mean.tobytes(), scale.step.tobytes()
        done = 0
        number = 0
        with self._explained(), self._db:
            for rows in map(list, self._chunked_rows(list(dict.fromkeys(keys)))):
                halves = [row for row in rows if row[6] == _HALF]
                if halves and not number:
                    new = "INSERT INTO scales (mean, step, checksum) VALUES (?, ?, ?)"
                    number = int(self._db.execute(new, (mean, step, _digest(mean + step))).lastrowid or 0)
                changed = []
                for key, text, vector, reason, prompt, generated, *_ in halves:
                    codes = scale.encode(np.frombuffer(vector, dtype=np.float16)).tobytes()
                    checked = _row_checksum(key, text, codes, reason, prompt, generated, number)
                    changed.append((codes, number, checked, key))
                self._db.executemany("UPDATE answers SET vector = ?, scale = ?, checksum = ? WHERE key = ?", changed)
                done += len(changed)
        return done

    def delete(self, keys: Iterable[bytes]) -> None:
        """Remove answers, in one transaction."""
        with self._explained(), self._db:
            self._db.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in keys])

    @property
    def has_eight_bits(self) -> bool:
        """Whether `quantise` was run on this file."""
        with self._explained():
            return bool(self._db.execute("SELECT EXISTS (SELECT 1 FROM scales)").fetchone()[0])

    def keys(self) -> set[bytes]:
        """All keys."""
        with self._explained():
            return {row[0] for row in self._db.execute("SELECT key FROM answers")}

    def shrink(self) -> None:
        """Free the disk space of removed answers."""
        with self._explained():
            self._db.execute("VACUUM")

    def _rows(self, keys: list[bytes]) -> Iterator[tuple[bytes, Answer]]:
        for rows in self._chunked_rows(keys):
            for key, text, vector, reason, prompt, generated, scale, _ in rows:
                if scale == _HALF:
                    numbers = np.frombuffer(vector, dtype=np.float16)
                else:
                    numbers = self._scale(scale).decode(np.frombuffer(vector, dtype=np.int8))
                yield key, Answer(text, numbers, reason, prompt, generated)

    def _chunked_rows(self, keys: list[bytes]) -> Iterator[list[Any]]:
        """The rows of the keys in chunks. Raises `InputError` for a row that was altered."""
        for chunk in _chunks(keys):
            marks = ",".join("?" * len(chunk))
            asked = f"SELECT {_COLUMNS} FROM answers WHERE key IN ({marks})"
            with self._explained(), closing(self._db.execute(asked, chunk)) as cursor:
                found = cursor.fetchall()
            for row in found:
                if not _is_sound(row):
                    raise InputError(
                        f"{self.path}: the answer {row[0].hex()[:16]} was altered on disk (its checksum does not fit); "
                        "remove it with `llm4msr store verify FOLDER --remove` and run `llm4msr reason` again"
                    )
            yield found

    def _scale(self, number: int) -> Scale:
        if number not in self._scales:
            with self._explained():
                row = self._db.execute("SELECT mean, step, checksum FROM scales WHERE id = ?", (number,)).fetchone()
            if row is None or _digest(row[0] + row[1]) != row[2]:
                raise InputError(f"{self.path}: the scale of 8-bit vectors was altered on disk; reason anew")
            self._scales[number] = Scale(np.frombuffer(row[0], np.float32), np.frombuffer(row[1], np.float32))
        return self._scales[number]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: the store cannot be used: {error}") from error


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=_PATIENCE)


def _finish_a_killed_write(path: Path) -> None:
    """Roll back the transaction of a killed process, which a read-only connection cannot do."""
    if path.with_name(f"{path.name}-journal").is_file():
        with suppress(sqlite3.Error), closing(_connected(path, "rw")) as db:
            db.execute("PRAGMA user_version")


def _advice(error: sqlite3.Error) -> str:
    """What is wrong with a store that cannot be opened.

    Only a file that SQLite cannot read as a database is said not to be a store. Lock and permission errors are
    `OperationalError`: they say nothing about the file.
    """
    if isinstance(error, sqlite3.OperationalError):
        return f"cannot be opened now ({error}); may this account write there, and does another process write it?"
    return f"is not a knowledge store ({error}); remove it and run `llm4msr reason`"


def _is_sound(row: tuple[Any, ...]) -> bool:
    """Whether a row is unaltered: its types are right and its checksum matches."""
    key, text, vector, reason, prompt, generated, scale, stored = row
    if not isinstance(key, bytes) or [type(v) for v in (text, vector, reason, prompt, generated, scale)] != _TYPES:
        return False
    return bool(_row_checksum(key, text, vector, reason, prompt, generated, scale) == stored)


def stacked(found: dict[bytes, NDArray[np.float16]], keys: Sequence[bytes], where: Path) -> NDArray[np.float16]:
    """The vectors of the keys, `(n, d)`; raises `InputError` if one is missing, or their widths differ."""
    absent = sum(key not in found for key in set(keys))
    if absent:
        raise InputError(f"{where}: {absent} answers are missing; run `llm4msr reason` again to complete it")
    if not keys:
        return np.zeros((0, 0), dtype=np.float16)
    if len({len(vector) for vector in found.values()}) > 1:
        raise InputError(f"{where}: vectors of several widths stand under one setting; reason anew")
    return np.stack([found[key] for key in keys])


def _row_checksum(key: bytes, text: str, vector: bytes, reason: str, prompt: int, generated: int, scale: int) -> bytes:
    rest = [text, reason, prompt, generated, *([] if scale == _HALF else [scale])]
    return _digest(key + vector + json.dumps(rest, ensure_ascii=False).encode("utf-8"))


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _chunks(keys: list[bytes], size: int = 500) -> Iterator[list[bytes]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
