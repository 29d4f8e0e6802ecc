"""The workers of a batch as actors of Ray, each with a device of its own."""

from __future__ import annotations

import logging
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MultiTalkError
from ..host import Progress
from .manifest import Job
from .results import Failure, OutputFolder, Result
from .schedule import Lost
from .worker import ClipWorker

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3  # of workers, one after the other
MISSING_RAY = 'Ray is not installed. Install it with: pip install "ray>=2.40"'
IMPORT_ROOT = Path(__file__).parents[__name__.count(".")]  # where the engine's package lies


@dataclass
class _Actor:
    """An actor, the answer that it owes, and its job; `name` once it is ready.

    Attributes:
        handle: Ray's.
        answer: of its start or of its job; None while it is idle.
        position: an answer to come about its progress.
        progress: the last answer.
    """

    handle: Any
    answer: Any
    name: str = ""
    job: Job | None = None
    position: Any = None
    progress: Progress = field(default_factory=lambda: Progress("waiting", 0))


class RayPool:
    """Workers on a local Ray, or on a cluster.

    Args:
        output: the output folder, which all hosts see under the same path.
        address: of the cluster, such as `ray://host:10001`; None starts a Ray on this machine.
        devices_per_job: GPUs of each worker; CPUs where there is no GPU.
        max_workers: None takes every device.
        verbose: shows the workers' logs.

    Raises:
        ConfigError: Ray is not installed, or the cluster has too few devices.
        MultiTalkError: Ray does not start, or cannot be reached.
    """

    def __init__(
        self, output: OutputFolder, address: str | None, devices_per_job: int, max_workers: int | None, verbose: bool
    ):
        # What a person has set counts. Otherwise Ray reports its use, and keeps a key in the home folder.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a busy machine takes long
        if address is None and "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        try:
            import ray
        except ImportError as error:
            raise ConfigError(MISSING_RAY) from error
        self._ray, self._output = ray, output
        self._devices, self._max_workers = devices_per_job, max_workers
        self._actors: list[_Actor] = []
        self._failed_starts = 0
        local: dict[str, Any] = {"include_dashboard": False}
        if max_workers is not None:
            local["num_cpus"] = max(os.cpu_count() or 1, max_workers * devices_per_job)
        paths = [str(IMPORT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            ray.init(
                address=address or "local",
                log_to_driver=verbose,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
                **({} if address else local),
            )
        except Exception as error:  # the bare class, where its processes do not start
            raise MultiTalkError(
                f"Ray cannot be used ({error}). Check the address and that its version and Python's are the same there."
            ) from error
        if not self._capacity:
            raise ConfigError(
                f"A job takes {devices_per_job} devices, the cluster has {self._num_devices:g}. Take fewer."
            )

    def close(self) -> None:
        """Ends the workers, and the Ray that was started here."""
        self._ray.shutdown()

    def grow(self, num_jobs: int) -> None:
        """Starts workers, as many as there are jobs and devices; hosts that joined the cluster are used too."""
        for _ in range(len(self._actors), min(num_jobs, self._capacity)):
            kind = "num_gpus" if self._resources.get("GPU") else "num_cpus"
            # A new worker takes the place of a lost one: jobs that are handed to a restarting actor are lost with it.
            options = {"num_cpus": 1, "max_restarts": 0, "max_concurrency": 2, kind: self._devices}
            handle = self._ray.remote(**options)(ClipWorker).remote(self._output, self._devices)
            self._actors.append(_Actor(handle, handle.name.remote()))

    def submit(self, job: Job) -> str | None:
        """Hands a job to an idle worker and returns the worker's name; None where there is none."""
        actor = next((actor for actor in self._actors if actor.answer is None), None)
        if actor is None:
            return None
        actor.job, actor.progress, actor.position = job, Progress("waiting", 0), None
        actor.answer = actor.handle.make.remote(job)
        return actor.name

    def wait(self, timeout_s: float) -> list[tuple[Job, Result | Failure | Lost]]:
        """The jobs that have ended since, after at most `timeout_s`.

        Raises:
            MultiTalkError: no worker can be started.
        """
        answers = [actor.answer for actor in self._actors if actor.answer is not None]
        if not answers:  # no host has a device at the moment
            time.sleep(timeout_s)
            return []
        ready, _ = self._ray.wait(answers, num_returns=len(answers), timeout=timeout_s)
        ended = []
        for actor in [actor for actor in self._actors if actor.answer in ready]:
            job, outcome = actor.job, self._outcome(actor)
            actor.job = actor.answer = None
            if job is not None and not isinstance(outcome, str):
                ended.append((job, outcome))
            elif isinstance(outcome, str):
                actor.name, self._failed_starts = outcome, 0
            else:
                self._count_failed_start(outcome)
        return ended

    def progress(self) -> dict[str, Progress]:
        """Position of each running clip, by the job's id, as far as workers have answered."""
        running = [actor for actor in self._actors if actor.job is not None]
        for actor in running:
            if actor.position is None:
                actor.position = actor.handle.progress.remote()
            elif self._ray.wait([actor.position], timeout=0)[0]:
                try:
                    actor.progress = self._ray.get(actor.position)
                except self._ray.exceptions.RayError:
                    continue  # its job's answer says so too
                actor.position = None
        return {actor.job.id: actor.progress for actor in running if actor.job is not None}

    def _outcome(self, actor: _Actor) -> str | Result | Failure | Lost:
        """The answer of an actor: its name, or its job's; an actor that raised or died is let go."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(actor.answer)
        except errors.RayTaskError as error:  # a fault of the program, after which a device may be unusable
            logger.error("%s", error)
            outcome = Failure(f"{type(error.cause).__name__}: {error.cause}")
        except errors.ActorUnavailableError as error:
            outcome = Lost(_first_line(error), counts=False)
        except errors.RayError as error:
            outcome = Lost(_first_line(error))
        self._actors.remove(actor)
        self._ray.kill(actor.handle)
        return outcome

    def _count_failed_start(self, outcome: Result | Failure | Lost) -> None:
        self._failed_starts += 1
        reason = outcome.reason if isinstance(outcome, Lost) else str(outcome)
        logger.warning("A worker did not start (%s).", reason)
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise MultiTalkError(
                f"{MAX_FAILED_STARTS} workers did not start, the last with: {reason}. The pack and its requirements "
                f"must be on every host, under the same path."
            )

    @property
    def _resources(self) -> dict[str, float]:
        return self._ray.cluster_resources()

    @property
    def _num_devices(self) -> float:
        return self._resources.get("GPU") or self._resources.get("CPU", 0)

    @property
    def _capacity(self) -> int:
        """Workers that the devices allow."""
        workers = int(self._num_devices // self._devices)
        return workers if self._max_workers is None else min(workers, self._max_workers)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
