"""Pictures of objects: what follows from the geometry of light, and from what a material says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh

from backend import ambient, photograph, triangles
from backend.assets import Asset, Material, corner_normals
from backend.cameras import Cameras, orbit, rays
from backend.photograph import photograph_all, prepare
from backend.shading import LEVELS, encode_srgb, in_white_world, materials_on
from tests import shapes

WHITE = Material((1.0, 1.0, 1.0, 1.0), roughness=1.0)


def asset_of(shape: trimesh.Trimesh, material: Material = WHITE, *, smooth: bool = False, uvs=None) -> Asset:
    vertices, faces = np.asarray(shape.vertices, dtype=np.float32), np.asarray(shape.faces, dtype=np.int32)
    return Asset(
        name="shape",
        caption="",
        vertices=vertices,
        faces=faces,
        uvs=np.zeros((len(faces), 3, 2), np.float32) if uvs is None else uvs.astype(np.float32),
        normals=corner_normals(vertices, faces, np.full(len(faces), smooth)),
        face_material=np.zeros(len(faces), np.int32),
        materials=(material,),
    )


def wall(y: float = 0.0, half: float = 0.8) -> trimesh.Trimesh:
    """A square across the Y axis, as a camera at azimuth 0 sees it from the front."""
    corners = [(-half, y, -half), (half, y, -half), (half, y, half), (-half, y, half)]
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)


WALL_UVS = np.array([[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]])


def front(size: int = 32, count: int = 1, elevation: float = 0.0) -> Cameras:
    return orbit(count, target=torch.zeros(3), radius=3.0, elevation=elevation, fov=math.radians(40), size=size)


def flat_front(size: int = 32, across: float = 1.6) -> Cameras:
    """Orthographic, from -Y, `across` scene units wide."""
    camera, focal = front(size), size / across
    K = torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]])
    return Cameras(camera.c2w, K, torch.tensor([True]), size, size)


def joined(*shapes_: trimesh.Trimesh) -> trimesh.Trimesh:
    corners = np.concatenate([shape.vertices[shape.faces].reshape(-1, 3) for shape in shapes_])
    return trimesh.Trimesh(corners, np.arange(len(corners)).reshape(-1, 3), process=False)


def values_of(asset: Asset) -> torch.Tensor:
    return prepare([asset]).openness.values


# ---- how open a place is


def test_a_wall_sees_everything_on_both_sides() -> None:
    torch.testing.assert_close(values_of(asset_of(wall())), torch.ones(len(values_of(asset_of(wall()))), 2))


def test_a_closed_box_sees_everything_outside_and_nothing_inside() -> None:
    outer, inner = values_of(asset_of(trimesh.creation.box((1.2, 1, 0.8)))).T
    torch.testing.assert_close(outer, torch.ones_like(outer))
    assert inner.median() == 0 and inner.mean() < 0.05  # along the edges, the coarse pictures of depth let some pass


def test_an_open_box_sees_through_its_opening() -> None:
    """The middle of the floor of a cube without a lid: the view factor of a parallel square, from its four quarters."""
    cube = trimesh.creation.box((1, 1, 1))
    cube.update_faces(cube.face_normals[:, 2] < 0.5)
    model = prepare([asset_of(cube)])
    floor = (np.asarray(cube.face_normals)[:, 2] < -0.5).nonzero()[0]
    corners = model.values[:, floor].T.view(-1, 3, 8)[..., :3]
    weights = torch.linalg.lstsq(
        torch.cat([corners, torch.ones(2, 3, 1)], 2).mT, torch.tensor([0, 0, -0.5, 1.0]).expand(2, 4)
    ).solution
    on_floor = (weights > -1e-4).all(1)
    face = torch.from_numpy(floor)[on_floor][:1]
    found = model.openness.at(face, weights[on_floor][:1].T, torch.ones(1, dtype=torch.long))
    half = 0.5 / math.sqrt(1 + 0.5**2)
    assert float(found) == pytest.approx(4 / math.pi * half * math.atan(half), abs=0.03)


def test_thin_sheets_do_not_leak() -> None:
    """Between two large near plates little light arrives; it would if either were overlooked."""
    plates = joined(wall(-0.1), wall(0.1))
    model = prepare([asset_of(plates)])
    middle = torch.tensor([0.5, 0.0, 0.5])[:, None]  # of the first face, on its diagonal: the plate's middle
    inner, outer = (
        model.openness.at(torch.zeros(1, dtype=torch.long), middle, torch.tensor([side])) for side in (1, 0)
    )
    assert float(outer) == pytest.approx(1) and float(inner) < 0.1


def test_lattice_reads_its_own_points() -> None:
    """A value that grows evenly over a face is read back evenly, between the points too."""
    corners = torch.tensor([[[0.0, 0, 0], [0.5, 0, 0], [0.4, 0.3, 0]]])
    lattices = ambient._lattices(corners)
    inset = ambient.INSET / torch.stack([lattices.rows, lattices.columns]).float()
    openness = ambient.Openness(lattices.points[:, [0, 1]], lattices.starts, lattices.rows, lattices.columns)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 500, generator=generator) + 0.05
    weights /= weights.sum(0)
    places = weights.T @ corners[0]
    for side in (0, 1):
        found = openness.at(torch.zeros(500, dtype=torch.long), weights, torch.full((500,), side))
        assert (found - places[:, side]).abs().max() < 0.5 * float(inset.max()) + 1e-4


def test_openness_by_torch_as_by_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    torus = trimesh.creation.torus(0.6, 0.25, major_sections=16, minor_sections=8)
    meshes = [
        triangles.Mesh(torch.tensor(shape.vertices).float(), torch.tensor(shape.faces)) for shape in (torus, wall())
    ]
    expected = ambient.openness(meshes, meshes).values
    monkeypatch.setattr(ambient, "_seen_by_numba", ambient._seen_by_torch)
    monkeypatch.setattr(ambient, "POINTS_AT_ONCE", 20_000)
    found = ambient.openness(meshes, meshes).values
    assert ((found - expected).abs() < 1e-4).float().mean() > 0.999 and expected.std() > 0.1


# ---- light


def test_white_furnace() -> None:
    """White on white, rough, glossy or metal: nothing outshines the surroundings, and what is convex equals them."""
    ball = trimesh.creation.icosphere(3, 0.8)
    torus = trimesh.creation.torus(0.6, 0.25, major_sections=24, minor_sections=12)
    for roughness, metallic in ((1.0, 0.0), (0.2, 0.0), (0.3, 1.0)):
        material = Material((1.0, 1.0, 1.0, 1.0), roughness=roughness, metallic=metallic)
        images = photograph.photograph(asset_of(ball, material, smooth=True), front()).images
        torch.testing.assert_close(
            images[..., :3][images[..., 3] > 0], torch.ones(int((images[..., 3] > 0).sum()), 3), atol=5e-3, rtol=0
        )
        images = photograph.photograph(asset_of(torus, material), front(elevation=0.5)).images
        assert images.max() <= 1


def test_a_rough_open_surface_shows_its_albedo() -> None:
    image = photograph.photograph(asset_of(wall(), Material((0.5, 0.2, 0.8, 1.0), roughness=1.0)), front()).images[0]
    albedo = encode_srgb(torch.tensor([0.5, 0.2, 0.8]))
    torch.testing.assert_close(image[16, 16, :3], albedo, atol=0.04, rtol=0)
    assert image[16, 16, 3] == 1


def test_gloss_brightens_black_at_grazing_angles() -> None:
    cosine = torch.tensor([1.0, 0.5, 0.1])
    black = torch.zeros(3, 3)
    light = in_white_world(black, torch.tensor([[0.1] * 3, [0.0] * 3]), cosine, torch.ones(3))[0]
    assert light[0] == pytest.approx(0.04, abs=0.01)  # Fresnel's reflectance of 1.5 straight on
    assert light[1] > light[0] and light[2] > 0.3
    gold = torch.tensor([[1.0], [0.7], [0.3]]).expand(3, 3)
    metal = in_white_world(gold, torch.tensor([[0.3] * 3, [1.0] * 3]), cosine, torch.ones(3))
    torch.testing.assert_close(metal[:, 0], gold[:, 0], atol=0.05, rtol=0)


def test_corners_are_darker_and_bright_ones_less_so() -> None:
    share = torch.tensor([0.3])
    gloss = torch.tensor([[1.0], [0.0]])
    ratios = []
    for albedo in (0.1, 0.9):
        base = torch.full((3, 1), albedo)
        closed, opened = (in_white_world(base, gloss, torch.ones(1), part)[0] for part in (share, torch.ones(1)))
        ratios.append(float(closed / opened))
    assert 0.3 <= ratios[0] < 0.4 and ratios[0] + 0.2 < ratios[1] < 1


# ---- textures


def pictured(
    texture: np.ndarray, *, uvs: np.ndarray = WALL_UVS, size: int = 32, base=(1.0, 1.0, 1.0, 1.0)
) -> torch.Tensor:
    """[H,W,4] of a wall with the texture that fills the picture."""
    material = Material(base, texture, roughness=1.0)
    return photograph.photograph(asset_of(wall(), material, uvs=uvs), flat_front(size)).images[0]


def test_texture_lies_the_right_way_up() -> None:
    texture = np.zeros((2, 2, 3), np.uint8)
    texture[0, 0], texture[0, 1], texture[1, 0], texture[1, 1] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
    image = pictured(np.repeat(np.repeat(texture, 16, 0), 16, 1))
    for (row, column), colour in {
        (8, 8): (1, 0, 0),
        (8, 24): (0, 1, 0),
        (24, 8): (0, 0, 1),
        (24, 24): (1, 1, 0),
    }.items():
        torch.testing.assert_close(image[row, column, :3].round(), torch.tensor(colour).float())


def test_texture_is_averaged_as_light() -> None:
    """A fine board of black and white sends half the light, which is 0.735 in sRGB; so from afar it is no 0.5."""
    board = np.repeat((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    middle = pictured(board)[4:-4, 4:-4, :3]
    assert float(middle.mean()) == pytest.approx(float(encode_srgb(torch.tensor(0.5))), abs=0.02)
    assert float(middle.std()) < 0.02


def test_texture_is_looked_up_as_by_hand() -> None:
    """Against a plain loop: bilinear between linear texels, repeated, times the base colour."""
    generator = np.random.default_rng(0)
    texture = generator.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    texture[..., 3] = 255
    materials = materials_on("cpu", [WHITE, Material((0.5, 0.25, 1.0, 1.0), texture)])
    u, v = torch.from_numpy(generator.uniform(-2, 2, (2, 40)).astype(np.float32))
    found = materials.colour(torch.ones(40, dtype=torch.long), u, v, torch.zeros(40))
    linear = texture[..., :3] / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    for place in range(40):
        x, y = float(u[place]) * 7 - 0.5, (1 - float(v[place])) * 5 - 0.5
        left, top = math.floor(x), math.floor(y)
        mix = sum(
            linear[(top + j) % 5, (left + i) % 7] * (1 - abs(x - left - i)) * (1 - abs(y - top - j))
            for i in (0, 1)
            for j in (0, 1)
        )
        np.testing.assert_allclose(found[:3, place], mix * [0.5, 0.25, 1], atol=2e-4)


def test_a_shared_texture_is_stored_once() -> None:
    texture = np.zeros((4, 4, 3), np.uint8)
    one, two = Material((1.0, 1.0, 1.0, 1.0), texture), Material((0.5, 1.0, 1.0, 1.0), texture)
    assert materials_on("cpu", [one, two]).texels.shape[1] == 16 + 4 + 1
    assert materials_on("cpu", [WHITE]).levels.shape == (3, 1, LEVELS)


# ---- see-through


def test_cut_out_lets_through() -> None:
    """The left half of a wall's texture is cut out: there one sees the red wall behind, and its depth."""
    texture = np.full((16, 16, 4), 255, np.uint8)
    texture[:, :8, 3] = 0
    front_wall, back_wall = wall(0.0), wall(0.5)
    both = asset_of(joined(front_wall, back_wall), uvs=np.concatenate([WALL_UVS, WALL_UVS]))
    materials = (Material((1.0, 1.0, 1.0, 1.0), texture, 1.0), Material((1.0, 0.0, 0.0, 1.0), None, 1.0))
    parts = np.array([0, 0, 1, 1], np.int32)
    asset = Asset(both.name, "", both.vertices, both.faces, both.uvs, both.normals, parts, materials)
    seen = photograph.photograph(asset, flat_front())
    assert (seen.images[0, :, 2:14, 0] > 0.5).all() and (seen.images[0, :, 2:14, 1] < 0.4).all()
    assert (seen.images[0, :, 18:30, 1] > 0.8).all()
    torch.testing.assert_close(seen.depth[0, :, 2:14], torch.full((32, 12), 3.5))
    torch.testing.assert_close(seen.depth[0, :, 18:30], torch.full((32, 12), 3.0))
    alone = photograph.photograph(asset_of(front_wall, materials[0], uvs=WALL_UVS), flat_front())
    assert (alone.images[0, :, 2:14] == 0).all() and (alone.depth[0, :, 2:14] == 0).all()
    assert (alone.images[0, :, 18:30, 3] == 1).all()


