"""Samples from folders of posed pictures: which views, where the object is, what is known of it; and a run on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backend import data, folders, training_data
from backend.bad_input import BadInput
from backend.cameras import Cameras, Views, orbit
from backend.data import DataConfig, sample
from backend.folders import Wish, check, objects_in, pictured, spread_views
from backend.hull import project
from backend.sample import Sample, is_held_out
from backend.train import train
from backend.train_config import config_data, config_from
from backend.training_report import read
from tests.balls import RADIUS, ball_views, write_ball
from tests.training_runs import LGM

SIZE = 32
ROUND = Wish(SIZE, views=6, inputs=4)


def write_object(folder: Path, views: Views | None = None, *, depth: bool = False) -> Path:
    """A ball's pictures, with depth files if wanted."""
    folder.mkdir(parents=True)
    views = ball_views(12, 48) if views is None else views
    write_ball(folder, views)
    if depth:
        assert views.depth is not None
        told = json.loads((folder / "transforms.json").read_text())
        for number, frame in enumerate(told["frames"]):
            np.save(folder / f"depth_{number}.npy", views.depth[number].numpy())
            frame["depth_file_path"] = f"depth_{number}.npy"
        (folder / "transforms.json").write_text(json.dumps(told))
    return folder


def moved(views: Views, shift: tuple[float, float, float], factor: float) -> Views:
    """The same pictures of a world that is `factor` times as large and elsewhere."""
    c2w = views.cameras.c2w.clone()
    c2w[:, :3, 3] = factor * c2w[:, :3, 3] + torch.tensor(shift)
    depth = None if views.depth is None else factor * views.depth
    return replace(views, cameras=replace(views.cameras, c2w=c2w), depth=depth)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(root: Path, wish: Wish = ROUND, seed: int = 0) -> Sample:
    found = pictured((root,), wish, rng(seed), held_out=False)
    assert found is not None
    return found


# ---- which objects, which views


def test_objects_are_named_by_their_place_below_the_root(tmp_path: Path) -> None:
    for name in ("b/one", "a"):
        write_object(tmp_path / name)
    assert [name for name, _ in objects_in((tmp_path,))] == ["a", "b/one"]
    assert [name for name, _ in objects_in((tmp_path / "a",))] == ["a"], "a folder may be an object itself"


def test_one_object_in_twenty_is_held_out_by_its_name(tmp_path: Path) -> None:
    apart = next(name for name in map(str, range(200)) if is_held_out(name))
    kept = next(name for name in map(str, range(200)) if not is_held_out(name))
    for name in (apart, kept):
        write_object(tmp_path / name)
    for held_out, name in ((False, kept), (True, apart)):
        found = [pictured((tmp_path,), ROUND, rng(seed), held_out=held_out) for seed in range(4)]
        assert {one.name for one in found if one is not None} == {name}
    assert pictured((tmp_path / kept,), ROUND, rng(), held_out=True) is None
    with pytest.raises(BadInput, match=f"folders: expected objects to train on, .* hold out: {apart}"):
        check((tmp_path / apart,))


def test_inputs_stand_around_the_object_and_the_first_is_any() -> None:
    ring = orbit(12, target=torch.zeros(3), radius=2.0, elevation=0.3, fov=0.7, size=8)
    firsts = set()
    for seed in range(12):
        chosen = spread_views(ring, Wish(8, 8, 4), rng(seed))
        assert len(chosen) == 8 == len(set(chosen))
        assert sorted((view - chosen[0]) % 12 for view in chosen[:4]) == [0, 3, 6, 9]
        firsts.add(chosen[0])
    assert len(firsts) > 4


def test_inputs_are_as_even_as_the_cameras_allow() -> None:
    """Ten cameras in a heap, and three around: those three are always among four inputs."""
    ring = orbit(4, target=torch.zeros(3), radius=2.0, elevation=0.3, fov=0.7, size=8)
    heap = orbit(120, target=torch.zeros(3), radius=2.0, elevation=0.3, fov=0.7, size=8)[list(range(10))]
    parts = [torch.cat([getattr(heap, name), getattr(ring[[1, 2, 3]], name)]) for name in ("c2w", "Ks", "orthographic")]
    cameras = Cameras(parts[0], parts[1], parts[2], 8, 8)
    for seed in range(5):
        assert {10, 11, 12} <= set(spread_views(cameras, Wish(8, 6, 4), rng(seed))[:4])


