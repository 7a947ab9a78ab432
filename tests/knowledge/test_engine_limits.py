"""What the transformers engine refuses: prompts that do not fit, and folders that hold no whole model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from llm4msr.errors import InputError
from llm4msr.knowledge.engines import Pooling
from llm4msr.knowledge.engines.base import CLOSING_QUESTION, Answer, Generation, Refusal
from llm4msr.knowledge.engines.transformers import TransformersEngine, fitting_tokens
from tests.knowledge.tiny_models import changed_config, copied

CONTEXT = 60


@pytest.fixture(scope="module")
def short_engine(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    folder = changed_config(tiny_llm, tmp_path_factory.mktemp("short"), max_position_embeddings=CONTEXT)
    return TransformersEngine(folder, dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("pooling", "room"),
    [
        ("last_prompt", CONTEXT),
        ("mean_prompt", CONTEXT),
        ("last_generated", CONTEXT - 5),
        ("mean_generated", CONTEXT - 5),
        ("closing", CONTEXT - 5 - len(CLOSING_QUESTION) - 1),
    ],
)
def test_a_prompt_and_what_follows_it_fill_the_context_at_most(
    short_engine: TransformersEngine, pooling: Pooling, room: int
) -> None:
    generation = Generation(pooling=pooling, max_new_tokens=5, chat=False, close_cut=False)
    ((_, answer),) = next(short_engine.run(["a" * room], generation))
    assert isinstance(answer, Answer)
    assert answer.prompt_tokens == room
    (refused, answered) = short_engine.run(["fits", "a" * (room + 1)], generation)
    assert refused == [(1, Refusal(f"the prompt has {room + 1} tokens and the model has room for {room}"))]
    assert [place for place, _ in answered] == [0]


def test_the_context_is_the_models_own(short_engine: TransformersEngine, tiny_engine: TransformersEngine) -> None:
    assert (short_engine.context_length, tiny_engine.context_length) == (CONTEXT, 4096)


def test_control_tokens_without_a_role_are_special_too(tiny_llm: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(copied(tiny_llm, tmp_path)))
    tokenizer.add_tokens(["<file_sep>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    engine = TransformersEngine(tmp_path, dtype="float32", device="cpu")
    assert engine.special_tokens == ("<|im_start|>", "<|im_end|>", "<file_sep>")


def test_the_identity_is_of_the_content_and_the_number_format(
    tiny_engine: TransformersEngine, tiny_llm: Path, tmp_path: Path
) -> None:
    copy = TransformersEngine(copied(tiny_llm, tmp_path / "copy"), dtype="float32", device="cpu", batch_tokens=7)
    half = TransformersEngine(tiny_llm, dtype="bfloat16", device="cpu")
    longer = TransformersEngine(changed_config(tiny_llm, tmp_path / "longer", rope_theta=5e5), dtype="float32")
    assert copy.identity == tiny_engine.identity
    assert copy.model_name == "copy"
    assert half.identity != tiny_engine.identity
    assert longer.identity != tiny_engine.identity


def test_other_weights_are_another_model(tiny_engine: TransformersEngine, tiny_llm: Path, tmp_path: Path) -> None:
    path = copied(tiny_llm, tmp_path) / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, path, metadata={"format": "pt"})
    assert TransformersEngine(tmp_path, dtype="float32", device="cpu").identity != tiny_engine.identity


def test_bfloat16_gives_nearly_the_same_vector(tiny_engine: TransformersEngine, tiny_llm: Path) -> None:
    half = TransformersEngine(tiny_llm, dtype="bfloat16", device="cpu")
    generation = Generation(pooling="mean_prompt", chat=False)
    ((_, a),), ((_, b),) = (
        next(half.run(["tea and a bun"], generation)),
        next(tiny_engine.run(["tea and a bun"], generation)),
    )
    assert isinstance(a, Answer)
    assert isinstance(b, Answer)
    assert float(np.corrcoef(a.vector.astype(float), b.vector.astype(float))[0, 1]) > 0.999


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def drop_a_layer(folder: Path) -> None:
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if ".layers.1." not in name}
    save_file(kept, path, metadata={"format": "pt"})


def widen(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 32}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "holds no language model"),
        (remove("model.safetensors"), "holds no weights"),
        (remove("tokenizer.json"), "cannot be loaded"),
        (overwrite("config.json", b"{"), "cannot be loaded"),
        (overwrite("config.json", b'{"model_type": "nonsense"}'), "cannot be loaded"),
        (overwrite("tokenizer.json", b"{"), "cannot be loaded"),
        (overwrite("model.safetensors", b""), "cannot be loaded"),
        (truncate, "cannot be loaded"),
        (widen, "cannot be loaded"),
        (drop_a_layer, r"the weights lack 9 tensors \(first: model\.layers\.1\.input_layernorm\.weight\)"),
    ],
)
def test_a_folder_without_a_whole_model_is_refused_by_name(
    tiny_llm: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copied(tiny_llm, tmp_path))
    with pytest.raises(InputError, match=f"{tmp_path}: .*{message}"):
        TransformersEngine(tmp_path, dtype="float32", device="cpu")


def test_a_folder_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent: holds no language model"):
        TransformersEngine(tmp_path / "absent")


@pytest.mark.parametrize(("free", "tokens"), [(10**6, 8192), (2 * 10**7, 11_160), (10**12, 131_072)])
def test_a_gpu_is_given_as_many_tokens_as_its_memory_holds(
    tiny_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, free: int, tokens: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    config = tiny_engine.configs[0]
    head = config.hidden_size // config.num_attention_heads
    a_token = 8 * config.num_hidden_layers * config.num_key_value_heads * head
    a_token += 16 * config.intermediate_size + 16 * config.hidden_size
    found = fitting_tokens(tiny_engine._model, torch.device("cuda"))
    assert found == min(131_072, max(8192, free // 2 // a_token)) == tokens
    assert fitting_tokens(tiny_engine._model, torch.device("cpu")) == 8192


@pytest.mark.parametrize("inside", [[64, 128], None, "many"])
def test_a_model_of_uneven_layers_is_given_few_tokens(inside: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**12, 10**12))
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8 if inside else None}
    text = SimpleNamespace(**sizes, intermediate_size=inside)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text), dtype=torch.bfloat16)
    assert fitting_tokens(model, torch.device("cuda")) == 8192
