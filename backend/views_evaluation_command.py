"""`python -m backend evaluate-views`: what the starter's generator makes of prompts, as a picture and as figures."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from backend.bad_input import BadInput
from backend.evaluate import evaluate, find_objects, read_entries
from backend.exit_status import BAD_INPUT, BROKEN, SUCCESS, complain
from backend.metrics import over
from backend.monitor import Silent
from backend.multiview import Budget, Sampler, Wish, load
from backend.views_evaluation import agreement, consistency, from_one_picture, mean_object, straight, trained_judge
from backend.views_objects import Objects, Wanted, make_objects, read_objects
from backend.weights import STARTER
from blender_addon.atomic_file import replacing
from blender_addon.front_ends import FRONT_ENDS

UNSEEN = (  # kinds in colours that no object to learn from had: see captioned.is_held_out
    "a turquoise chair",
    "a dark green table",
    "a black mug",
    "a turquoise house",
    "a pink car",
    "a blue bottle",
    "a light blue robot",
    "a purple tree",
)
PARAPHRASES = (  # pairs that should look alike
    "a red wooden chair",
    "chair, scarlet, timber",
    "a blue sofa",
    "couch in azure",
    "a shiny metal lamp",
    "polished steel table lamp",
    "a small green hut",
    "emerald cabin",
)
OTHERS = (
    "a white bed with a blue blanket",
    "a brown dog",
    "a yellow boat",
    "a grey robot with red arms",
    "a birthday cake with pink icing",
    "a red mushroom with a white stem",
    "a wooden ladder",
    "a black sword with a gold guard",
    "a potted plant",
    "a striped vase",
    "a blue rocket",
    "a stack of books",
    "a red fire truck",
    "an orange fish",
    "a gold star",
    "a dark green sofa",
)
SIDE, TEXT, COLUMNS = 96, 16, 2  # of a view on the sheet, of a line under it, and of prompts beside one another
CONSISTENT = 8  # sets of views that a fit is made of


def command(given: argparse.Namespace) -> int:
    """Runs the command with its parsed options; returns the exit status."""
    try:
        return _evaluate(given)
    except BadInput as error:
        return complain(str(error), BAD_INPUT)
    except OSError as error:
        return complain(f"{error.filename or given.out}: {error.strerror or error}", BROKEN)


def _evaluate(given: argparse.Namespace) -> int:
    sampler = load("starter", given.weights or STARTER, Budget(torch.device("cpu")))
    given.out.mkdir(parents=True, exist_ok=True)
    sheet(sampler, UNSEEN + PARAPHRASES + OTHERS).save(given.out / "sheet.png")
    config = Wanted(objects=given.objects, held_out=given.prompts, assets=given.assets)
    make_objects(config, given.out / "objects", Silent())
    learned, unseen = (read_objects(config, given.out / "objects", held_out=part) for part in (False, True))
    judge = trained_judge(learned, steps=given.steps)
    found, views = agreement(judge, sampler, unseen, given.prompts, Silent())
    some = straight(views[:: max(1, len(views) // CONSISTENT)][:CONSISTENT].movedim(2, -1))
    fits = [consistency(one) for one in some]
    figures = vars(found) | {"kinds": len(judge.kinds), "consistency": statistics.fmean(fits), "least": min(fits)}
    if given.pictures is not None:
        figures |= _from_one_picture(given.pictures, sampler, learned)
    with replacing(given.out / "views.json") as file:
        file.write(json.dumps(figures, indent=1).encode())
    for name, value in figures.items():
        print(f"{name:14} {value:.3f}" if isinstance(value, float) else f"{name:14} {value}")  # noqa: T201
    return SUCCESS


def _from_one_picture(dataset: Path, sampler: Sampler, learned: Objects) -> dict[str, float]:
    """Mean PSNR and overlap of the masks, of what one picture became and of the mean object."""
    entries = list(read_entries(find_objects(dataset)))
    told: dict[str, float] = {}
    for name, method in (("picture", from_one_picture(sampler)), ("mean_object", mean_object(learned))):
        found = evaluate(entries, method, method=name).mean()
        if found is not None:
            told |= {f"{name}_psnr": found.psnr, f"{name}_iou": found.iou, f"{name}_seconds": found.seconds}
    return told


def sheet(sampler: Sampler, prompts: tuple[str, ...]) -> Image.Image:
    """The views of each prompt in a row over white, the prompt beneath; seeds are the prompts' numbers."""
    starter = FRONT_ENDS["starter"]
    rows = -(-len(prompts) // COLUMNS)
    picture = Image.new("RGB", (COLUMNS * (4 * SIDE + TEXT), rows * (SIDE + TEXT)), "white")
    draw = ImageDraw.Draw(picture)
    for number, prompt in enumerate(prompts):
        wish = Wish(prompt, "", None, starter.steps, starter.guidance, number)
        views = over(sampler.sample(wish, Silent()), 1.0)
        strip = (torch.cat(list(views), dim=1).clamp(0, 1) * 255).round().byte().numpy()
        x, y = number % COLUMNS * (4 * SIDE + TEXT), number // COLUMNS * (SIDE + TEXT)
        picture.paste(
            Image.fromarray(np.ascontiguousarray(strip)).resize((4 * SIDE, SIDE), Image.Resampling.LANCZOS), (x, y)
        )
        draw.text((x + 4, y + SIDE + 1), prompt, fill="black")
    return picture