@pytest.mark.parametrize(("cameras", "views", "inputs"), [(3, 8, 4), (4, 6, 4), (1, 3, 2), (6, 2, 4)])
def test_too_few_cameras_come_again(cameras: int, views: int, inputs: int) -> None:
    ring = orbit(cameras, target=torch.zeros(3), radius=2.0, elevation=0.3, fov=0.7, size=8)
    chosen = spread_views(ring, Wish(8, views, inputs), rng())
    assert len(chosen) == views and set(chosen) <= set(range(cameras))
    assert len(set(chosen[:inputs])) == min(cameras, inputs, views)


# ---- what a sample is


def test_the_object_is_in_the_middle_and_fills_the_pictures(tmp_path: Path) -> None:
    """Wherever and however large it was: a ball of radius 0.5 becomes one of about 0.9."""
    whole = ball_views(12, 96)
    write_object(tmp_path / "here", whole)
    write_object(tmp_path / "there", moved(whole, (50.0, -20.0, 7.0), 30.0))
    for name in ("here", "there"):
        views = drawn(tmp_path / name).views
        for view in range(len(views)):
            middle, depth = project(torch.zeros(3), views.cameras, view)
            seen = (views.images[view, ..., 3] > 0.5).nonzero()[:, [1, 0]].float() + 0.5
            centre, extent = (seen.amax(0) + seen.amin(0)) / 2, (seen.amax(0) - seen.amin(0) + 1).amax()
            assert middle.tolist() == pytest.approx(centre.tolist(), abs=2.5)
            assert float(extent) == pytest.approx(SIZE / folders.ROOM, abs=1.5)
            focal = float(views.cameras.Ks[view, 0, 0])
            assert float(extent) / 2 == pytest.approx(focal * 0.9 / (float(depth) ** 2 - 0.81) ** 0.5, rel=0.12)


def test_pictures_and_cameras_stay_together_when_cut(tmp_path: Path) -> None:
    """The colour of the ball is its normal: each pixel's ray, in its new camera, must meet the ball at that normal."""
    write_object(tmp_path / "ball", ball_views(12, 96), depth=True)
    found = drawn(tmp_path / "ball")
    views = found.views
    assert views.depth is not None and not found.normals.any()
    for view in range(len(views)):
        solid = (views.images[view, ..., 3] > 0.99) & (views.depth[view] > 0)
        rows, columns = solid.nonzero().unbind(1)
        K, c2w, depth = views.cameras.Ks[view], views.cameras.c2w[view], views.depth[view][solid]
        x, y = (columns + 0.5 - K[0, 2]) / K[0, 0], (rows + 0.5 - K[1, 2]) / K[1, 1]
        points = torch.stack([x * depth, y * depth, depth], -1) @ c2w[:3, :3].T + c2w[:3, 3]
        told = (views.images[view, ..., :3][solid] - 0.5) / RADIUS  # the normal
        normals = points / points.norm(dim=-1, keepdim=True)
        assert float((normals - told).norm(dim=-1).median()) < 0.15
        assert points.norm(dim=-1).median() == pytest.approx(0.9, rel=0.12)


def test_room_is_left_as_wished_but_never_beyond_the_picture(tmp_path: Path) -> None:
    write_object(tmp_path / "ball", ball_views(6, 96))
    for room in (1.0, 1.25):
        alpha = drawn(tmp_path / "ball", replace(ROUND, room=(room, room))).views.images[..., 3]
        assert float((alpha > 0.5).any(1).sum(1).float().mean()) == pytest.approx(SIZE / (1.1 * room), abs=1.5)
    cut = ball_views(6, 96)
    left = replace(cut, images=cut.images[:, :, 20:], cameras=_without_left(cut.cameras, 20), depth=None)
    write_object(tmp_path / "cut", left)
    assert bool((drawn(tmp_path / "cut").views.images[:, :, 0, 3] > 0.5).any(1).all()), "cut it is, not narrower"


def _without_left(cameras: Cameras, columns: int) -> Cameras:
    Ks = cameras.Ks.clone()
    Ks[:, 0, 2] -= columns
    return replace(cameras, Ks=Ks, width=cameras.width - columns)


def test_a_view_that_shows_nothing_is_kept_whole() -> None:
    window = folders._window(torch.zeros(4, 10), 1.1)
    assert (window.left, window.top, window.size) == (0, -3, 10)


# ---- in the stream


