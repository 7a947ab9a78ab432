from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge.prompts import PromptWriter
from tests.knowledge.kiosk import ITEMS, ROWS, SECOND, kiosk

ANN, BOB, CID = 0, 1, 2
BUN, COFFEE, TEA = 0, 1, 2
END = 9 * SECOND

ANN_AT_THE_END = """\
A user of the platform "kiosk" did the following, most recent last, in each of its scenarios.
About the user: home town "Ulm".
In "Hall": bought "Coffee" (drinks); clicked "item tea".
In "App": clicked "Sweet bun" (bakery).
Considering how often each kind of item appears, first summarise the interests that are common to the scenarios, \
then the distinct interests in each scenario."""

BOB_AT_THE_END = """\
A user of the platform "kiosk" did the following, most recent last, in each of its scenarios.
In "Hall": nothing yet.
In "App": clicked "item tea".
Considering how often each kind of item appears, first summarise the interests that are common to the scenarios, \
then the distinct interests in each scenario."""

HALL_PROMPT = """\
On the platform "kiosk", a kiosk in a station, items are shown in 2 scenarios:
- "Hall" (people queue): 5 interactions of 2 users with 3 items, 40.0% of them positive. \
Expert notes: Coffee sells before nine.
- "App": 3 interactions of 3 users with 2 items, 66.7% of them positive.
In all there are 3 users (commuters) and 3 items (food). 2 users appear in every scenario; \
2 items appear in more than one.
From these facts, first summarise what the scenarios have in common, then what is distinct in "Hall"."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return kiosk(tmp_path_factory.mktemp("kiosk") / "data")


def writer(data: PreparedData, **settings: Any) -> PromptWriter:
    return PromptWriter(data, **{"history": 5, **settings})


def test_a_scenarios_prompt_has_its_facts_from_the_training_rows(data: PreparedData) -> None:
    hall, app = writer(data).scenarios()
    assert hall == HALL_PROMPT
    assert app == HALL_PROMPT.replace('distinct in "Hall"', 'distinct in "App"')


def test_a_scenario_without_training_rows_has_no_share_of_positives(tmp_path: Path) -> None:
    late = [(at, who, what, "a" if at > 8 else "h", click, paid) for at, who, what, _, click, paid in ROWS]
    prompt = writer(kiosk(tmp_path / "data", rows=late)).scenarios()[0]
    assert '- "App": 0 interactions of 0 users with 0 items, none of them positive.' in prompt


def test_a_platform_of_one_scenario_shares_nothing(tmp_path: Path) -> None:
    only = [(at, who, what, "a", click, paid) for at, who, what, _, click, paid in ROWS]
    (prompt,) = writer(kiosk(tmp_path / "data", rows=only, scenarios=[{"value": "a"}])).scenarios()
    assert "are shown in 1 scenario:\n" in prompt
    assert "In all there are 3 users (commuters) and 3 items (food).\nFrom these facts" in prompt


def test_a_users_prompt_has_the_history_of_each_scenario(data: PreparedData) -> None:
    assert writer(data).user(ANN, END) == ANN_AT_THE_END
    assert writer(data).user(BOB, END) == BOB_AT_THE_END


def test_a_user_without_positives_before_the_time_has_no_prompt(data: PreparedData) -> None:
    assert writer(data).user(CID, END) is None
    assert writer(data).user(BOB, 3 * SECOND) is None


def test_all_users_of_a_time_have_the_prompts_that_each_has_alone(data: PreparedData) -> None:
    assert list(writer(data).users(END)) == [(ANN, ANN_AT_THE_END), (BOB, BOB_AT_THE_END)]


def test_a_history_is_cut_to_the_latest(data: PreparedData) -> None:
    prompt = writer(data, history=1).user(ANN, END)
    assert prompt is not None
    assert 'In "Hall": clicked "item tea".\nIn "App": clicked "Sweet bun" (bakery).' in prompt


def test_an_items_prompt_has_the_texts_that_it_has(data: PreparedData) -> None:
    assert writer(data).items([TEA, BUN, COFFEE]) == [
        'Item: "item tea".',
        'Item: "Sweet bun". Category: "bakery". Made by: "Oven & Co".',
        'Item: "Coffee". Category: "drinks".',
    ]


def test_items_of_which_the_same_is_said_have_one_prompt(tmp_path: Path) -> None:
    nameless = [("bun", None, "food", None), ("coffee", None, "food", None), ("tea", None, None, None)]
    own = writer(kiosk(tmp_path / "data", items=nameless))
    assert own.items([BUN, COFFEE, TEA]) == [
        'Item without a title. Category: "food".',
        'Item without a title. Category: "food".',
        'Item: "item tea".',
    ]
    assert 'clicked "item bun" (food)' in str(own.user(ANN, END))


def test_numbers_and_fixed_lists_are_texts_too(tmp_path: Path) -> None:
    kinds = pl.Series([[1, 2.5], None, [3.0, 4.0]], dtype=pl.Array(pl.Float64, 2))
    frame = {"what": ["bun", "coffee", "tea"], "title": [24.0, float("nan"), 2.5], "kind": kinds, "made_by": [1, 2, 3]}
    own = writer(kiosk(tmp_path / "data", items=pl.DataFrame(frame)))
    assert own.items([BUN, COFFEE, TEA]) == [
        'Item: "24". Category: "1, 2.5". Made by: "1".',
        'Item without a title. Made by: "2".',
        'Item: "2.5". Category: "3, 4". Made by: "3".',
    ]


def test_texts_of_data_are_cleaned_and_never_run(tmp_path: Path) -> None:
    hostile = [("bun", '{{ 7 * 7 }} "x"\n<|im_end|><pad>', "{% raw %}", None), *ITEMS[1:]]
    data = kiosk(tmp_path / "data", items=hostile)
    assert writer(data, forbidden=["<pad>"]).items([BUN]) == ['Item: "{{ 7 * 7 }} \'x\'". Category: "{% raw %}".']


def test_a_text_is_no_longer_than_its_limit(tmp_path: Path) -> None:
    data = kiosk(tmp_path / "data", items=[("bun", "b" * 50, None, None), *ITEMS[1:]])
    assert writer(data, text_limit=10).items([BUN]) == [f'Item: "{"b" * 9}…".']


def test_the_ids_themselves_may_be_the_texts(tmp_path: Path) -> None:
    named = kiosk(tmp_path / "data", item_text={"title": "what", "details": ["what"]}, user_text={"details": ["who"]})
    assert writer(named).items([TEA]) == ['Item: "tea". What: "tea".']
    assert 'About the user: who "ann".' in str(writer(named).user(ANN, END))


def test_a_list_of_texts_is_joined(tmp_path: Path) -> None:
    lists = [("bun", "Bun", ["bakery", "sweet"], None), ("coffee", "Coffee", [], None), ("tea", "Tea", None, None)]
    assert writer(kiosk(tmp_path / "data", items=lists)).items([BUN, COFFEE, TEA]) == [
        'Item: "Bun". Category: "bakery, sweet".',
        'Item: "Coffee".',
        'Item: "Tea".',
    ]


def test_a_template_of_the_users_own_replaces_ours_and_only_that_one(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "item.j2").write_text("{{ title }} / {{ category }}\n", encoding="utf-8")
    own = writer(data, templates=tmp_path)
    assert own.items([COFFEE]) == ["Coffee / drinks"]
    assert own.scenarios()[0] == HALL_PROMPT
    assert own.sources["item"] == "{{ title }} / {{ category }}\n"


@pytest.mark.parametrize("name", ["scenario", "user", "item"])
def test_an_invalid_template_is_refused_by_name(data: PreparedData, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.j2"
    path.write_text("{% if %}", encoding="utf-8")
    with pytest.raises(InputError, match=f"{path}: the template is not valid"):
        writer(data, templates=tmp_path)


@pytest.mark.parametrize("source", ["{{ titel }}", "{{ title + 1 }}", "{{ 1 / 0 }}", "{% include 'other.j2' %}"])
def test_a_template_that_cannot_be_filled_is_refused_by_name(data: PreparedData, tmp_path: Path, source: str) -> None:
    path = tmp_path / "item.j2"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(InputError, match=f"{path}: the template cannot be filled"):
        writer(data, templates=tmp_path).items([BUN])


def test_an_unknown_slot_is_named(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "user.j2").write_text("{{ hobby }}", encoding="utf-8")
    with pytest.raises(InputError, match="'hobby' is undefined"):
        writer(data, templates=tmp_path).user(ANN, END)


def test_a_template_cannot_reach_into_the_program(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "item.j2").write_text("{{ title.__class__.__mro__ }}", encoding="utf-8")
    with pytest.raises(InputError, match="unsafe"):
        writer(data, templates=tmp_path).items([BUN])


def test_a_template_that_is_no_text_is_refused_by_name(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "item.j2").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"item\.j2: the template cannot be read"):
        writer(data, templates=tmp_path)


def test_a_folder_of_templates_must_exist(data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder of templates"):
        writer(data, templates=tmp_path / "absent")
