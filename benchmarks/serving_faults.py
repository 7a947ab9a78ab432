"""Tries faults on a running server, and counts their effects.

    python -m benchmarks.serving_faults BUNDLE OTHER [--seconds 60]

OTHER is another bundle of the same data, for reloading. There are four faults: a worker is killed under load; the
server is killed again and again amid events, none of which may be lost or logged twice; the bundle is swapped every
second under load, and each answer must be that of the bundle it names; far more connections ask than are served, which
must give refusals, bounded memory and recovery. Prints a line for each fault; the exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import PORT, memory, ready, server, write_bodies, wrk
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.live import Live
from llm4msr.serving.log import EventLog, EventRecord
from llm4msr.serving.requests import ScoreRequest
from llm4msr.serving.scorer import Scorer


def main() -> None:
    """Read the command line and try each fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        held = [
            kill_a_worker(options.bundle, folder / "a", options.seconds // 2),
            kill_amid_events(options.bundle, folder / "b", 20),
            reload_under_load(options.bundle, options.other, folder / "c", options.seconds),
            overload(options.bundle, folder / "d", options.seconds),
        ]
    sys.exit(0 if all(held) else 1)


def ask(path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Post a request; returns the status and the content of the answer, with status 0 if the connection failed."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except (OSError, HTTPException):
        return 0, None


def asking(bodies: list[Any], until: float, threads: int, seen: Callable[[Any, int, Any], None]) -> None:
    """Ask from several threads until the time `until`, with a new connection for each request."""

    def work(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < until:
            body = draw.choice(bodies)
            seen(body, *ask("/v1/score", body))

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def kill_a_worker(bundle: Path, folder: Path, seconds: int) -> bool:
    """Kill one of two workers every few seconds: the other must answer, and a new one must replace it."""
    folder.mkdir()
    bodies = _bodies(bundle, folder)
    statuses: Counter[int] = Counter()
    with server(bundle, folder / "state", "--workers", "2") as process:
        until = time.monotonic() + seconds
        thread = threading.Thread(
            target=asking, args=(bodies, until, 4, lambda _, status, __: statuses.update([status]))
        )
        thread.start()
        kills = 0
        while time.monotonic() < until - 8:
            time.sleep(5)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            serving = [int(c) for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
            os.kill(serving[kills % len(serving)], signal.SIGKILL)
            kills += 1
        thread.join()
        back = ready()
    lost = statuses[0]
    print(
        f"a worker killed {kills} times: answers {dict(statuses)}; without an answer {lost} (in flight there)",
        flush=True,
    )
    return back and set(statuses) <= {0, 200} and lost <= 4 * kills


def kill_amid_events(bundle: Path, folder: Path, times: int) -> bool:
    """Kill the server amid events. Each acknowledged event must be in the log once, and states must match the log."""
    folder.mkdir()
    opened = Bundle.open(bundle)
    users, items = (opened.lookup.starting_with(side, "", 500) for side in ("user", "item"))
    scenarios = [s.value for s in opened.schema.scenarios]
    acknowledged: list[tuple[str, str, str, int]] = []
    draw, start = random.Random(1), int(time.time()) - 10_000_000
    number = 0
    for _ in range(times):
        with server(bundle, folder / "state") as process:
            threading.Timer(draw.uniform(0.3, 1.5), process.send_signal, (signal.SIGKILL,)).start()
            while process.poll() is None:
                batch = []
                for _ in range(10):
                    number += 1
                    batch.append((draw.choice(users), draw.choice(items), draw.choice(scenarios), start + number))
                names = ("user", "item", "scenario", "time")
                status, _ = ask("/v1/events", {"events": [dict(zip(names, e, strict=True)) for e in batch]})
                if status == 200:
                    acknowledged += batch
    logged = Counter(
        (r.user, r.item, r.scenario, r.time // 1_000_000)
        for r, _ in EventLog(folder / "state").read(0)
        if isinstance(r, EventRecord)
    )
    lost = sum(event not in logged for event in acknowledged)
    twice = sum(count > 1 for count in logged.values())
    live, fresh = Live(opened, folder / "state"), Live(opened, _copied_log(folder))
    worst = max(
        float(np.abs(live.sums(u, c).total - fresh.sums(u, c).total).max())
        for u, c in ((u, opened.lookup.number("user", u)) for u in users)
    )
    print(
        f"killed {times} times amid events: {len(acknowledged)} acknowledged, lost {lost}, in the log twice {twice}; "
        f"states and those of the log read anew differ by {worst:.1g}",
        flush=True,
    )
    return not lost and not twice and worst < 1e-9


def _copied_log(folder: Path) -> Path:
    (folder / "copy").mkdir()
    log = EventLog(folder / "state").path
    (folder / "copy" / log.name).write_bytes(log.read_bytes())
    return folder / "copy"


def reload_under_load(bundle: Path, other: Path, folder: Path, seconds: int) -> bool:
    """Point the link at the other bundle every second, and check each answer against the bundle that it names."""
    folder.mkdir()
    bodies = _bodies(bundle, folder)[:200]
    expected: dict[str, dict[str, Any]] = {}
    for path in (bundle, other):
        opened = Bundle.open(path)
        scorer = Scorer(opened, Live(opened, folder / f"expected-{opened.fingerprint}"))
        answers = {json.dumps(b): scorer.score([ScoreRequest.model_validate(b)])[0].scores for b in bodies}
        expected[opened.fingerprint] = answers
    link = folder / "current"
    link.symlink_to(bundle.resolve())
    wrong: Counter[str] = Counter()
    named: Counter[str] = Counter()

    def seen(body: Any, status: int, answer: Any) -> None:
        if status != 200:
            wrong[f"status {status}"] += 1
            return
        named[answer["bundle"]] += 1
        if np.abs(expected[answer["bundle"]][json.dumps(body)] - answer["scores"]).max() > 1e-6:
            wrong["mixed"] += 1

    with server(link, folder / "state"):
        until = time.monotonic() + seconds
        thread = threading.Thread(target=asking, args=(bodies, until, 3, seen))
        thread.start()
        swaps = 0
        while time.monotonic() < until:
            time.sleep(1)
            swaps += 1
            (folder / "next").symlink_to((other if swaps % 2 else bundle).resolve())
            os.replace(folder / "next", link)
        thread.join()
    print(f"{swaps} swaps under load: {sum(named.values())} answers, {dict(named)}, wrong {dict(wrong)}", flush=True)
    return not wrong and len(named) == 2


def overload(bundle: Path, folder: Path, seconds: int) -> bool:
    """Ask with 256 connections when 32 requests are served at once: expects refusals, bounded memory and recovery."""
    folder.mkdir()
    scores, _ = write_bodies(bundle, folder)
    with server(bundle, folder / "state", "--concurrency", "32") as process:
        wrk(folder, "/v1/score", scores, 5, connections=8)
        before = memory(process)
        load = wrk(folder, "/v1/score", scores, seconds, connections=256)
        after = memory(process)
        recovered = wrk(folder, "/v1/score", scores, 5, pause=98)
    print(
        f"256 connections for {seconds} s: {load.rate:.0f} answers/s of which {load.bad / seconds:.0f} refused, p99 "
        f"{load.p99:.0f} ms; resident {before:.0f} MiB before, {after:.0f} after; then steady p50 "
        f"{recovered.p50:.1f} ms, p99 {recovered.p99:.1f} ms, bad {recovered.bad}",
        flush=True,
    )
    return load.bad > 0 and after < before * 1.2 and recovered.bad == 0


def _bodies(bundle: Path, folder: Path) -> list[Any]:
    scores, _ = write_bodies(bundle, folder)
    return [json.loads(line) for line in scores.read_text().splitlines()[:500]]


if __name__ == "__main__":
    if subprocess.run(["which", "wrk"], capture_output=True, check=False).returncode:
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    main()