@pytest.mark.parametrize(("alpha", "covered"), [(0.1, 0.0), (0.3, 0.25), (0.5, 0.5), (0.7, 0.75), (1.0, 1.0)])
def test_half_see_through_covers_half(alpha: float, covered: float) -> None:
    image = photograph.photograph(asset_of(wall(), Material((1.0, 0.5, 1.0, alpha), None, 1.0)), flat_front()).images[0]
    torch.testing.assert_close(image[4:-4, 4:-4, 3], torch.full((24, 24), covered))


# ---- geometry


@pytest.mark.parametrize("orthographic", [False, True])
def test_depth_and_normals_of_a_ball(orthographic: bool) -> None:
    cameras = shapes.orbit(3, (-20, 10, 50), size=48, orthographic=orthographic)
    seen = photograph.photograph(asset_of(trimesh.creation.icosphere(4, 0.8), smooth=True), cameras)
    origins, directions = rays(cameras)
    along = (origins * directions).sum(-1)
    inside = along**2 - origins.square().sum(-1) + 0.8**2
    way = -along - inside.clamp_min(0).sqrt()
    planar = way * (directions * cameras.c2w[:, None, None, :3, 2]).sum(-1)
    clear = inside > 0.05  # not at the outline, where the depth changes by more than that from facet to facet
    torch.testing.assert_close(seen.depth[clear], planar[clear], atol=0.01, rtol=0)
    normals = (origins + way[..., None] * directions) / 0.8
    torch.testing.assert_close(seen.normals[clear], normals[clear], atol=0.07, rtol=0)
    away = inside < -0.05
    assert (seen.depth[away] == 0).all() and (seen.normals[away] == 0).all() and (seen.images[away] == 0).all()
    area = float(seen.images[..., 3].sum(dim=(1, 2)).mean())
    if orthographic:
        assert area == pytest.approx(math.pi * (0.8 * float(cameras.Ks[0, 0, 0])) ** 2, rel=0.01)


