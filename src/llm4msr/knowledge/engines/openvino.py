"""OpenVINO: the fastest way to run a causal language model on a CPU (extra `openvino`).

The transformers model is converted once and kept in the user's cache folder. The converted model does one step: it
reads tokens after a cache of keys and values. OpenVINO holds this cache as state between calls. Each call says which
rows of the last call it continues, so that rows whose text has ended can leave.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm4msr.errors import InputError
from llm4msr.folders import written_aside
from llm4msr.knowledge.engines import DType
from llm4msr.knowledge.engines.embedded import cache_folder
from llm4msr.knowledge.engines.local import LocalEngine, load_model
from llm4msr.knowledge.engines.model_folder import read_configs
from llm4msr.seals import read_manifest, seal

_KIND = "llm4msr converted language model"
_VERSION = 1
_INPUTS = ("input_ids", "attention_mask", "position_ids", "rows")


class OpenVINOEngine(LocalEngine):
    """A frozen causal LM from a local folder, converted to OpenVINO on first use.

    Args:
        folder: config, tokenizer and safetensors weights, as `save_pretrained` writes them.
        dtype: number format of the arithmetic and of the keys and values.
        threads: the number of threads; by default OpenVINO decides.
        batch_tokens: the most tokens per batch, padding and the text to be generated included.
        layers: how many of the model's layers to run, counted from the first; by default all.

    Raises `InputError` if OpenVINO is not installed, or the folder holds no model that it can run.
    """

    shares_prefix = False  # attention over a cache costs more than a prefix saves: 223 users/min with, 319 without

    def __init__(
        self,
        folder: Path,
        *,
        dtype: DType = "bfloat16",
        threads: int | None = None,
        batch_tokens: int = 8192,
        layers: int | None = None,
    ) -> None:
        super().__init__("openvino", folder, dtype, batch_tokens, layers)
        openvino = import_openvino()
        self._configs = read_configs(folder)
        converted = _converted(folder, dtype, self._identity["model"], layers)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
            "KV_CACHE_PRECISION": "bf16" if dtype == "bfloat16" else "f32",  # the default of 8 bits changes vectors
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(str(converted / "model.xml"), "CPU", settings)
        self._request = compiled.create_infer_request()

    @property
    def configs(self) -> tuple[Any, Any]:
        """The model's config and its generation config."""
        return self._configs

    def session(self) -> _OpenVINOSession:
        """A session that has read nothing yet."""
        return _OpenVINOSession(self._request)


class _OpenVINOSession:
    def __init__(self, request: Any) -> None:
        request.reset_state()
        self._request = request
        self._read = 0
        self._logits: Tensor

    def feed(self, ids: Tensor, positions: Tensor, mask: Tensor | None, rows: Tensor | None) -> Tensor:
        count, width = ids.shape
        self._read += width
        inputs = {
            "input_ids": ids.numpy(),
            "attention_mask": np.ones((count, self._read), np.int64) if mask is None else mask.numpy(),
            "position_ids": np.ascontiguousarray(positions.numpy()),
            "rows": np.arange(count, dtype=np.int32) if rows is None else rows.numpy().astype(np.int32),
        }
        found = self._request.infer(inputs, share_inputs=True, share_outputs=True)
        self._logits = torch.from_numpy(np.array(found["logits"][:, -1]))
        return torch.from_numpy(np.array(found["states"]))  # a copy: the next call overwrites it

    def logits(self) -> Tensor:
        return self._logits


def import_openvino() -> Any:
    """The package; if it is absent, raises an `InputError` that says how to install it."""
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            "OpenVINO is not installed: pip install 'llm4msr[openvino]', or take --engine transformers"
        ) from error
    return openvino


def _converted(folder: Path, dtype: DType, model: str, layers: int | None) -> Path:
    """The folder of the converted model; made on first use."""
    target = cache_folder() / f"openvino-{model[:16]}-{dtype}{'' if layers is None else f'-{layers}'}"
    try:
        read_manifest(target, _KIND, _VERSION)
    except InputError:
        with written_aside(target, replaces=_KIND) as aside:
            _convert(folder, dtype, layers, aside / "model.xml")
            seal(aside, _KIND, _VERSION, {"model": model, "dtype": dtype})
    return target


