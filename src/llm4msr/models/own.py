"""Loads all backbones and enhancers: ours, and those of the modules that an environment variable names."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from pathlib import Path

from llm4msr.errors import InputError

VARIABLE = "LLM4MSR_MODELS"
"""Module names, separated by commas. Child processes, such as workers, inherit it."""


def source_of(kind: type) -> str | None:
    """The checksum of the file that a user-defined class is in; None for our own classes."""
    if kind.__module__.startswith("llm4msr."):
        return None
    file = inspect.getsourcefile(kind)
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def load_models() -> None:
    """Import our models and the modules that `LLM4MSR_MODELS` names; each registers itself in `models.registry`.

    Raises `InputError` for a module of that variable that cannot be imported.
    """
    for ours in ("backbones", "enhancers"):
        importlib.import_module(f"llm4msr.models.{ours}")
    for name in os.environ.get(VARIABLE, "").replace(",", " ").split():
        try:
            importlib.import_module(name)
        except InputError as error:
            raise InputError(f"{VARIABLE}: the module {name!r}: {error}") from error
        except Exception as error:
            hint = "; is its folder in PYTHONPATH?" if isinstance(error, ImportError) else ""
            raise InputError(
                f"{VARIABLE}: the module {name!r} cannot be imported ({type(error).__name__}: {error}){hint}"
            ) from error
