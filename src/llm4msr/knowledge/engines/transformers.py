"""Any causal language model of the transformers library, on a CPU or a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm4msr.knowledge.engines import DType
from llm4msr.knowledge.engines.local import LocalEngine, load_model

_FEWEST, _MOST = 8192, 131_072
_SHARE = 0.5
"""The share of a GPU's free memory that the tokens of a batch may use."""


class TransformersEngine(LocalEngine):
    """A frozen causal LM from a local folder, run by PyTorch.

    Args:
        folder: config, tokenizer and safetensors weights, as `save_pretrained` writes them.
        dtype: number format of the weights and the arithmetic.
        device: the device to run on; by default CUDA if there is a GPU, else the CPU.
        batch_tokens: the most tokens per batch, padding and the text to be generated included; by default
            `fitting_tokens`.
        layers: how many of the model's layers to run, counted from the first; by default all.

    Raises `InputError` if the folder holds no usable model. Code that a model folder brings is never run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: DType = "bfloat16",
        device: str | None = None,
        batch_tokens: int | None = None,
        layers: int | None = None,
    ) -> None:
        super().__init__("transformers", folder, dtype, batch_tokens or _FEWEST, layers)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = load_model(folder, dtype, layers).to(self._device)
        self._batch_tokens = batch_tokens or fitting_tokens(self._model, self._device)

    @property
    def configs(self) -> tuple[Any, Any]:
        """The model's config and its generation config."""
        return self._model.config, self._model.generation_config

    def session(self) -> _TorchSession:
        """A session that has read nothing yet."""
        return _TorchSession(self._model)


class _TorchSession:
    """The language head is run only on the last position, when `logits` is called."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache()
        self._last: Tensor

    def feed(self, ids: Tensor, positions: Tensor, mask: Tensor | None, rows: Tensor | None) -> Tensor:
        if rows is not None:
            self._cache.batch_select_indices(rows)
        states = self._model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._last = states[:, -1]
        found: Tensor = states.float()
        return found

    def logits(self) -> Tensor:
        found: Tensor = self._model.get_output_embeddings()(self._last).float()
        return found


def fitting_tokens(model: Any, device: torch.device) -> int:
    """The number of tokens per batch: on a CPU 8192, on a GPU as many as fit easily into its free memory.

    Each token needs memory for its keys and values in all layers, and for the activations of one layer. A model whose
    config has no single number for these sizes gets 8192 on a GPU, too.
    """
    if device.type != "cuda":
        return _FEWEST
    c, width = model.config.get_text_config(), model.dtype.itemsize
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    layers, heads, hidden = (getattr(c, name, None) for name in names)
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(hidden, int)):
        return _FEWEST
    kept_heads = getattr(c, "num_key_value_heads", None) or heads
    head = getattr(c, "head_dim", None) or hidden // heads
    inside = getattr(c, "intermediate_size", None) or 4 * hidden
    if not (isinstance(kept_heads, int) and isinstance(head, int) and isinstance(inside, int)):
        return _FEWEST
    a_token = 2 * layers * kept_heads * head * width + 4 * inside * width + 16 * hidden
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(min(_MOST, max(_FEWEST, _SHARE * free / a_token)))
