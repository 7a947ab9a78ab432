"""User-defined backbones and enhancers, from the modules that an environment variable names."""

from __future__ import annotations

import importlib
import os

from llm4msr.errors import InputError

VARIABLE = "LLM4MSR_MODELS"
"""Module names, separated by commas. Child processes, such as workers, inherit it."""


def load_own_models() -> None:
    """Import the modules that `LLM4MSR_MODELS` names; each registers its models in `llm4msr.models.registry`.

    Raises `InputError` for a module that cannot be imported.
    """
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