def test_depth_and_normals_of_a_cube_are_exact() -> None:
    seen = photograph.photograph(asset_of(trimesh.creation.box((1, 1, 1))), front(count=4))
    middle = slice(12, 20)
    torch.testing.assert_close(seen.depth[:, middle, middle], torch.full((4, 8, 8), 2.5))
    expected = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]])
    torch.testing.assert_close(seen.normals[:, 16, 16], expected)


def test_normals_point_to_the_camera_on_both_sides() -> None:
    """A wall from the front, and from behind its back."""
    seen = photograph.photograph(asset_of(wall()), front(count=2))
    torch.testing.assert_close(seen.normals[:, 16, 16], torch.tensor([[0.0, -1, 0], [0, 1, 0]]))
    torch.testing.assert_close(seen.images[0, 16, 16], seen.images[1, 16, 16])


def test_an_edge_covers_part_of_a_pixel() -> None:
    narrow = wall(half=0.8).apply_translation([0.8 + 0.025, 0, 0])  # begins half a pixel right of the middle
    image = photograph.photograph(asset_of(narrow), flat_front()).images[0]
    assert (image[4:-4, 15, 3] == 0).all() and (image[4:-4, 17, 3] == 1).all()
    torch.testing.assert_close(image[4:-4, 16, 3], torch.full((24,), 0.5))
    torch.testing.assert_close(image[4:-4, 16, :3], image[4:-4, 20, :3])  # straight alpha


