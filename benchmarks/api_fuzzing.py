"""Hooks for Schemathesis that put the ids of an existing scenario and user into half of its made-up requests.

    pip install 'llm4msr[load]'
    SCHEMATHESIS_HOOKS=benchmarks.api_fuzzing schemathesis run http://127.0.0.1:8000/openapi.json \\
      --max-examples 1000 --continue-on-failure
"""

from __future__ import annotations

import json
import os
import urllib.request
from functools import lru_cache
from typing import Any

import schemathesis

SERVER = os.environ.get("LLM4MSR_SERVER", "http://127.0.0.1:8000")


@lru_cache
def _known() -> dict[str, Any]:
    with urllib.request.urlopen(f"{SERVER}/v1/scenarios", timeout=5) as answer:
        scenario = json.load(answer)["scenarios"][0]["value"]
    with urllib.request.urlopen(f"{SERVER}/v1/users?limit=1", timeout=5) as answer:
        user = json.load(answer)["users"][0]
    return {"scenario": scenario, "user": user}


def map_body(context: Any, body: Any) -> Any:
    """Put known ids into about half of the bodies, and of their requests and events, that have these keys."""
    del context
    lists = [body.get(name) for name in ("requests", "events")] if isinstance(body, dict) else []
    parts = [body, *(part for found in lists if isinstance(found, list) for part in found)]
    for part in parts:
        if isinstance(part, dict) and len(json.dumps(part, default=str)) % 2:
            part.update({name: value for name, value in _known().items() if name in part})
    return body


schemathesis.hook(map_body)
