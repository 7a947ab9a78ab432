"""Tables from ids and values to numbers, and from numbers to texts, in one LMDB file that processes share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import lmdb
import numpy as np
from numpy.typing import NDArray

from llm4msr.errors import InputError

FILE = "lookup.mdb"
ABSENT = -1
"""The number returned for a text that the table does not have."""
_LONGEST = 400
"""The most bytes of a text that is its own key; LMDB allows keys of 511."""
_BATCH = 100_000


def key_of(text: str) -> bytes:
    """The key of an id or a value: its UTF-8 bytes or, if long, a digest after a byte that UTF-8 never has."""
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) <= _LONGEST:
        return raw or b"\xfe"
    return b"\xff" + hashlib.blake2b(raw, digest_size=32).digest()


class LookupWriter:
    """Writes the file; tables are written one after the other."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._env = lmdb.open(str(self._path), subdir=False, map_size=1 << 40, max_dbs=512, sync=False, lock=False)

    def numbers(self, table: str, texts: Sequence[str], numbers: Iterable[int] | None = None) -> None:
        """Write a table from texts to numbers, by default the texts' positions."""
        keys = [key_of(text) for text in texts]
        values = np.asarray(range(len(keys)) if numbers is None else list(numbers), dtype=np.int32)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._write(table, ((keys[i], values[i].tobytes()) for i in order))

    def texts(self, table: str, texts: Iterable[tuple[int, str]]) -> None:
        """Write a table from numbers, in ascending order, to texts."""
        self._write(table, ((int(n).to_bytes(4, "big"), text.encode("utf-8", "replace")) for n, text in texts))

    def _write(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        db = self._env.open_db(table.encode())
        rows = iter(rows)
        while True:
            with self._env.begin(write=True, db=db) as transaction:
                count, _ = transaction.cursor().putmulti(_some(rows), append=True)
            if count < _BATCH:
                return

    def close(self) -> None:
        """Finish the file."""
        self._env.sync(True)
        self._env.close()


def _some(rows: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    for _, row in zip(range(_BATCH), rows, strict=False):
        yield row


class Lookup:
    """The file, opened for reading. Raises `InputError` if it is not a look-up file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._env = lmdb.open(
                str(path), subdir=False, readonly=True, lock=False, max_dbs=512, max_spare_txns=8, readahead=False
            )
            names = self._names()
            self._tables = {name: self._env.open_db(name.encode(), create=False) for name in names}
        except (lmdb.Error, OSError) as error:
            raise InputError(f"{path}: cannot be read as a look-up file: {error}") from error

    def _names(self) -> list[str]:
        with self._env.begin() as transaction:
            return [bytes(name).decode() for name, _ in transaction.cursor()]

    def numbers(self, table: str, texts: Sequence[str]) -> NDArray[np.int32]:
        """The number of each text, `(n,)`; `ABSENT` if the table does not have the text."""
        absent = np.int32(ABSENT).tobytes()
        with self._env.begin(db=self._tables[table]) as transaction:
            get = transaction.get
            found = b"".join([get(key_of(text), absent) for text in texts])
        return np.frombuffer(found, dtype=np.int32)

    def is_empty(self, table: str) -> bool:
        """Whether a table has no entries."""
        with self._env.begin() as transaction:
            return int(transaction.stat(self._tables[table])["entries"]) == 0

    def number(self, table: str, text: str) -> int:
        """The number of one text, or `ABSENT`."""
        return int(self.numbers(table, [text])[0])

    def texts(self, table: str, numbers: Iterable[int]) -> list[str | None]:
        """The text of each number, None if the table has none."""
        with self._env.begin(db=self._tables[table]) as transaction:
            found = [transaction.get(int(n).to_bytes(4, "big")) if n >= 0 else None for n in numbers]
        return [None if raw is None else raw.decode("utf-8") for raw in found]

    def text(self, table: str, number: int) -> str | None:
        """The text of one number."""
        return self.texts(table, [number])[0]

    def starting_with(self, table: str, prefix: str, most: int) -> list[str]:
        """The first texts, in order of their bytes, that start with a prefix."""
        raw = prefix.encode("utf-8", "surrogatepass")[:_LONGEST]
        found: list[str] = []
        with self._env.begin(db=self._tables[table]) as transaction:
            cursor = transaction.cursor()
            more = cursor.set_range(raw) if raw else cursor.first()
            while more and len(found) < most and cursor.key().startswith(raw) and cursor.key()[0] < 0xFE:
                found.append(cursor.key().decode("utf-8", "replace"))
                more = cursor.next()
        return found


_OPEN: WeakValueDictionary[tuple[int, int], Lookup] = WeakValueDictionary()
_OPENING = Lock()


def open_lookup(path: Path) -> Lookup:
    """The opened file. LMDB requires that a process opens it only once, so all callers share one object."""
    with _OPENING:
        try:
            found = os.stat(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        lookup = _OPEN.get((found.st_dev, found.st_ino))
        if lookup is None:
            lookup = Lookup(path)
            _OPEN[found.st_dev, found.st_ino] = lookup
        return lookup
