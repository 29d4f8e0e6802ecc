"""Trains the small MultiTalk: `python -m demo.train`. Run it again to go on where it was stopped."""

from __future__ import annotations

import argparse
import logging

import torch

from . import train_audio, train_clips, train_transformer, train_vae

STAGES = {
    "vae": train_vae.train,
    "decoder": train_vae.train_decoder,
    "eyes": train_vae.train_eyes,
    "audio": train_audio.train,
    "clips": train_clips.train,
    "transformer": train_transformer.train,
}


def main() -> None:
    """Runs the asked stages in their order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", default=list(STAGES), choices=list(STAGES), metavar="stage")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    for stage in options.stages:
        STAGES[stage](options.seed, torch.device(options.device))


if __name__ == "__main__":
    main()
