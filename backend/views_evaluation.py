"""How well the starter's generator does what it is told, and how well its views agree.

A small classifier learns kinds and colours from renders of objects that the generator learned from; then it looks at
views made of prompts for kinds in colours that no training object had. Views agree as far as a fit explains them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.cameras import Cameras, Views, rig_cameras
from backend.captioned import RIG
from backend.compositing import premultiplied, straight
from backend.evaluate import Guess, Reconstructor
from backend.fit import FitConfig, fit
from backend.gaussians import Gaussians, transform
from backend.matting import recentred
from backend.metrics import object_box
from backend.monitor import Monitor, Silent
from backend.multiview import Sampler, Wish
from backend.pipelines import ReconstructOptions, reconstruct
from backend.rendering import render, straight_rgba
from backend.views_objects import Objects, planes
from backend.wording import COLOUR_WORDS
from blender_addon.front_ends import FRONT_ENDS

# what nobody tells apart in four small pictures
SAME_KIND = {
    "desk": "table", "hut": "house", "lorry": "truck", "toy car": "car", "doll": "figure", "robot": "figure",
    "jug": "mug", "jar": "bottle", "tin": "can", "drum": "can", "package": "carton", "airplane": "aeroplane",
    "knife": "sword", "mallet": "hammer", "toy animal": "animal", "sandwich": "burger", "television": "screen",
    "chest of drawers": "cabinet", "armchair": "sofa", "tapered cylinder": "cylinder", "rounded box": "box",
    "pipe": "cylinder", "egg": "ball", "cup": "mug", "prism": "cylinder", "capsule": "cylinder",
}  # fmt: skip
# the eleven basic colour terms of English (Berlin and Kay 1969)
BASIC_COLOUR = {
    "dark grey": "grey", "light grey": "grey", "dark red": "red", "dark brown": "brown", "tan": "brown",
    "beige": "brown", "gold": "yellow", "olive": "green", "lime": "green", "light green": "green",
    "dark green": "green", "teal": "green", "turquoise": "blue", "light blue": "blue", "dark blue": "blue",
    "lavender": "purple", "magenta": "pink", "salmon": "pink",
}  # fmt: skip
LEAST_SEEN = 12  # objects of a kind that the classifier can know
FAINT = 1 / 255  # alpha below which a pixel's colour is none
ROUNDS = 3  # of bringing a result to where its picture has it
LEVELS = 6  # of red, green and blue, that the classifier tells apart
UNTOLD = -100  # the number of no colour


@dataclass(frozen=True)
class Agreement:
    """Shares of prompts, 0..1, whose views the classifier takes for what was asked; the same for true renders of such
    objects, which says how good the classifier is.
    """

    colour: float
    kind: float
    true_colour: float
    true_kind: float
    prompts: int


class Classifier(nn.Module):
    """Logits of kinds and of colours, of views [B,V,4,S,S], premultiplied."""

    def __init__(self, views: int, kinds: int, colours: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (5 * views, 32, 64, 96, 128, 128)
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.kinds = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(kinds))
        self.colours = nn.Sequential(nn.Linear(LEVELS**3, 96), nn.ReLU(), nn.Dropout(0.3), nn.Linear(96, colours))

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        brightness = views[:, :, :3].mean(2, keepdim=True) / views[:, :, 3:].clamp_min(0.05)
        kinds = self.kinds(torch.cat([views, brightness], 2).flatten(1, 2))
        return kinds, self.colours(histogram(views).sqrt())


def histogram(views: Tensor) -> Tensor:
    """[B,LEVELS^3] shares of what is to be seen in views [B,V,4,S,S], premultiplied, by levels of red, green, blue."""
    seen = straight(views.movedim(2, -1).flatten(1, 3), FAINT)  # [B,V*S*S,4]
    levels = (seen[..., :3] * LEVELS).long().clamp_max(LEVELS - 1)
    places = (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    shares = torch.zeros(len(views), LEVELS**3).scatter_add_(1, places, seen[..., 3])
    return shares / shares.sum(1, keepdim=True).clamp_min(1e-6)


@dataclass(frozen=True)
class Judge:
    """A trained classifier and the names of what it tells."""

    model: Classifier
    kinds: tuple[str, ...]
    colours: tuple[str, ...]

    @torch.inference_mode()
    def shares(self, views: Tensor, kinds: Sequence[str], colours: Sequence[str]) -> tuple[float, float]:
        """Shares of colours and of kinds that it finds as they are told, in views [N,V,4,S,S]."""
        kind, colour = self.model(views)
        right_kind = [self.kinds[int(best)] == told for best, told in zip(kind.argmax(1), kinds, strict=True)]
        right_colour = [self.colours[int(best)] == told for best, told in zip(colour.argmax(1), colours, strict=True)]
        return statistics.fmean(right_colour), statistics.fmean(right_kind)


def kind_of(name: str) -> str:
    return SAME_KIND.get(name, name)


def colour_of(name: str) -> str:
    return BASIC_COLOUR.get(name, name)


def trained_judge(objects: Objects, *, steps: int, batch: int = 48, seed: int = 0) -> Judge:
    """A classifier of the kinds that are common among the objects."""
    kinds, colours = [kind_of(name) for name in objects.kinds], [colour_of(name) for name in objects.colours]
    common = tuple(sorted({kind for kind in kinds if kinds.count(kind) >= LEAST_SEEN}))
    named = tuple(sorted({colour for colour in colours if colour}))
    rows = np.array([number for number, kind in enumerate(kinds) if kind in common])
    kind = torch.tensor([common.index(kinds[row]) for row in rows])
    colour = torch.tensor([named.index(colours[row]) if colours[row] else UNTOLD for row in rows])
    torch.manual_seed(seed)
    model, chance = Classifier(4, len(common), len(named)), np.random.default_rng(seed)
    model(torch.zeros(2, 4, 4, RIG.side, RIG.side))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        chosen = chance.integers(len(rows), size=batch)
        views = planes(objects.images[rows[chosen], :4])
        kind_logits, colour_logits = model(views)
        loss = F.cross_entropy(kind_logits, kind[chosen], label_smoothing=0.1)
        if bool((colour[chosen] != UNTOLD).any()):
            loss = loss + F.cross_entropy(colour_logits, colour[chosen], ignore_index=UNTOLD, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return Judge(model.eval(), common, named)


def agreement(
    judge: Judge, sampler: Sampler, unseen: Objects, count: int, monitor: Monitor
) -> tuple[Agreement, Tensor]:
    """What the judge finds in views of the first `count` prompts of objects of kinds that it knows; and the views
    [N,V,4,S,S], premultiplied.
    """
    rows = [
        n
        for n, (kind, colour) in enumerate(zip(unseen.kinds, unseen.colours, strict=True))
        if kind_of(kind) in judge.kinds and colour_of(colour) in judge.colours
    ][:count]
    kinds, colours = [kind_of(unseen.kinds[row]) for row in rows], [colour_of(unseen.colours[row]) for row in rows]
    starter = FRONT_ENDS["starter"]
    made = []
    for number, row in enumerate(rows):
        text = asked(unseen.kinds[row], unseen.colours[row], unseen.prompts[row] if number % 2 else ())
        made.append(sampler.sample(Wish(text, "", None, starter.steps, starter.guidance, number), monitor))
    views = premultiplied(torch.stack(made)).movedim(-1, 2)
    true = judge.shares(planes(unseen.images[rows, :4]), kinds, colours)
    return Agreement(*judge.shares(views, kinds, colours), *true, len(rows)), views


def asked(kind: str, colour: str, prompts: Sequence[str]) -> str:
    """The first of the prompts that names the colour, in any word for it; else the plainest of all."""
    words = (colour, *COLOUR_WORDS.get(colour, ()))
    return next((text for text in prompts if any(word in text for word in words)), f"a {colour} {kind}")


def consistency(views: Tensor, seed: int = 0) -> float:
    """PSNR [dB] that a fit reaches on the very views [V,S,S,4], straight alpha, that it was made of."""
    return fit(Views(views, rig_cameras(RIG)), FitConfig(seed=seed)).psnr


# ---- one picture


def from_one_picture(sampler: Sampler, seed: int = 0) -> Reconstructor:
    """Judges what is made of the first input view alone, which should be the front; see backend.evaluate."""

    def reconstructor(inputs: Views, cameras: Cameras) -> Guess:
        start, starter = time.perf_counter(), FRONT_ENDS["starter"]
        picture = recentred(inputs.images[0], RIG.side, starter.fill)
        views = sampler.sample(Wish("", "", picture, starter.steps, starter.guidance, seed), Silent())
        options = ReconstructOptions(model=starter.models[0])
        made = reconstruct(Views(views, rig_cameras(RIG)), options, Silent()).gaussians
        made = as_in(inputs.images[0], inputs.cameras[[0]], made)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            return Guess(straight_rgba(render(made, cameras)), seconds)

    return reconstructor


@torch.no_grad()
def as_in(picture: Tensor, camera: Cameras, made: Gaussians) -> Gaussians:
    """What was made of a picture [H,W,4], which a camera took that looks at the origin: scaled and moved, so that this
    camera sees it as large and where the picture has it.
    """
    (middle, size), K, c2w = _middle_and_size(picture[..., 3]), camera.Ks[0], camera.c2w[0]
    for _ in range(ROUNDS):  # a lens shows what is off its axis, or nearer, a little otherwise
        own_middle, own_size = _middle_and_size(render(made, camera).alpha[0])
        scale, matrix = size / own_size, torch.eye(4)
        pixels = (middle - K[:2, 2]) - scale * (own_middle - K[:2, 2])
        matrix[:3, :3] *= scale
        matrix[:3, 3] = c2w[:3, :2] @ (pixels / K.diagonal()[:2]) * c2w[:3, 3].norm()
        made = transform(made, matrix)
    return made


def _middle_and_size(alpha: Tensor) -> tuple[Tensor, float]:
    """Of what alpha [H,W] shows: x and y of its middle [2], and its longest side, pixels."""
    rows, columns = object_box(alpha)
    middle = torch.tensor([columns.start + columns.stop, rows.start + rows.stop]) / 2
    return middle, float(max(rows.stop - rows.start, columns.stop - columns.start))


def mean_object(learned: Objects) -> Reconstructor:
    """Shows of each camera the mean of the learned objects in that of the rig's views whose camera is nearest."""
    mean = np.stack([learned.images[:, view].mean(axis=0) for view in range(len(RIG.angles))]) / 255

    def reconstructor(inputs: Views, cameras: Cameras) -> Guess:
        del inputs
        near = (cameras.centres @ rig_cameras(RIG).centres.T).argmax(1)
        shown = planes((255 * mean[near.numpy()]).astype(np.uint8))
        shown = F.interpolate(shown, (cameras.height, cameras.width), mode="bilinear").movedim(1, -1)
        return Guess((straight(shown, FAINT) * 255).round().byte().numpy(), 0.0)

    return reconstructor
