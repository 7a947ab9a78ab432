"""A language model's folder: checks that it is complete, and makes its fingerprint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from llm4msr.errors import InputError
from llm4msr.seals import checksums

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "tokenizer.model",
)
"""The files that an answer depends on, besides the weights."""


def require_model(folder: Path) -> None:
    """Raise `InputError` if the folder lacks a config or weights."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: holds no language model (no config.json); name the folder of one")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds no weights (*.safetensors); download the model whole, as safetensors")


def fingerprint(folder: Path) -> str:
    """A hash of all that a model's answers depend on: its small files and its weights, which are read completely."""
    digest = hashlib.sha256()
    for name in _SMALL_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    weights = sorted(folder.glob("*.safetensors"))
    for path, found in zip(weights, checksums(weights), strict=True):
        digest.update(f"{path.name}:{found}".encode())
    return digest.hexdigest()[:32]


def read_configs(folder: Path) -> tuple[Any, Any]:
    """A model's config and its generation config."""
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    if (folder / "generation_config.json").is_file():
        return config, GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    return config, GenerationConfig.from_model_config(config)
