"""Cutting objects out of backgrounds, and recentring: against masks that are known, and against published values."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from backend import matting, weights
from backend.bad_input import BadInput
from backend.matting import cut_out, cut_views, recentre_all, recentred
from backend.weights import WeightsMissing
from blender_addon.protocol import Cut

SIDE = 128
CUTTABLE: tuple[Cut, ...] = ("auto", "plain")


@dataclass(frozen=True)
class Scene:
    """rgb [H,W,3] and the true alpha [H,W] of things on a background, float32."""

    rgb: Tensor
    alpha: Tensor

    @property
    def picture(self) -> Tensor:
        return torch.cat([self.rgb, torch.ones_like(self.rgb[..., :1])], dim=-1)


def places() -> tuple[Tensor, Tensor]:
    """x and y of pixel centres, 0..1."""
    steps = (torch.arange(SIDE) + 0.5) / SIDE
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return x, y


def inside(distance: Tensor) -> Tensor:
    """Alpha of where a distance, of the picture's side, is negative; half a pixel soft."""
    return (0.5 - distance * SIDE).clamp(0, 1)


def disc(x0: float, y0: float, radius: float) -> Tensor:
    x, y = places()
    return inside((x - x0).hypot(y - y0) - radius)


def box(x0: float, y0: float, half_width: float, half_height: float) -> Tensor:
    x, y = places()
    return inside(torch.maximum((x - x0).abs() - half_width, (y - y0).abs() - half_height))


def ring(x0: float, y0: float, radius: float, half: float) -> Tensor:
    x, y = places()
    return inside(((x - x0).hypot(y - y0) - radius).abs() - half)


def scene(background: Tensor, *parts: tuple[Tensor, tuple[float, float, float]], shaded: bool = True) -> Scene:
    """Things in colours, shaded unevenly, one over the other, on a background [H,W,3]."""
    x, y = places()
    shade = 0.8 + 0.2 * torch.sin(28 * x) * torch.cos(36 * y) if shaded else torch.ones_like(x)
    rgb, alpha = background.clone(), torch.zeros(SIDE, SIDE)
    for cover, colour in parts:
        rgb = rgb * (1 - cover[..., None]) + cover[..., None] * shade[..., None] * torch.tensor(colour)
        alpha = alpha * (1 - cover) + cover
    return Scene(rgb, alpha)


def flat(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue]).expand(SIDE, SIDE, 3)


def slope() -> Tensor:
    x, y = places()
    return (0.95 - 0.15 * y - 0.05 * x)[..., None].expand(-1, -1, 3)


def vignette() -> Tensor:
    x, y = places()
    return (0.9 - 0.3 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None] * torch.tensor([1.0, 0.95, 0.9])


def mug(background: Tensor) -> Scene:
    """A mug whose handle has a hole, on a thin leg."""
    return scene(
        background,
        (ring(0.74, 0.47, 0.13, 0.03), (0.2, 0.3, 0.8)),
        (disc(0.43, 0.55, 0.23), (0.8, 0.2, 0.1)),
        (box(0.58, 0.66, 0.17, 0.12), (0.9, 0.8, 0.2)),
        (box(0.32, 0.84, 0.01, 0.1), (0.2, 0.2, 0.2)),
    )


def agreement(found: Tensor, alpha: Tensor) -> float:
    """Intersection over union of the masks."""
    a, b = found > 0.5, alpha > 0.5
    return float((a & b).sum() / (a | b).sum())


