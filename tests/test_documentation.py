"""Every setting and every option is in the documentation, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from llm4msr.cli import app
from llm4msr.data.sources import SOURCES
from llm4msr.experiments.config import MatrixConfig
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.engines.base import Generation
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.models.registry import BACKBONES, ENHANCERS
from llm4msr.schema import Schema
from llm4msr.training.config import RunConfig
from llm4msr.training.train_config import TrainConfig
from llm4msr.validation import Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
WORDS = set(re.findall(r"[\w-]+", TEXT))
SETTINGS: dict[str, type[Settings]] = {
    **{f"backbone {name}": BACKBONES.get(name).config_type for name in BACKBONES.names()},
    **{f"enhancer {name}": ENHANCERS.get(name).config_type for name in ENHANCERS.names()},
    **{f"source {name}": source.config for name, source in SOURCES.items()},
    **{
        kind.__name__: kind
        for kind in (Schema, RunConfig, KnowledgeConfig, ReasonConfig, Generation, TrainConfig, MatrixConfig)
    },
}
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_is_documented(name: str) -> None:
    assert not [field for field in SETTINGS[name].model_fields if field not in WORDS]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_documented_and_has_a_help_text(name: str) -> None:
    inside = getattr(COMMANDS[name], "commands", {name: COMMANDS[name]})
    options = [p for command in inside.values() for p in command.params if p.param_type_name == "option"]
    assert not [p.opts[0] for p in options if p.opts[0] not in WORDS]
    assert not [p.opts[0] for p in options if not p.help]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_project(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]
