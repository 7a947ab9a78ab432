"""Seals of folders: a manifest with the kind, the version and the checksums of all files, and its own checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llm4msr.cores import usable_cores
from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST, write_json


def checksum(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of several files, computed on all cores."""
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        return list(pool.map(checksum, paths))


def seal(folder: Path, kind: str, version: int, content: dict[str, Any], *, files: Sequence[str] | None = None) -> None:
    """Write the manifest: kind, version, content, checksums of `files` (by default, of all), and its own checksum."""
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
    """Compare each file with its checksum in the manifest; raises `InputError` that names a missing or altered file."""
    paths = [folder / name for name in manifest["files"]]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: is missing, though {MANIFEST} lists it; make the folder again")
    for path, expected, found in zip(paths, manifest["files"].values(), checksums(paths), strict=True):
        if found != expected:
            raise InputError(
                f"{path}: its checksum is not the one in {MANIFEST}: it was altered; make the folder again"
            )
