from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4msr.errors import InputError
from llm4msr.knowledge.engines import Pooling
from llm4msr.knowledge.engines.base import Answer, Generation
from llm4msr.knowledge.engines.decoding import _penalised
from llm4msr.knowledge.engines.local import LocalEngine
from tests.knowledge.engines import KINDS, Kind, make_local
from tests.knowledge.reference_llm import Reference
from tests.knowledge.tiny_models import FAMILIES, attentive, of_family, stopping_at

PROMPTS = ["tea", "a longer prompt about coffee and buns", "x", "Zwölf Brötchen, bitte!", "tea and a bun"]
GENERATING: list[Pooling] = ["last_generated", "mean_generated", "closing"]
POOLINGS: list[Pooling] = ["last_prompt", "mean_prompt", *GENERATING]


@pytest.fixture(scope="module")
def llm(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attentive(tiny_llm, tmp_path_factory.mktemp("attentive"))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def engine(kind: Kind, llm: Path) -> LocalEngine:
    return make_local(kind, llm)


@pytest.fixture(scope="module")
def stopping_llm(llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with stop tokens that it does choose: one prompt stops at once, another after four tokens."""
    reference = Reference(llm)
    free = Generation(pooling="last_generated", max_new_tokens=8, chat=False)
    first, third = (reference.continued(reference.ids(PROMPTS[i], chat=False), free)[0] for i in (0, 2))
    return stopping_at(llm, tmp_path_factory.mktemp("stopping"), tokens=[1, first[0], third[4]])


@pytest.fixture(scope="module")
def stopping_engine(kind: Kind, stopping_llm: Path) -> LocalEngine:
    return make_local(kind, stopping_llm)


def run(engine: LocalEngine, prompts: list[str], generation: Generation) -> list[Answer]:
    """Answers in the order of the prompts."""
    answers = dict(pair for batch in engine.run(prompts, generation) for pair in batch)
    found = [answers[i] for i in range(len(prompts))]
    assert all(isinstance(answer, Answer) for answer in found)
    return [answer for answer in found if isinstance(answer, Answer)]


def assert_same(found: list[Answer], expected: list[Answer]) -> None:
    """Equal, the vectors up to the rounding of float16."""
    assert [(a.text, a.finish_reason, a.prompt_tokens, a.generated_tokens) for a in found] == [
        (a.text, a.finish_reason, a.prompt_tokens, a.generated_tokens) for a in expected
    ]
    for a, b in zip(found, expected, strict=True):
        assert a.vector.dtype == np.float16
        np.testing.assert_allclose(a.vector, b.vector, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_answer_is_what_the_model_gives_to_the_prompt_alone(
    engine: LocalEngine, llm: Path, pooling: Pooling, chat: bool
) -> None:
    generation = Generation(pooling=pooling, max_new_tokens=10, chat=chat)
    reference = Reference(llm)
    assert_same(run(engine, PROMPTS, generation), [reference.answer(p, generation) for p in PROMPTS])


@pytest.mark.parametrize("close_cut", [True, False])
@pytest.mark.parametrize("pooling", GENERATING)
def test_a_text_that_ends_by_itself_has_the_state_of_its_own_end(
    stopping_engine: LocalEngine, stopping_llm: Path, pooling: Pooling, close_cut: bool
) -> None:
    generation = Generation(pooling=pooling, max_new_tokens=8, chat=False, close_cut=close_cut)
    reference = Reference(stopping_llm)
    answers = run(stopping_engine, PROMPTS, generation)
    assert [(answers[i].finish_reason, answers[i].generated_tokens) for i in (0, 2)] == [("stop", 0), ("stop", 4)]
    assert ("length", 8) in [(a.finish_reason, a.generated_tokens) for a in answers]
    assert_same(answers, [reference.answer(p, generation) for p in PROMPTS])


def test_a_text_cut_by_the_limit_says_so(engine: LocalEngine) -> None:
    (answer,) = run(engine, ["tea"], Generation(pooling="last_generated", max_new_tokens=3))
    assert (answer.finish_reason, answer.generated_tokens) == ("length", 3)


def test_nothing_is_generated_where_the_prompts_state_is_wanted(engine: LocalEngine) -> None:
    (answer,) = run(engine, ["tea"], Generation(pooling="last_prompt", chat=False))
    assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.generated_tokens) == ("", "prefill", 3, 0)


def test_the_penalty_changes_what_is_repeated(engine: LocalEngine, llm: Path) -> None:
    texts = []
    for penalty in (1.0, 1.2, 2.0):
        generation = Generation(pooling="last_generated", max_new_tokens=40, repetition_penalty=penalty)
        (answer,) = run(engine, ["tea"], generation)
        assert_same([answer], [Reference(llm).answer("tea", generation)])
        texts.append(answer.text)
    assert len(set(texts)) > 1


def test_the_penalty_makes_tokens_less_likely_whatever_the_sign_of_their_logits() -> None:
    generation = Generation(pooling="last_generated", repetition_penalty=2.0)
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    generated = torch.tensor([[0, 1, 0], [2, 2, 2]])
    assert _penalised(logits, generated, generation).tolist() == [[1, -4, 1], [2, -2, 0.5]]


def test_a_prompt_of_one_token_is_its_own_mean(engine: LocalEngine) -> None:
    (mean,) = run(engine, ["x"], Generation(pooling="mean_prompt", chat=False))
    (last,) = run(engine, ["x"], Generation(pooling="last_prompt", chat=False))
    assert np.array_equal(mean.vector, last.vector)


def test_an_empty_prompt_has_a_finite_vector(engine: LocalEngine) -> None:
    (answer,) = run(engine, [""], Generation(pooling="mean_prompt", chat=False))
    assert np.isfinite(answer.vector).all()


def test_no_prompts_give_no_batches(engine: LocalEngine) -> None:
    assert list(engine.run([], Generation(pooling="closing"))) == []


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_size_of_batches_changes_nothing(kind: Kind, stopping_llm: Path, pooling: Pooling) -> None:
    generation = Generation(pooling=pooling, max_new_tokens=6, chat=False)
    alone = make_local(kind, stopping_llm, batch_tokens=1)
    together = make_local(kind, stopping_llm, batch_tokens=100_000)
    assert [len(batch) for batch in alone.run(PROMPTS, generation)] == [1] * len(PROMPTS)
    assert [len(batch) for batch in together.run(PROMPTS, generation)] == [len(PROMPTS)]
    assert_same(run(alone, PROMPTS, generation), run(together, PROMPTS, generation))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing(
    stopping_engine: LocalEngine, stopping_llm: Path, pooling: Pooling
) -> None:
    generation = Generation(pooling=pooling, max_new_tokens=6, chat=False)
    prompts = [f"a beginning that all of them share: {rest}" for rest in ("tea", "buns and more", "x")]
    assert_same(
        run(stopping_engine, prompts, generation), [Reference(stopping_llm).answer(p, generation) for p in prompts]
    )


@settings(max_examples=20, deadline=None)
@given(
    prompts=st.lists(st.text(alphabet="tea bun,ö.", min_size=1, max_size=30), min_size=1, max_size=6),
    pooling=st.sampled_from(POOLINGS),
)
def test_the_company_and_the_order_of_prompts_change_nothing(
    stopping_engine: LocalEngine, prompts: list[str], pooling: Pooling
) -> None:
    generation = Generation(pooling=pooling, max_new_tokens=4, chat=False)
    alone = [run(stopping_engine, [prompt], generation)[0] for prompt in prompts]
    assert_same(run(stopping_engine, prompts, generation), alone)
    assert_same(run(stopping_engine, prompts[::-1], generation), alone[::-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_models_answers_as_alone(kind: Kind, family: str, tiny_llm: Path, tmp_path: Path) -> None:
    folder = of_family(family, tiny_llm, tmp_path)
    engine = make_local(kind, folder)
    for pooling in ("mean_prompt", "last_generated"):
        generation = Generation(pooling=pooling, max_new_tokens=5)
        assert_same(run(engine, PROMPTS, generation), [Reference(folder).answer(p, generation) for p in PROMPTS])


def test_batches_hold_no_more_tokens_than_they_may(kind: Kind, llm: Path) -> None:
    engine = make_local(kind, llm, batch_tokens=20)
    prompts = ["a" * 10, "b" * 4, "c" * 10, "d" * 3, "e" * 30]
    batches = [[i for i, _ in batch] for batch in engine.run(prompts, Generation(pooling="last_prompt", chat=False))]
    assert batches == [[4], [0, 2], [1, 3]]


def test_fewer_layers_are_the_first_ones_and_the_final_norm(kind: Kind, llm: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    half = AutoModelForCausalLM.from_pretrained(llm, num_hidden_layers=1)
    half.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((llm / name).read_bytes())
    generation = Generation(pooling="mean_prompt", chat=False)
    engine = make_local(kind, llm, layers=1)
    reference = Reference(tmp_path)
    assert_same(run(engine, PROMPTS, generation), [reference.answer(p, generation) for p in PROMPTS])
    assert engine.identity["layers"] == "1"
    assert "layers" not in make_local(kind, llm).identity


@pytest.mark.parametrize("layers", [0, 3])
def test_layers_that_the_model_does_not_have_are_refused(llm: Path, layers: int) -> None:
    with pytest.raises(InputError, match=f"the model has 2 layers; {layers} of them were asked for"):
        make_local("transformers", llm, layers=layers)


def test_a_model_folder_that_goes_away_in_the_middle_stops_nothing(kind: Kind, llm: Path, tmp_path: Path) -> None:
    import shutil

    generation = Generation(pooling="last_generated", max_new_tokens=4, chat=False)
    shutil.copytree(llm, tmp_path / "model")
    engine = make_local(kind, tmp_path / "model")
    expected = run(engine, PROMPTS, generation)
    shutil.rmtree(tmp_path / "model")
    assert_same(run(engine, PROMPTS, generation), expected)
    with pytest.raises(InputError, match=r"holds no language model \(no config.json\)"):
        make_local(kind, tmp_path / "model")
