"""The paper's Figure 3 and Figure 4 as matrices: the variants of one enhancer, and one setting swept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError, nearest
from llm4msr.experiments.benchmark import claim
from llm4msr.experiments.config import PLAIN, EnhancerChoice, MatrixConfig
from llm4msr.folders import file_aside
from llm4msr.knowledge.engines.base import EngineFor
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.reason import Progress, reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.knowledge.stores import READINGS, Stores
from llm4msr.models.registry import ENHANCERS

OURS = ("llm4msr", "llm4msr_paper")
VARIANTS: dict[str, dict[str, Any]] = {
    "user-bottom": {"user": "bottom", "scenario": "none"},
    "user-parallel": {"user": "parallel", "scenario": "none"},
    "domain-bottom": {"user": "none", "scenario": "bottom", "match": False},
    "domain-parallel": {"user": "none", "scenario": "parallel", "match": False},
    "full": {"user": "bottom", "scenario": "parallel"},
}
"""Figure 3: the level of knowledge in use, and the place of its meta layers.

Match features read users' knowledge, so variants without the user level turn them off.
"""


def varied(config: MatrixConfig, label: str | None) -> tuple[str, EnhancerChoice]:
    """The matrix's llm4msr enhancer with that label, or its first. Raises `InputError` if there is none."""
    ours = {name: e for name, e in config.enhancers.items() if e.name in OURS}
    if label is None and ours:
        label = next(iter(ours))
    if label in ours:
        return label, ours[label]
    if label is None:
        raise InputError("the matrix has no llm4msr enhancer; add [enhancers.llm4msr]")
    raise InputError(f"the matrix has no llm4msr enhancer {label!r}; {nearest(label, ours)}")


def ablation(config: MatrixConfig, label: str | None) -> MatrixConfig:
    """The variants of Figure 3, and the backbone alone. All other settings are the enhancer's own.

    As in the paper's section 4.3, the full variant also has a control with random vectors instead of the LLM's.
    """
    _, ours = varied(config, label)
    enhancers = {PLAIN: EnhancerChoice(name=PLAIN)}
    for name, placement in VARIANTS.items():
        settings = _with(ours, placement)
        controls = ("random",) if name == "full" else ()
        enhancers[name] = EnhancerChoice(name=ours.name, settings=settings, knowledge=ours.knowledge, controls=controls)
    return config.model_copy(update={"enhancers": enhancers})


def _with(ours: EnhancerChoice, change: dict[str, Any]) -> dict[str, Any]:
    """The enhancer's settings with a change. Values that are in effect anyway are not added: it is the same run."""
    default = ENHANCERS.config(ours.name, ours.settings)
    return {**ours.settings, **{key: value for key, value in change.items() if getattr(default, key) != value}}


def sweep_layers(config: MatrixConfig, label: str | None, values: Sequence[int]) -> MatrixConfig:
    """Figure 4(b): sweep the number of meta layers K."""
    _, ours = varied(config, label)
    enhancers = {PLAIN: EnhancerChoice(name=PLAIN)}
    for value in values:
        settings = _with(ours, {"layers": value})
        enhancers[f"K = {value}"] = EnhancerChoice(name=ours.name, settings=settings, knowledge=ours.knowledge)
    return config.model_copy(update={"enhancers": enhancers})


def sweep_history(
    config: MatrixConfig,
    label: str | None,
    values: Sequence[int],
    root: Path,
    engine: EngineFor | None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> MatrixConfig:
    """Figure 4(a): sweep T, the most positives per scenario in a user's prompt. Reasons once for each value.

    The matrix must have one data set with knowledge. The sweep keeps that knowledge's other settings and uses its
    answers again. The knowledge for each value goes into its own folder below `root`. Without an `engine` nothing is
    reasoned, and every value gets the matrix's own knowledge: enough to see what would be run. If `values` is empty, T
    is a quarter, a half and all of the T of the matrix's knowledge. Raises `InputError` if the enhancer reads no
    prompted knowledge, if T cannot have a value, or if the LLM is not the one of the matrix's knowledge.
    """
    _, ours = varied(config, label)
    if "prompted" not in ENHANCERS.config(ours.name, ours.settings).needs:
        raise InputError("T changes the users' prompts; take an enhancer with source = 'prompted' or 'both'")
    if len(config.data) != 1:
        raise InputError(f"a sweep of T takes one data set, and the matrix has {len(config.data)}")
    (choice,) = config.data.values()
    folder = ours.knowledge or choice.knowledge
    if folder is None:
        raise InputError("the data set names no knowledge folder, whose settings the sweep starts from")
    data = PreparedData.open(choice.folder)
    known = KnowledgeFolder.open(folder, data)
    most = known.config.history
    values = values or sorted({max(1, most // 4), max(1, most // 2), most})
    configs = {value: _with_history(known.config, value) for value in values}  # all, before the LLM is asked
    llm = None if engine is None else engine(known.manifest["engine"])
    if llm is not None:
        known.require(llm)
        claim(root)
    enhancers = {PLAIN: EnhancerChoice(name=PLAIN)}
    for value in values:
        place = folder
        if llm is not None:
            place = root / f"knowledge-T{value}"
            _start_with(folder, place)
            told = partial(_tell, progress, value)
            reason(data, llm, place, configs[value], templates=folder / "templates", progress=told)
        enhancers[f"T = {value}"] = EnhancerChoice(name=ours.name, settings=ours.settings, knowledge=place)
    return config.model_copy(update={"enhancers": enhancers})


def _tell(progress: Callable[[Progress], None], value: int, now: Progress) -> None:
    progress(replace(now, level=f"{now.level}, T = {value}"))


def _with_history(config: ReasonConfig, value: int) -> ReasonConfig:
    return ReasonConfig.checked(config.model_dump() | {"history": value}, f"T = {value}")


def _start_with(known: Path, place: Path) -> None:
    """Copy the answers and readings of another knowledge folder, so that prompts that both have are asked once."""
    place.mkdir(parents=True, exist_ok=True)
    if (known / READINGS).is_dir():
        shutil.copytree(known / READINGS, place / READINGS, dirs_exist_ok=True)
    for path in Stores.paths(known):
        if not (place / path.name).exists():
            with file_aside(place / path.name, "part") as aside:
                shutil.copyfile(path, aside)
