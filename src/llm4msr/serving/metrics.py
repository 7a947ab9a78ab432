"""A server's Prometheus metrics. Processes that one `serve` starts share their counters."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with the folder through which processes share counters; `prometheus_client` reads it."""
_SECONDS = (0.001, 0.002, 0.004, 0.006, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_PARTS = 10
_UP_TO = tuple(f"{(part + 1) / _PARTS:.1f}" for part in range(_PARTS))


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("llm4msr_requests", "Answered requests", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "llm4msr_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._unknown = Counter(
            "llm4msr_unknown_ids", "Ids that the bundle does not have", ["scenario", "kind"], registry=self.registry
        )
        self._users = Counter(
            "llm4msr_scored_users",
            "Scored users, by whether anything is known of them",
            ["scenario", "knowledge"],
            registry=self.registry,
        )
        self._scores = Counter(
            "llm4msr_scores",
            "Scored items by probability, up to `up_to`",
            ["scenario", "up_to"],
            registry=self.registry,
        )
        self._events = Counter("llm4msr_events", "Events", ["outcome"], registry=self.registry)
        self._bundles = Gauge(
            "llm4msr_bundle",
            "1 for the bundle that answers",
            ["bundle"],
            multiprocess_mode="mostrecent",  # a value of a dead process does not hide a newer one
            registry=self.registry,
        )
        self._reloads = Counter("llm4msr_reloads", "Changes of the bundle", ["outcome"], registry=self.registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def scored(
        self, scenario: str, scores: NDArray[np.float32], unknown_items: int, *, user_known: bool, knowledge: bool
    ) -> None:
        """Count a request's scores, and what was unknown in it."""
        if unknown_items:
            self._unknown.labels(scenario, "item").inc(unknown_items)
        if not user_known:
            self._unknown.labels(scenario, "user").inc()
        self._users.labels(scenario, "known" if knowledge else "none").inc()
        counts = np.bincount((scores * _PARTS).astype(np.intp).clip(0, _PARTS - 1), minlength=_PARTS).tolist()
        for up_to, count in zip(_UP_TO, counts, strict=True):
            if count:
                self._scores.labels(scenario, up_to).inc(count)

    def happened(self, accepted: int, duplicates: int) -> None:
        """Count events."""
        self._events.labels("accepted").inc(accepted)
        self._events.labels("duplicate").inc(duplicates)

    def serves(self, bundle: str, before: str | None = None) -> None:
        """Set the bundle that answers from now on; count the change if there was another `before`."""
        if before is not None:
            self._bundles.labels(before).set(0)
            self._reloads.labels("changed").inc()
        self._bundles.labels(bundle).set(1)

    def failed_to_change(self) -> None:
        """Count a failed change of the bundle."""
        self._reloads.labels("failed").inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format, over all processes that share counters."""
        if os.environ.get(FOLDER):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            return bytes(generate_latest(registry))
        return bytes(generate_latest(self.registry))
