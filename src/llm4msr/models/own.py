"""Backbones and enhancers of the user's own, in modules that an environment variable names."""

from __future__ import annotations

import importlib
import os

from llm4msr.errors import InputError

VARIABLE = "LLM4MSR_MODELS"
"""Names of modules, with commas. A process that is started by another one, such as a worker, reads it too."""


def load_own_models() -> None:
    """Import the modules that `LLM4MSR_MODELS` names; each registers what it has in `llm4msr.models.registry`.

    Raises `InputError` for a module that cannot be imported.
    """
    for name in os.environ.get(VARIABLE, "").replace(",", " ").split():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"{VARIABLE}: the module {name!r} cannot be imported ({error}); is its folder in PYTHONPATH?"
            ) from error
