"""Odd and hostile input: how many examples are tried, and what may come of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from multitalk_pack.pipeline.errors import MultiTalkError

T = TypeVar("T")

EXAMPLES = int(os.environ.get("MULTITALK_FUZZ_EXAMPLES", "12"))
REPEATS = "MULTITALK_FUZZ_EXAMPLES" not in os.environ  # the same examples in every run of all tests

fuzzed = settings(
    max_examples=EXAMPLES,
    derandomize=REPEATS,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def works_or_says_why(call: Callable[..., T], *given: Any, **named: Any) -> T | None:
    """What `call` gives; None where it raises one of our errors, in whole sentences. Any other error is a failure."""
    try:
        return call(*given, **named)
    except MultiTalkError as error:
        text = str(error)
        assert text[:1].strip() and text.rstrip().endswith((".", ")")), text
        return None


class JobMonitor:
    """What Python does to files while somebody watches: the paths that were opened, and those that were changed."""

    def __init__(self):
        self.opened: set[Path] = set()
        self.changed: set[Path] = set()
        self.ran: list[str] = []
        self._is_on = False
        sys.addaudithook(self._hear)  # for good: there is no way to take one off

    @contextmanager
    def on(self):
        """Forgets what was, and watches what happens inside."""
        self.opened, self.changed, self.ran, self._is_on = set(), set(), [], True
        try:
            yield self
        finally:
            self._is_on = False

    def _hear(self, event: str, given: tuple) -> None:
        if not self._is_on:
            return
        if event == "open" and isinstance(given[0], str | bytes | os.PathLike):
            is_write = bool((given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            (self.changed if is_write else self.opened).add(_absolute(given[0]))
        elif event in ("os.remove", "os.rmdir") and given[1] != -1:
            pass  # a name inside an open folder, for which `shutil.rmtree` was told before
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            self.changed.add(_absolute(given[0]))
        elif event in ("os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.move"):
            self.changed.update((_absolute(given[0]), _absolute(given[1])))
        elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"):
            self.ran.append(f"{event} {given}")


def _absolute(path: Any) -> Path:
    return Path(os.path.abspath(os.fsdecode(path)))


WATCH = JobMonitor()
