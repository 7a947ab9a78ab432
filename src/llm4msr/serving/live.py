"""What happened since the export: users' states updated by events, and new items.

All of this is derived from the log and the bundle. It is kept in an LMDB file beside the log, one per bundle, so that
all processes of a server see the same data and none holds it in memory. LMDB's lock allows one write transaction at a
time. A writer first applies the lines of the log that the file does not have yet (left by a crash, or written for
another bundle); then it appends to the log, syncs it, and commits. Every acknowledged event is therefore in the log. An
event that is already in the log or in the bundle's histories is not counted again. If another log takes the place of
the one that was read, the file is emptied and filled from the new log.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import lmdb
import msgspec
import numpy as np

from llm4msr.errors import InputError
from llm4msr.serving.anew import sums_anew
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.log import EventLog, EventRecord, ItemRecord, Record, settled_size
from llm4msr.serving.states import Sums

_LAYOUT = 1
"""The version of the file's tables and of `Sums.to_bytes`: a file of another version is not read."""
_APPLIED, _LOG = b"applied", b"log"
_LAST = b"\xff" * 24
"""The bytes of an event's key after the user's digest are never greater than this."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_CHUNK = 5_000
"""The most lines of the log that are applied in one transaction."""
_READERS = 4096
"""Reader slots of the file, for all processes together; each process frees those of killed ones when it opens it."""


class Live:
    """The current states of a bundle's users.

    Args:
        bundle: its states at the export are the starting point.
        folder: the folder of the log and of the LMDB file.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._bundle = bundle
        self._log = EventLog(folder)
        # Not synced: a power failure could damage the file, so each boot of the machine begins a new one from the log.
        boot = _BOOT.read_text().strip()[:8] if _BOOT.is_file() else "0"
        self._path = folder / f"live-{_LAYOUT}-{bundle.fingerprint}-{boot}"
        for other in folder.glob("live-*"):
            if other != self._path and (_unused(other) or f"-{bundle.fingerprint}-" in other.name):
                shutil.rmtree(other, ignore_errors=True)
        try:
            self._path.mkdir(mode=0o700, exist_ok=True)  # as private as the log
            self._env = lmdb.open(
                str(self._path),
                map_size=1 << 40,
                max_dbs=8,
                sync=False,
                max_spare_txns=8,
                max_readers=_READERS,
                mode=0o600,
            )
            if self._is_cut_off():
                raise InputError(f"{self._path}: is cut off; remove it, it is made anew")
            self._env.reader_check()
            self._states, self._events, self._items = (
                self._env.open_db(name) for name in (b"states", b"events", b"items")
            )
        except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError) as error:
            raise InputError(f"{self._path}: cannot be opened: {error}; remove it, it is made anew") from error
        except lmdb.Error as error:
            raise InputError(f"{self._path}: cannot be opened: {error}") from error
        self._lock = Lock()
        self.catch_up()

    def _is_cut_off(self) -> bool:
        """Whether the file is shorter than what LMDB uses of it; reading it would end the process."""
        used = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        return (self._path / "data.mdb").stat().st_size < used

    def catch_up(self) -> None:
        """Apply lines of the log that the file does not have: written for other bundles, or left by a crash.

        The log is read in chunks and without its lock, so that events can be written in between. Raises `OSError` if it
        cannot be read, and `InputError` if it is damaged.
        """
        with _as_os_errors():
            with self._env.begin() as transaction:
                if self._log.size() == self._applied(transaction) and self._is_same_log(transaction):
                    return
            behind = True
            while behind:
                with self._lock:
                    end = settled_size(self._log.path)
                    with self._env.begin(write=True) as transaction:
                        behind = self._apply_new_lines(transaction, end)

    def write(self, records: Sequence[Record]) -> list[bool]:
        """Make records durable, apply them to the states, and return for each whether it was new.

        Raises `OSError` if it fails, and `InputError` if the log is damaged.
        """
        with _as_os_errors(), self._lock, self._log.locked(), self._env.begin(write=True) as transaction:
            while self._apply_new_lines(transaction, self._log.size()):
                pass
            # An event that the bundle before accepted, and whose scenario this one lacks, goes into the log only.
            new = [not self._has_names_of(r) or self._record_if_new(transaction, r) for r in records]
            fresh = [record for record, is_new in zip(records, new, strict=True) if is_new]
            if fresh:  # applied before they are logged: the log must not get a record that cannot be applied
                self._apply(transaction, [record for record in fresh if self._has_names_of(record)])
                self._remember(transaction, self._log.append(fresh, self._applied(transaction)))
        return new

    def sums(self, user: str, code: int) -> Sums:
        """The sums of a user's states now."""
        with _as_os_errors(), self._env.begin(db=self._states) as transaction:
            raw = transaction.get(_digest(user))
        return self._bundle.sums(code) if raw is None else Sums.from_bytes(bytes(raw), self._bundle.rule)

    def history(self, user: str, most: int = 10_000) -> list[EventRecord]:
        """A user's events since the export, in order of time; only the latest if there are more than `most`."""
        with _as_os_errors(), self._env.begin() as transaction:
            return self._history(transaction, user, most)

    def new_items(self, items: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The raw columns by item, for the given items that are new since the export."""
        with _as_os_errors(), self._env.begin(db=self._items) as transaction:
            found = {item: transaction.get(_digest(item)) for item in items}
        return {item: msgspec.json.decode(raw)["columns"] for item, raw in found.items() if raw is not None}

    def close(self) -> None:
        """Close the log and the LMDB file."""
        self._env.close()
        self._log.close()

    def _applied(self, transaction: lmdb.Transaction) -> int:
        return int.from_bytes(transaction.get(_APPLIED, b""), "big")

    def _is_same_log(self, transaction: lmdb.Transaction) -> bool:
        """Whether the log is the one that was read and still has all that was read; True if none was read yet."""
        applied = self._applied(transaction)
        return not applied or (self._log.size() >= applied and transaction.get(_LOG, b"") == self._log.begins_with())

    def _remember(self, transaction: lmdb.Transaction, end: int) -> None:
        """Record that the log was applied up to the position `end`."""
        transaction.put(_APPLIED, end.to_bytes(8, "big"))
        transaction.put(_LOG, self._log.begins_with())

    def _apply_new_lines(self, transaction: lmdb.Transaction, end: int) -> bool:
        """Apply the next lines of the log up to `end`, at most one chunk; return whether there may be more.

        If the log is not the one that was read, empty the file first.
        """
        if not self._is_same_log(transaction):
            for table in (self._states, self._events, self._items):
                transaction.drop(table, delete=False)
            transaction.delete(_APPLIED)
        start = self._applied(transaction)
        lines = list(islice(self._log.read(start, end), _CHUNK))
        self._apply(transaction, [record for record, _ in lines if self._record_if_new(transaction, record)])
        if lines:
            self._remember(transaction, lines[-1][1])
        return len(lines) == _CHUNK

    def _record_if_new(self, transaction: lmdb.Transaction, record: Record) -> bool:
        """Put a record into its table unless the table or the bundle has it already; return whether it was put."""
        if isinstance(record, ItemRecord):
            code = self._bundle.lookup.number("item", record.item)
            known = code >= 0 and not (record.columns and self._bundle.is_blank_item(code))
            key, body = _digest(record.item), msgspec.json.encode(record)
            before = transaction.get(key, db=self._items)
            if known or before == body or (before is not None and not record.columns):
                return False
            return bool(transaction.put(key, body, db=self._items))
        if not self._has_names_of(record):
            return False
        code = self._bundle.lookup.number("user", record.user)
        if code >= 0 and self._in_history(code, record):
            return False
        return bool(transaction.put(_event_key(record), msgspec.json.encode(record), db=self._events, overwrite=False))

    def _has_names_of(self, record: Record) -> bool:
        """Whether this bundle's schema has the scenario and the behaviour of an event; True for an item."""
        if isinstance(record, ItemRecord):
            return True
        return record.scenario in self._bundle.scenario_index and record.behaviour in self._bundle.behaviours

    def _in_history(self, code: int, record: EventRecord) -> bool:
        events = self._bundle.history(code)
        first, last = (
            np.searchsorted(events.time, record.time, "left"),
            np.searchsorted(events.time, record.time, "right"),
        )
        if first == last:
            return False
        item = self._bundle.lookup.number("item", record.item)
        same = (
            (events.item[first:last] == item)
            & (events.scenario[first:last] == self._bundle.scenario_index[record.scenario])
            & (events.behaviour[first:last] == self._bundle.behaviours[record.behaviour])
        )
        return bool(same.any())

    def _apply(self, transaction: lmdb.Transaction, records: Sequence[Record]) -> None:
        """Update the states of the users of new events."""
        bundle, rule = self._bundle, self._bundle.rule
        events = [record for record in records if isinstance(record, EventRecord)]
        if not rule.streams or not events:
            return
        codes = dict(
            zip((e.user for e in events), bundle.lookup.numbers("user", [e.user for e in events]), strict=True)
        )
        items = bundle.lookup.numbers("item", [e.item for e in events])
        states: dict[str, Sums] = {}
        anew: set[str] = set()
        for event, item in zip(events, items, strict=True):
            if event.user in anew:  # the user's sums have the whole history, this event too
                continue
            d = bundle.scenario_index[event.scenario]
            weight = rule.behaviour_weights[bundle.behaviours[event.behaviour]]
            vector = bundle.vectors[item]
            if vector[-1] or not weight > 0:  # an item without a vector does not change the state
                continue
            if event.user not in states:
                raw = transaction.get(_digest(event.user), db=self._states)
                known = bundle.sums(int(codes[event.user])) if raw is None else Sums.from_bytes(bytes(raw), rule)
                states[event.user] = known
            sums = states[event.user]
            if sums.can_add(d, event.time, rule):
                sums.add(d, event.time, vector[:-1], weight, rule)
            else:
                anew.add(event.user)
                told = self._history(transaction, event.user)
                states[event.user] = sums_anew(bundle, int(codes[event.user]), told)
        for user, sums in states.items():
            transaction.put(_digest(user), sums.to_bytes(), db=self._states)

    def _history(self, transaction: lmdb.Transaction, user: str, most: int | None = None) -> list[EventRecord]:
        """A user's events in order of time, all of them or the latest `most`; read backwards from the last."""
        prefix = _digest(user)
        found: list[EventRecord] = []
        cursor = transaction.cursor(db=self._events)
        more = cursor.prev() if cursor.set_range(prefix + _LAST) else cursor.last()
        while more and bytes(cursor.key()).startswith(prefix) and (most is None or len(found) < most):
            found.append(msgspec.json.decode(cursor.value(), type=EventRecord))
            more = cursor.prev()
        return found[::-1]


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raise LMDB's errors, such as a full file, as `OSError`."""
    try:
        yield
    except lmdb.Error as error:
        raise OSError(f"the states beside the log: {error}") from error


def _unused(path: Path) -> bool:
    """Whether another bundle's file was not written to for a day."""
    data = path / "data.mdb"
    return data.is_file() and data.stat().st_mtime < time.time() - 86_400


def _event_key(event: EventRecord) -> bytes:
    rest = msgspec.json.encode((event.item, event.scenario, event.behaviour))
    return _digest(event.user) + event.time.to_bytes(8, "big") + hashlib.blake2b(rest, digest_size=16).digest()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


_OPEN: WeakValueDictionary[tuple[str, str], Live] = WeakValueDictionary()


def open_live(bundle: Bundle, folder: Path) -> Live:
    """The live states of a bundle.

    LMDB requires that a process opens a file only once, so all callers share one object; it is closed when the last of
    them drops it.
    """
    key = (bundle.fingerprint, os.path.abspath(folder))
    live = _OPEN.get(key)
    if live is None:
        live = Live(bundle, folder)
        _OPEN[key] = live
    return live
