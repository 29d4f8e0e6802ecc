"""A worker of a batch: one process that makes clips one after the other and keeps the models of the last."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import time
from dataclasses import replace

import psutil
import torch

from ..__main__ import make_pipeline, make_request
from ..errors import MultiTalkError, Problems
from ..host import Preview, Progress, TorchHost
from ..multitalk_pipeline import CheckedRequest, MultiTalkPipeline
from .manifest import Job
from .results import Failure, OutputFolder, Result

logger = logging.getLogger(__name__)

IDLE = Progress("waiting", 0)


class WorkerHost(TorchHost):
    """A host that keeps its last progress for another thread, and the first window of the clip."""

    def __init__(self) -> None:
        super().__init__()
        self.progress, self.first_window = IDLE, 0

    def start_clip(self) -> None:
        """Forgets the clip before."""
        self.progress, self.first_window = IDLE, 0

    def report(self, progress: Progress, preview: Preview | None = None) -> None:
        """Keeps it."""
        self.progress = progress
        self.first_window = self.first_window or progress.window


class ClipWorker:
    """Makes the clips of jobs, one at a time; `progress` may be called from another thread meanwhile.

    Args:
        output: where videos and sidecars go.
        num_devices: that share each clip.
    """

    def __init__(self, output: OutputFolder, num_devices: int = 1):
        self._output, self._num_devices, self._host = output, num_devices, WorkerHost()
        self._pipeline: MultiTalkPipeline | None = None

    def name(self) -> str:
        """Host and process."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def progress(self) -> Progress:
        """Position of the present clip."""
        return self._host.progress

    def make(self, job: Job) -> Result | Failure:
        """Makes a clip with its sidecar, or says why there is none. A request that cannot run leaves models loaded."""
        start_s, problems = time.monotonic(), Problems()
        self._host.start_clip()
        if self._host.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._host.device)
        try:
            talk, run = self.check(job, problems)
            if self._pipeline is not None and self._pipeline.ranks is not talk.ranks:
                self._pipeline.close()
            self._pipeline = talk
            self._write(talk, run)
        except MultiTalkError as error:
            return Failure(str(error))
        num_windows = len(run.spec.windows)
        result = Result(
            id=job.id,
            digest=job.digest,
            video=self._output.video(job).name,
            num_windows=num_windows,
            first_window=self._host.first_window or num_windows + 1,
            seconds=round(time.monotonic() - start_s, 3),
            memory_bytes=self._memory_bytes(),
            worker=self.name(),
            notes=problems.notes,
        )
        self._output.save(job, result)
        return result

    def check(self, job: Job, problems: Problems) -> tuple[MultiTalkPipeline, CheckedRequest]:
        """The pipeline of a job, with the models of the last one where they are the same, and its checked request.

        Raises:
            ConfigError: all that is wrong with it, at once.
        """
        args = argparse.Namespace(**(vars(job.args) | {"devices": self._devices()}))
        talk = make_pipeline(args, self._host, problems)
        request = make_request(args, problems)
        run = talk.check(request, self._output.video(job), self._output.unfinished, problems)
        if self._pipeline is not None:
            model, last = talk.model, self._pipeline.model
            if (model.base, model.adapter, model.dtype) == (last.base, last.adapter, last.dtype):
                talk.model = replace(model, shared=last.shared)
            ranks = self._pipeline.ranks
            if talk.ranks is not None and ranks is not None and talk.ranks.split is ranks.split:
                talk.ranks = ranks
        return talk, run

    def _devices(self) -> tuple[str, ...]:
        """Names of the devices that share a clip; none for one."""
        if self._num_devices == 1:
            return ()
        is_card = self._host.device.type == "cuda"
        return tuple(f"cuda:{index}" if is_card else "cpu" for index in range(self._num_devices))

    @torch.inference_mode()
    def _write(self, talk: MultiTalkPipeline, run: CheckedRequest) -> None:
        talk.write(*talk.encode(run), run.spec, run.setup, run.estimate)

    def _memory_bytes(self) -> int:
        if self._host.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._host.device)
        return psutil.Process().memory_info().rss
