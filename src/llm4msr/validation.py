"""What settings have in common: they are checked, and errors in them are explained."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from llm4msr.errors import InputError, nearest


class Settings(BaseModel):
    """Settings that cannot be changed; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def checked(cls, raw: Any, where: str = "") -> Self:
        """Check the keys and values in `raw`; raises an `InputError` that begins with `where`."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            found = explain_validation(error, cls, raw)
            raise InputError(f"{where}: {found}" if where else found) from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raises `InputError` that names the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid TOML: {error}") from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """Read `path=value`. The value is JSON, a TOML list or table, or otherwise text.

    >>> parse_assignment("train.seed=3"), parse_assignment("model.backbone.name=star")
    (('train.seed', 3), ('model.backbone.name', 'star'))
    >>> parse_assignment("model.backbone.settings={hidden = [64, 32]}")
    ('model.backbone.settings', {'hidden': [64, 32]})
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise InputError(f"{text!r} is not a setting; write path=value, as in train.seed=3")
    text = value.strip()
    with suppress(ValueError):
        return path.strip(), json.loads(text)
    if text.startswith(("[", "{")):
        with suppress(tomllib.TOMLDecodeError):
            return path.strip(), tomllib.loads(f"value = {text}")["value"]
    return path.strip(), text


def explain_validation(error: ValidationError, model: type[BaseModel], raw: Any = None) -> str:
    """Turn each of Pydantic's errors into one clause: the key, what is wrong with it and, for a wrong type, the value.

    `model` is the model that the input `raw` was validated against. For an unknown key, its nearest known keys are
    named.
    """
    findings = []
    for e in error.errors(include_url=False):
        key = _readable(e["loc"], raw)
        if e["type"] == "extra_forbidden":
            *path, name = e["loc"]
            findings.append(f"unknown key {key!r}; {_nearest_keys(str(name), model, path)}")
        elif e["type"] == "missing":
            findings.append(f"the key {key!r} is missing")
        elif e["type"] in _EXPECTED:
            findings.append(f"{key}: expected {_EXPECTED[e['type']]}, found {e['input']!r}")
        else:
            findings.append(f"{key}: {e['msg'].removeprefix('Value error, ')}")
    return "; ".join(findings)


_EXPECTED = {"tuple_type": 'a list, as in ["a", "b"]'} | dict.fromkeys(("dict_type", "model_type"), "a table of keys")
"""Plain words for errors that Pydantic describes with the names of Python types."""


def _readable(path: Sequence[str | int], raw: Any) -> str:
    """The path of a key as text. Entries of a list are counted from 1, with their own name if they have one.

    >>> _readable(("fields", 1, "side"), {"fields": [{}, {"name": "brand", "side": "items"}]})
    'fields #2 (brand).side'
    """
    parts: list[str] = []
    for part in path:
        try:
            raw = raw[part]
        except (LookupError, TypeError):
            raw = None
        if isinstance(part, str):
            parts.append(part)
            continue
        name = (raw.get("name") or raw.get("value")) if isinstance(raw, dict) else None
        place = f"#{part + 1}" + (f" ({name})" if isinstance(name, str) else "")
        parts.append(f"{parts.pop()} {place}" if parts else place)
    return ".".join(parts) or "the whole"


def _nearest_keys(name: str, model: type[BaseModel], path: Sequence[str | int]) -> str:
    """Suggest known keys for an unknown one: the same key one level below and a very near one, or else the nearest.

    `path` consists of keys, positions in lists and names in tables.
    """
    models = [model]
    for part in path:
        found = [kind.model_fields[part].annotation for kind in models if part in kind.model_fields]
        models = [inside for annotation in found for inside in _models_in(annotation)] or models
    fields = {key: field.annotation for kind in models for key, field in kind.model_fields.items()}
    below = [key for key, annotation in fields.items() if any(name in m.model_fields for m in _models_in(annotation))]
    if not below:
        return nearest(name, fields)
    close = [*difflib.get_close_matches(name, fields, n=1, cutoff=0.8), *(f"{key}.{name}" for key in below)]
    return f"did you mean {' or '.join(map(repr, close))}?"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The Pydantic models inside a type, such as `Model` in `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
