"""What a reconstruction must beat: the nearest input view as it is, and the visual hull in the input views' colours."""

from __future__ import annotations

import time

import numpy as np
import torch
from skimage import measure
from torch import Tensor

from backend import texturing
from backend.bad_input import BadInput
from backend.cameras import Cameras, Views
from backend.evaluate import Guess
from backend.gaussians import Gaussians, rgb_to_sh
from backend.hull import NothingSeen, VoxelGrid, common_box, grid_over, mean_colours, visual_hull
from backend.meshing import Mesh, simplified
from backend.rendering import straight_rgba

HULL_SIDE = 128  # voxels along the box's longest side: about one for a pixel of the usual 256
HULL_FACES = 20_000
TEXTURE_SIZE = 1024


def nearest_view(inputs: Views, cameras: Cameras) -> Guess:
    """For each camera the picture of the input view whose optical axis makes the smallest angle with its own.

    Raises BadInput for pictures of another size than the inputs.
    """
    started = time.perf_counter()
    size, wanted = ((c.width, c.height) for c in (inputs.cameras, cameras))
    if size != wanted:
        raise BadInput(
            f"nearest: expected input views of {wanted[0]}x{wanted[1]} pixels, as the test views have, "
            f"found {size[0]}x{size[1]}"
        )
    images = (inputs.images[nearest_axes(inputs.cameras, cameras)] * 255).round().to(torch.uint8)
    return Guess(images.cpu().numpy(), time.perf_counter() - started)


def nearest_axes(among: Cameras, cameras: Cameras) -> Tensor:
    """[V] for each camera the number of the one with the nearest optical axis; the first of equals."""
    cosines = cameras.c2w[:, :3, 2] @ among.c2w[:, :3, 2].T
    return cosines.round(decimals=5).argmax(1)


def hull(inputs: Views, cameras: Cameras) -> Guess:
    """Pictures of the visual hull as a mesh, textured with the inputs.

    Raises NothingSeen where the inputs have no masks or these have nothing in common.
    """
    started = time.perf_counter()
    mesh = hull_mesh(inputs.to("cpu"))
    seconds = time.perf_counter() - started
    return Guess(straight_rgba(texturing.render_textured(mesh, cameras.to("cpu"))), seconds, mesh)


def hull_mesh(views: Views) -> texturing.TexturedMesh:
    """The visual hull with a texture. What no view sees has the mean colour of what is before and behind it."""
    if not views.has_alpha:
        raise NothingSeen("The views have no masks: without see-through pixels there is no visual hull.")
    grid = grid_over(*common_box(views), HULL_SIDE)
    field = visual_hull(views, grid)
    if not bool((field > 0.5).any()):
        raise NothingSeen("The cameras see no common object: their masks have no part of space in common.")
    surface = simplified(_surface(field, grid), HULL_FACES)
    return texturing.bake(surface, views, _skin(views, grid, field), size=TEXTURE_SIZE)


def _surface(field: Tensor, grid: VoxelGrid) -> Mesh:
    """Where the field [X,Y,Z] passes one half, closed at the grid's border."""
    padded = np.pad(field.numpy(), 1)
    vertices, faces, _, _ = measure.marching_cubes(padded, 0.5, gradient_direction="ascent")
    world = grid.origin.numpy() + (vertices - 1) * grid.spacing
    return Mesh(world.astype(np.float32), faces.astype(np.int32))


def _skin(views: Views, grid: VoxelGrid, field: Tensor) -> Gaussians:
    """A ball for each voxel at the surface, in its mean colour: what the texture takes where no view looks."""
    inside = torch.nn.functional.pad(field > 0.5, (1, 1, 1, 1, 1, 1))
    core = inside[1:-1, 1:-1, 1:-1].clone()
    for axis in range(3):
        core &= inside.roll(1, axis)[1:-1, 1:-1, 1:-1] & inside.roll(-1, axis)[1:-1, 1:-1, 1:-1]
    skin = (field > 0.5) & ~core
    means = grid.centres()[skin]
    return Gaussians(
        means=means,
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(len(means), 1),
        scales=torch.full((len(means), 3), 0.5 * grid.spacing),
        opacities=torch.full((len(means),), 0.9),
        sh=rgb_to_sh(mean_colours(views, grid)[skin])[:, None],
    )
