"""Benchmarks as printed tables, and as JSON with the facts of the machine: `python -m benchmarks <name>`."""

from __future__ import annotations

import argparse
import importlib
import logging
from pathlib import Path

import torch

from .machine import settle_allocator
from .measure import Settings
from .report import Table, save, save_page

BENCHMARKS = {
    "ops": "the parts of a block, each by itself",
    "dit": "one forward of the transformer, constants computed before",
    "step": "a guided loop of 4 steps, constants computed inside",
    "vae": "the video VAE: encode with a grey tail, decode",
    "audio": "the speech encoder, 10 s and 60 s",
    "weights": "opening a file of weights, wall time and private memory",
    "acceleration": "presets, single knobs and precisions on the bundled model, 40 steps, against none",
    "gpu": "all of a card in ten minutes: ceilings, forwards, kernels, VAE, streaming, a clip",
    "rehearsal": "the published network on a fake card: FLOPs, bytes, kernels, memory; without a GPU",
    "clip": "a whole tiny run from a picture and a voice to frames, by preset",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmarks that the arguments name."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    settle_allocator()
    settings = _settings(args)
    torch.set_num_threads(settings.threads)
    for name in [name for name in BENCHMARKS if name != "gpu"] if args.name == "all" else [args.name]:
        table = Table(f"{name}: {BENCHMARKS[name]}")
        module = importlib.import_module(f"{__package__}.{name}")
        with torch.inference_mode():
            for row in module.run(settings):
                table.rows.append(row)
                print(row, flush=True)
        print(f"\n{table.markdown()}")
        if args.json:
            save(args.json, [table])
        if args.page:
            save_page(args.page, [table], args.json)


def _settings(args: argparse.Namespace) -> Settings:
    peers = tuple((name, Path(path)) for name, _, path in (peer.partition("=") for peer in args.peer))
    device = torch.device(args.device)
    return Settings(
        device=device,
        dtype=getattr(torch, args.dtype),
        threads=args.threads,
        wall=args.wall,
        rounds=args.rounds,
        sizes=tuple(args.sizes),
        peers=peers,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="\n".join((__doc__, "", *(f"  {name:13} {text}" for name, text in BENCHMARKS.items()))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", choices=[*BENCHMARKS, "all"])
    add("--sizes", nargs="+", default=[], help="instead of each benchmark's own; smoke runs in seconds")
    add("--rounds", type=int, default=Settings.rounds, help="of all variants, one after the other")
    add("--threads", type=int, default=Settings.threads)
    add("--wall", action="store_true", help="count wall time instead of the process's CPU time")
    add("--device", default="cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--peer", action="append", default=[], metavar="NAME=FILE.py", help="another implementation, see peers.py")
    add("--json", type=Path, help="adds the tables to this file")
    add("--page", type=Path, metavar="FILE.md", help="writes the tables as a page, with how to send them")
    return parser


if __name__ == "__main__":
    main()
