"""Trains the small model: `python -m demo.training [phase ...]`. Run it again to go on where it stopped."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from . import clips, guidance, speech_encoder, transformer, vae
from .run import RUN_FOLDER, Setup

PHASES = {
    "vae": vae.train,
    "speech_encoder": speech_encoder.train,
    "clips": clips.make,
    "transformer": transformer.train,
    "guidance": guidance.train,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the phases that the arguments name, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m demo.training", description=__doc__)
    parser.add_argument("phases", nargs="*", default="all", choices=[*PHASES, "all"], metavar="phase")
    parser.add_argument("--folder", type=Path, default=RUN_FOLDER, help="of the states and clips on disk")
    parser.add_argument("--seed", type=int, default=Setup.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, help="of every phase, instead of its own number")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    setup = Setup(options.folder, options.seed, torch.device(options.device), options.steps)
    for phase in PHASES if "all" in options.phases else options.phases:
        PHASES[phase](setup)


if __name__ == "__main__":
    main()
