"""The bundle that a server uses now, and its replacement by another."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST, write_text_atomically
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.explain import Explainer
from llm4msr.serving.live import Live, open_live
from llm4msr.serving.log import LOG, Record
from llm4msr.serving.metrics import Metrics
from llm4msr.serving.requests import ScoreRequest
from llm4msr.serving.scorer import Scorer

_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
"""Seconds between two checks of the bundle's folder and the log. The pause before another try at a bundle that cannot
be opened (perhaps it is still being copied) doubles each time, up to the longest."""
_SERVED = "served"
"""The file beside the log that names the folder of the served bundle."""
_SERVED_ON, _NOT_TAKEN_UP = "the bundle before is served on", "events of the log are not taken up"


@dataclass(frozen=True)
class Serving:
    """One bundle, ready to answer. A request reads from the same one until it ends."""

    bundle: Bundle
    live: Live
    scorer: Scorer

    @cached_property
    def explainer(self) -> Explainer:
        """The explainer of the bundle, created at first use."""
        return Explainer(self.scorer)


class Current:
    """Holds the bundle that is served now.

    Args:
        path: the path of the bundle or of a link to it; when the link or the folder changes, the new bundle is served.
        state: the folder of the log of events.
        checked: the fingerprint of a bundle whose checksums were verified already.

    `metrics` counts the changes of the bundle, and those that failed.
    """

    def __init__(self, path: Path, state: Path, *, checked: str = "") -> None:
        self._path, self._state = path, state
        self.metrics = Metrics()
        self._swapping = threading.Lock()
        self._seen = self._tried = self._identity()
        self._pause, self._next_try = _PAUSE, 0.0
        self._failures: dict[str, str] = {}
        self.now = self._first(checked)
        self.metrics.serves(self.now.bundle.fingerprint)
        self._writer = EventWriter(self)

    @property
    def events(self) -> EventWriter:
        """The writer that makes events durable."""
        return self._writer

    def reload(self) -> Serving:
        """Open the bundle at the path and serve it; if it is the one that is served already, keep that.

        Raises `InputError` or `OSError` if it is broken or made from other data; the old bundle is then still served.
        """
        with self._swapping:
            identity = self._identity()
            try:
                found = self._open(self._path, unless=self.now)
            except Exception:
                self.metrics.failed_to_change()
                raise
            if found is not self.now:
                LOG.info("serving the bundle %s", found.bundle.fingerprint)
                self.metrics.serves(found.bundle.fingerprint, self.now.bundle.fingerprint)
            if self._failures.pop(_SERVED_ON, None) is not None and found is self.now:
                LOG.info("%s leads to the served bundle again", self._path)
            self.now, self._seen = found, identity
            return found

    async def watch(self) -> None:
        """Follow the path and the log until cancelled."""
        while True:
            await asyncio.sleep(_PAUSE)
            await asyncio.to_thread(self._poll)

    def _poll(self) -> None:
        with self._log_failure(_SERVED_ON):
            self._reload_if_changed()
        with self._log_failure(_NOT_TAKEN_UP):
            self.now.live.catch_up()
            self._failures.pop(_NOT_TAKEN_UP, None)

    def _first(self, checked: str) -> Serving:
        """Open the bundle at the path or, if that is broken, the one that was served last."""
        remembered = self._state / _SERVED
        try:
            return self._open(self._path, checked=checked)
        except (InputError, OSError) as error:
            before = Path(remembered.read_text(encoding="utf-8")) if remembered.is_file() else None
            if before is None or not before.is_dir():
                raise
            self._failures[_SERVED_ON] = f"{_SERVED_ON}: {error}"
            LOG.error(self._failures[_SERVED_ON])
            self._seen = None  # so that the path is tried again
            return self._open(before)

    def _remember(self, folder: Path) -> None:
        """Record the served folder; a process that starts while the bundle at the path is broken serves this one."""
        write_text_atomically(self._state / _SERVED, str(folder))

    def _reload_if_changed(self) -> None:
        """Open the bundle at the path if it changed; if that failed before, try again after a pause."""
        identity, now = self._identity(), time.monotonic()
        if identity == self._seen or (identity == self._tried and now < self._next_try):
            return
        self._pause = min(2 * self._pause, _LONGEST_PAUSE) if identity == self._tried else _PAUSE
        self._tried, self._next_try = identity, now + self._pause
        self.reload()

    @contextmanager
    def _log_failure(self, what: str) -> Iterator[None]:
        """Log an error of the `with` block instead of raising it, so that `watch` goes on; log a repeated one once."""
        try:
            yield
        except Exception as error:
            expected = isinstance(error, InputError | OSError)
            text = f"{what}: {error if expected else repr(error)}"
            if self._failures.get(what) != text:
                LOG.error(text, exc_info=None if expected else error)
            self._failures[what] = text

    def _identity(self) -> tuple[int, int, int] | None:
        """A value that changes when the bundle at the path is replaced; None if there is none."""
        try:
            found = (self._path / MANIFEST).stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def _open(self, path: Path, unless: Serving | None = None, checked: str = "") -> Serving:
        bundle = Bundle.open(path, trusted=checked)
        if unless is not None and bundle.fingerprint == unless.bundle.fingerprint:
            self._remember(bundle.path)
            return unless
        if unless is not None and _data_of(bundle) != _data_of(unless.bundle):
            raise InputError(
                f"{path}: is a bundle of other data ({bundle.schema.name}) than the one that is served "
                f"({unless.bundle.schema.name}), whose events are kept in {self._state}; it needs a server of its own"
            )
        live = open_live(bundle, self._state)
        serving = Serving(bundle, live, Scorer(bundle, live))
        _warm(serving)
        self._remember(bundle.path)
        gc.collect()
        gc.freeze()  # no later collection scans the bundle's long-lived objects while requests wait
        return serving


def _data_of(bundle: Bundle) -> tuple[str, str, str]:
    """What identifies a bundle's data: it stays the same when a new bundle is made from later logs."""
    schema = bundle.schema
    return schema.name, schema.columns.user, schema.columns.item


class EventWriter:
    """Commits events in groups: all events that arrive while a group is being synced form the next group."""

    def __init__(self, current: Current) -> None:
        self._current = current
        self._waiting: list[tuple[list[Record], asyncio.Future[list[bool]]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "llm4msr-events")

    async def write(self, records: list[Record]) -> list[bool]:
        """Make the records durable and return, for each, whether it was new.

        Raises `OSError` if the disk fails, and `InputError` if the log is damaged.
        """
        future: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._commit())
        return await future

    async def _commit(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            together = [record for records, _ in group for record in records]
            try:
                loop = asyncio.get_running_loop()
                new = await loop.run_in_executor(self._thread, self._current.now.live.write, together)
            except Exception as error:  # noqa: BLE001 - each waiting request raises it
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
                continue
            start = 0
            for records, future in group:
                if not future.done():
                    future.set_result(new[start : start + len(records)])
                start += len(records)


def _warm(serving: Serving) -> None:
    """Score a few rows, so that the first request is not slower than later ones."""
    bundle = serving.bundle
    users, items = (bundle.lookup.starting_with(side, "", 8) or ["-"] for side in ("user", "item"))
    with torch.inference_mode():
        for declared in bundle.schema.scenarios:  # not validated: an id of the data may be longer than requests allow
            request = ScoreRequest.model_construct(user=users[0], scenario=declared.value, items=items)
            serving.scorer.score([request])
