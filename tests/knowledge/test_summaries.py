from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.knowledge.summaries import Interests, parse_interests

PLACES = ["search", "recommendation"]
FROM_THE_PAPER = """Given the interaction behavior, there are interactions in both scenarios.

**Common Interests:**

1. **Education category**: The user clicked on normal videos in this category multiple times.
2. Beauty makeup

### Distinct Interests:

Search Scenario Distinct Interests:
1. **Talent category**: The user clicked on normal videos in this category.

**Recommendation Scenario Distinct Interests:**

- Music category
* Parenting

#### Summary:

User_1 has a strong interest in education.
"""


def test_the_papers_own_example_is_taken_apart() -> None:
    assert parse_interests(FROM_THE_PAPER, PLACES) == Interests(
        common=[
            "Education category: The user clicked on normal videos in this category multiple times.",
            "Beauty makeup",
        ],
        distinct={
            "search": ["Talent category: The user clicked on normal videos in this category."],
            "recommendation": ["Music category", "Parenting"],
        },
    )


def test_titles_alone_are_headings_below_one_that_says_distinct() -> None:
    text = "Shared interests: tea\nDistinct interests:\nSearch: maps\nRecommendation:\nsongs"
    assert parse_interests(text, PLACES) == Interests(["tea"], {"search": ["maps"], "recommendation": ["songs"]})


def test_chinese_summaries_are_taken_apart() -> None:
    assert parse_interests("共同兴趣\uff1a\n1. 教育\n搜索的独特兴趣\uff1a\n1. 才艺", ["搜索", "推荐"]) == Interests(
        ["教育"], {"搜索": ["才艺"]}
    )


@pytest.mark.parametrize(
    "text", ["", "The user likes tea and buns in both scenarios.", "Common interests:", "Search: tea", "\n\n"]
)
def test_where_nothing_is_listed_there_is_nothing_to_show(text: str) -> None:
    assert parse_interests(text, PLACES) is None


@given(st.text(), st.lists(st.text(min_size=1), max_size=3))
def test_no_text_breaks_it(text: str, scenarios: list[str]) -> None:
    found = parse_interests(text, scenarios)
    assert found is None or found.common or found.distinct
