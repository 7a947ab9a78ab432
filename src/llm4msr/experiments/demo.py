"""The demo: from the raw logs of the Complete Journey to test metrics of a backbone, alone and with knowledge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import KIND, VERSION, PreparedData
from llm4msr.data.sources.completejourney import CompleteJourneyConfig, complete_journey
from llm4msr.errors import InputError
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.controls import NO_CONTROL
from llm4msr.knowledge.engines.base import Engine, Generation
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.reason import Progress, reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.models.model import ModelConfig, PartChoice
from llm4msr.report.explain import Explanation, explain_user
from llm4msr.report.tables import Row
from llm4msr.seals import read_manifest
from llm4msr.serving.export import export_bundle
from llm4msr.training.config import RunConfig
from llm4msr.training.fit import TrainProgress
from llm4msr.training.run import RunResult, train_run
from llm4msr.training.train_config import TrainConfig

REASONING = ReasonConfig(
    history=4,  # short histories: a CPU reads about 1,500 tokens of prompts a second
    scenario=Generation(pooling="last_generated", max_new_tokens=120),
)
_PAPER_BUT_SMALL = {"weights": "low_rank", "residual": True}


@dataclass(frozen=True)
class Variant:
    """One row of the demo's table: an enhancer, and the control that replaces its knowledge."""

    name: str
    folder: str
    enhancer: PartChoice
    control: str = NO_CONTROL


VARIANTS = (
    Variant("backbone alone", "plain", PartChoice(name="none")),
    Variant("the paper's, prompted", "prompted", PartChoice(name="llm4msr_paper", settings=_PAPER_BUT_SMALL)),
    Variant("llm4msr, composed", "composed", PartChoice(name="llm4msr")),
    Variant("llm4msr, random control", "random", PartChoice(name="llm4msr"), control="random"),
)
_SERVED = "composed"
"""The folder name of the variant that the demo exports as a bundle."""
LEGEND = (
    "prompted: the paper's user and scenario prompts, each user snapshot made only of what was before it. "
    "composed: item vectors composed into users event by event, with the candidate's vector, match features and gated "
    "user layers. control: the same with a random vector for each item. Prompted has low-rank meta layers in place of "
    "the paper's full ones, the others factored ones."
)


@dataclass(frozen=True)
class DemoSettings:
    """The size of the demo. If `households` is None, it takes all."""

    households: int | None = 200
    backbone: str = "star"
    seeds: int = 3
    batch_size: int = 2048
    epochs: int = 4
    negatives_per_visit: int = 24

    @classmethod
    def full(cls, seeds: int) -> DemoSettings:
        """The settings for all households."""
        return cls(households=None, seeds=seeds, batch_size=4096)


@dataclass(frozen=True)
class Listener:
    """Callbacks for the demo's progress."""

    say: Callable[[str], None]
    reasoning: Callable[[Progress], None]
    training: Callable[[str, TrainProgress], None]


@dataclass(frozen=True)
class DemoResult:
    """The table's rows, the scenarios' titles, one explained user, the folder of it all, and the bundle to serve."""

    rows: Sequence[Row]
    scenarios: Sequence[str]
    explanation: Explanation
    folder: Path
    bundle: Path


def run_demo(folder: Path, settings: DemoSettings, engine: Callable[[], Engine], listener: Listener) -> DemoResult:
    """Prepare, reason, train and compare in `folder`. Results of an earlier run in it are reused."""
    data = _prepared(folder / "data", settings, listener)
    knowledge = _reasoned(folder / "knowledge", data, engine, listener)
    rows = []
    for variant in VARIANTS:
        results: list[RunResult] = []
        for seed in range(settings.seeds):
            config = RunConfig(
                data=folder / "data",
                knowledge_folder=None if variant.enhancer.name == "none" else folder / "knowledge",
                model=ModelConfig(backbone=PartChoice(name=settings.backbone), enhancer=variant.enhancer),
                knowledge=KnowledgeConfig(control=variant.control),
                train=TrainConfig(epochs=settings.epochs, batch_size=settings.batch_size, seed=seed),
            )
            name = f"{variant.name}, seed {seed}"
            listener.say(f"training {settings.backbone}: {name}")
            run = folder / "runs" / f"{variant.folder}-{seed}"
            results.append(train_run(config, run, partial(listener.training, name)))
        rows.append(Row(variant.name, [r.scores for r in results]))
    listener.say("explaining one user")
    explanation = explain_user(data, knowledge, _typical_user(data, knowledge), lambda _: engine())
    listener.say("exporting the composed model of the first seed")
    bundle = export_bundle(folder / "runs" / f"{_SERVED}-0", folder / "bundle", overwrite=True)
    return DemoResult(rows, [s.title for s in data.schema.scenarios], explanation, folder, bundle)


def _prepared(folder: Path, settings: DemoSettings, listener: Listener) -> PreparedData:
    config = CompleteJourneyConfig(households=settings.households, negatives_per_visit=settings.negatives_per_visit)
    if folder.exists():
        if read_manifest(folder, KIND, VERSION)["recipe"] != config.recipe():
            raise InputError(f"{folder}: holds another selection of the data; choose another --out or remove it")
        listener.say(f"reusing the prepared data in {folder}")
        return PreparedData.open(folder)
    listener.say("reading the Complete Journey")
    return prepare(complete_journey(config), folder, report=listener.say)


def _reasoned(folder: Path, data: PreparedData, engine: Callable[[], Engine], listener: Listener) -> KnowledgeFolder:
    try:
        found = KnowledgeFolder.open(folder, data)
        if found.manifest["config"] == REASONING.model_dump(mode="json"):
            listener.say(f"reusing the knowledge in {folder}")
            return found
    except InputError:
        pass  # absent, unfinished or of other data: reason about what is missing
    listener.say("reasoning: scenarios, users at their snapshots, items")
    for summary in reason(data, engine(), folder, REASONING, progress=listener.reasoning):
        listener.say(
            f"{summary.level}: {summary.prompts} prompts, {summary.distinct} different, {summary.answered} answered now"
        )
    return KnowledgeFolder.open(folder, data)


def _typical_user(data: PreparedData, knowledge: KnowledgeFolder) -> str:
    """The user with the median number of positives among those who have knowledge."""
    known = knowledge.index.filter(knowledge.index["level"] == "user")["subject"].unique()
    counts = data.positives.filter(data.positives["user"].is_in(known.implode())).group_by("user").len()
    ordered = counts.sort("len", "user")
    return str(data.users["user"][ordered["user"][ordered.height // 2]])
