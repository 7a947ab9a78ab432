from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from llm4msr.errors import InputError
from llm4msr.knowledge.engines.base import Answer, Generation
from llm4msr.knowledge.engines.encoder import EncoderEngine
from tests.knowledge.tiny_models import tiny_encoder

PROMPTS = ["tea", "a longer prompt about coffee", "x" * 100, "ö"]
READ = Generation(pooling="mean_prompt", chat=False)


@pytest.fixture(scope="module")
def folder(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tiny_llm, tmp_path_factory.mktemp("encoder"), longest=40)


def vectors(engine: EncoderEngine, prompts: list[str]) -> list[list[float]]:
    found = dict(pair for batch in engine.run(prompts, READ) for pair in batch)
    answers = [found[place] for place in range(len(prompts))]
    return [answer.vector.tolist() for answer in answers if isinstance(answer, Answer)]


@pytest.mark.parametrize("batch_tokens", [1, 60, 8192])
def test_a_vector_is_the_mean_state_of_the_prompt_alone(folder: Path, batch_tokens: int) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"][:40]
        with torch.no_grad():
            expected.append(model(torch.tensor([ids])).last_hidden_state[0].mean(0).tolist())
    found = vectors(EncoderEngine(folder, batch_tokens=batch_tokens), PROMPTS)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_it_writes_nothing(folder: Path) -> None:
    with pytest.raises(InputError, match="a text-embedding model writes nothing"):
        next(EncoderEngine(folder).run(PROMPTS, Generation(pooling="last_generated")))


def test_it_gives_no_other_state_than_the_mean(folder: Path) -> None:
    with pytest.raises(InputError, match="gives the mean over a prompt's tokens, not last_prompt"):
        next(EncoderEngine(folder).run(PROMPTS, Generation(pooling="last_prompt")))


def test_a_prompt_is_cut_to_what_the_tokenizer_says_that_the_model_reads(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "encoder")
    settings = tmp_path / "encoder" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 30}))
    (answer,) = (found for batch in EncoderEngine(tmp_path / "encoder").run(["x" * 100], READ) for _, found in batch)
    assert isinstance(answer, Answer)
    assert answer.prompt_tokens == 30


def test_every_weight_is_part_of_the_identity(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "encoder")
    assert EncoderEngine(tmp_path / "encoder").identity == EncoderEngine(folder).identity
    weights = tmp_path / "encoder" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) * 3 // 4] ^= 1
    weights.write_bytes(raw)
    assert EncoderEngine(tmp_path / "encoder").identity != EncoderEngine(folder).identity
