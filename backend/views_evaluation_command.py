"""`python -m backend evaluate-views`: what the starter's generator makes of prompts, as a picture and as figures."""

from __future__ import annotations

import argparse
import json
import statistics

import numpy as np
import torch
from PIL import Image, ImageDraw

from backend.bad_input import BadInput
from backend.cameras import Cameras, Views
from backend.compositing import over, straight
from backend.evaluate import Entry, Failure, Guess, evaluate, find_objects, read_entries
from backend.exit_status import BAD_INPUT, BROKEN, SUCCESS, complain
from backend.monitor import Silent
from backend.multiview import Budget, Sampler, Wish, load
from backend.views_evaluation import agreement, consistency, from_one_picture, mean_object, trained_judge
from backend.views_objects import FILE, Objects, Wanted, make_objects, read_objects
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
UNKNOWN = 1.4  # times the prompts: objects that are made for them, as the classifier does not know every kind
COMPARED = (1, 4, 7)  # test views that are shown side by side
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
    apart = FILE * -(-UNKNOWN * given.prompts // FILE)
    config = Wanted(objects=given.objects, held_out=int(apart), assets=given.assets)
    make_objects(config, given.out / "objects", Silent())
    learned, unseen = (read_objects(config, given.out / "objects", held_out=part) for part in (False, True))
    judge = trained_judge(learned, steps=given.steps)
    found, views = agreement(judge, sampler, unseen, given.prompts, Silent())
    some = straight(views[:: max(1, len(views) // CONSISTENT)][:CONSISTENT].movedim(2, -1))
    fits = [consistency(one) for one in some]
    figures = vars(found) | {"kinds": len(judge.kinds), "consistency": statistics.fmean(fits), "least": min(fits)}
    if given.pictures is not None:
        entries = list(read_entries(find_objects(given.pictures)))
        shown, told = _from_one_picture(entries, sampler, learned)
        shown.save(given.out / "pictures.png")
        figures |= told
    with replacing(given.out / "views.json") as file:
        file.write(json.dumps(figures, indent=1).encode())
    for name, value in figures.items():
        print(f"{name:14} {value:.3f}" if isinstance(value, float) else f"{name:14} {value}")  # noqa: T201
    return SUCCESS


def _from_one_picture(
    entries: list[Entry | Failure], sampler: Sampler, learned: Objects
) -> tuple[Image.Image, dict[str, float]]:
    """What one picture became beside what it should be; mean PSNR and overlap of the masks, of that and of the mean
    object.
    """
    told: dict[str, float] = {}
    made: list[tuple[Entry, Guess]] = []
    method = from_one_picture(sampler)

    def watched(inputs: Views, cameras: Cameras) -> Guess:
        guess = method(inputs, cameras)
        made.extend((entry, guess) for entry in entries if isinstance(entry, Entry) and entry.inputs is inputs)
        return guess

    for name, method_of in (("picture", watched), ("mean_object", mean_object(learned))):
        found = evaluate(entries, method_of, method=name).mean()
        if found is not None:
            told |= {f"{name}_psnr": found.psnr, f"{name}_iou": found.iou, f"{name}_seconds": found.seconds}
    return side_by_side(made), told


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


def side_by_side(made: list[tuple[Entry, Guess]]) -> Image.Image:
    """A row for each object, over white: the picture, then some other views, each as it is and as it was made of the
    picture.
    """
    sheet = Image.new("RGB", ((1 + 2 * len(COMPARED)) * SIDE, len(made) * SIDE), "white")
    for row, (entry, guess) in enumerate(made):
        guessed = torch.from_numpy(guess.images).float() / 255
        shown = [entry.inputs.images[0]]
        for view in COMPARED:
            shown += [entry.tests.images[view], guessed[view]]
        for column, picture in enumerate(shown):
            pixels = (over(picture, 1.0).clamp(0, 1) * 255).round().byte().numpy()
            small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * SIDE, row * SIDE))
    return sheet
