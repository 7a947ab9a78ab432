"""Several store files of one folder as one store: each worker writes its own, and all are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm4msr.errors import InputError
from llm4msr.knowledge.engines.base import Answer
from llm4msr.knowledge.store import Store, is_empty, stacked

MAIN = "store.sqlite"
READINGS = "readings"
"""The folder of a folder of knowledge that its readings lie in; see `llm4msr.knowledge.readings`."""


class Stores:
    """The answers in a folder's store files.

    Args:
        folder: where they lie.
        writes: the file that is written to; made where it is absent, unless `read_only`.
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
        """The folder's store files, be they of workers or of a run that was stopped."""
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
        """The stores of the single files."""
        return tuple(self._stores)

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Those of the keys that no file has an answer to yet, in order, each once."""
        left = list(keys)
        for store in self._stores:
            left = store.missing(left)
        return left

    def write(self, answers: Sequence[tuple[bytes, Answer]]) -> None:
        """Add a batch to the file that is written to, in one transaction."""
        self._stores[0].write(answers)

    def read(self, key: bytes) -> Answer | None:
        """One answer, or None. Raises `InputError` for a row that was altered."""
        found = (store.read(key) for store in self._stores)
        return next((answer for answer in found if answer is not None), None)

    def vectors(self, keys: Sequence[bytes]) -> NDArray[np.float16]:
        """The vectors of the keys, `(n, d)`. Raises `InputError` where one is missing, altered or of another width."""
        found: dict[bytes, NDArray[np.float16]] = {}
        left = list(dict.fromkeys(keys))
        for store in self._stores:
            found.update(store.vectors_of(left))
            left = [key for key in left if key not in found]
        return stacked(found, keys, self.folder)
