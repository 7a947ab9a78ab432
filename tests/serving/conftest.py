"""Bundles of the shop and a server of one, over a real socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from pydantic import BaseModel

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.explain import ExplainAnswer
from llm4msr.serving.export import export_bundle
from llm4msr.serving.people import UserHistory, UserKnowledge
from llm4msr.serving.requests import (
    BatchAnswer,
    ErrorAnswer,
    EventsAnswer,
    ItemsAnswer,
    RankAnswer,
    ScenariosAnswer,
    ScoreAnswer,
    UsersAnswer,
)
from tests.serving.bundles import train_shop

TOKEN = "a-token-for-tests"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, shop: PreparedData, shop_knowledge: KnowledgeFolder) -> Path:
    """A run that reads everything: prompted and composed states, items, scenarios."""
    settings = {"source": "both", "scenario": "parallel", "hidden": 8}
    return train_shop(tmp_path_factory.mktemp("run") / "run", shop, shop_knowledge, "star", "llm4msr", settings)


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    return export_bundle(run, tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.fixture(scope="session")
def other_bundle_path(
    tmp_path_factory: pytest.TempPathFactory, shop: PreparedData, shop_knowledge: KnowledgeFolder
) -> Path:
    """A bundle of the same shop that scores otherwise."""
    folder = tmp_path_factory.mktemp("other")
    return export_bundle(
        train_shop(folder / "run", shop, shop_knowledge, "shared_bottom", "llm4msr"), folder / "bundle"
    )


@dataclass
class Server:
    """A running server and a client of it."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    port: int
    log: Path
    headers: dict[str, str] = field(default_factory=dict)

    def kill(self) -> None:
        """As a power switch would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def serving(bundle: Path, folder: Path, *options: str, token: str | None = None) -> Iterator[Server]:
    """A server of a bundle on a free port; its log of events lies in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    command = [sys.executable, "-m", "llm4msr", "serve", str(bundle), "--port", str(port), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({} if token is None else {"LLM4MSR_TOKEN": token})
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, "--state", str(folder / "state")], stdout=out, stderr=subprocess.STDOUT, env=environment
        )
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    hooks = {"response": [as_declared]}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=20, event_hooks=hooks) as client:
        try:
            eventually(lambda: process.poll() is not None or _answers(client), 60)
            assert process.poll() is None, log.read_text()
            yield Server(process, client, port, log, headers)
        finally:
            process.terminate()
            process.wait(20)


ANSWERS: dict[str, type[BaseModel]] = {
    "/v1/score": ScoreAnswer,
    "/v1/score/batch": BatchAnswer,
    "/v1/rank": RankAnswer,
    "/v1/explain": ExplainAnswer,
    "/v1/events": EventsAnswer,
    "/v1/items": ItemsAnswer,
    "/v1/scenarios": ScenariosAnswer,
    "/v1/users": UsersAnswer,
    "knowledge": UserKnowledge,
    "history": UserHistory,
}
"""What the server's OpenAPI schema declares, by address or by the end of an address."""


def as_declared(response: httpx.Response) -> None:
    """Fail unless an answer has exactly the fields and types that are declared for its address."""
    path = response.request.url.path
    model = ErrorAnswer if response.status_code >= 400 else ANSWERS.get(path) or ANSWERS.get(path.rpartition("/")[2])
    if model is not None:
        model.model_validate_json(response.read(), strict=True, extra="forbid")


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something holds, or fail."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Server]:
    """A server with a token, for tests that leave it as it was."""
    with serving(bundle_path, tmp_path_factory.mktemp("server"), token=TOKEN) as running:
        yield running
