"""Prompts for scenarios, users and items, rendered from template files (their slots are in appendix B of the paper)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError, nearest
from llm4msr.knowledge import LEVELS, Level
from llm4msr.knowledge.history import recent_positives
from llm4msr.knowledge.text import clean

Language = Literal["en", "zh"]
_KEPT = 100_000
"""The number of items whose cleaned titles and categories are cached."""


class PromptWriter:
    """Writes every prompt of one data set.

    Args:
        data: the prepared data.
        history: the most positives per scenario in a user's prompt (the paper's T).
        templates: a folder with `scenario.j2`, `user.j2` or `item.j2`, which replace the built-in templates.
        language: the language of the built-in templates.
        forbidden: the model's special tokens, which are removed from every value.
        text_limit: the most characters of a value; it may have twice as many bytes: see `clean`.
    """

    def __init__(
        self,
        data: PreparedData,
        *,
        history: int,
        templates: Path | None = None,
        language: Language = "en",
        forbidden: Sequence[str] = (),
        text_limit: int = 100,
    ) -> None:
        self._data = data
        self._history = history
        self._forbidden = forbidden
        self._limit = text_limit
        environment = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)
        self._templates = {}
        self._origin: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        """The text of each template in use, by name."""
        if templates is not None:
            _check_templates(templates)
        for name in LEVELS:
            source, where = _read_template(name, templates, language)
            self.sources[name], self._origin[name] = source, where
            try:
                self._templates[name] = environment.from_string(source)
            except TemplateError as error:
                raise InputError(f"{where}: the template is not valid: {error}") from error
        schema = data.schema
        self._platform = {
            "name": schema.name,
            "description": schema.description,
            "user_description": schema.user_description,
            "item_description": schema.item_description,
        }
        self._user_details = {name: data.texts("user", name) for name in schema.user_text.details}
        self._item_details = {name: data.texts("item", name) for name in schema.item_text.details}
        self._titles = data.texts("item", schema.item_text.title) if schema.item_text.title else None
        self._categories = data.texts("item", schema.item_text.category) if schema.item_text.category else None
        self.title = lru_cache(_KEPT)(self._title)
        """Returns the name of an item in prompts, given its code (cached)."""
        self._category = lru_cache(_KEPT)(self._category_of)

    def scenarios(self) -> list[str]:
        """One prompt per scenario, in the schema's order. Statistics are of the training rows that were logged."""
        data = self._data
        logged = data.logged("train")
        scenario, label = np.asarray(data.scenario[logged]), np.asarray(data.label[logged])
        user, item = np.asarray(data.user[logged]), np.asarray(data.item[logged])
        facts: list[dict[str, Any]] = []
        user_sets, item_sets = [], []
        for index, declared in enumerate(data.schema.scenarios):
            rows = scenario == index
            users, items = np.unique(user[rows]), np.unique(item[rows])
            user_sets.append(users)
            item_sets.append(items)
            facts.append(
                {
                    "title": self._clean(declared.title),
                    "description": declared.description,
                    "notes": declared.notes,
                    "interactions": int(rows.sum()),
                    "user_count": len(users),
                    "item_count": len(items),
                    "positive_share": f"{label[rows].mean():.1%}" if rows.any() else "none",
                }
            )
        appearances = np.unique(np.concatenate(item_sets), return_counts=True)[1]
        everywhere = np.unique(np.concatenate(user_sets), return_counts=True)[1] == len(facts)
        shared = {
            "user_count": len(np.unique(user)),
            "item_count": len(np.unique(item)),
            "shared_users": int(everywhere.sum()),
            "shared_items": int((appearances > 1).sum()),
        }
        return [
            self._render("scenario", platform=self._platform, scenarios=facts, scenario=fact, **shared)
            for fact in facts
        ]

    def users(self, before: int, among: range | None = None) -> Iterator[tuple[int, str]]:
        """(user's code, prompt) for each user, or each of `among`, who has a positive strictly before the time."""
        recent = recent_positives(self._data, before, self._history, among)
        for code, rows in groupby(recent.iter_rows(), key=lambda row: int(row[0])):
            yield code, self._user(code, rows)

    def user(self, code: int, before: int) -> str | None:
        """The prompt of one user at a time, or None if the user has no positive before it."""
        return next((prompt for _, prompt in self.users(before, range(code, code + 1))), None)

    def items(self, codes: list[int]) -> list[str]:
        """The prompts of the items. Items with equal texts get equal prompts, whatever their ids.

        An item without any text is named by its id.
        """
        columns = {name: column.gather(codes).to_list() for name, column in self._item_details.items()}
        prompts = []
        for place, code in enumerate(codes):
            values = [(name, self._clean(column[place])) for name, column in columns.items()]
            details = [{"name": name.replace("_", " ").capitalize(), "value": v} for name, v in values if v]
            category = self._category(code)
            title = self._own_title(code) if category or details else self.title(code)
            prompts.append(self._render("item", title=title, category=category, details=details))
        return prompts

    def _user(self, code: int, rows: Iterable[tuple[Any, ...]]) -> str:
        """The prompt of a user. `rows` are the user's rows of `recent_positives`."""
        behaviours = [b.name for b in self._data.schema.behaviours]
        by_scenario: dict[int, list[dict[str, str]]] = {}
        for _, scenario, items, kinds in rows:
            by_scenario[scenario] = [
                {"behaviour": behaviours[kind], "title": self.title(item), "category": self._category(item)}
                for item, kind in zip(items, kinds, strict=True)
            ]
        known = [(name, self._clean(column[code])) for name, column in self._user_details.items()]
        return self._render(
            "user",
            platform=self._platform,
            details=[f'{name.replace("_", " ")} "{value}"' for name, value in known if value],
            scenarios=[
                {"title": self._clean(s.title), "events": by_scenario.get(index, [])}
                for index, s in enumerate(self._data.schema.scenarios)
            ],
        )

    def _clean(self, value: object) -> str:
        return clean(value, limit=self._limit, forbidden=self._forbidden)

    def _title(self, code: int) -> str:
        return self._own_title(code) or f"item {self._clean(self._data.items['item'][code])}"

    def _own_title(self, code: int) -> str:
        return "" if self._titles is None else self._clean(self._titles[code])

    def _category_of(self, code: int) -> str:
        return "" if self._categories is None else self._clean(self._categories[code])

    def _render(self, name: Level, **slots: Any) -> str:
        try:
            return self._templates[name].render(**slots).strip()
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"{self._origin[name]}: the template cannot be filled: {error}") from error


def _check_templates(folder: Path) -> None:
    """Raise `InputError` unless the folder has at least one template, and no `.j2` file with an unknown name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of templates")
    names = {path.name for path in folder.glob("*.j2")}
    known = [f"{name}.j2" for name in LEVELS]
    if unknown := sorted(names - {*known}):
        raise InputError(f"{folder / unknown[0]}: is no template that is read; {nearest(unknown[0], known)}")
    if not names:
        raise InputError(f"{folder}: holds no template; it may have {', '.join(known)}")


def _read_template(name: str, folder: Path | None, language: Language) -> tuple[str, str]:
    if folder is not None and (folder / f"{name}.j2").is_file():
        try:
            return (folder / f"{name}.j2").read_text(encoding="utf-8"), str(folder / f"{name}.j2")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{folder / f'{name}.j2'}: the template cannot be read: {error}") from error
    own = files("llm4msr.knowledge") / "templates" / language / f"{name}.j2"
    return own.read_text(encoding="utf-8"), str(own)
