"""Any external program as an engine: it reads prompts as lines of JSON and writes texts and vectors as lines of JSON.

This allows a model that needs other versions of libraries, such as ChatGLM2-6B, in an environment of its own. The
protocol, version 1, on the program's standard input and output:

1. we write `{"protocol": 1}`;
2. the program writes `{"protocol": 1, "identity": {...}, "special_tokens": [...]}`: the identity says
   everything that an answer depends on (model, revision, number format);
3. we write `{"id": 7, "prompt": "...", "generation": {...}}`, several of them before the first is answered;
4. for each, in any order, the program writes `{"id": 7, "text": "...", "vector": [...], "finish_reason": "stop",
   "prompt_tokens": 3, "generated_tokens": 5}` or, if it cannot answer, `{"id": 7, "error": "why"}`.

The program should end when its input ends. Its standard error is shown to the user.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm4msr.errors import InputError
from llm4msr.knowledge.engines.base import Answer, FinishReason, Generation, Outcome, Refusal

PROTOCOL = 1
_LONGEST_LINE = 64 * 2**20
_ENDING = 5.0
"""Seconds that a program may take to end once it has closed its output."""


class _Hello(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    protocol: int
    identity: dict[str, Any] = Field(min_length=1)
    special_tokens: list[str] = []


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    id: int
    error: str | None = None
    text: str = ""
    vector: list[float] = []
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = Field(default=0, ge=0)
    generated_tokens: int = Field(default=0, ge=0)

    def outcome(self) -> Outcome:
        """The answer or the refusal that the line says."""
        if self.error is not None:
            return Refusal(f"the program says: {self.error}")
        if not self.vector:
            return Refusal("the program gave no vector")
        limit = float(np.finfo(np.float16).max)
        vector = np.clip(np.array(self.vector, dtype=np.float64), -limit, limit).astype(np.float16)
        return Answer(self.text, vector, self.finish_reason, self.prompt_tokens, self.generated_tokens)


class _StoppedError(Exception):
    """The program ended, was too slow, or wrote something that is not a valid reply."""


@dataclass
class _Process:
    """The running program, with a queue of lines to send to it and a queue of lines that it wrote.

    None marks the end of each queue.
    """

    popen: subprocess.Popen[str]
    asked: queue.Queue[str | None] = field(default_factory=queue.Queue)
    lines: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def send(self, message: dict[str, Any]) -> None:
        """Queue a line for the program. Does not wait until the program reads it."""
        self.asked.put(json.dumps(message, ensure_ascii=False) + "\n")

    def receive(self, seconds: float) -> str:
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise _StoppedError(f"it gave no answer within {seconds:g} s") from None
        if line is None:
            try:
                code = self.popen.wait(_ENDING)
            except subprocess.TimeoutExpired:
                raise _StoppedError("it closed its output, but goes on running") from None
            raise _StoppedError(f"it ended with exit code {code}")
        return line

    def end(self) -> None:
        self.asked.put(None)
        self.popen.kill()
        self.popen.wait()


class CommandEngine:
    """An external program that answers prompts.

    Args:
        command: the program and its arguments; no shell is involved.
        seconds: the longest time that it may take for its first line, and between two answers.
        restarts: how often a prompt is tried again after the program ended, fell silent or wrote an invalid reply. The
            program is then started again. A failure counts only for the first prompt in flight. If that prompt fails
            once more than this, it is refused, and the others go on.
        window: the most prompts in flight, that is sent but not answered.

    Raises `InputError` if it cannot be started, or started again, or speaks another version of the protocol.
    """

    def __init__(self, command: Sequence[str], *, seconds: float = 600.0, restarts: int = 2, window: int = 64) -> None:
        self._command = list(command)
        self._seconds, self._restarts, self._window = seconds, restarts, window
        self._process: _Process | None = None
        try:
            self._hello = self._start()
        except _StoppedError as error:
            self.close()
            raise InputError(f"{self._name}: {error}; see docs/knowledge.md for the protocol") from error

    @property
    def _name(self) -> str:
        return f"the engine {self._command[0]!r}"

    @property
    def identity(self) -> dict[str, Any]:
        """The identity that the program reported."""
        return {**self._hello.identity, "engine": "command"}

    @property
    def model_name(self) -> str:
        """The model that the program reported, or its other values."""
        identity = self._hello.identity
        return str(identity.get("model") or ", ".join(map(str, identity.values())))

    @property
    def special_tokens(self) -> Sequence[str]:
        """The special tokens that the program reported."""
        return tuple(self._hello.special_tokens)

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[Sequence[tuple[int, Outcome]]]:
        """Send the prompts to the program in order, up to `window` ahead, and yield each answer as it comes."""
        flight: list[int] = []
        try:
            yield from self._answers(prompts, generation.model_dump(mode="json"), flight)
        finally:
            if flight:  # what the program still answers is not an answer to the next call
                self.close()

    def _answers(
        self, prompts: Sequence[str], settings: dict[str, Any], flight: list[int]
    ) -> Iterator[Sequence[tuple[int, Outcome]]]:
        """See `run`; `flight` has the positions of the prompts that are sent and not answered."""
        waiting = list(range(len(prompts)))[::-1]
        failed = [0] * len(prompts)
        silent = 0
        while waiting or flight:
            try:
                process = self._running()
                while waiting and len(flight) < self._window:
                    flight.append(waiting.pop())
                    process.send({"id": flight[-1], "prompt": prompts[flight[-1]], "generation": settings})
                reply: _Reply = _parsed(_Reply, process.receive(self._seconds))
                if reply.id not in flight:
                    raise _StoppedError(f"it answered {reply.id}, which was not asked")
                flight.remove(reply.id)
                silent = 0
                yield [(reply.id, reply.outcome())]
            except _StoppedError as error:
                self.close()
                if not flight:  # it failed before it was sent a prompt
                    silent += 1
                    if silent > self._restarts:
                        raise InputError(f"{self._name}: could not be started again: {error}") from error
                    continue
                given_up: list[tuple[int, Outcome]] = []
                # Only the first prompt in flight is blamed, since programs answer roughly in order.
                failed[flight[0]] += 1
                if failed[flight[0]] > self._restarts:
                    given_up = [(flight.pop(0), Refusal(f"{self._name} failed {self._restarts + 1} times: {error}"))]
                waiting += flight[::-1]
                flight.clear()
                if given_up:
                    yield given_up

    def _running(self) -> _Process:
        if self._process is None:
            hello = self._start()
            if hello != self._hello:
                self.close()
                raise InputError(f"{self._name}: started again, it says that it is another model: {hello.identity}")
        assert self._process is not None
        return self._process

    def _start(self) -> _Hello:
        try:
            popen = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="backslashreplace",  # bytes that are not UTF-8 become invalid JSON
            )
        except OSError as error:
            raise InputError(f"{self._name}: cannot be started: {error.strerror or error}") from error
        self._process = process = _Process(popen)
        for work in (_feed, _collect):
            threading.Thread(target=work, args=(process,), daemon=True, name=f"llm4msr-command{work.__name__}").start()
        process.send({"protocol": PROTOCOL})
        hello: _Hello = _parsed(_Hello, process.receive(self._seconds))
        if hello.protocol != PROTOCOL:
            self.close()
            raise InputError(f"{self._name}: speaks protocol {hello.protocol}, expected {PROTOCOL}")
        return hello


def _feed(process: _Process) -> None:
    """Write the queued lines to the program. If it no longer reads, `receive` notices its silence or its end."""
    assert process.popen.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        while (line := process.asked.get()) is not None:
            process.popen.stdin.write(line)
            process.popen.stdin.flush()


def _collect(process: _Process) -> None:
    """Put every line that the program writes into the queue `lines`."""
    assert process.popen.stdout is not None
    with contextlib.suppress(OSError, ValueError):
        while line := process.popen.stdout.readline(_LONGEST_LINE):
            process.lines.put(line)
    process.lines.put(None)


def _parsed(kind: Any, line: str) -> Any:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise _StoppedError(f"it wrote what is no reply ({where}: {first['msg']}): {line.strip()[:120]!r}") from error
