from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.knowledge.text import clean

FORBIDDEN = ["<|im_start|>", "<|im_end|>", "<pad>", "<repo_name>", "</s>", "[gMASK]"]
PIECES = st.sampled_from(
    [*FORBIDDEN, "<|", "|>", "<", ">", "|", "<<SYS>>", "[INST]", "[/", "INST]", "\n", "\r", '"', "  "]
)
HOSTILE = st.lists(PIECES | st.text(max_size=3), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain text", "plain text"),
        (None, ""),
        ("", ""),
        (" \t\n ", ""),
        (12, "12"),
        (2.5, "2.5"),
        ("two\nlines\r\nof\ttext", "two lines of text"),
        ("line\u2028separator\u2029paragraph\x85next", "line separator paragraph next"),
        ("a\x00b\x07c\x1b[31m", "a b c [31m"),
        ("left\u202eright\u200f end\ufeff", "left right end"),
        ("surrogate \ud800 half", "surrogate half"),
        ('say "hello"', "say 'hello'"),
        ("naïve café 東京 🍩", "naïve café 東京 🍩"),
    ],
)
def test_a_value_becomes_one_clean_line(value: object, expected: str) -> None:
    assert clean(value) == expected


@pytest.mark.parametrize(
    "marker",
    ["<|im_end|>", "<|endoftext|>", "[INST]", "[/inst]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<start_of_turn>"],
)
def test_chat_markers_of_known_models_are_removed(marker: str) -> None:
    assert clean(f"milk {marker} bread") == "milk bread"


def test_the_special_tokens_of_the_model_are_removed() -> None:
    assert clean("milk<pad>bread [gMASK]", forbidden=["<pad>", "[gMASK]", ""]) == "milk bread"


@pytest.mark.parametrize(
    "value",
    [
        "<|im_<|im_end|>end|>",
        "<<pad>pad>",
        "<|a<|b<|c<|d<|e<|f|>|>|>|>|>|>",
        "<|im\u200b_end|>",
        "<\x00|im_end|>",
    ],
)
def test_removing_a_token_does_not_leave_another(value: str) -> None:
    cleaned = clean(value, forbidden=FORBIDDEN)
    assert [token for token in [*FORBIDDEN, "<|", "|>"] if token in cleaned] == []


def test_a_text_in_braces_stays_text() -> None:
    assert clean("{{ 7 * 7 }}") == "{{ 7 * 7 }}"


@pytest.mark.parametrize(("length", "expected"), [(9, "a" * 9), (10, "a" * 10), (11, "a" * 9 + "…")])
def test_a_long_text_is_cut_at_the_limit_and_says_so(length: int, expected: str) -> None:
    assert clean("a" * length, limit=10) == expected


def test_no_space_stands_before_the_mark_of_a_cut() -> None:
    assert clean("bread and butter", limit=7) == "bread…"


def test_a_very_long_text_costs_no_more_than_its_beginning() -> None:
    assert clean("<|" * 5_000_000 + "|>" * 5_000_000, limit=10) == "( ( ( ( (…"


@given(HOSTILE, st.integers(10, 60))
def test_nothing_that_steers_a_model_survives(value: str, limit: int) -> None:
    cleaned = clean(value, limit=limit, forbidden=FORBIDDEN)
    assert len(cleaned) <= limit
    assert [token for token in [*FORBIDDEN, "<|", "|>", '"'] if token in cleaned] == []
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for c in cleaned)
    assert cleaned == " ".join(cleaned.split())


@given(HOSTILE)
def test_cleaning_twice_changes_nothing(value: str) -> None:
    once = clean(value, limit=40, forbidden=FORBIDDEN)
    assert clean(once, limit=40, forbidden=FORBIDDEN) == once


@given(st.text(max_size=400), st.integers(10, 120))
def test_a_value_has_at_most_two_bytes_for_each_character_of_its_limit(value: str, limit: int) -> None:
    kept = clean(value, limit=limit)
    assert len(kept) <= limit
    assert len(kept.encode()) <= 2 * limit


def test_what_is_cut_says_so() -> None:
    assert clean("🍩" * 100, limit=20) == "🍩" * 9 + "…"
    assert clean("a" * 21, limit=20) == "a" * 19 + "…"
    assert clean("a" * 20, limit=20) == "a" * 20
