"""Reading what a user wrote as TOML, and telling what is wrong with it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llm4msr.errors import InputError, nearest


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; raises `InputError` that names it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid TOML: {error}") from error


def explain_validation(error: ValidationError, model: type[BaseModel]) -> str:
    """Pydantic's findings as one sentence each: the key, what is wrong with it, and what was found.

    `model` is what was validated: for an unknown key the nearest ones of its place are named.
    """
    findings = []
    for e in error.errors(include_url=False):
        key = ".".join(str(part) for part in e["loc"]) or "the whole"
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
"""What Pydantic calls by the names of Python's types."""


def _nearest_keys(name: str, model: type[BaseModel], path: Sequence[str | int]) -> str:
    """The nearest keys at a path of keys, of positions in lists and of names in tables; or that key one level below."""
    models = [model]
    for part in path:
        found = [kind.model_fields[part].annotation for kind in models if part in kind.model_fields]
        models = [inside for annotation in found for inside in _models_in(annotation)] or models
    fields = {key: field.annotation for kind in models for key, field in kind.model_fields.items()}
    below = [key for key, annotation in fields.items() if any(name in m.model_fields for m in _models_in(annotation))]
    return nearest(name, fields) if not below else f"did you mean {' or '.join(repr(f'{k}.{name}') for k in below)}?"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type is made of: `dict[str, Model]` of `Model`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