def test_a_sample_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_object(tmp_path / name)
    config = DataConfig(size=SIZE, views=5, inputs=3, folders=(tmp_path,), folder_share=1.0)
    first = [sample(config, number) for number in range(6)]
    folders._posed.cache_clear()
    again = [sample(config, number) for number in reversed(range(6))][::-1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.views.images, other.views.images) and one.views.names == other.views.names
    assert {one.name for one in first} == {"one", "two"}
    assert len({one.views.names for one in first}) > 1


def test_the_share_of_folders_and_what_the_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_object(tmp_path / "one")
    monkeypatch.setattr(data, "scene", lambda config, index: (config.seed, index))
    config = DataConfig(size=8, views=2, inputs=1, folders=(tmp_path,), folder_share=0.3)
    stream = [data.draw(config, index) for index in range(100)]
    ours = [one for one in stream if isinstance(one, Sample)]
    assert 15 <= len(ours) <= 45
    assert all(one == (0, index) for index, one in enumerate(stream) if not isinstance(one, Sample))
    apart = replace(config, held_out=True, folder_share=1.0)
    assert data.draw(apart, 3) == (0, 3), "where no object is held out, something else is judged"


def test_folders_and_photographs_keep_their_order(tmp_path: Path) -> None:
    write_object(tmp_path / "one")
    config = DataConfig(size=16, views=2, inputs=1, folders=(tmp_path,), folder_share=0.5)
    wanted = [data.draw(config, index) for index in range(6)]
    assert 0 < sum(isinstance(one, Sample) for one in wanted) < 6
    taken = data.take(wanted)
    assert [one.name for one in taken] == [one.name if isinstance(one, Sample) else one.asset.name for one in wanted]


def test_the_configuration_names_folders(tmp_path: Path) -> None:
    told = {"family": "grm", "network": "starter", "steps": 1, "data": {"folders": ["a/b", "c"], "folder_share": 0.25}}
    config = config_from(told)
    assert config.data.folders == (Path("a/b"), Path("c")) and config.data.folder_share == 0.25
    assert config_from(config_data(config)) == config


# ---- what is refused


def test_an_object_of_no_use_is_named_before_anything_is_made(tmp_path: Path) -> None:
    write_object(tmp_path / "good")
    bad = write_object(tmp_path / "bad")
    config = config_from({"family": "grm", "network": "starter", "steps": 1, "data": {"folders": [str(tmp_path)]}})
    begin = lambda: training_data.batches(config, iter(()), torch.device("cpu"))  # noqa: E731
    (bad / "ball_3.png").unlink()
    with pytest.raises(BadInput, match=r"bad.transforms\.json: frame 3: expected the image"):
        begin()
    (bad / "ball_3.png").write_text("no picture")
    with pytest.raises(BadInput, match=r"bad.ball_3\.png: expected an image"):
        begin()
    (bad / "transforms.json").write_text("{")
    with pytest.raises(BadInput, match=r"bad.transforms\.json: expected JSON"):
        begin()


@pytest.mark.parametrize(("alpha", "says"), [(255, "transparent around the object, found opaque"), (0, "one object: ")])
def test_pictures_without_a_mask_are_refused(tmp_path: Path, alpha: int, says: str) -> None:
    folder = write_object(tmp_path / "one")
    for path in folder.glob("*.png"):
        image = Image.open(path).convert("RGBA")
        image.putalpha(alpha)
        image.save(path)
    with pytest.raises(BadInput, match=f"one: expected pictures .*{says}"):
        check((tmp_path,))


def test_a_root_without_objects_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(BadInput, match=f"folders: expected objects with posed pictures in .*{name}, found none"):
            check((tmp_path / name,))


# ---- a run


def test_a_run_learns_what_a_users_folders_show(tmp_path: Path) -> None:
    for number in range(2):
        write_object(tmp_path / "mine" / f"ball_{number}", ball_views(8, 24))
    run = {
        "family": "lgm",
        "network": LGM,
        "data": {"folders": [str(tmp_path / "mine")], "folder_share": 1.0},
        "stages": [{"size": 16, "views": [5, 5], "inputs": [4, 4], "weights": {"perceptual": 0}}],
        "steps": 24,
        "batch": 2,
        "micro_batch": 2,
        "rate": 4e-3,
        "validations": 0,
    }
    assert train(config_from(run), tmp_path / "run", device="cpu").step == 24
    told = [line["loss"] for line in read(tmp_path / "run/log.jsonl") if line["kind"] == "step"]
    assert sum(told[-6:]) < 0.7 * sum(told[:6])
