"""Speed of a server, with its load generator (wrk) on the same machine.

    python -m benchmarks.serving BUNDLE [--seconds 60]

needs wrk (Debian: apt-get install wrk). It measures a steady 100 requests a second of 100 candidates; saturation; 2,000
durable events a second, alone and beside steady scoring; and steady scoring and saturation with two server processes.
Last, in one process without a socket, it measures the share of a request's time that the model's forward takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from llm4msr.serving.app import make_app
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.current import Current
from llm4msr.serving.requests import ScoreRequest

PORT = 8977
CONNECTIONS = 10
CANDIDATES = 100
EVENTS = 20
_SCATTER = 7_368_787
"""A prime that sends neighbouring ranks to ids far apart."""
_SCRIPT = """
local bodies = {}
for line in io.lines("%s") do bodies[#bodies + 1] = line end
local i = 0
request = function()
  i = (i %% #bodies) + 1
  return wrk.format("POST", "%s", {["Content-Type"] = "application/json"}, bodies[i])
end
"""
_DELAY = "delay = function() return math.random(%d, %d) end\n"


@dataclass(frozen=True)
class Load:
    """The results of wrk: requests a second, latencies in milliseconds, and the number of failed requests."""

    rate: float
    p50: float
    p99: float
    bad: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=int, default=60, help="of each measurement")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scores, events = write_bodies(options.bundle, folder)
        with server(options.bundle, folder / "one") as process:
            steady = wrk(folder, "/v1/score", scores, options.seconds, pause=98)
            report(f"steady, {CANDIDATES} candidates", steady)
            for connections in (1, 2, 8):
                load = wrk(folder, "/v1/score", scores, options.seconds // 4, connections=connections)
                report(f"saturated, {connections} connections", load)
            alone = wrk(folder, "/v1/events", events, options.seconds // 2, pause=98)
            report(f"events, {EVENTS} a request", alone)
            beside = together(folder, scores, events, options.seconds)
            report("steady scoring beside events", beside[0])
            report(f"those events, {EVENTS} a request", beside[1])
            print(f"resident {memory(process):.0f} MiB")
        with server(options.bundle, folder / "two", "--workers", "2"):
            report("two processes, steady", wrk(folder, "/v1/score", scores, options.seconds // 2, pause=98))
            report("two processes, saturated", wrk(folder, "/v1/score", scores, options.seconds // 4, connections=8))
        share(options.bundle, scores, folder)


def write_bodies(path: Path, folder: Path, count: int = 6000, *, skewed: bool = False) -> tuple[Path, Path]:
    """Write two files of request bodies, one per line: `count` for scoring and 20,000 of events, no event twice.

    All users and items are known. If `skewed`, they are drawn by Zipf's law, with ranks scattered over the ids.
    """
    bundle, draw = Bundle.open(path), random.Random(0)
    users, items = (bundle.lookup.starting_with(side, "", 10_000_000) for side in ("user", "item"))

    def one_of(ids: list[str]) -> str:
        if not skewed:
            return draw.choice(ids)
        rank = int(len(ids) ** draw.random()) - 1
        return ids[rank * _SCATTER % len(ids)]

    scenarios = [s.value for s in bundle.schema.scenarios]
    scores, events = folder / "scores.txt", folder / "events.txt"
    with scores.open("w") as out:
        for _ in range(count):
            chosen = {
                "user": one_of(users),
                "scenario": draw.choice(scenarios),
                "items": list({one_of(items) for _ in range(2 * CANDIDATES)})[:CANDIDATES],
            }
            out.write(json.dumps(chosen) + "\n")
    start = time.time() - 1e7
    with events.open("w") as out:
        for n in range(20_000):
            batch = [
                {
                    "user": one_of(users),
                    "item": one_of(items),
                    "scenario": draw.choice(scenarios),
                    "time": start + n + part / EVENTS,
                }
                for part in range(EVENTS)
            ]
            out.write(json.dumps({"events": batch}) + "\n")
    return scores, events


@contextmanager
def server(bundle: Path, folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server of the bundle, wait until it is ready, and stop it in the end."""
    command = [sys.executable, "-m", "llm4msr", "serve", str(bundle), "--port", str(PORT), *options]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, "--state", str(folder)], stdout=log, stderr=log)
        try:
            end = time.monotonic() + 300
            while not ready():
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    sys.exit(log.read().decode())
                time.sleep(0.2)
            yield process
        finally:
            process.terminate()
            process.wait(30)


