"""The log of events: append-only, synced to disk before an answer is sent, read again after a crash.

A line is a JSON object after its CRC-32, which is written as eight hexadecimal digits and a blank. A lock on the file
lets only one process write at a time; the system releases it when its holder dies. A line that a crash left unfinished
was never acknowledged; the next writer cuts it off.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from llm4msr.errors import InputError

FILE = "events.log"


class EventRecord(msgspec.Struct, frozen=True, tag="event"):
    """A positive interaction: ids as text, the scenario's value, microseconds since 1970, the behaviour's name."""

    user: str
    item: str
    scenario: str
    time: int
    behaviour: str


class ItemRecord(msgspec.Struct, frozen=True, tag="item"):
    """An item that the bundle's catalogue does not have: its raw columns, or none if an event named it."""

    item: str
    columns: dict[str, Any]


Record = EventRecord | ItemRecord
_ENCODER, _DECODER = msgspec.json.Encoder(), msgspec.json.Decoder(Record)


class EventLog:
    """The log's file in a folder; both are created if absent."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0, opener=_private)  # noqa: SIM115 - closed with this object
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)  # the file's name is on the disk too
        finally:
            os.close(directory)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other writers out."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def size(self) -> int:
        """The size of the file in bytes now; it may include part of a line that is being written."""
        return os.fstat(self._file.fileno()).st_size

    def begins_with(self) -> bytes:
        """The log's first line, or the first 4 KiB of a longer one; empty while there is no whole line.

        It never changes, so that another log in the same place is noticed.
        """
        with open(self.path, "rb") as file:
            line, end, _ = file.read(4096).partition(b"\n")
        return line if end or len(line) == 4096 else b""

    def read(self, start: int, end: int | None = None) -> Iterator[tuple[Record, int]]:
        """See `read_log`; `end` is by default the end of the file."""
        return read_log(self.path, start, self.size() if end is None else end)

    def append(self, records: Sequence[Record], after: int) -> int:
        """Write records at the position `after`, where the last whole line ends, and sync; return the new position.

        If that fails, nothing is added. The caller holds the lock.
        """
        if self.size() < after:
            raise OSError(f"{self.path}: is shorter than what was read of it")
        if self.size() > after:
            self._file.truncate(after)
        body = b"".join(_line(record) for record in records)
        try:
            written = 0
            while written < len(body):
                written += self._file.write(body[written:])
            os.fdatasync(self._file.fileno())
        except OSError:
            self._file.truncate(after)
            raise
        return after + len(body)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(
    path: Path, start: int, end: int, skipped: Callable[[int], None] | None = None
) -> Iterator[tuple[Record, int]]:
    """A log's records between two positions, each with the position after it.

    Damaged or unfinished lines at the end are left out. If a whole line follows a damaged one, `skipped` is called with
    the position of the damaged line; without `skipped`, `InputError` is raised.
    """
    damaged: list[int] = []
    for line, position in _lines(path, start, end):
        record = _parsed(line)
        if record is None:
            damaged.append(position)
            continue
        for place in damaged:
            if skipped is None:
                raise InputError(
                    f"{path}: the line at byte {place} is damaged, and whole ones follow; export the others by "
                    "`llm4msr events --skip-damaged`, then move the log away"
                )
            skipped(place)
        damaged.clear()
        yield record, position + len(line)


def settled_size(path: Path) -> int:
    """The size of a log in bytes, taken while no other process is writing a line."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return os.fstat(file.fileno()).st_size


def _lines(path: Path, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """The lines between two positions, each with the position where it begins; the last may be cut."""
    with open(path, "rb") as file:
        file.seek(start)
        position = start
        while position < end and (line := file.readline(end - position)):
            yield line, position
            position += len(line)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _line(record: Record) -> bytes:
    body = _ENCODER.encode(record)
    return b"%08x %b\n" % (crc32(body), body)


def _parsed(line: bytes) -> Record | None:
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    body = line[9:-1]
    try:
        return _DECODER.decode(body) if int(line[:8], 16) == crc32(body) else None
    except (ValueError, msgspec.DecodeError):
        return None
