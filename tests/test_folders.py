from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import polars
import pytest

from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST, file_aside, sole_writer, write_text_atomically, written_aside
from llm4msr.seals import checksum, read_manifest, seal, verify

KIND = "llm4msr test"


def make(target: Path, text: str = "one", *, overwrite: bool = False) -> None:
    with written_aside(target, replaces=KIND if overwrite else None) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(text, encoding="utf-8")
        seal(folder, KIND, 1, {"note": "é"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_checksum_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert checksum(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_appears_whole_under_its_name(tmp_path: Path) -> None:
    make(tmp_path / "new" / "data")
    assert names(tmp_path / "new") == ["data"]
    assert names(tmp_path / "new" / "data") == [MANIFEST, "sub"]


def test_what_a_killed_process_left_is_removed_and_what_another_one_writes_is_not(tmp_path: Path) -> None:
    left = tmp_path / ".data-aside-0123456789ab"
    (left / "columns").mkdir(parents=True)
    with written_aside(tmp_path / "data") as running:
        assert not left.exists()
        make(tmp_path / "data")
        assert running.is_dir()
        assert names(tmp_path) == [running.name, "data"]
        (tmp_path / "data" / "sub" / "a.txt").unlink()
        for path in (tmp_path / "data" / "sub", tmp_path / "data" / MANIFEST):
            path.rmdir() if path.is_dir() else path.unlink()
    assert names(tmp_path) == ["data"]


def test_a_folder_that_was_being_replaced_when_its_process_was_killed_is_put_back(tmp_path: Path) -> None:
    make(tmp_path / "data")
    (tmp_path / ".data-old-0123456789ab").mkdir()
    (tmp_path / "data").rename(tmp_path / ".data-old-0123456789ab" / "was")
    with pytest.raises(InputError, match="exists already"), written_aside(tmp_path / "data"):
        pass
    assert names(tmp_path) == ["data"]
    assert names(tmp_path / "data") == [MANIFEST, "sub"]
    (tmp_path / ".data-old-0123456789ab" / "was").mkdir(parents=True)
    make(tmp_path / "data", overwrite=True)
    assert names(tmp_path) == ["data"]


def test_what_was_being_replaced_is_put_back_in_place_of_an_empty_folder(tmp_path: Path) -> None:
    make(tmp_path / ".data-old-0123456789ab" / "was", "precious")
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="exists already"), written_aside(tmp_path / "data"):
        pass
    assert (tmp_path / "data" / "sub" / "a.txt").read_text() == "precious"


def test_the_left_overs_of_another_folder_are_not_taken(tmp_path: Path) -> None:
    make(tmp_path / ".data-old-may-old-0123456789ab" / "was")
    make(tmp_path / "data")
    assert names(tmp_path) == [".data-old-may-old-0123456789ab", "data"]


def test_a_folder_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        make(tmp_path / "data")
    finally:
        os.umask(before)
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o750


def test_one_process_at_a_time_works_on_a_folder(tmp_path: Path) -> None:
    with sole_writer(tmp_path):
        with pytest.raises(InputError, match="another process is at work here"), sole_writer(tmp_path):
            pass
        (tmp_path / "other").mkdir()
        with sole_writer(tmp_path / "other"):
            pass
    with sole_writer(tmp_path):
        pass


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: int, __: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuses)
    done = []
    with sole_writer(tmp_path), sole_writer(tmp_path):
        done.append("worked")
    make(tmp_path / "data")
    assert done == ["worked"]
    assert names(tmp_path) == ["data"]


def test_the_old_folder_stays_where_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "data", "old")
    rename = os.rename
    calls: list[Path] = []

    def fails_once(source: Path, target: Path) -> None:
        if "-aside-" in source.name and source.suffix != ".new" and not calls:
            calls.append(target)
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(OSError, match="Input/output"):
        make(tmp_path / "data", "new", overwrite=True)
    assert calls == [tmp_path / "data"]
    assert (tmp_path / "data" / "sub" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["data"]


def test_the_manifest_lists_every_file_with_its_checksum(tmp_path: Path) -> None:
    make(tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / MANIFEST).read_text(encoding="utf-8"))
    assert len(manifest.pop("seal")) == 64
    assert manifest == {
        "kind": KIND,
        "version": 1,
        "note": "é",
        "files": {"sub/a.txt": checksum(tmp_path / "data" / "sub" / "a.txt")},
    }


