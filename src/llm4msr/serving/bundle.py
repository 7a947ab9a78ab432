"""A bundle: one sealed folder with all that scoring needs, opened without loading it into memory.

| file | what it holds |
| --- | --- |
| `manifest.json` | format version, schema, model, rule of the states, metrics, checksums of all files |
| `model.safetensors` | the weights; meta layers of scenarios are constants |
| `lookup.mdb` | LMDB: user and item ids to rows, vocabularies, titles, users' texts |
| `users/`, `items/` | encoded fields, vectors, state sums, histories, most shown items: `.npy`, memory-mapped |
| `means.safetensors` | the population's mean embedding, user state and item vector, for explanations |
| `knowledge.safetensors` | the reductions of the vectors |
| `scenarios.json` | names, descriptions, the LLM's texts, similarities of their vectors |
| `card.md` | the model card |
| `onnx/` | the model for other servers, if asked for |

Encoded fields, item vectors and prompted states have one row per code, and a last row for unknown users or items.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm4msr.data.fields import records_of
from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST
from llm4msr.models.batch import FieldLayout, KnowledgeWidths
from llm4msr.models.model import ModelConfig, MultiScenarioModel, build_model
from llm4msr.models.readers import UserTable
from llm4msr.schema import Schema
from llm4msr.seals import checksum, read_manifest, verify
from llm4msr.serving.fields import KINDS, Columns, FieldReader
from llm4msr.serving.lookup import FILE as LOOKUP
from llm4msr.serving.lookup import Lookup, open_lookup
from llm4msr.serving.mapped import mapped_array, mapped_tensors
from llm4msr.serving.requests import ScenarioCard
from llm4msr.serving.states import Events, StateRule, Sums
from llm4msr.validation import Settings

KIND = "llm4msr bundle"
VERSION = 3


class Sources(Settings):
    """The knowledge that the model reads: the widths of its vectors without flags, 0 if it is not read."""

    users: tuple[UserTable, ...] = ()
    prompted: int = 0
    item: int = 0
    scenario: int = 0

    def widths(self, rule: StateRule, scenarios: int) -> KnowledgeWidths:
        """The widths that the model is built with."""
        of = {"prompted": self.prompted, "own": rule.state_width, "others": rule.state_width}
        return KnowledgeWidths(
            users=tuple(of[source] + 1 for source in self.users),
            item=self.item + 1 if self.item else 0,
            scenario=np.zeros((scenarios, self.scenario), np.float32) if self.scenario else None,
        )


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; see the module for its files. Times are microseconds since 1970."""

    path: Path
    fingerprint: str
    manifest: dict[str, Any] = field(repr=False)
    schema: Schema
    model: MultiScenarioModel = field(repr=False)
    sources: Sources
    rule: StateRule
    lookup: Lookup = field(repr=False)
    fields: FieldReader = field(repr=False)
    scenarios: tuple[ScenarioCard, ...] = field(repr=False)
    arrays: dict[str, NDArray[Any]] = field(repr=False)
    means: dict[str, Tensor] = field(repr=False)

    @classmethod
    def open(cls, path: Path, *, trusted: str = "") -> Bundle:
        """Open a bundle. Raises `InputError`, which names the file, if one is missing, altered or of another version.

        A bundle whose fingerprint is `trusted` is opened without comparing its checksums.
        All files are opened here, so that the object stays valid when the bundle is replaced on disk.
        """
        path = path.resolve()
        manifest = read_manifest(path, KIND, VERSION)
        fingerprint = _fingerprint(path)
        if fingerprint != trusted:
            verify(path, manifest)
        schema = Schema.checked(manifest["schema"], f"{path / MANIFEST}: schema")
        sources = Sources.checked(manifest["sources"], f"{path / MANIFEST}: sources")
        rule = StateRule.checked(manifest["states"], f"{path / MANIFEST}: states")
        model = _model(path, manifest, sources.widths(rule, len(schema.scenarios)), len(schema.scenarios))
        arrays = {
            file.relative_to(path).with_suffix("").as_posix(): mapped_array(file)
            for file in sorted(path.glob("*/*.npy"))
        }
        lookup = open_lookup(path / LOOKUP)
        users, items = (_columns(arrays, side) for side in ("users", "items"))
        cards = path / "scenarios.json"
        return cls(
            path=path,
            fingerprint=fingerprint,
            manifest=manifest,
            schema=schema,
            model=model,
            sources=sources,
            rule=rule,
            lookup=lookup,
            fields=FieldReader(schema, records_of(manifest, path), lookup, users, items),
            scenarios=tuple(ScenarioCard.checked(card, str(cards)) for card in json.loads(cards.read_bytes())),
            arrays=arrays,
            means=mapped_tensors(path / "means.safetensors"),
        )

    @property
    def vectors(self) -> NDArray[np.float32]:
        """One vector per item, `(items + 1, k + 1)`; its last number is 1 if the item has none."""
        return self.arrays["items/vectors"]

    def sums(self, user: int) -> Sums:
        """The sums of a user's states as they were at the export."""
        sums = Sums.empty(self.rule)
        if user >= 0 and self.rule.streams:
            first, last = self.arrays["users/state_offsets"][user : user + 2].tolist()
            there = self.arrays["users/state_stream"][first:last]
            for name, part in vars(sums).items():
                part[there] = self.arrays[f"users/state_{name}"][first:last]
        return sums

    def is_blank_item(self, item: int) -> bool:
        """Whether nothing but its id is known of an item."""
        named = self.lookup.text("title", item) != self.lookup.text("item id", item)
        return not named and self.fields.is_blank_item(item)

    def history(self, user: int) -> Events:
        """A user's positives as they were at the export, in order of time."""
        if user < 0:
            first = last = 0
        else:
            first, last = self.arrays["users/history_offsets"][user : user + 2].tolist()
        columns = [
            self.arrays[f"users/history_{name}"][first:last] for name in ("time", "item", "scenario", "behaviour")
        ]
        return Events(np.full(last - first, user, np.int32), *columns)

    @cached_property
    def scenario_index(self) -> dict[str, int]:
        """Scenarios' indices by value and by title; a value precedes an equal title."""
        titles = {s.title: d for d, s in enumerate(self.schema.scenarios)}
        return titles | {s.value: d for d, s in enumerate(self.schema.scenarios)}

    @cached_property
    def behaviours(self) -> dict[str, int]:
        """Behaviours' indices by name."""
        return {b.name: i for i, b in enumerate(self.schema.behaviours)}


def read_schema(path: Path) -> Schema:
    """Read the schema of a bundle without opening the bundle."""
    return Schema.checked(read_manifest(path.resolve(), KIND, VERSION)["schema"], f"{path / MANIFEST}: schema")


def _fingerprint(path: Path) -> str:
    return checksum(path / MANIFEST)[:16]


def _model(path: Path, manifest: dict[str, Any], widths: KnowledgeWidths, scenarios: int) -> MultiScenarioModel:
    raw = manifest["layout"]
    layout = FieldLayout(tuple(raw["categorical"]), tuple(tuple(m) for m in raw["multi"]), raw["numeric"])
    config = ModelConfig.checked(manifest["model"], f"{path / MANIFEST}: model")
    model = build_model(config, layout, scenarios, widths, 0, empty=True)
    model.freeze()
    weights = path / "model.safetensors"
    try:
        model.load_state_dict(mapped_tensors(weights), assign=True)
    except RuntimeError as error:
        raise InputError(f"{weights}: the weights do not fit the model: {error}") from error
    return model.requires_grad_(False)


def _columns(arrays: dict[str, NDArray[Any]], side: str) -> Columns:
    return {kind: arrays[f"{side}/{kind}"] for kind in KINDS}


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The array as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(array))
