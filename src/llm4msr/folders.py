"""Folders that are complete or absent: written aside, then renamed; sealed with a checksum of every file."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm4msr.errors import InputError

MANIFEST = "manifest.json"


class Scratch:
    """A temporary folder, removed when nothing refers to this object any more, or at the end of the program."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="llm4msr-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def checksum(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(paths: Sequence[Path]) -> list[str]:
    """Those of several files, on all cores."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(checksum, paths))


@contextmanager
def written_aside(target: Path, *, replaces: str | None = None) -> Iterator[Path]:
    """Give a temporary folder beside `target` that takes its name when the block ends well, and goes when it does not.

    An existing `target` is replaced only when it is empty or its manifest says that it is of the kind `replaces`;
    otherwise, and always for a folder of the user's own, `InputError` is raised before anything is done.
    """
    target = Path(os.path.abspath(target))
    _check_replaceable(target, replaces)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(target)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-aside-", dir=target.parent))
    lock = _locked(aside)
    try:
        yield aside
        aside.chmod(0o755)
        _check_replaceable(target, replaces)
        if target.exists() and not _is_empty(target):
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            os.rename(target, old / "was")
            os.rename(aside, target)
            shutil.rmtree(old)
        else:
            os.rename(aside, target)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is None:  # of NumPy, which says how many bytes it could write
            raise OSError(f"{target}: cannot be written ({error}); is the disk full?") from error
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """An open lock on a folder, which goes with its process; None where another process holds it."""
    found = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(found)
        return None
    return found


def _remove_left_over(target: Path) -> None:
    """Remove the temporary folders of processes that were killed while they wrote `target`."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}-aside-*"):
        with suppress(OSError):  # another process may be done with it by now
            lock = _locked(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


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
    """Give a path beside `path` for a file that takes its name, synced, when the block ends well, and goes otherwise.

    A reader sees the old content or the new, never a part. By default the file has the process' number in its name;
    with a fixed `suffix` what a killed process leaves is overwritten by the next.
    """
    aside = path.with_name(f".{path.name}-{suffix or os.getpid()}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Replace one file in a single step."""
    with file_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON in a single step."""
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def seal(folder: Path, kind: str, version: int, content: dict[str, Any], *, files: Sequence[str] | None = None) -> None:
    """Write the manifest: kind, version, content, the checksum of each file (by default, of all), and its own."""
    if files is None:
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files = sorted(name for name in found if name != MANIFEST)
    sums = dict(zip(files, checksums([folder / name for name in files]), strict=True))
    manifest = {"kind": kind, "version": version, **content, "files": sums}
    manifest["seal"] = _digest(manifest)
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path, kind: str, version: int) -> dict[str, Any]:
    """Read a manifest and check that it is of this kind and version; raises `InputError` where it is not."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected {kind}")
    if not path.is_file():
        raise InputError(f"{folder}: has no {MANIFEST}, so it is not {kind}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, found_version = manifest["kind"], manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); make the folder again") from error
    if found != kind:
        raise InputError(f"{folder}: is {found}, expected {kind}")
    if found_version != version:
        raise InputError(f"{folder}: has format version {found_version}, this program reads {version}; make it again")
    if manifest.pop("seal", None) != _digest(manifest):
        raise InputError(f"{path}: was altered (its own checksum does not fit); make the folder again")
    return dict(manifest)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Compare every file with its checksum in the manifest; raises `InputError` that names the first that differs."""
    paths = [folder / name for name in manifest["files"]]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: is missing, though {MANIFEST} lists it; make the folder again")
    for path, expected, found in zip(paths, manifest["files"].values(), checksums(paths), strict=True):
        if found != expected:
            raise InputError(
                f"{path}: its checksum is not the one in {MANIFEST}: it was altered; make the folder again"
            )
