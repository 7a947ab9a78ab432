"""An opened folder of prepared data: memory-mapped columns, vocabularies, texts and histories."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4msr.data.fields import FieldRecord, records_of
from llm4msr.data.ordering import EVENT_ORDER
from llm4msr.data.raw import as_text, as_texts
from llm4msr.data.split import Part, Split
from llm4msr.data.tables import EntitySide
from llm4msr.data.vocabulary import Vocabulary
from llm4msr.folders import MANIFEST
from llm4msr.schema import FieldSpec, Schema
from llm4msr.seals import checksum, read_manifest, verify

KIND = "llm4msr prepared data"
VERSION = 1


@dataclass(frozen=True)
class PreparedData:
    """The data that `prepare` wrote. Rows are in order of time; `split` gives the range of each part.

    `user` and `item` are codes: row numbers in `users` and `items`. Times are microseconds since 1970.
    """

    path: Path
    manifest: dict[str, Any] = field(repr=False)
    schema: Schema
    split: Split

    @classmethod
    def open(cls, path: Path, *, check: bool = True) -> PreparedData:
        """Open a folder. Raises `InputError` for a wrong version and, with `check`, for a file that was altered."""
        manifest = read_manifest(path, KIND, VERSION)
        if check:
            verify(path, manifest)
        schema = Schema.checked(manifest["schema"], f"{path / MANIFEST}: schema")
        return cls(path, manifest, schema, Split(**manifest["split"]))

    @property
    def fingerprint(self) -> str:
        """The checksum of the manifest. It identifies the content, as the manifest has the checksums of all files."""
        return checksum(self.path / MANIFEST)

    @property
    def rows(self) -> int:
        """The number of impressions `N`."""
        return self.split.rows

    def with_history(self, positives: pl.DataFrame, items: pl.DataFrame) -> PreparedData:
        """The same rows with another history and other item texts; nothing is written to disk."""
        other = PreparedData(self.path, self.manifest, self.schema, self.split)
        ordered = positives.sort(EVENT_ORDER)
        vars(other).update(positives=ordered, items=items)  # cached properties keep their values there
        return other

    def _column(self, name: str) -> NDArray[Any]:
        column: NDArray[Any] = np.load(self.path / "columns" / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return column

    @cached_property
    def user(self) -> NDArray[np.int32]:
        """The user's code, `(N,)`."""
        return self._column("user")

    @cached_property
    def item(self) -> NDArray[np.int32]:
        """The item's code, `(N,)`."""
        return self._column("item")

    @cached_property
    def scenario(self) -> NDArray[np.int16]:
        """The scenario's index in the schema, `(N,)`."""
        return self._column("scenario")

    @cached_property
    def time(self) -> NDArray[np.int64]:
        """Microseconds since 1970, ascending, `(N,)`."""
        return self._column("time")

    @cached_property
    def label(self) -> NDArray[np.int8]:
        """1 for a click, `(N,)`."""
        return self._column("label")

    def field(self, name: str) -> NDArray[Any]:
        """The encoded column of a field: see `llm4msr.data.fields.EncodedField`."""
        return self._column(f"field.{name}")

    def fields_of(self, kind: str) -> tuple[FieldSpec, ...]:
        """The schema's fields of one kind, in order."""
        return tuple(f for f in self.schema.fields if f.kind == kind)

    def logged(self, part: Part | None = None) -> slice | NDArray[np.int64]:
        """Which rows of a part, or of all, are no sampled negatives: what the log itself says."""
        first, last = (0, self.rows) if part is None else self.split.range(part)
        if self.manifest["negatives"] is None:
            return slice(first, last)
        return first + np.flatnonzero(self.label[first:last])

    @cached_property
    def records(self) -> dict[str, FieldRecord]:
        """What was recorded of each field, by name."""
        return records_of(self.manifest, self.path)

    def vocabulary(self, name: str) -> Vocabulary:
        """The vocabulary of a categorical or multi-valued field."""
        return Vocabulary.load(self.path / "vocabulary" / f"{name}.parquet")

    def value_counts(self, name: str) -> NDArray[np.int64]:
        """How often the training part has each value of a field's vocabulary, without reading the values."""
        return Vocabulary.load_counts(self.path / "vocabulary" / f"{name}.parquet")

    def vocabulary_size(self, name: str) -> int:
        """The number of ids of a field, including the id of unknown values."""
        return self.records[name].size

    @cached_property
    def users(self) -> pl.DataFrame:
        """Ids, texts and features; a user's code is the row number."""
        return pl.read_parquet(self.path / "users.parquet")

    @cached_property
    def items(self) -> pl.DataFrame:
        """Ids, texts and features; an item's code is the row number."""
        return pl.read_parquet(self.path / "items.parquet")

    def texts(self, side: EntitySide, column: str) -> pl.Series:
        """One text column of all users or items, null where missing. Lists are joined by commas; 24.0 becomes "24".

        `column` may also be the schema's id column, which the frame stores under the name of the side.
        """
        frame, key = (
            (self.users, self.schema.columns.user) if side == "user" else (self.items, self.schema.columns.item)
        )
        values = frame[side if column == key else column]
        value = pl.col(values.name)
        if isinstance(values.dtype, pl.List | pl.Array):
            text = as_texts(value, values.dtype).list.join(", ", ignore_nulls=True)
        else:
            text = as_text(value, values.dtype)
        return values.to_frame().select(text).to_series()

    @cached_property
    def positives(self) -> pl.DataFrame:
        """The history: user, item, scenario, time, behaviour, sorted by user and time."""
        return pl.read_parquet(self.path / "positives.parquet")

    @property
    def scenario_count(self) -> int:
        """The number of scenarios `D`."""
        return len(self.schema.scenarios)
