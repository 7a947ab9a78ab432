"""Read files with one JSON object per line, plain or gzipped, into typed records; other lines are set aside."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from llm4msr.data.tables import MALFORMED
from llm4msr.errors import InputError

Record = TypeVar("Record", bound=msgspec.Struct)


class JsonLines:
    """Reads the records of a file. Meanwhile `malformed` collects (row number from 0, reason), and `read` counts lines.

    If the first line is JSON but not such a record, the file is probably of another version: this raises an
    `InputError` that names the field. Later lines of this kind are set aside.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.malformed: list[tuple[int, str]] = []
        self.read = 0

    def records(self, kind: type[Record]) -> Iterator[Record]:
        """Every record in order; raises `InputError` for a file that cannot be read."""
        decode = msgspec.json.Decoder(kind).decode
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                for number, line in enumerate(file):
                    self.read += 1
                    try:
                        yield decode(line)
                    except msgspec.ValidationError as error:
                        if number == 0:
                            raise InputError(
                                f"{self.path}: row 0: {error}; "
                                "is it the version of the data set that this source reads?"
                            ) from error
                        self.malformed.append((number, f"{MALFORMED}: {error}"))
                    except (msgspec.DecodeError, UnicodeDecodeError):
                        self.malformed.append((number, f"{MALFORMED}: not JSON"))
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{self.path}: cannot be read: {error}; is the file whole?") from error


def find_file(folder: Path, names: list[str]) -> Path:
    """The first of `names`, plain or gzipped, that the folder has; raises `InputError` if it has none."""
    for name in names:
        for path in (folder / f"{name}.json.gz", folder / f"{name}.json"):
            if path.is_file():
                return path
    raise InputError(f"{folder}: has no {' or '.join(f'{n}.json.gz' for n in names)} (or .json)")