def test_only_the_chosen_files_are_sealed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a", encoding="utf-8")
    (tmp_path / "b").write_text("b", encoding="utf-8")
    seal(tmp_path, KIND, 1, {}, files=["b"])
    assert list(read_manifest(tmp_path, KIND, 1)["files"]) == ["b"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    def fail(target: Path) -> None:
        with written_aside(target) as folder:
            (folder / "a.txt").write_text("half", encoding="utf-8")
            raise failure

    with pytest.raises(failure):
        fail(tmp_path / "data")
    assert names(tmp_path) == []


@pytest.mark.parametrize("writing", [written_aside, file_aside])
@pytest.mark.parametrize(
    "error",
    [
        OSError("8 requested and 3 written"),  # as `numpy.save` raises
        OSError(errno.ENOSPC, "No space left on device"),
        polars.exceptions.ComputeError("underlying IO error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_is_full_is_named_even_where_the_error_does_not(
    tmp_path: Path, error: Exception, writing: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    message = re.escape(f"data: cannot be written ({error}); is the disk full?")
    with pytest.raises(OSError, match=message), writing(tmp_path / "data"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_names_its_file_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, written_aside(tmp_path / "data"):
        (tmp_path / "absent").read_text(encoding="utf-8")
    assert caught.value.filename == str(tmp_path / "absent")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with written_aside(tmp_path / "data") as folder:
        (folder / "a").touch()
    assert (tmp_path / "data" / "a").is_file()


def test_a_failure_while_overwriting_leaves_the_old_folder(tmp_path: Path) -> None:
    make(tmp_path / "data")
    with pytest.raises(ValueError, match="stop"), written_aside(tmp_path / "data", replaces=KIND):
        raise ValueError("stop")
    assert names(tmp_path) == ["data"]
    verify(tmp_path / "data", read_manifest(tmp_path / "data", KIND, 1))


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "data")
    with pytest.raises(InputError, match="data: exists already; choose another folder"):
        make(tmp_path / "data", "two")
    assert (tmp_path / "data" / "sub" / "a.txt").read_text(encoding="utf-8") == "one"


def test_a_folder_of_ours_is_overwritten_on_request(tmp_path: Path) -> None:
    make(tmp_path / "data")
    make(tmp_path / "data", "two", overwrite=True)
    assert (tmp_path / "data" / "sub" / "a.txt").read_text(encoding="utf-8") == "two"
    assert names(tmp_path) == ["data"]


@pytest.mark.parametrize("manifest", [None, "{}", "not json", "[]", '{"kind": "web extension", "manifest_version": 3}'])
def test_a_foreign_folder_is_never_overwritten(tmp_path: Path, manifest: str | None) -> None:
    target = tmp_path / "data"
    target.mkdir()
    (target / "photo").write_text("mine", encoding="utf-8")
    if manifest is not None:
        (target / MANIFEST).write_text(manifest, encoding="utf-8")
    with pytest.raises(InputError, match="data: is not llm4msr test, so it is left alone"):
        make(target, overwrite=True)
    assert (target / "photo").read_text(encoding="utf-8") == "mine"
    assert names(tmp_path) == ["data"]


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not llm4msr test"):
        make(tmp_path / "data", overwrite=True)
    assert (tmp_path / "data").read_text(encoding="utf-8") == "mine"


def test_a_folder_of_ours_of_another_kind_is_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "data")
    with (
        pytest.raises(InputError, match="is not llm4msr other"),
        written_aside(tmp_path / "data", replaces="llm4msr other"),
    ):
        pass
    verify(tmp_path / "data", read_manifest(tmp_path / "data", KIND, 1))


def test_an_altered_manifest_is_noticed(tmp_path: Path) -> None:
    make(tmp_path / "data")
    path = tmp_path / "data" / MANIFEST
    path.write_text(path.read_text(encoding="utf-8").replace("é", "e"), encoding="utf-8")
    with pytest.raises(InputError, match=r"manifest\.json: was altered"):
        read_manifest(tmp_path / "data", KIND, 1)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_that_appears_meanwhile_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    target, other = tmp_path / "data", tmp_path / "other"
    other.mkdir()
    (other / "photo").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="data: "), written_aside(target, replaces=KIND if overwrite else None):
        other.rename(target)
    assert names(target) == ["photo"]
    assert names(tmp_path) == ["data"]


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "one")
    write_text_atomically(path, "two")
    assert path.read_text(encoding="utf-8") == "two"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one", encoding="utf-8")

    def full(descriptor: int) -> None:
        raise OSError(28, f"no space left for {descriptor}")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_text_atomically(path, "two")
    assert path.read_text(encoding="utf-8") == "one"
    assert names(tmp_path) == ["a.txt"]


def test_a_whole_folder_passes_the_check(tmp_path: Path) -> None:
    make(tmp_path / "data")
    manifest = read_manifest(tmp_path / "data", KIND, 1)
    verify(tmp_path / "data", manifest)
    assert manifest["note"] == "é"


@pytest.mark.parametrize("content", [b"onE", b"on", b"", b"one more"])
def test_a_file_that_was_altered_or_cut_is_named(tmp_path: Path, content: bytes) -> None:
    make(tmp_path / "data")
    (tmp_path / "data" / "sub" / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"data/sub/a\.txt: its checksum is not the one in manifest\.json"):
        verify(tmp_path / "data", read_manifest(tmp_path / "data", KIND, 1))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    make(tmp_path / "data")
    (tmp_path / "data" / "sub" / "a.txt").unlink()
    with pytest.raises(InputError, match=r"data/sub/a\.txt: is missing"):
        verify(tmp_path / "data", read_manifest(tmp_path / "data", KIND, 1))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data: no such folder; expected llm4msr test"):
        read_manifest(tmp_path / "data", KIND, 1)


def test_a_folder_without_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no manifest\.json, so it is not llm4msr test"):
        read_manifest(tmp_path, KIND, 1)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "data")
    with pytest.raises(InputError, match="data: is llm4msr test, expected llm4msr run"):
        read_manifest(tmp_path / "data", "llm4msr run", 1)


def test_another_version_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "data")
    with pytest.raises(InputError, match="data: has format version 1, this program reads 2; make it again"):
        read_manifest(tmp_path / "data", KIND, 2)


@pytest.mark.parametrize("content", [b'{"kind": ', b"[]", b"{}", b"\xff"])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json: is damaged"):
        read_manifest(tmp_path, KIND, 1)
