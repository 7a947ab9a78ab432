from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from llm4msr.errors import InputError
from llm4msr.knowledge.engines import EngineName, choice
from llm4msr.knowledge.engines.choice import fastest, make_engine, settings_of


@pytest.mark.parametrize(
    ("gpu", "installed", "expected"),
    [
        (True, {"vllm", "openvino"}, ("vllm", "vLLM is installed")),
        (True, {"openvino"}, ("transformers", "vLLM is not installed")),
        (False, {"vllm", "openvino"}, ("openvino", "the fastest on a CPU")),
        (False, set(), ("transformers", "OpenVINO is not installed")),
    ],
)
def test_auto_takes_what_is_installed_and_says_why(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, installed: set[str], expected: tuple[str, str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in installed else None)
    monkeypatch.setattr(choice, "usable_cores", lambda: 2)
    name, why = fastest()
    assert name == expected[0]
    assert expected[1] in why


def test_openvino_is_not_taken_on_a_single_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(choice, "usable_cores", lambda: 1)
    name, why = fastest()
    assert name == "transformers"
    assert "single core" in why


def test_what_was_chosen_is_told(monkeypatch: pytest.MonkeyPatch, tiny_llm: Path) -> None:
    monkeypatch.setattr(choice, "fastest", lambda: ("transformers", "the test says so"))
    told: list[str] = []
    engine = make_engine("auto", tiny_llm, "float32", told.append)
    assert told == ["engine: transformers, since the test says so"]
    assert engine.identity["engine"] == "transformers"


def test_a_program_takes_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--model {tmp_path}: the program of --command has its own model"):
        make_engine("command", tmp_path, "bfloat16", command="python x.py")


@pytest.mark.parametrize(
    ("name", "command", "message"),
    [
        ("command", "", "--engine command and --command go together"),
        ("auto", "python x.py", "--engine command and --command go together"),
        ("encoder", "", "--engine encoder needs --model"),
    ],
)
def test_what_an_engine_lacks_is_named(name: EngineName, command: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_engine(name, None, "float32", command=command)


@pytest.mark.parametrize(
    ("identity", "command", "found"),
    [
        ({"engine": "openvino", "model": "x", "dtype": "float32", "layers": "8"}, "", ("openvino", "float32", 8)),
        ({"engine": "encoder", "model": "x"}, "", ("encoder", "bfloat16", None)),
        ({"engine": "command", "dtype": "int4"}, "python glm.py", ("command", "bfloat16", None)),
        ({"engine": "glm of mine", "layers": "all"}, "python glm.py", ("command", "bfloat16", None)),
    ],
)
def test_the_engine_of_some_knowledge_is_made_again(identity: dict[str, str], command: str, found: object) -> None:
    assert settings_of(identity, command) == found


@pytest.mark.parametrize(
    ("engine", "command", "message"),
    [("command", "", "give it again as --command"), ("openvino", "python glm.py", "by the engine openvino")],
)
def test_a_program_is_asked_for_where_a_program_made_the_knowledge(engine: str, command: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of({"engine": engine}, command)
