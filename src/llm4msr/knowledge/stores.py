"""All store files of a folder, read as one store. Each worker writes a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm4msr.errors import InputError
from llm4msr.knowledge.engines.base import Answer
from llm4msr.knowledge.store import Store, is_empty, stacked

MAIN = "store.sqlite"
READINGS = "readings"
"""The subfolder of a knowledge folder for its readings; see `llm4msr.knowledge.readings`."""


class Stores:
    """The answers in a folder's store files.

    Args:
        folder: the folder of the files.
        writes: the name of the file to write to; created if absent. Not used with `read_only`.
        read_only: refuse to write.
    """

    def __init__(self, folder: Path, *, writes: str = MAIN, read_only: bool = False) -> None:
        paths = self.paths(folder)
        if read_only and not paths:
            raise InputError(f"{folder / MAIN}: no such store; run `llm4msr reason` first")
        own = [] if read_only else [folder / writes]
        self._stores: list[Store] = []
        try:
            for path in [*own, *(p for p in paths if p not in own and not is_empty(p))]:
                self._stores.append(Store(path, read_only=path not in own))
        except InputError:
            self.close()
            raise
        self.folder = folder

    @staticmethod
    def paths(folder: Path) -> list[Path]:
        """All store files of the folder, including those of other workers and of stopped calls."""
        return sorted(folder.glob("store*.sqlite"))

    def close(self) -> None:
        """Close all files."""
        for store in self._stores:
            store.close()

    def __enter__(self) -> Stores:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def files(self) -> tuple[Store, ...]:
        """One store per file."""
        return tuple(self._stores)

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """The keys that have no answer in any file yet, in order and without duplicates."""
        left = list(keys)
        for store in self._stores:
            left = store.missing(left)
        return left

    def write(self, answers: Sequence[tuple[bytes, Answer]]) -> None:
        """Add a batch to the file `writes`, in one transaction."""
        self._stores[0].write(answers)

    def read(self, key: bytes) -> Answer | None:
        """One answer, or None. Raises `InputError` for a row that was altered."""
        found = (store.read(key) for store in self._stores)
        return next((answer for answer in found if answer is not None), None)

    def answers(self, keys: Sequence[bytes], block: int = 4096) -> Iterator[Answer]:
        """The answers of the keys, in order, read in blocks. Raises `InputError` if one is missing or altered."""
        for start in range(0, len(keys), block):
            wanted = keys[start : start + block]
            found: dict[bytes, Answer] = {}
            for store in self._stores:
                found.update(store.answers([key for key in dict.fromkeys(wanted) if key not in found]))
            for key in wanted:
                if key not in found:
                    raise InputError(f"{self.folder}: an answer is missing; run `llm4msr reason` again")
                yield found[key]

    def vectors(self, keys: Sequence[bytes]) -> NDArray[np.float16]:
        """The vectors of the keys, `(n, d)`. Raises `InputError` if one is missing, altered or of another width."""
        found: dict[bytes, NDArray[np.float16]] = {}
        left = list(dict.fromkeys(keys))
        for store in self._stores:
            found.update(store.vectors_of(left))
            left = [key for key in left if key not in found]
        return stacked(found, keys, self.folder)
