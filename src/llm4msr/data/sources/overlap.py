"""Keep only the users who appear in every scenario, as the paper does with the Amazon data."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from llm4msr.errors import InputError


def keep_overlapping(
    rows: pl.DataFrame, user: str, scenario: str, scenarios: Sequence[str], where: str
) -> pl.DataFrame:
    """Keep the rows of users who have a row in each of the scenarios.

    Raises `InputError` if there is no such user; the message has the number of users in each scenario.
    """
    everywhere = (
        rows.group_by(user).agg(pl.col(scenario).n_unique().alias("in")).filter(pl.col("in") == len(set(scenarios)))
    )
    if everywhere.is_empty():
        counts = dict(rows.group_by(scenario).agg(pl.col(user).n_unique()).iter_rows())
        each = ", ".join(f"{name}: {counts.get(name, 0)}" for name in scenarios)
        raise InputError(
            f"{where}: no user is in all {len(scenarios)} scenarios (users in {each}); take fewer scenarios, or keep "
            "users of a single one too with overlapping=false"
        )
    return rows.join(everywhere.select(user), on=user, how="semi", maintain_order="left")
