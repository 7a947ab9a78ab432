"""Many machines: a pool of engines as Ray actors (extra `ray`), each with its own share of CPUs and GPUs.

The prompts are cut into pieces, and each idle actor gets the next piece. Finished answers go to the driver, which
stores them. The store, not Ray, is the checkpoint: if an actor or a node is lost, only the pieces that it was working
on are run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llm4msr.errors import InputError
from llm4msr.knowledge.engines.base import Engine, Generation, Outcome, Refusal

_TRIES = 3
"""How often a piece is given to an actor before its prompts are refused."""


class RayEngine:
    """Engines in other processes, on this machine or on a cluster.

    Args:
        make: makes the engine, in each actor's own process.
        address: the cluster's address, or "local" for actors on this machine.
        actors: how many engines there are.
        cpus, gpus: the resources of each engine; Ray places them accordingly.
        piece: the number of prompts that an actor gets at once.

    Raises `InputError` if Ray is not installed, the cluster cannot be reached, or no engine can be made there.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        *,
        address: str = "local",
        actors: int = 1,
        cpus: float = 1.0,
        gpus: float = 0.0,
        piece: int = 256,
    ) -> None:
        self._ray = ray = _import_ray()
        try:
            if not ray.is_initialized():
                ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"the Ray cluster {address!r} cannot be reached: {error}") from error
        self._actor_type = ray.remote(num_cpus=cpus, num_gpus=gpus)(_Actor)
        self._make, self._piece = make, piece
        self._actors = [self._start() for _ in range(actors)]
        try:
            self._identity, self.model_name, self._special_tokens = ray.get(self._actors[0].about.remote())
        except ray.exceptions.RayError as error:
            self.close()
            raise InputError(f"no engine can be made on the Ray cluster: {str(error).splitlines()[-1]}") from error

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the engines: the place where they run does not change an answer."""
        return dict(self._identity)

    @property
    def special_tokens(self) -> Sequence[str]:
        """The special tokens of the engines' model."""
        return tuple(self._special_tokens)

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[Sequence[tuple[int, Outcome]]]:
        """Give the pieces to idle actors, and yield the answers of each piece when it is finished.

        A lost actor is replaced. An error of an engine is raised here.
        """
        ray = self._ray
        waiting = [range(i, min(i + self._piece, len(prompts))) for i in range(0, len(prompts), self._piece)][::-1]
        tries: dict[range, int] = {}
        working: dict[Any, tuple[int, range]] = {}
        idle = list(range(len(self._actors)))
        while waiting or working:
            while waiting and idle:
                actor, piece = idle.pop(), waiting.pop()
                reference = self._actors[actor].answers.remote([prompts[i] for i in piece], generation)
                working[reference] = (actor, piece)
            (done, *_), _ = ray.wait(list(working), num_returns=1)
            actor, piece = working.pop(done)
            try:
                answers = ray.get(done)
            except ray.exceptions.RayTaskError as error:  # an error of the engine itself: every actor would have it
                if isinstance(error.cause, InputError):
                    raise error.cause from error
                raise
            except ray.exceptions.RayError as error:
                self._actors[actor] = self._start()
                tries[piece] = tries.get(piece, 0) + 1
                if tries[piece] < _TRIES:
                    waiting.append(piece)
                else:
                    reason = f"lost {_TRIES} times on the Ray cluster: {str(error).splitlines()[0]}"
                    yield [(place, Refusal(reason)) for place in piece]
            else:
                yield [(piece[place], outcome) for place, outcome in answers]
            idle.append(actor)

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _start(self) -> Any:
        return self._actor_type.remote(self._make)


class _Actor:
    """One engine, in a process of its own."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._engine = make()

    def about(self) -> tuple[dict[str, Any], str, Sequence[str]]:
        return self._engine.identity, self._engine.model_name, self._engine.special_tokens

    def answers(self, prompts: list[str], generation: Generation) -> list[tuple[int, Outcome]]:
        return [pair for batch in self._engine.run(prompts, generation) for pair in batch]


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed: pip install 'llm4msr[ray]', or use --shard without it") from error
    return ray
