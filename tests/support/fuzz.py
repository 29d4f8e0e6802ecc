"""Odd and hostile input: how many examples are tried, and what may come of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from multitalk_pack.pipeline.errors import MultiTalkError

T = TypeVar("T")

EXAMPLES = int(os.environ.get("MULTITALK_FUZZ_EXAMPLES", "12"))
REPEATS = "MULTITALK_FUZZ_EXAMPLES" not in os.environ  # the same examples in every run of all tests

_fuzzing = settings(
    max_examples=EXAMPLES,
    derandomize=REPEATS,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def fuzzed(test: Callable[..., None]) -> Callable[..., None]:
    """A test that a few examples run through in `make test`, and many in `make test-long`."""
    return pytest.mark.fuzz(_fuzzing(test))


def refuses_in_words(call: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
    """The result of `call`; None where it raises one of our errors, in whole sentences. Other errors fail the test."""
    try:
        return call(*args, **kwargs)
    except MultiTalkError as error:
        text = str(error)
        assert text[:1].strip() and text.rstrip().endswith((".", ")")), text
        return None


class FileMonitor:
    """A record of what Python does to files: the paths that it reads, and those that it writes."""

    def __init__(self):
        self.paths_read: set[Path] = set()
        self.paths_out: set[Path] = set()
        self.ran: list[str] = []
        self._is_on = False
        sys.addaudithook(self._audit)  # for good: there is no way to take one off

    @contextmanager
    def on(self):
        """Forgets what was, and watches what happens inside."""
        self.paths_read, self.paths_out, self.ran, self._is_on = set(), set(), [], True
        try:
            yield self
        finally:
            self._is_on = False

    def _audit(self, event: str, args: tuple) -> None:
        if not self._is_on:
            return
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            is_write = bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            (self.paths_out if is_write else self.paths_read).add(_absolute(args[0]))
        elif event in ("os.remove", "os.rmdir") and args[1] != -1:
            pass  # a name inside an open folder, for which `shutil.rmtree` was told before
        elif event == "os.mkdir" and _absolute(args[0]).is_dir():
            pass  # it will fail, and changes nothing
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            self.paths_out.add(_absolute(args[0]))
        elif event in ("os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.move"):
            self.paths_out.update((_absolute(args[0]), _absolute(args[1])))
        elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"):
            self.ran.append(f"{event} {args}")


def _absolute(path: Any) -> Path:
    return Path(os.path.abspath(os.fsdecode(path)))


MONITOR = FileMonitor()
