"""Folders that are complete or absent: written under a temporary name, then renamed.

Work that goes on in its final place, as training does, keeps other processes out of it with `sole_writer`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm4msr.errors import InputError

MANIFEST = "manifest.json"


class Scratch:
    """A temporary folder, removed when this object is garbage-collected or when the program ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="llm4msr-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@contextmanager
def written_aside(target: Path, *, replaces: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `target`: renamed to `target` if the block succeeds, removed if it fails.

    An existing `target` is replaced only if it is empty or its manifest has the kind `replaces`, so a folder of the
    user's own is never replaced. Otherwise raises `InputError` before anything is written, or before the rename if
    `target` appeared meanwhile.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(target)
    _check_replaceable(target, replaces)
    with _hidden_beside(target, "aside") as aside:
        try:
            yield aside
            _check_replaceable(target, replaces)
            if target.exists() and not _is_empty(target):
                _replace(target, aside)
            else:
                os.rename(aside, target)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            _raise_named(error, target)
            raise


@contextmanager
def _hidden_beside(target: Path, role: str) -> Iterator[Path]:
    """A new folder beside `target` that is hidden, and locked until the block ends; see `_remove_left_over`."""
    folder = target.parent / f".{target.name}-{role}-{secrets.token_hex(6)}"
    new = folder.with_name(f"{folder.name}.new")  # nobody looks for this name before it is locked
    new.mkdir()
    lock = None
    with suppress(OSError):  # on a file system without locks, nobody removes this folder
        lock = _locked(new)
    try:
        new.rename(folder)
        yield folder
    finally:
        if lock is not None:
            os.close(lock)


def _replace(target: Path, by: Path) -> None:
    """Put one folder in the place of another. If the process is killed here, the next one repairs it."""
    with _hidden_beside(target, "old") as old:
        os.rename(target, old / "was")
        try:
            os.rename(by, target)
        except BaseException:
            os.rename(old / "was", target)
            old.rmdir()
            raise
        shutil.rmtree(old)


@contextmanager
def sole_writer(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Keep all other processes out of work on `path`, an existing file or folder, until the block ends.

    With `shared`, only those that do not share it. Raises `InputError` if another process is at work on it. The system
    releases the lock of a process that was killed. A file system without locks keeps nobody out.
    """
    try:
        lock = _locked(path, shared=shared)
    except OSError:
        yield
        return
    if lock is None:
        raise InputError(f"{path}: another process is at work here; wait for its end, or choose another place")
    try:
        yield
    finally:
        os.close(lock)


def _locked(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file or folder until this process ends or closes the returned descriptor.

    None if another process has the lock. Raises `OSError` if the file system has no locks.
    """
    found = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(found, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(found)
        return None
    except OSError:
        os.close(found)
        raise
    return found


def _remove_left_over(target: Path) -> None:
    """Remove the temporary folders of processes that were killed while they wrote `target`.

    If one was killed while it replaced `target`, what was there before is put back.
    """
    own = re.compile(rf"\.{re.escape(target.name)}-(aside|old)-[0-9a-f]{{12}}")
    for folder in [path for path in target.parent.iterdir() if own.fullmatch(path.name)]:
        with suppress(OSError):  # another process may have renamed or removed it by now
            lock = _locked(folder)
            if lock is None:
                continue
            try:
                if (folder / "was").is_dir() and (not target.exists() or _is_empty(target)):
                    os.rename(folder / "was", target)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _raise_named(error: BaseException, path: Path) -> None:
    """Raise an `OSError` that names `path` if the error says that something cannot be written, but not what.

    Such are NumPy's, polars' and those of a full disk.
    """
    if isinstance(error, OSError):
        nameless = error.filename is None and error.errno in (None, errno.ENOSPC, errno.EDQUOT)
    else:
        nameless = f"(os error {errno.ENOSPC})" in str(error)
    if nameless:
        raise OSError(f"{path}: cannot be written ({error}); is the disk full?") from error


def _check_replaceable(target: Path, kind: str | None) -> None:
    if not target.exists() or _is_empty(target):
        return
    try:
        found = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if kind is None:
        more = ", or replace it with --overwrite" if found else ""
        raise InputError(f"{target}: exists already; choose another folder{more}")
    if found != kind:
        raise InputError(f"{target}: is not {kind}, so it is left alone; choose another folder")


def _is_empty(target: Path) -> bool:
    return target.is_dir() and not any(target.iterdir())


@contextmanager
def file_aside(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`: synced and renamed to `path` if the block succeeds, removed if it fails.

    A reader sees the old content or the new, never a part. By default the temporary name contains the process id. With
    a fixed `suffix`, the next process overwrites the file that a killed process left.
    """
    aside = path.with_name(f".{path.name}-{suffix or os.getpid()}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        _raise_named(error, path)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Replace one file in a single step."""
    with file_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON in a single step."""
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
