"""What happened since the export: users' states moved by events, and new items.

Everything here follows from the log and the bundle. It is kept in an LMDB file beside the log, one a bundle, so that
all processes of a server see the same and none holds it in memory; LMDB's own lock makes writers take turns. A writer
first applies the lines of the log that the file does not have yet (left by a crash, or written for another bundle);
then it appends to the log, syncs it, and commits. Every acknowledged event is therefore in the log, and an event that
is there already, or in the bundle's histories, is not counted again. Where another log lies in the place of the one
that was read, the file is begun anew.
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
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.log import EventLog, EventRecord, ItemRecord, Record
from llm4msr.serving.states import Events, Sums, sums_of_user

_APPLIED, _LOG = b"applied", b"log"
_LAST = b"\xff" * 24
"""Greater than what any key of an event has after its user."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_CHUNK = 5_000
"""Lines of the log that are applied in one transaction."""
_READERS = 4096
"""At once, of all processes together; those of processes that were killed are given back by the next that opens."""


class Live:
    """The states of a bundle's users now.

    Args:
        bundle: the bundle that the states start from.
        folder: where the log lies, and what follows from it.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._bundle = bundle
        self._log = EventLog(folder)
        # Not synced: what a power failure could spoil is made anew from the log after each start of the machine.
        boot = _BOOT.read_text().strip()[:8] if _BOOT.is_file() else "0"
        self._path = folder / f"live-{bundle.fingerprint}-{boot}"
        for other in folder.glob("live-*"):
            if other != self._path and (_unused(other) or other.name.startswith(f"live-{bundle.fingerprint}-")):
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

    def catch_up(self) -> None:
        """Apply what other processes wrote for other bundles, or what a crash left, if there is anything.

        The log is read without its lock, so that events are written meanwhile. Raises `OSError` where it cannot be, and
        `InputError` where it is damaged.
        """
        with _as_os_errors():
            with self._env.begin() as transaction:
                if self._log.size() == self._applied(transaction) and self._is_same_log(transaction):
                    return
            behind = True
            while behind:
                with self._lock:
                    end = self._log.settled_size()
                    with self._env.begin(write=True) as transaction:
                        behind = self._apply_new_lines(transaction, end)

    def write(self, records: Sequence[Record]) -> list[bool]:
        """Make records durable and count them; says of each whether it was new.

        Raises `OSError` where it cannot, and `InputError` where the log is damaged.
        """
        with _as_os_errors(), self._lock, self._log.locked(), self._env.begin(write=True) as transaction:
            while self._apply_new_lines(transaction, self._log.size()):
                pass
            new = [self._record_if_new(transaction, record) for record in records]
            fresh = [record for record, is_new in zip(records, new, strict=True) if is_new]
            if fresh:
                self._apply(transaction, fresh)  # first: what cannot be counted must not be in the log
                self._remember(transaction, self._log.append(fresh, self._applied(transaction)))
        return new

    def sums(self, user: str, code: int) -> Sums:
        """The sums of a user's states now."""
        with _as_os_errors(), self._env.begin(db=self._states) as transaction:
            raw = transaction.get(_digest(user))
        return self._bundle.sums(code) if raw is None else Sums.from_bytes(bytes(raw), self._bundle.rule)

    def history(self, user: str, most: int = 10_000) -> list[EventRecord]:
        """A user's events since the export, in order of time; the latest ones where there are more than `most`."""
        with _as_os_errors(), self._env.begin() as transaction:
            return self._history(transaction, user, most)

    def new_items(self, items: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The raw columns of those of the items that are new since the export."""
        with _as_os_errors(), self._env.begin(db=self._items) as transaction:
            found = {item: transaction.get(_digest(item)) for item in items}
        return {item: msgspec.json.decode(raw)["columns"] for item, raw in found.items() if raw is not None}

    def close(self) -> None:
        """Close log and file."""
        self._env.close()
        self._log.close()

    def _applied(self, transaction: lmdb.Transaction) -> int:
        return int.from_bytes(transaction.get(_APPLIED, b""), "big")

    def _is_same_log(self, transaction: lmdb.Transaction) -> bool:
        """Whether the log is the one that was read, where any was, and has all that was read of it."""
        applied = self._applied(transaction)
        return not applied or (self._log.size() >= applied and transaction.get(_LOG, b"") == self._log.begins_with())

    def _remember(self, transaction: lmdb.Transaction, end: int) -> None:
        """That the log was read up to a position."""
        transaction.put(_APPLIED, end.to_bytes(8, "big"))
        transaction.put(_LOG, self._log.begins_with())

    def _apply_new_lines(self, transaction: lmdb.Transaction, end: int) -> bool:
        """Apply the next lines of the log, up to `end`, that the file does not have; says whether there may be more."""
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
        """Put a record into the file's table; gives whether it was neither there nor in the bundle."""
        if isinstance(record, ItemRecord):
            known = self._bundle.lookup.number("item", record.item) >= 0
            key, body = _digest(record.item), msgspec.json.encode(record)
            before = transaction.get(key, db=self._items)
            if known or before == body or (before is not None and not record.columns):
                return False
            return bool(transaction.put(key, body, db=self._items))
        if record.scenario not in self._bundle.scenario_index or record.behaviour not in self._bundle.behaviours:
            return False  # of a schema that this bundle no longer has
        code = self._bundle.lookup.number("user", record.user)
        if code >= 0 and self._in_history(code, record):
            return False
        return bool(transaction.put(_event_key(record), msgspec.json.encode(record), db=self._events, overwrite=False))

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
        """Move the states of the users of new events."""
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
            if event.user in anew:  # the whole history, this event too, is in her sums already
                continue
            d = bundle.scenario_index[event.scenario]
            weight = rule.behaviour_weights[bundle.behaviours[event.behaviour]]
            vector = bundle.vectors[item]
            if vector[-1] or not weight > 0:  # an item that has no vector says nothing
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
                states[event.user] = self._anew(transaction, event.user, int(codes[event.user]))
        for user, sums in states.items():
            transaction.put(_digest(user), sums.to_bytes(), db=self._states)

    def _anew(self, transaction: lmdb.Transaction, user: str, code: int) -> Sums:
        """The sums from a user's whole history, for events that came late."""
        bundle = self._bundle
        old, new = bundle.history(code), self._history(transaction, user)
        fresh = Events(
            np.full(len(new), code, np.int32),
            np.array([e.time for e in new], np.int64),
            bundle.lookup.numbers("item", [e.item for e in new]),
            np.array([bundle.scenario_index[e.scenario] for e in new], np.int16),
            np.array([bundle.behaviours[e.behaviour] for e in new], np.int16),
        )
        pairs = zip(vars(old).values(), vars(fresh).values(), strict=True)
        events = Events(*(np.concatenate(pair) for pair in pairs))
        usable = (np.asarray(bundle.rule.behaviour_weights)[events.behaviour] > 0) & (
            bundle.vectors[events.item, -1] == 0
        )
        events = events[usable]
        return sums_of_user(events[np.argsort(events.time, kind="stable")], bundle.vectors[:, :-1], bundle.rule)

    def _history(self, transaction: lmdb.Transaction, user: str, most: int | None = None) -> list[EventRecord]:
        """A user's events in order of time, all of them or the latest; read from the last one backwards."""
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
    """What LMDB cannot do, as when its file is full, is an error of the disk."""
    try:
        yield
    except lmdb.Error as error:
        raise OSError(f"the states beside the log: {error}") from error


def _unused(path: Path) -> bool:
    """Whether the file of another bundle was not written to for a day."""
    data = path / "data.mdb"
    return data.is_file() and data.stat().st_mtime < time.time() - 86_400


def _event_key(event: EventRecord) -> bytes:
    rest = msgspec.json.encode((event.item, event.scenario, event.behaviour))
    return _digest(event.user) + event.time.to_bytes(8, "big") + hashlib.blake2b(rest, digest_size=16).digest()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


_OPEN: WeakValueDictionary[tuple[str, str], Live] = WeakValueDictionary()


def open_live(bundle: Bundle, folder: Path) -> Live:
    """The live states of a bundle, opened once a process, as LMDB wants it, and closed when nobody holds them."""
    key = (bundle.fingerprint, os.path.abspath(folder))
    live = _OPEN.get(key)
    if live is None:
        live = Live(bundle, folder)
        _OPEN[key] = live
    return live
