"""`python -m pipeline.batch`: the lines of a manifest become videos, on every device of a Ray cluster."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from contextlib import closing
from pathlib import Path

from ..__main__ import INTERRUPTED, INVALID_INPUT, show_progress
from ..errors import MultiTalkError
from ..host import Progress, RemainingTime, format_duration
from ..media.files import check_output
from .manifest import Manifest
from .preflight import preflight
from .ray_pool import RayPool
from .results import OutputFolder, Row, table
from .schedule import Batch, BatchState

FAILED = 1
LONGEST_TABLE = 100  # rows; above, those of clips that were made are left to their sidecars


class TerminalBoard:
    """Shows a batch as one line of progress, with a line above it for each failure."""

    def __init__(self) -> None:
        self._remaining = RemainingTime()

    def show(self, state: BatchState, progress: dict[str, Progress]) -> None:
        """Rewrites the line."""
        fraction = state.fraction(progress)
        left_s = self._remaining.left_s(fraction)
        counts = [
            f"{state.num_made} made", f"{len(state.running)} running", f"{len(state.waiting)} waiting",
            f"{state.num_skipped} finished before", f"{state.num_failed} failed",
        ]  # fmt: skip
        left = [] if left_s is None or fraction >= 1 else [f"about {format_duration(left_s)} left"]
        show_progress(fraction, ", ".join([*counts, *left]))

    def say(self, row: Row) -> None:
        """Prints a failure above the line."""
        print(f"\r\033[Kline {row.line}, {row.id}: {row.remarks}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the batch; 0 when every line is a video, 1 when any failed, 2 when it cannot start."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.ERROR, format="%(message)s")
    output = OutputFolder(args.output_folder.absolute())
    try:
        manifest = Manifest(args.manifest)
        num_failed = _preflight(manifest, output) if args.dry_run else _run(manifest, output, args)
    except MultiTalkError as error:
        print(f"\n{error}", file=sys.stderr)
        return INVALID_INPUT
    except KeyboardInterrupt:
        print("\nStopped. Videos and finished windows are kept, the same command goes on from them.", file=sys.stderr)
        return INTERRUPTED
    return FAILED if num_failed else 0


def _run(manifest: Manifest, output: OutputFolder, args: argparse.Namespace) -> int:
    start_s = time.monotonic()
    check_output(output.root / "journal.jsonl")
    output.root.mkdir(parents=True, exist_ok=True)
    with closing(RayPool(output, args.address, args.devices_per_job, args.workers, args.verbose)) as pool:
        state = Batch(manifest, output, pool, TerminalBoard()).run()
    rows = [row for row in state.rows if row.state == "failed" or len(state.rows) <= LONGEST_TABLE]
    duration = format_duration(time.monotonic() - start_s)
    print(f"\n{table(rows)}" if rows else "")
    print(
        f"{state.num_made} made, {state.num_skipped} finished before, {state.num_failed} failed, in {duration}. "
        f"Videos: {output.root}"
    )
    return state.num_failed


def _preflight(manifest: Manifest, output: OutputFolder) -> int:
    lines = list(manifest.read(is_final=True))
    batch = preflight(lines, output, lambda count: show_progress(count / len(lines), f"line {count + 1}"))
    print("\r\033[K", end="", file=sys.stderr, flush=True)
    if batch.rows:
        print(f"{table(batch.rows)}\n")
    print(batch.describe())
    return batch.num_failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.batch", description=__doc__)
    add = parser.add_argument
    add("manifest", type=Path, help="a file of JSON lines, each a clip by the names of python -m pipeline, underscored")
    add("--output-folder", type=Path, required=True, help="of the videos; hosts of a cluster see it at the same path")
    add("--address", help="of a Ray cluster, such as ray://host:10001; left out, Ray is started on this machine")
    add(
        "--devices-per-job", type=_positive, default=1, metavar="N", help="GPUs for each clip; CPUs where there is none"
    )
    add("--workers", type=_positive, metavar="N", help="clips at a time; left out, as many as the devices allow")
    add("--dry-run", action="store_true", help="checks every line here, makes nothing, tells total time and disk")
    add("--verbose", action="store_true", help="shows the workers' logs")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
