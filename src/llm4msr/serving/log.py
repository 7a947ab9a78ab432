"""The log of events: append-only, synced to disk before an answer is sent, read again after a crash.

A line is a JSON object after its CRC-32, which is written as eight hexadecimal digits and a blank. A lock on the file
lets only one process write at a time; the system releases it when its holder dies. A line that a crash left unfinished
was never acknowledged; the next writer cuts it off. If the file is moved away, the next writer begins a new one.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from llm4msr.errors import InputError

LOG = logging.getLogger("llm4msr.serving")
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
        self._file = self._opened()

    def _opened(self) -> FileIO:
        file = FileIO(self.path, "ab", opener=_private)
        try:
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)  # the file's name is on the disk too
            finally:
                os.close(directory)
        except OSError:
            file.close()
            raise
        return file

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other writers out. If the open file is not the one at the path any more, open that one."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        while not self._is_at_its_path():
            LOG.warning("%s was moved away or replaced; events go on in the file that is there now", self.path)
            there = self._opened()  # if this fails, the next call tries again
            self._file.close()
            self._file = there
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _is_at_its_path(self) -> bool:
        try:
            there, own = os.stat(self.path), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)

    def size(self) -> int:
        """The size of the file at the path in bytes now; it may include part of a line that is being written."""
        return self.path.stat().st_size

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
            self._cut_off(after)
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

    def _cut_off(self, after: int) -> None:
        """Remove the unfinished line at the end. Whole lines there are damaged; they are kept in a file beside."""
        with self.path.open("rb") as file:
            file.seek(after)
            rest = file.read()
        if b"\n" in rest:
            beside = self.path.with_name(f"{FILE}.damaged-{after}")
            with open(beside, "ab", opener=_private) as kept:
                kept.write(rest)
                kept.flush()
                os.fsync(kept.fileno())
            LOG.error("%s: the last line, at byte %d, is damaged; it is now in %s", self.path, after, beside)
        self._file.truncate(after)

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


def copy_log(log: Path, to: Path) -> None:
    """Copy what is in a log now; a server may be writing to it."""
    left = settled_size(log)
    with open(log, "rb") as file, open(to, "wb", opener=_private) as copy:
        while left and (part := file.read(min(left, 1 << 20))):
            copy.write(part)
            left -= len(part)


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
