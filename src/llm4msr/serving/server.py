"""Starting a server: uvicorn with one or several processes that share the bundle's memory, the log and its states."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import uvicorn
from pydantic import BaseModel

from llm4msr.allocation import keep_freed_memory
from llm4msr.errors import InputError
from llm4msr.serving import metrics
from llm4msr.serving.app import make_app
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.current import Current
from llm4msr.serving.guard import Guard, Limits, is_loopback
from llm4msr.serving.live import open_live
from llm4msr.serving.log import LOG

TOKEN = "LLM4MSR_TOKEN"
_SETTINGS = "LLM4MSR_SERVE"
_CONNECTIONS = 2048
_LOOK = 0.5
"""Seconds between two looks at whether the parent process is there."""
_AGAIN = 5.0
"""Seconds that a process which cannot start waits before it exits."""


class ServeConfig(BaseModel):
    """How a bundle is served. `threads` is the number of threads for one request; `state` is the log's folder."""

    bundle: Path
    state: Path
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    threads: int = 1
    body: int = Limits.body
    concurrency: int = Limits.concurrency
    seconds: float = Limits.seconds
    access_log: bool = False
    checked: str = ""
    """The fingerprint of the bundle whose checksums were compared already."""


def default_state(bundle: Path) -> Path:
    """The default folder of the log of events: beside the bundle, with the name that the bundle is served by."""
    named = Path(os.path.abspath(bundle))  # a link keeps its own name
    return named.with_name(f"{named.name}.state")


def serve(config: ServeConfig, report: Callable[[str], None] = lambda message: None) -> None:
    """Serve until stopped. `report` is called with what is served, after the bundle was verified.

    Raises `InputError` for a broken bundle or log, an address that is in use, or one open to other machines without a
    token.
    """
    if not is_loopback(config.host) and not os.environ.get(TOKEN):
        raise InputError(
            f"--host {config.host}: is reached from outside this machine; set a token in the environment variable "
            f"{TOKEN}, or bind to 127.0.0.1"
        )
    _check_free(config.host, config.port)
    config = config.model_copy(update={"checked": _checked(config)})
    report(f"http://{config.host}:{config.port}/ shows {config.bundle}; events are kept in {config.state}")
    with tempfile.TemporaryDirectory(prefix="llm4msr-metrics-") as counted:
        os.environ[_SETTINGS] = config.model_dump_json()
        if config.workers > 1:
            os.environ[metrics.FOLDER] = counted
        uvicorn.run(
            "llm4msr.serving.server:create",
            factory=True,
            host=config.host,
            port=config.port,
            workers=config.workers,
            access_log=config.access_log,
            log_config=_log_with_times(),
            log_level="info",
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
        )


def _log_with_times() -> dict[str, Any]:
    """Uvicorn's own settings of its log, with the time before each line."""
    config = deepcopy(uvicorn.config.LOGGING_CONFIG)
    for formatter in config["formatters"].values():
        formatter["fmt"] = f"%(asctime)s {formatter['fmt']}"
    return config


def _checked(config: ServeConfig) -> str:
    """Open the bundle and read the log once, so that an error ends the command; return the bundle's fingerprint.

    Nothing is kept open: the first bundle must not stay in memory after others took its place.
    """
    bundle = Bundle.open(config.bundle)
    open_live(bundle, config.state).close()
    return bundle.fingerprint


def _check_free(host: str, port: int) -> None:
    """Raise `InputError` if the address is in use already, or is not one of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(f"{host}:{port}: {error.strerror or error}; choose another --port or --host") from error


def _end_with(parent: int) -> None:
    """Stop this process when its parent is gone: a parent that was killed cannot stop it, and the port stays taken."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    LOG.error("the server's parent process is gone; this one stops, too")
    os.kill(os.getpid(), signal.SIGTERM)


def create() -> Guard:
    """The application of one process, with the settings in its environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = ServeConfig.model_validate_json(os.environ[_SETTINGS])
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    if config.workers > 1:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True, name="llm4msr-parent").start()
    limits = Limits(config.body, config.concurrency, config.seconds)
    try:
        current = Current(config.bundle, config.state, checked=config.checked)
    except (InputError, OSError) as error:
        LOG.error("cannot start: %s", error)
        time.sleep(_AGAIN)  # with several processes, this one is restarted as soon as it exits
        raise SystemExit(1) from None
    return make_app(current, token=os.environ.get(TOKEN) or None, limits=limits)
