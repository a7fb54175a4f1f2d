"""python -m backend serve | reconstruct | generate | train | evaluate | evaluate-views | weights | bench.

Blender's server, and work without it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from blender_addon.families import FAMILIES, PRECISIONS
from blender_addon.front_ends import DEFAULT_FRONT_END, FRONT_ENDS, SIDES

CUTS = ("auto", "alpha", "network", "plain", "none")  # as protocol.Cut, whose module needs numpy


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="python -m backend", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_reconstruct(
        commands.add_parser("reconstruct", help="make splats, and a textured mesh, of images with cameras")
    )
    _add_generate(commands.add_parser("generate", help="make splats, and a textured mesh, of a prompt or pictures"))
    _add_evaluate(commands.add_parser("evaluate", help="print the quality table of a folder of objects"))
    _add_evaluate_views(commands.add_parser("evaluate-views", help="judge the starter's views of prompts and pictures"))
    _add_train(commands.add_parser("train", help="train a network, or write the network of a run to a file"))
    _add_weights(commands.add_parser("weights", help="list, fetch, verify and remove published checkpoints"))
    bench = commands.add_parser("bench", help="print the speed table of this machine")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write the table to FILE")
    serve = commands.add_parser("serve", help="answer the Blender that started this; leaves when standard input closes")
    serve.add_argument("--endpoint-file", type=Path, required=True, help="gets the address to connect to, as JSON")
    serve.add_argument(
        "--idle-minutes", type=float, default=5.0, help="then an idle worker's memory is freed (%(default)s)"
    )
    commands.add_parser("warm-up", help="compile what the jobs run, so that the first one need not")
    commands.add_parser("worker", help="run the jobs of a server; started by it alone")
    return top


def _add_reconstruct(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "views",
        type=Path,
        metavar="VIEWS",
        help="a folder with transforms_input.json or transforms.json, or such a file",
    )
    command.add_argument("--model", choices=tuple(FAMILIES), default="fit", help="what makes the splats (%(default)s)")
    _add_result(command)


def _add_generate(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--prompt", default="", metavar="TEXT", help="what to make, in words")
    add(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture of it; or several of its sides, as SIDE=FILE: " + ", ".join(SIDES),
    )
    add(
        "--batch",
        type=Path,
        metavar="FILE",
        help="many: a text with a prompt a line, or a CSV with the columns prompt, image, seed, size, name, front_end; "
        "each gets its own folder in DIR, and the same command goes on where it was interrupted",
    )
    add("--front-end", choices=tuple(FRONT_ENDS), default=DEFAULT_FRONT_END, help="what makes views (%(default)s)")
    add("--front-end-weights", default="", metavar="FOLDER", help="its model; without it, the one that was fetched")
    add("--negative", default="", metavar="TEXT", help="what not to make")
    add("--candidates", type=int, default=1, metavar="N", help="sets of views, each with the next seed (%(default)s)")
    add("--candidate", type=int, default=0, metavar="K", help="the one that splats are made of (%(default)s)")
    add("--guidance", type=float, default=0.0, help="how much the prompt or picture counts; 0: the front end's own")
    add("--sampling-steps", type=int, default=0, metavar="N", help="of the front end; 0: its own")
    add("--cut", choices=CUTS, default="auto", help="how a picture's object is told from its background")
    add("--views-only", action="store_true", help="make no splats")
    add(
        "--model",
        choices=tuple(FAMILIES),
        default="",
        help="what makes the splats; without it, what suits the front end best",
    )
    _add_result(command)


def _add_result(command: argparse.ArgumentParser) -> None:
    """Options of what is made of views."""
    add = command.add_argument
    add(
        "--out", type=Path, required=True, metavar="DIR", help="gets splats.ply, report.json, mesh.glb and the pictures"
    )
    add("--weights", default="", metavar="NAME_OR_PATH", help="a checkpoint; without it, the model's default")
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of a network's numbers; auto: the most exact that fits into the memory",
    )
    add("--steps", type=int, default=0, help="optimisation steps of fit; 0: the default for these views")
    add("--refine", type=int, default=0, metavar="STEPS", help="steps of fit that start from the model's result")
    add("--max-splats", type=int, default=0, help="most splats to use; 0: the default")
    add("--mesh", action="store_true", help="also make a textured mesh, mesh.glb")
    add("--faces", type=int, default=20_000, help="most faces of the mesh (%(default)s)")
    add("--texture-size", type=int, default=1024, help="pixels of a side of the mesh's texture (%(default)s)")
    add(
        "--size",
        type=float,
        default=0.0,
        metavar="METRES",
        help="longest side of the result, which then stands on the origin; 0: it stays as the cameras saw it",
    )
    add(
        "--cameras",
        type=Path,
        metavar="TRANSFORMS.json",
        help="render each of its frames to a picture of the frame's name",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    add("--seed", type=int, default=0)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "dataset",
        type=Path,
        metavar="DATASET",
        help="a folder of objects, each with transforms_input.json, transforms_test.json and their pictures",
    )
    add(
        "--model",
        action="append",
        default=[],
        metavar="METHOD",
        help="what is judged, may be given several times: nearest, hull, "
        + ", ".join(FAMILIES)
        + "; grm+100 is refined by 100 steps of fit; fit@10s stops after 10 seconds (fit)",
    )
    add("--baselines", action="store_true", help="also nearest, hull, fit@10s and fit@60s")
    add("--weights", default="", metavar="NAME_OR_PATH", help="the networks' checkpoint; without it, their defaults")
    add("--refine", type=int, default=0, metavar="STEPS", help="the same as +STEPS at each network that has none")
    add("--mesh", action="store_true", help="judge meshes too")
    add("--lpips", type=Path, metavar="PATH", help="the weights of LPIPS, a file or a folder")
    add("--json", type=Path, metavar="FILE", help="also write the table to FILE")
    add("--objects", type=int, metavar="N", help="the first N objects alone")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    add("--seed", type=int, default=0)


def _add_evaluate_views(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="gets sheet.png, views.json and the objects to learn from",
    )
    add("--assets", type=Path, metavar="FOLDER", help="models and textures, as training has them")
    add("--weights", type=Path, metavar="FOLDER", help="holds views.safetensors; without it, what ships")
    add("--objects", type=int, default=2000, help="that the classifier learns from, in hundreds (%(default)s)")
    add("--prompts", type=int, default=200, help="for kinds in colours that were never learned from (%(default)s)")
    add("--pictures", type=Path, metavar="DATASET", help="objects, as evaluate has them, to make of their first view")
    add("--steps", type=int, default=900, help="of the classifier (%(default)s)")


def _add_train(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("config", nargs="?", type=Path, metavar="CONFIG.json", help="what to train, see backend/train_config.py")
    add("--out", type=Path, required=True, metavar="DIR", help="of the run, which goes on if it is there; or the file")
    add("--export", type=Path, metavar="RUN", help="train nothing: write the best network of this run to --out")
    add("--minutes", type=float, default=0.0, help="how long the whole run takes, instead of what CONFIG.json says")
    add("--stop-after", type=float, default=0.0, metavar="MINUTES", help="leave then; the same command goes on later")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")


def _add_weights(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("action", choices=("list", "fetch", "verify", "remove"), help="what to do")
    add("name", nargs="?", default="", metavar="NAME", help="a checkpoint; without it, list and verify take all")
    add("--accept-licence", action="store_true", help="you have read the checkpoint's licence and accept it")
    add("--json", action="store_true", help="tell everything as lines of JSON")
    add("--with-parent", action="store_true", help="leave when standard input closes")


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 success, 1 something broke, 2 bad input, 130 interrupted.

    What a command needs is imported once it is known: `serve` must be quick and small, the rest reads gigabytes.
    """
    given = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s: %(message)s")
    match given.command:
        case "serve":
            from backend.server import serve

            serve(given.endpoint_file, idle_seconds=60 * given.idle_minutes)
            return 0
        case "worker":
            from backend import worker

            worker.work(worker.Desk(), worker.describe_device)
            return 0
        case "warm-up":
            from backend.warm_up import warm_up

            warm_up()
            return 0
        case "weights":
            from backend.weights_command import weights

            return weights(given)
        case "bench":
            from backend.bench import bench

            return bench(given.json)
        case "train":
            from backend import train_command

            return train_command.command(given)
        case "generate":
            from backend.generate_command import generate

            return generate(given)
        case "evaluate":
            from backend import evaluate_command

            return evaluate_command.command(given)
        case "evaluate-views":
            from backend import views_evaluation_command

            return views_evaluation_command.command(given)
        case _:
            from backend.command_line import reconstruct

            return reconstruct(given)


if __name__ == "__main__":
    sys.exit(main())