# ---- the same in every way


def scenes() -> tuple[list[Asset], list[Cameras]]:
    texture = np.random.default_rng(1).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    torus = trimesh.creation.torus(0.6, 0.25, major_sections=16, minor_sections=8)
    assets = [
        asset_of(torus, Material((0.3, 0.6, 0.9, 1.0), metallic=0.5)),
        asset_of(wall(), Material((1.0, 1.0, 1.0, 1.0), texture), uvs=WALL_UVS),
    ]
    return assets, [front(count=3, elevation=0.4), front(count=2, elevation=0.2)]


def test_together_is_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assets, cameras = scenes()
    alone = [photograph.photograph(asset, own) for asset, own in zip(assets, cameras, strict=True)]
    for limit in (1, 1 << 30):
        monkeypatch.setitem(photograph.SAMPLES_AT_ONCE, "cpu", limit)
        together = photograph_all(assets, cameras)
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one.images, other.images, atol=1e-5, rtol=0)
            torch.testing.assert_close(one.depth, other.depth)
            torch.testing.assert_close(one.normals, other.normals)


def test_by_torch_as_by_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    assets, cameras = scenes()
    expected = photograph_all(assets, cameras)
    monkeypatch.setattr(triangles, "nearest_by_numba", triangles.nearest_by_torch)
    for one, other in zip(expected, photograph_all(assets, cameras), strict=True):
        torch.testing.assert_close(one.images, other.images, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.depth, other.depth)


def test_twice_the_same() -> None:
    assets, cameras = scenes()
    one, two = (photograph.photograph(assets[0], cameras[0]) for _ in range(2))
    assert torch.equal(one.images, two.images) and torch.equal(one.depth, two.depth)
