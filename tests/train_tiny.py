"""Trains a tiny network of each family, within seconds, to know the jack of jack.py from pictures of it.

    python -m tests.train_tiny VIEWS OUT

VIEWS holds a folder with a transforms.json for each of FAMILIES; the jack stands in the world's origin there and the
first camera on -Y, level where that matters. OUT gets NAME.safetensors, in our own form.

No pictures are rendered: the places of the Gaussians and the field are learnt directly. Wherever a family has a space
of its own, what belongs there is written out here by hand from the published convention, never by the code under test.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.cameras import Views
from backend.checkpoint_files import Family, write_checkpoint
from backend.framing import frame_object
from backend.gaussians import sh_to_rgb
from backend.models import grm, lgm, long_lrm, lrm, triposr
from backend.models.grm_cameras import frame, place
from backend.models.lgm_cameras import set_up as lgm_set_up
from backend.models.long_lrm_cameras import set_up as long_lrm_set_up
from backend.transforms import read_views
from backend.triplane import Triplane
from tests import jack

FAMILIES: dict[str, Family] = {
    "grm": "grm",
    "lgm": "lgm",
    "long_lrm": "long_lrm",
    "openlrm": "lrm",
    "triposr": "lrm",
}
STEPS = {"grm": 120, "lgm": 80, "long_lrm": 120, "openlrm": 700, "triposr": 300}
LEARNING_RATE = 4e-3
POINTS = 1024  # a step, of a field: anywhere, near the jack and within it

GRM: dict[str, Any] = {
    "visual": {
        "input_res": 32,
        "patch_size": 8,
        "layers": 1,
        "width": 64,
        "decoder_ratio": 1,
        "num_input_views": 4,
    },
    "render": {"scaling_activation_type": "sigmoid", "scale_min_act": 0.005, "scale_max_act": 0.02},
}
LGM: dict[str, Any] = {
    "input_size": 32,
    "down_channels": [16, 32],
    "down_attention": [False, False],
    "mid_attention": True,
    "up_channels": [32],
    "up_attention": [False],
    "layers_per_block": 1,
    "splat_size": 16,
    "attention_heads": 4,
    "norm_groups": 8,
}
LONG_LRM: dict[str, Any] = {
    "model": {
        "num_layers": 2,
        "patch_size": 4,
        "dim": 32,
        "block_type": "mt",
        "num_global_tokens": 1,
        "transformer": {"head_dim": 16},
        "mamba2": {"d_state": 8},
        "gaussians": {"sh_degree": 0, "scale_bias": -4.0, "max_dist": 2.0},
    },
    "data": {"scene_scale": 1.35},
}
OPENLRM: dict[str, Any] = {
    "family": "openlrm",
    "layout_version": "1.1",
    "image_size": 28,
    "model": {
        "camera_embed_dim": 16,
        "rendering_samples_per_ray": 24,
        "transformer_dim": 32,
        "transformer_layers": 1,
        "transformer_heads": 2,
        "triplane_low_res": 8,
        "triplane_high_res": 16,
        "triplane_dim": 8,
        "encoder_feat_dim": 16,
    },
    "encoder": {
        "type": "dinov2",
        "patch_size": 14,
        "native_image_size": 28,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 4,
        "num_register_tokens": 4,
        "layer_scale": True,
        "layer_norm_eps": 1e-6,
        "interpolate_antialias": True,
        "interpolate_offset": 0.0,
    },
    "transformer": {
        "layer_norm_eps": 1e-6,
        "mlp_ratio": 4,
        "attention_bias": False,
        "block": "cross-attention, self-attention, mlp, each after a ModLN",
    },
    "decoder": {
        "num_linear_layers": 4,
        "hidden_dim": 32,
        "activation": "relu",
        "sigma_channel": 0,
        "rgb_channels": [1, 2, 3],
        "density": "softplus(raw - 1)",
        "rgb": "sigmoid(raw) * 1.002 - 0.001",
    },
    "render": {"box": [-1.0, 1.0], "samples_coarse": 12, "samples_fine": 12},
}
TRIPOSR: dict[str, Any] = {
    "family": "triposr",
    "cond_image_size": 32,
    "image_tokenizer": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 16,
        "image_size": 32,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "interpolate_offset": 0.1,
        "has_unused_pooler": True,
    },
    "tokenizer": {"plane_size": 8, "num_channels": 32},
    "backbone": {
        "in_channels": 32,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "cross_attention_dim": 16,
        "norm_num_groups": 8,
        "group_norm_eps": 1e-6,
        "layer_norm_eps": 1e-5,
        "activation_fn": "geglu",
        "attention_bias": False,
    },
    "post_processor": {"in_channels": 32, "out_channels": 8},
    "decoder": {"in_channels": 24, "n_neurons": 32, "n_hidden_layers": 3, "activation": "silu"},
    "renderer": {
        "radius": 0.87,
        "feature_reduction": "concat",
        "density_activation": "exp",
        "density_bias": -1.0,
        "num_samples_per_ray": 24,
    },
}


@dataclass(frozen=True)
class Lesson:
    """A network and what it has to get right; the loss is of one step."""

    config: dict[str, Any]
    model: nn.Module
    loss: Callable[[], Tensor]


def main(views: Path, out: Path) -> None:
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for name, family in FAMILIES.items():
        start = time.process_time()
        torch.manual_seed(7)
        lesson = LESSONS[name](read_views(views / name))
        final = train(lesson, STEPS[name])
        write_checkpoint(out / f"{name}.safetensors", family, lesson.config, lesson.model.state_dict())
        sys.stdout.write(f"{name}: loss {final:.4f} after {time.process_time() - start:.1f} s\n")


def train(lesson: Lesson, steps: int) -> float:
    """Adam with a rate that rises and falls; returns the last step's loss."""
    optimizer = torch.optim.Adam(lesson.model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = lesson.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(lesson.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return loss.item()


# ---- networks that give a Gaussian a pixel


@dataclass(frozen=True)
class Surface:
    """What square pictures [V,S,S] of the world show at their pixels' centres.

    points  [N,3] world, by view, row and column; anything where nothing is seen
    rgb     [N,3] sRGB
    seen    [N] bool
    """

    points: Tensor
    rgb: Tensor
    seen: Tensor

    def loss(self, means: Tensor, rgb: Tensor, opacity_logits: Tensor) -> Tensor:
        """How far Gaussians [N] in the space of `points` are from lying there, and only where something is seen."""
        places = F.mse_loss(means[self.seen], self.points[self.seen])
        colours = F.mse_loss(rgb[self.seen], self.rgb[self.seen])
        return 10 * places + colours + F.binary_cross_entropy_with_logits(opacity_logits, self.seen.float())

    def moved(self, turn: list[list[float]], scale: float) -> Surface:
        return Surface(scale * self.points @ torch.tensor(turn).T, self.rgb, self.seen)


def surface(views: Views, Ks: Tensor, height: int, width: int) -> Surface:
    """From the views' own depth, for cameras that stand and look as the views' do but have other lenses, Ks [V,3,3]."""
    assert views.depth is not None
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    points, rgb, seen = [], [], []
    for view, (K, own, c2w) in enumerate(zip(Ks, views.cameras.Ks, views.cameras.c2w, strict=True)):
        x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
        column, row = (x * own[0, 0] + own[0, 2]).floor().long(), (y * own[1, 1] + own[1, 2]).floor().long()
        inside = (column >= 0) & (column < views.cameras.width) & (row >= 0) & (row < views.cameras.height)
        column, row = column.clamp(0, views.cameras.width - 1), row.clamp(0, views.cameras.height - 1)
        z = views.depth[view, row, column]
        points.append(torch.stack([x * z, y * z, z], dim=-1) @ c2w[:3, :3].T + c2w[:3, 3])
        rgb.append(views.images[view, row, column, :3])
        seen.append(inside & (z > 0) & (views.images[view, row, column, 3] > 0.5))
    parts = (torch.stack(part).flatten(0, 2) for part in (points, rgb, seen))
    return Surface(*parts)


def distance(views: Views) -> float:
    """From the world's origin to the cameras, which are all as far."""
    return float(views.cameras.centres.norm(dim=-1).mean())


def grm_lesson(views: Views) -> Lesson:
    """GRM's cameras are 2.7 from the origin, Z up, the first at an azimuth of 225 degrees from +X towards +Y.

    Here it stands on -Y, at 270 degrees.
    """
    model = grm.GRM(grm.config_from(GRM))
    config = model.config
    placement = place(views, rule="distance", azimuth=math.radians(config.first_azimuth), target=None)
    inward = placement.inward(views.cameras)
    pictures, Ks = frame(views, config.input_res, field_of_view=grm.FIELD_OF_VIEW)
    root = math.sqrt(0.5)
    turn = [[root, root, 0], [-root, root, 0], [0, 0, 1]]  # by -45 degrees about Z
    goal = surface(views, Ks, config.input_res, config.input_res).moved(turn, 2.7 / distance(views))

    def loss() -> Tensor:
        raw = model(2 * pictures[None, :, :3] - 1, inward.c2w[None], Ks[None])
        return goal.loss(raw.means[0], raw.feature[0].sigmoid(), raw.opacity[0, :, 0])

    return Lesson(GRM, model, loss)


def lgm_lesson(views: Views) -> Lesson:
    """LGM's cameras are 1.5 from the origin, Y up, the first on +Z. Here Z is up, and -Y is where it stands.

    LGM may put its Gaussians anywhere, whatever the cameras. So that it heeds them, it also learns that the same
    pictures by a mirrored ring of cameras show other places.
    """
    model = lgm.LGM(lgm.config_from(LGM))
    config, side = model.config, model.config.splat_size
    turn = [[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]
    inputs, goals = [], []
    for ring in ([0, 1, 2, 3], [0, 3, 2, 1]):
        posed = replace(views, cameras=views.cameras[ring])
        ready = lgm_set_up(posed, config.lens, count=4)
        inputs.append(lgm.network_input(ready.rgb, ready.cameras))
        Ks = ready.cameras.resized(side, side).Ks
        goals.append(surface(posed, Ks, side, side).moved(turn, 1.5 / distance(views)))
    batch = torch.stack(inputs)

    def loss() -> Tensor:
        total = torch.zeros(())
        for goal, raw in zip(goals, model(batch), strict=True):  # raw [V,14,s,s]
            opacity_logits, means = raw[:, 3].flatten(), raw[:, :3].permute(0, 2, 3, 1).flatten(0, 2)
            total = total + goal.loss(means, sh_to_rgb(lgm.decode(raw).sh[:, 0]), opacity_logits)
        return total

    return Lesson(LGM, model, loss)


def long_lrm_lesson(views: Views) -> Lesson:
    """Long-LRM's Gaussians lie on their pixels' rays. They are compared in the views' world."""
    model = long_lrm.LongLRM(long_lrm.config_from(LONG_LRM))
    config = model.config
    ready = long_lrm_set_up(
        views,
        multiple=config.multiple,
        scene_scale=config.scene_scale,
        most_views=long_lrm.MAX_VIEWS,
        longest_side=long_lrm.LONGEST_SIDE,
    )
    K = ready.cameras.Ks
    intrinsics = torch.cat([K[:, [0, 1], [0, 1]], K[:, :2, 2]], dim=-1)
    goal, to_world = surface(views, K, *ready.images.shape[-2:]), ready.to_world.float()

    def loss() -> Tensor:
        raw = model(ready.images[None], ready.cameras.c2w[None], intrinsics[None])
        means = raw.means[0] @ to_world[:3, :3].T + to_world[:3, 3]
        return goal.loss(means, sh_to_rgb(raw.sh[0, :, 0]), raw.opacity_logits[0])

    return Lesson(LONG_LRM, model, loss)


# ---- networks that give a field


def openlrm_lesson(views: Views) -> Lesson:
    """OpenLRM's camera stands on -Y, Z up, as the first view's does. The jack is as large there as it looks."""
    model = lrm.Lrm(lrm.config_from(OPENLRM))
    framed = frame_object(views, share=lrm.OBJECT_SHARE)
    image, camera = lrm.prepared(framed.image, model.config.image_size), lrm.source_camera()[None]
    to_jack = torch.eye(3) / 0.94
    return Lesson(OPENLRM, model, lambda: field_loss(model.field(model(image, camera)[0]), to_jack))


def triposr_lesson(views: Views) -> Lesson:
    """TripoSR's camera stands on +X, Z up; the first view's on -Y. So its +Y is the jack's +X."""
    model = triposr.TripoSr(triposr.config_from(TRIPOSR))
    framed = frame_object(views, share=triposr.OBJECT_SHARE)
    image = triposr.prepared(triposr.on_grey(framed.image), model.config.image_size)
    to_jack = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]) / 0.546
    return Lesson(TRIPOSR, model, lambda: field_loss(model.field(model(image)[0]), to_jack))


def field_loss(field: Triplane, to_jack: Tensor) -> Tensor:
    """How far a field is from being dense inside the jack alone, and coloured as it is; to_jack [3,3]."""
    reading = field.reading
    anywhere = (2 * torch.rand(POINTS, 3) - 1) * reading.radius
    near = (2 * torch.rand(POINTS, 3) - 1) * 1.2 * torch.tensor(jack.REACH)
    points = torch.cat(
        [anywhere, near @ torch.linalg.inv(to_jack).T, points_within(POINTS) @ torch.linalg.inv(to_jack).T]
    )
    inside, rgb = jack_at(points @ to_jack.T)
    raw = field.raw(points)
    shape = F.binary_cross_entropy_with_logits(4 * (raw[:, 0] - reading.raw(reading.level)), inside.float())
    return shape + 10 * F.mse_loss(reading.colour(raw[inside, 1:]), rgb[inside])


def points_within(count: int) -> Tensor:
    """[count,3] points of the jack, as many in each box."""
    low, high = (torch.tensor([getattr(box, end) for box in jack.BOXES]) for end in ("low", "high"))
    chosen = torch.randint(len(jack.BOXES), (count,))
    return low[chosen] + (high - low)[chosen] * torch.rand(count, 3)


def jack_at(points: Tensor) -> tuple[Tensor, Tensor]:
    """Whether points [N,3] lie inside the jack, and its linear colour there [N,3]."""
    inside, rgb = torch.zeros(len(points), dtype=torch.bool), torch.zeros(len(points), 3)
    for box in jack.BOXES:
        within = ((points >= torch.tensor(box.low)) & (points <= torch.tensor(box.high))).all(1)
        rgb[within] = torch.tensor(box.colour)
        inside |= within
    return inside, rgb


LESSONS: dict[str, Callable[[Views], Lesson]] = {
    "grm": grm_lesson,
    "lgm": lgm_lesson,
    "long_lrm": long_lrm_lesson,
    "openlrm": openlrm_lesson,
    "triposr": triposr_lesson,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