def _convert(folder: Path, dtype: DType, layers: int | None, path: Path) -> None:
    openvino = import_openvino()
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    model = load_model(folder, "float32", layers)
    if any(kind != "full_attention" for kind in getattr(model.config, "layer_types", None) or ()):
        raise InputError(f"{folder}: not every layer of the model sees all tokens; take --engine transformers")
    step, example = _Step(model), _example(model)
    with torch.inference_mode(), _quiet():
        traced = torch.jit.trace(step, tuple(example), strict=False, check_trace=False)
        frontend = FrontEndManager().load_by_framework("pytorch")  # `convert_model` would send telemetry
        decoder = TorchScriptPythonDecoder(traced, example_input=tuple(example))
        converted = frontend.convert(frontend.load(decoder))
    cached = example[len(_INPUTS) :]
    shapes = {}
    for place, port in enumerate(converted.inputs):
        cache = place - len(_INPUTS)
        port.get_tensor().set_names({_INPUTS[place] if cache < 0 else f"past.{cache}"})
        _, heads, _, width = cached[cache].shape if cache >= 0 else (0, 0, 0, 0)
        shapes[port] = openvino.PartialShape([-1, heads, -1, width] if cache >= 0 else [-1] * example[place].ndim)
    for place, port in enumerate(converted.outputs):
        port.get_tensor().set_names({("states", "logits")[place] if place < 2 else f"present.{place - 2}"})
    converted.reshape(shapes)
    apply_make_stateful_transformation(converted, {f"past.{i}": f"present.{i}" for i in range(len(cached))})
    # At the first call the cache is empty, with as many rows as `input_ids`.
    ids = converted.input("input_ids")
    rows = opset13.gather(opset13.shape_of(ids, output_type="i64"), opset13.constant([0]), opset13.constant(0))
    for operation in converted.get_ops():
        if operation.get_type_name() == "ReadValue":
            shape = operation.get_output_partial_shape(0)
            heads, width = shape[1].get_length(), shape[3].get_length()
            empty = opset13.concat([rows, opset13.constant(np.array([heads, 0, width], np.int64))], axis=0)
            zero = opset13.constant(0.0, dtype=operation.get_output_element_type(0))
            operation.set_arguments([opset13.broadcast(zero, empty)])
    converted.validate_nodes_and_infer_types()
    openvino.save_model(converted, str(path), compress_to_fp16=dtype == "bfloat16")


class _Step(nn.Module):
    """One step: reads tokens after a cache; returns their states, the logits after the last, and the extended cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, rows: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            cache.layers.append(_layer(keys.index_select(0, rows), values.index_select(0, rows)))
        asking, seen = ids.shape[1], mask.shape[1]
        place = torch.arange(asking)[:, None] + (seen - asking)
        visible = (torch.arange(seen)[None, :] <= place)[None, None] & (mask[:, None, None, :] > 0)
        states = self.model.base_model(
            input_ids=ids,
            attention_mask=torch.where(visible, 0.0, -1e4),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = self.model.get_output_embeddings()(states[:, -1:])
        return states, logits, *(t for layer in cache.layers for t in (layer.keys, layer.values))


def _layer(keys: Tensor, values: Tensor) -> Any:
    """A layer of a cache that already holds these keys and values."""
    from transformers.cache_utils import DynamicLayer

    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def _example(model: Any) -> list[Tensor]:
    """Inputs for tracing: three tokens of two rows after a cache of four. Any sizes will do, as long as they differ."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        model.base_model(input_ids=torch.zeros((2, 4), dtype=torch.long), past_key_values=cache, use_cache=True)
    past = [t.clone() for layer in cache.layers for t in (layer.keys, layer.values)]
    ids, mask = torch.zeros((2, 3), dtype=torch.long), torch.ones((2, 7), dtype=torch.long)
    return [ids, mask, torch.arange(4, 7).repeat(2, 1), torch.arange(2, dtype=torch.int32), *past]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the tracer's warnings about shapes that it takes for constants: ours stay dynamic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