def ready() -> bool:
    """Whether the server answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wrk(folder: Path, path: str, bodies: Path, seconds: int, *, connections: int = CONNECTIONS, pause: int = 0) -> Load:
    """Run wrk; with a `pause` (milliseconds) each connection waits about that long between requests."""
    return finished(started(folder, path, bodies, seconds, connections=connections, pause=pause))


def started(
    folder: Path, path: str, bodies: Path, seconds: int, *, connections: int = CONNECTIONS, pause: int = 0
) -> subprocess.Popen[str]:
    """Start wrk."""
    script = folder / f"{bodies.stem}-{pause}.lua"
    script.write_text(_SCRIPT % (bodies, path) + (_DELAY % (pause // 2, pause + pause // 2) if pause else ""))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, seconds)}s", "--latency", "-s", str(script)]
    return subprocess.Popen([*command, f"http://127.0.0.1:{PORT}/"], stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> Load:
    """Wait for wrk and parse its report."""
    text, _ = process.communicate()
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    lost = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    errors = sum(map(int, lost.groups())) if lost else 0
    return Load(float(rate[1]), _latency(text, "50"), _latency(text, "99"), errors + (int(bad[1]) if bad else 0))


def _latency(text: str, percentile: str) -> float:
    found = re.search(rf"\s{percentile}%\s+([\d.]+)(us|ms|s)", text)
    assert found is not None, text
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def together(folder: Path, scores: Path, events: Path, seconds: int) -> list[Load]:
    """Steady scoring and 2,000 events a second at the same time."""
    both = [
        started(folder, path, bodies, seconds, pause=98)
        for path, bodies in (("/v1/score", scores), ("/v1/events", events))
    ]
    return [finished(process) for process in both]


def report(name: str, load: Load) -> None:
    """Print a line."""
    print(
        f"{name}: {load.rate:.1f} requests/s, p50 {load.p50:.2f} ms, p99 {load.p99:.2f} ms, bad {load.bad}", flush=True
    )


def memory(process: subprocess.Popen[bytes]) -> float:
    """The resident memory of a process, MiB."""
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    found = re.search(r"Rss:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1024


def share(path: Path, bodies: Path, folder: Path, rounds: int = 7, count: int = 300) -> None:
    """Time whole requests through the application and the model's forward alone, in turn in one process."""
    torch.set_num_threads(1)
    current = Current(path, folder / "share")
    application = make_app(current)
    raw = [line.encode() for line in bodies.read_text().splitlines()[:count]]
    scorer = current.now.scorer
    batches = [scorer.batch([scorer.rows(ScoreRequest.model_validate_json(body))])[0] for body in raw]

    async def ask() -> None:
        for body in raw:
            await application(*_exchange(body))

    whole, forward = [], []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        asyncio.run(ask())
        middle = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                current.now.bundle.model(batch)
        whole.append((middle - began) / count * 1e3)
        forward.append((time.perf_counter() - middle) / count * 1e3)
    ratios = sorted(f / w for f, w in zip(forward[1:], whole[1:], strict=True))
    middle_ratio = ratios[len(ratios) // 2]
    print(
        f"a request without the socket {sorted(whole[1:])[rounds // 2]:.2f} ms, the forward alone "
        f"{sorted(forward[1:])[rounds // 2]:.2f} ms; share {middle_ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def _exchange(body: bytes):  # type: ignore[no-untyped-def]
    """Scope, receive and send of one request."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, object]) -> None:
        assert message.get("status", 200) == 200

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/score",
        "raw_path": b"/v1/score",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", PORT),
        "client": ("127.0.0.1", 1),
        "state": {},
    }
    return scope, receive, send


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
