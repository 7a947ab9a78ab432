"""Copies of the tiny model in which one thing is different."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file


def copied(llm: Path, folder: Path) -> Path:
    """A copy of a model's folder."""
    return Path(shutil.copytree(llm, folder, dirs_exist_ok=True))


def changed_config(llm: Path, folder: Path, **changes: Any) -> Path:
    """A copy with other values in its config."""
    path = copied(llm, folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def attentive(llm: Path, folder: Path) -> Path:
    """A copy whose attention is sharp: with the small weights it is made with, no position or mask would matter."""
    path = copied(llm, folder) / "model.safetensors"
    weights = load_file(path)
    for name in weights:
        if "q_proj" in name or "k_proj" in name:
            weights[name] *= 40
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def stopping_at(llm: Path, folder: Path, tokens: list[int]) -> Path:
    """A copy that stops at these tokens."""
    path = copied(llm, folder) / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": tokens}))
    return folder