def through_jpeg(rgb: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray((rgb.numpy() * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(buffer)) / np.float32(255))


def noisy(rgb: Tensor) -> Tensor:
    return (rgb + 0.02 * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def on(cut: Tensor, colour: float | Tensor) -> Tensor:
    """[H,W,3] composited."""
    return cut[..., :3] * cut[..., 3:] + (1 - cut[..., 3:]) * colour


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for weights with nothing in it."""
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


BACKGROUNDS = {
    "white": flat(1, 1, 1),
    "grey": flat(0.5, 0.5, 0.5),
    "black": flat(0.02, 0.02, 0.02),
    "green": flat(0.1, 0.7, 0.2),
    "slope": slope(),
    "vignette": vignette(),
}


# ---- plain backgrounds


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_what_stands_on_a_plain_background_is_cut_out(name: str, no_weights: Path) -> None:
    truth = mug(BACKGROUNDS[name])
    cut = cut_out(truth.picture, "auto", name)
    assert agreement(cut[..., 3], truth.alpha) > 0.99
    assert float((cut[..., 3] - truth.alpha).abs().mean()) < 0.003
    assert float((on(cut, BACKGROUNDS[name]) - truth.rgb).abs().mean()) < 0.001


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize(("spoil", "least"), [("jpeg 90", 0.95), ("jpeg 60", 0.92), ("noise", 0.97)])
def test_noise_is_no_object(name: str, spoil: str, least: float) -> None:
    truth = mug(BACKGROUNDS[name])
    rgb = noisy(truth.rgb) if spoil == "noise" else through_jpeg(truth.rgb, int(spoil.split()[1]))
    cut = cut_out(Scene(rgb, truth.alpha).picture, "plain", name)
    assert agreement(cut[..., 3], truth.alpha) > least
    corner = cut[: SIDE // 8, : SIDE // 8, 3]
    assert float(corner.max()) == 0


def test_colours_at_the_edge_have_nothing_of_the_background() -> None:
    truth = scene(flat(0.1, 0.7, 0.2), (disc(0.5, 0.5, 0.3), (0.8, 0.1, 0.1)), shaded=False)
    cut = cut_out(truth.picture, "plain", "a")
    edge = (cut[..., 3] > 0.05) & (cut[..., 3] < 0.95)
    assert edge.sum() > 50
    assert_near(cut[edge][:, :3], torch.tensor([0.8, 0.1, 0.1]), 0.06)
    assert float((cut[..., 3] - truth.alpha).abs().max()) < 0.1


def assert_near(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, expected.expand_as(found), atol=atol, rtol=0)


def test_a_hole_is_cut_and_a_highlight_is_not() -> None:
    x, y = places()
    truth = scene(flat(1, 1, 1), (disc(0.5, 0.5, 0.4), (0.7, 0.1, 0.1)), shaded=False)
    shine = torch.exp(-((x - 0.35) ** 2 + (y - 0.35) ** 2) / 0.02)[..., None]
    hole = disc(0.65, 0.65, 0.08)[..., None]
    rgb = (truth.rgb + 1.6 * shine * truth.alpha[..., None]).clamp(0, 1) * (1 - hole) + hole
    alpha = cut_out(Scene(rgb, truth.alpha).picture, "plain", "a")[..., 3]
    assert alpha[SIDE * 65 // 100, SIDE * 65 // 100] == 0
    assert rgb[SIDE * 35 // 100, SIDE * 35 // 100].min() == 1 and alpha[SIDE * 35 // 100, SIDE * 35 // 100] == 1


def test_an_object_may_be_cut_off_by_the_border() -> None:
    truth = scene(slope(), (box(0.5, 0.9, 0.35, 0.3), (0.2, 0.3, 0.7)), (disc(0.5, 0.4, 0.2), (0.8, 0.6, 0.5)))
    assert agreement(cut_out(truth.picture, "plain", "a")[..., 3], truth.alpha) > 0.99


def test_specks_are_dropped_and_parts_are_not() -> None:
    colour = (0.2, 0.3, 0.7)
    parts = [(disc(0.35, 0.5, 0.2), colour), (disc(0.75, 0.5, 0.08), colour)]
    truth = scene(flat(1, 1, 1), *parts)
    rgb = truth.rgb.clone()
    rgb[5, 5] = rgb[100, 9] = 0.3
    alpha = cut_out(Scene(rgb, truth.alpha).picture, "plain", "a")[..., 3]
    assert alpha[3:8, 3:8].max() == 0 and alpha[98:103, 7:12].max() == 0
    assert agreement(alpha, truth.alpha) > 0.99


@pytest.mark.parametrize("cut", CUTTABLE)
def test_a_border_of_many_colours_is_told_with_what_to_do(cut: Cut, no_weights: Path) -> None:
    picture = torch.rand(SIDE, SIDE, 4, generator=torch.Generator().manual_seed(0))
    picture[..., 3] = 1
    with pytest.raises(BadInput, match=r"^photo\.png: expected a plain .* fetch isnet-general-use$"):
        cut_out(picture, cut, "photo.png")


@pytest.mark.parametrize("cut", CUTTABLE)
@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_a_picture_of_one_colour_shows_nothing(cut: Cut, grey: float, no_weights: Path) -> None:
    picture = torch.full((SIDE, SIDE, 4), grey)
    picture[..., 3] = 1
    with pytest.raises(BadInput, match=r"^nothing is to be seen in photo\.png: "):
        cut_out(picture, cut, "photo.png")


def test_a_background_alone_shows_nothing() -> None:
    with pytest.raises(BadInput, match=r"^nothing is to be seen in photo\.png: .* all of it is background"):
        cut_out(Scene(noisy(slope()), torch.zeros(1)).picture, "plain", "photo.png")


# ---- alpha


def test_alpha_is_taken_as_it_is(no_weights: Path) -> None:
    truth = mug(torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0)))
    picture = torch.cat([truth.rgb, truth.alpha[..., None]], dim=-1)
    for cut in ("auto", "alpha"):
        found = cut_out(picture, cut, "a")
        assert_near(found[..., 3], truth.alpha, 0.02)
        torch.testing.assert_close(found[..., :3], picture[..., :3])


def test_alpha_that_is_not_there_is_told() -> None:
    with pytest.raises(BadInput, match=r"^a\.png: expected a picture with transparency, found one without"):
        cut_out(mug(flat(1, 1, 1)).picture, "alpha", "a.png")


@pytest.mark.parametrize("cut", ["auto", "alpha"])
def test_empty_alpha_shows_nothing(cut: Cut) -> None:
    picture = torch.cat([mug(flat(1, 1, 1)).rgb, torch.zeros(SIDE, SIDE, 1)], dim=-1)
    with pytest.raises(BadInput, match=r"^nothing is to be seen in a\.png"):
        cut_out(picture, cut, "a.png")


def test_a_picture_may_be_left_whole() -> None:
    picture = mug(flat(1, 1, 1)).picture
    torch.testing.assert_close(cut_out(picture, "none", "a"), picture)


# ---- a network


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer: a whole number or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def mean_network(side: int = 1024) -> bytes:
    """An ONNX file whose network takes the mean of three channels: what is bright is the object."""

    def tensor(name: bytes, channels: int) -> bytes:
        shape = b"".join(field(1, field(1, size)) for size in (1, channels, side, side))
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))

    axes = field(1, b"axes") + field(20, 7) + field(8, 1)
    node = field(1, b"x") + field(2, b"y") + field(4, b"ReduceMean") + field(5, axes)
    graph = field(1, node) + field(2, b"mean") + field(11, tensor(b"x", 3)) + field(12, tensor(b"y", 1))
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


def put(folder: Path, data: bytes, network: str = "isnet-general-use") -> Path:
    file = folder / network / f"{network}.onnx"
    file.parent.mkdir()
    file.write_bytes(data)
    return file


@pytest.mark.usefixtures("loopback_only")
@pytest.mark.parametrize("cut", ["auto", "network"])
def test_a_network_is_run_from_our_folder(cut: Cut, no_weights: Path) -> None:
    """On a background that is not plain, by rembg itself."""
    pytest.importorskip("rembg")
    put(no_weights, mean_network())
    background = 0.25 * torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    truth = scene(background, (disc(0.5, 0.45, 0.3), (0.9, 1.0, 0.95)), shaded=False)
    found = cut_out(truth.picture, cut, "a")
    assert agreement(found[..., 3], truth.alpha) > 0.98
    edge = (found[..., 3] > 0.2) & (found[..., 3] < 0.8)
    assert float(found[edge][:, :3].min()) > 0.8  # nothing of the dark background


@pytest.mark.usefixtures("loopback_only")
def test_a_broken_network_is_told(no_weights: Path) -> None:
    pytest.importorskip("rembg")
    put(no_weights, b"no network")
    with pytest.raises(
        BadInput, match=r"isnet-general-use\.onnx: expected the network isnet-general-use, found a file"
    ):
        cut_out(mug(flat(1, 1, 1)).picture, "network", "a")


@pytest.mark.usefixtures("loopback_only")
def test_a_network_that_is_not_there_is_not_fetched(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)  # not even asked
    with pytest.raises(WeightsMissing, match=r"is not on this machine.* fetch isnet-general-use$"):
        cut_out(mug(flat(1, 1, 1)).picture, "network", "a")
    assert agreement(cut_out(mug(flat(1, 1, 1)).picture, "auto", "a")[..., 3], mug(flat(1, 1, 1)).alpha) > 0.99


def test_the_best_network_is_taken(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(matting, "_mask_by", lambda file, rgb: asked.append(file) or np.ones(rgb.shape[:2]))
    files = [put(no_weights, b"", network) for network in reversed(matting.NETWORKS)]
    cut_out(mug(flat(1, 1, 1)).picture, "auto", "a")
    assert asked == [files[-1]]


# ---- generated views


@pytest.mark.parametrize("grey", [0.5, 1.0])
def test_views_are_cut_where_they_are(grey: float) -> None:
    scenes = [
        scene(
            flat(grey, grey, grey), (box(0.5, 0.5, width, 0.3), (0.8, 0.2, 0.1)), (disc(0.5, 0.3, 0.1), (0.1, 0.2, 0.6))
        )
        for width in (0.1, 0.2, 0.3)
    ]
    views = torch.stack([noisy(each.rgb) for each in scenes])
    cuts = cut_views(views, grey)
    assert cuts.shape == (3, SIDE, SIDE, 4)
    for cut, each in zip(cuts, scenes, strict=True):
        assert agreement(cut[..., 3], each.alpha) > 0.985
        assert float((on(cut, grey) - each.rgb).abs().mean()) < 0.01


def test_a_background_that_is_not_the_stated_one_is_found() -> None:
    truth = mug(flat(0.8, 0.8, 0.75))
    assert agreement(cut_views(truth.rgb[None], 0.5)[0, ..., 3], truth.alpha) > 0.99


def test_white_on_white_inside_an_object_stays() -> None:
    truth = scene(
        flat(1, 1, 1), (disc(0.5, 0.5, 0.35), (0.7, 0.2, 0.1)), (disc(0.5, 0.5, 0.1), (1, 1, 1)), shaded=False
    )
    cut = cut_views(truth.rgb[None], 1.0)[0]
    assert cut[SIDE // 2, SIDE // 2].tolist() == [1, 1, 1, 1]
    assert agreement(cut[..., 3], truth.alpha) > 0.99


def test_nearly_grey_inside_an_object_stays_and_a_hole_on_grey_goes() -> None:
    grey, parts = flat(0.5, 0.5, 0.5), (disc(0.5, 0.5, 0.35), (0.7, 0.2, 0.1))
    part = scene(grey, parts, (disc(0.5, 0.5, 0.1), (0.54, 0.54, 0.54)), shaded=False)
    hole = scene(grey, parts, (disc(0.5, 0.5, 0.1), (0.5, 0.5, 0.5)), shaded=False)
    cuts = cut_views(torch.stack([part.rgb, hole.rgb]), 0.5)
    assert cuts[:, SIDE // 2, SIDE // 2, 3].tolist() == [1, 0]


def test_a_view_with_nothing_in_it_is_transparent() -> None:
    views = torch.stack([noisy(flat(0.5, 0.5, 0.5)), mug(flat(0.5, 0.5, 0.5)).rgb])
    cuts = cut_views(views, 0.5)
    assert float(cuts[0, ..., 3].max()) == 0 and float(cuts[1, ..., 3].max()) == 1


# ---- in the middle


def box_of(picture: Tensor) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what has alpha; the ends excluded."""
    rows, columns = (picture[..., 3] > 0).nonzero().T
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1


def block(height: int, width: int, top: int = 3, left: int = 5, size: int = 80) -> Tensor:
    picture = torch.zeros(size, size, 4)
    picture[..., :3] = torch.rand(size, size, 3, generator=torch.Generator().manual_seed(0))
    picture[top : top + height, left : left + width, 3] = 1
    return picture


@pytest.mark.parametrize(("height", "width"), [(40, 20), (13, 61), (70, 70), (1, 30)])
def test_the_longest_side_fills_its_share_in_the_middle(height: int, width: int) -> None:
    top, bottom, left, right = box_of(recentred(block(height, width), 64, 0.75))
    assert max(bottom - top, right - left) == 48
    assert min(bottom - top, right - left) == max(1, 48 * min(height, width) // max(height, width))
    assert abs(top - (64 - bottom)) <= 1 and abs(left - (64 - right)) <= 1


@pytest.mark.parametrize(("height", "width"), [(40, 20), (13, 61), (37, 71)])
def test_recentring_again_changes_nothing(height: int, width: int) -> None:
    once = recentred(block(height, width), 64, 0.8)
    torch.testing.assert_close(recentred(once, 64, 0.8), once, rtol=0, atol=0)


def slow_mean(picture: Tensor, height: int, width: int) -> Tensor:
    """[height,width,4] premultiplied means over each new pixel's area, by 1/height and 1/width of an old pixel."""
    alpha = picture[..., 3:]
    fine = torch.cat([picture[..., :3] * alpha, alpha], dim=-1).repeat_interleave(height, 0).repeat_interleave(width, 1)
    return fine.view(height, picture.shape[0], width, picture.shape[1], 4).mean((1, 3))


@pytest.mark.parametrize(("height", "width"), [(5, 3), (7, 11), (16, 2)])
def test_resizing_takes_means_of_areas(height: int, width: int) -> None:
    picture = torch.rand(7, 9, 4, generator=torch.Generator().manual_seed(0))
    found = matting._resized(picture, height, width)
    premultiplied = torch.cat([found[..., :3] * found[..., 3:], found[..., 3:]], dim=-1)
    torch.testing.assert_close(premultiplied, slow_mean(picture, height, width))


def test_resizing_leaves_no_fringe() -> None:
    """Red, and green where it is transparent."""
    picture = torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat(90, 90, 1)
    picture[disc_mask(90)] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    small = recentred(picture, 32, 0.8)
    seen = small[..., 3] > 0
    torch.testing.assert_close(small[seen][:, :3], torch.tensor([1.0, 0.0, 0.0]).expand(int(seen.sum()), 3))
    assert float(small[..., 3].unique().numel()) > 3


def disc_mask(size: int) -> Tensor:
    steps = torch.arange(size) - size / 2 + 0.5
    return steps[:, None].hypot(steps) < size / 3


def test_sides_of_an_object_get_one_scale() -> None:
    """Three sides of a box of height 40, photographed at different distances."""
    views = recentre_all([block(40, 60), block(20, 10), block(10, 15)], 64, 0.75)
    boxes = [box_of(view) for view in views]
    assert [(bottom - top, right - left) for top, bottom, left, right in boxes] == [(32, 48), (32, 16), (32, 48)]
    assert len({(top, bottom) for top, bottom, _, _ in boxes}) == 1
    assert all(abs(left - (64 - right)) <= 1 for _, _, left, right in boxes)


def test_a_tall_object_fills_its_height() -> None:
    views = recentre_all([block(60, 20), block(30, 15)], 64, 0.75)
    assert [(bottom - top, right - left) for top, bottom, left, right in map(box_of, views)] == [(48, 16), (48, 24)]


def test_one_side_alone_is_recentred() -> None:
    torch.testing.assert_close(recentre_all([block(40, 20)], 64, 0.75)[0], recentred(block(40, 20), 64, 0.75))


def test_nothing_cannot_be_recentred() -> None:
    with pytest.raises(BadInput, match="nothing is to be seen in a picture"):
        recentred(torch.zeros(32, 32, 4), 64, 0.8)


@pytest.mark.parametrize("name", ["grow_small", "odd", "shrink_tall"])
def test_recentring_agrees_with_the_published(name: str, shared_folder: Path) -> None:
    """Which takes a box without its last row and column, and means of straight colours: here of opaque ones."""
    values = load_file(shared_folder / "golden/lgm/recenter/recenter.safetensors")
    picture, expected = (values[f"{name}.{part}"].float() / 255 for part in ("rgba_in", "rgba_out"))
    top, bottom, left, right = box_of(picture)
    picture[bottom - 1], picture[:, right - 1] = 0, 0
    opaque = picture.clone()
    opaque[top : bottom - 1, left : right - 1, 3] = 1
    side = max(picture.shape[:2])
    rows = torch.ones(side, dtype=torch.bool)
    if name == "odd":
        rows[35] = False  # a second copy of row 34 there: 30 * 0.9 came out below 27
    for found, channels in ((recentred(picture, side, 0.8), slice(3, 4)), (recentred(opaque, side, 0.8), slice(0, 3))):
        assert_near(found[rows][..., channels], expected[rows][..., channels], 1.01 / 255)
    assert box_of(recentred(picture, side, 0.8)) == box_of(expected)
