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
    path = (folder if llm == folder else copied(llm, folder)) / "model.safetensors"
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


FAMILIES = ("llama", "qwen3", "glm4")
"""SmolLM2 and Llama 3 are the first."""


def of_family(family: str, llm: Path, folder: Path) -> Path:
    """A random model of another family with the tokenizer of `llm`; its attention is sharp (see `attentive`)."""
    import torch
    from transformers import AutoModelForCausalLM, Glm4Config, LlamaConfig, PreTrainedConfig, Qwen3Config

    copied(llm, folder)
    (folder / "generation_config.json").unlink()
    known = json.loads((folder / "config.json").read_text())
    sizes = {
        "vocab_size": known["vocab_size"],
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    config: PreTrainedConfig = {
        "llama": lambda: LlamaConfig(**sizes, tie_word_embeddings=True),
        "qwen3": lambda: Qwen3Config(**sizes, head_dim=8),
        "glm4": lambda: Glm4Config(**sizes, head_dim=8),
    }[family]()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return attentive(folder, folder)


def tiny_encoder(llm: Path, folder: Path, longest: int) -> Path:
    """A random text-embedding model of two layers that reads `longest` tokens, with the tokenizer of `llm`."""
    import torch
    from transformers import BertConfig, BertModel

    copied(llm, folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=longest,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder
