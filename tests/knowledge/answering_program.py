"""A program that speaks the protocol of the engine `command`, well or badly: `answering_program.py MODE [LOG]`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def say(message: object) -> None:
    print(json.dumps(message), flush=True)


def answer(asked: dict[str, object]) -> dict[str, object]:
    prompt = str(asked["prompt"])
    return {"id": asked["id"], "text": prompt.upper(), "vector": [len(prompt), 1.5], "prompt_tokens": len(prompt)}


def main(mode: str, log: str = "") -> None:
    json.loads(sys.stdin.readline())
    if mode == "once" and Path(log).exists():
        sys.exit(4)
    if mode == "silent":
        time.sleep(60)
    version = 2 if mode == "newer" else 1
    name = f"echo {os.getpid()}" if mode == "changing" else "echo"
    say({"protocol": version, "identity": {"model": name}, "special_tokens": ["<x>"]})
    if mode == "deaf":
        time.sleep(60)
    held: list[dict[str, object]] = []
    for line in sys.stdin:
        asked = json.loads(line)
        if log:
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(f"{asked['prompt']}\n")
        if mode in ("dies", "changing", "once") and asked["prompt"] == "deadly":
            sys.exit(3)
        if mode == "hangs" and asked["prompt"] == "deadly":
            time.sleep(60)
        if mode == "garbage" and asked["prompt"] == "deadly":
            print("Traceback: oh no", flush=True)
            continue
        if mode == "latin-1" and asked["prompt"] == "deadly":
            sys.stdout.buffer.write(b"warning: caf\xe9\n")
            sys.stdout.buffer.flush()
            continue
        if mode == "closes" and asked["prompt"] == "deadly":
            os.close(1)
            time.sleep(60)
        if mode == "refuses" and asked["prompt"] == "deadly":
            say({"id": asked["id"], "error": "too deadly"})
            continue
        if mode == "without-vector" and asked["prompt"] == "deadly":
            say({"id": asked["id"], "text": "no"})
            continue
        if mode == "backwards":
            held.append(asked)
            if len(held) == 3:
                for one in held[::-1]:
                    say(answer(one))
            continue
        say(answer(asked))


if __name__ == "__main__":
    main(*sys.argv[1:])
