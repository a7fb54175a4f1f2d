"""Every family of networks in Blender: what it makes stands where the captured object stood, facing the same way.

Each tiny network is trained on a jack in the world's origin, and then shown one that is elsewhere and larger. Its
coloured arms tell a turned result from a mirrored one; and cameras that are wrong in such ways must be noticed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import api, commands, preferences, registration, result, splat_object  # noqa: E402
from blender_addon.api import GenerateError  # noqa: E402
from blender_addon.capture import CaptureSettings, capture  # noqa: E402
from blender_addon.order import Order  # noqa: E402
from blender_addon.ply import SplatArrays  # noqa: E402
from tests import jack  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {"grm": "grm", "lgm": "lgm", "long_lrm": "long_lrm", "openlrm": "lrm", "triposr": "lrm"}
RESOLUTION = {"grm": 64, "lgm": 64, "long_lrm": 32, "openlrm": 64, "triposr": 64}  # Long-LRM takes any size
COUNT = {"grm": 4}  # views that this kind of network takes
USUAL_COUNT = 6  # the families that want fewer take four
PLACE, SCALE = np.array([3.0, -2.0, 1.0]), 1.7
SOLID = 0.5  # opacity
SH_C0 = 0.28209479177387814


@dataclass(frozen=True)
class Trained:
    """Folders: the checkpoints by name, and the views each was trained on."""

    weights: Path
    views: Path

    def checkpoint(self, name: str) -> str:
        return str(self.weights / f"{name}.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """The extension registered, with the real backend; a scene with a jack; networks that have seen it."""
    python = os.environ.get(preferences.PYTHON_VARIABLE, "")
    if not Path(python).is_file():
        pytest.skip("GAUSSMITH_PYTHON names no environment for the backend")
    folder = tmp_path_factory.mktemp("networks")
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.engine = "CYCLES"
    registration.register()
    make_jack()
    for name, family in FAMILIES.items():
        order = Order(capture=CaptureSettings(**shots(name)), model=family)
        capture(bpy.context, order.shots).save(folder / "views" / name)
    words = [python, "-m", "tests.train_tiny", str(folder / "views"), str(folder)]
    done = subprocess.run(words, cwd=ROOT, env=backend_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    yield Trained(folder, folder / "views")
    registration.unregister()


@pytest.fixture(autouse=True)
def clean_scene() -> Iterator[None]:
    """What a test has made does not stay for the next."""
    before = set(bpy.data.objects.keys())
    yield
    for item in [item for item in bpy.data.objects if item.name not in before]:
        bpy.data.objects.remove(item)


def backend_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def shots(name: str) -> dict[str, Any]:
    return {"count": COUNT.get(name, USUAL_COUNT), "resolution": RESOLUTION[name], "quality": "preview"}


def make_jack() -> None:
    """The active and only selected object, in the world's origin."""
    mesh = bpy.data.meshes.new("Jack")
    corners: list[jack.Point] = []
    faces: list[list[int]] = []
    colours: list[jack.Point] = []
    for box in jack.BOXES:
        start, ends = len(corners), (box.low, box.high)
        corners += [(ends[i][0], ends[j][1], ends[k][2]) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
        faces += [[start + corner for corner in side] for side in sides]
        colours += [box.colour] * len(sides)
    mesh.from_pydata(corners, [], faces)
    different = sorted(set(colours))
    for colour in different:
        mesh.materials.append(emissive(colour))
    for polygon, colour in zip(mesh.polygons, colours, strict=True):
        polygon.material_index = different.index(colour)
    item = bpy.data.objects.new("Jack", mesh)
    bpy.context.scene.collection.objects.link(item)
    item.select_set(True)
    bpy.context.view_layer.objects.active = item


def emissive(colour: jack.Point) -> Any:
    material = bpy.data.materials.new("Glow")
    if material.node_tree is None:  # before 5.0 a new material has none
        material.use_nodes = True
    tree: Any = material.node_tree
    tree.nodes.clear()
    emission = tree.nodes.new("ShaderNodeEmission")
    emission.inputs["Color"].default_value = (*colour, 1)
    tree.links.new(emission.outputs["Emission"], tree.nodes.new("ShaderNodeOutputMaterial").inputs["Surface"])
    return material


# ---- where it is and how it faces


def problems(splats: SplatArrays, place: np.ndarray, turn: np.ndarray, scale: float) -> list[str]:
    """What is wrong with splats that should be the jack at `place`, turned by `turn` [3,3] and `scale` times as large;
    nothing, where it stands and faces as it should.
    """
    local = (splats.means[splats.opacities > SOLID] - place) @ turn / scale  # the jack's own axes
    colours = SH_C0 * splats.sh[splats.opacities > SOLID, 0] + 0.5
    if len(local) < 20:
        return [f"{len(local)} solid splats"]
    low, high = np.percentile(local, [1, 99], axis=0)
    middle, sizes, wanted = (low + high) / 2, high - low, 2 * np.array(jack.REACH)
    found = []
    if np.linalg.norm(middle) > 0.1 * wanted.max():
        found.append(f"the middle is off by {np.round(middle, 2)}")
    if np.any(np.abs(sizes / wanted - 1) > 0.25):
        found.append(f"sizes are {np.round(sizes / wanted, 2)} of what they should be")
    for axis, name in enumerate("XYZ"):
        others = np.delete(colours, axis, axis=1).max(axis=1)
        arm = local[colours[:, axis] > others + 0.3]
        away = arm.mean(axis=0) if len(arm) else np.zeros(3)
        stray = (arm[:, axis] < 0).mean() if len(arm) else 1.0
        if stray > 0.05 or away[axis] < 0.3 or np.abs(np.delete(away, axis)).max() > 0.4 * away[axis]:
            found.append(f"the arm of +{name} is towards {np.round(away, 2)}, with {stray:.0%} beyond the middle")
    return found


def splats_of(made: api.Generated) -> SplatArrays:
    assert made.splats is not None
    return splat_object.read_splats(made.splats)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_result_stands_where_the_object_is(trained: Trained, name: str) -> None:
    item = bpy.data.objects["Jack"]
    item.location, item.scale = PLACE.tolist(), (SCALE,) * 3
    words: dict[str, Any] = {("views" if word == "count" else word): value for word, value in shots(name).items()}
    made = api.generate(objects=[item], model=FAMILIES[name], weights=trained.checkpoint(name), **words)
    assert problems(splats_of(made), PLACE, np.eye(3), SCALE) == []
    assert made.report["model"] == FAMILIES[name] and made.report["backend"]["weights"] == trained.checkpoint(name)
    box = next(item for item in made.report["objects"] if item["role"] == "splats")
    assert np.all(np.array(box["bbox_min"]) < PLACE) and np.all(np.array(box["bbox_max"]) > PLACE)


def test_the_starter_is_what_runs_when_nothing_is_named(trained: Trained) -> None:
    item = bpy.data.objects["Jack"]
    item.location, item.scale = PLACE.tolist(), (SCALE,) * 3
    made = api.generate(objects=[item], views=24, resolution=64, quality="preview", mesh=True, faces=1000)
    assert made.report["method"] == "fast" and made.report["made_by"] == "Fast: starter network, 8 views"
    assert made.report["backend"]["weights"] == "starter" and made.report["backend"]["steps"] == 0
    assert result.recipe_of(made.empty)["made_by"] == made.report["made_by"]
    assert {item["role"] for item in made.report["objects"]} == {"splats", "mesh"}
    low, high = np.percentile(splats_of(made).means, [1, 99], axis=0)
    reach = SCALE * np.array(jack.REACH)
    np.testing.assert_allclose(low, PLACE - reach, atol=0.2 * reach.max())
    np.testing.assert_allclose(high, PLACE + reach, atol=0.2 * reach.max())


# ---- cameras from a file: moved as a whole, and wrong


def rewritten(path: Path, change: Callable[[np.ndarray], np.ndarray], name: str) -> Path:
    """A transforms.json beside another, its matrices [V,4,4] (camera to world, OpenGL axes) changed, without depth."""
    told = json.loads(path.read_text())
    matrices = change(np.array([frame["transform_matrix"] for frame in told["frames"]]))
    for frame, matrix in zip(told["frames"], matrices, strict=True):
        frame["transform_matrix"] = matrix.tolist()
        del frame["depth_file_path"]
    changed = path.with_name(f"{name}.json")
    changed.write_text(json.dumps(told))
    return changed


def made_of(trained: Trained, name: str, change: Callable[[np.ndarray], np.ndarray], label: str) -> api.Generated:
    path = rewritten(trained.views / name / "transforms.json", change, label)
    return api.generate(transforms=path, model=FAMILIES[name], weights=trained.checkpoint(name))


TURN = np.array([[0.0, 0.6, 0.8], [1.0, 0.0, 0.0], [0.0, 0.8, -0.6]])  # a rotation


@pytest.mark.parametrize("name", FAMILIES)
def test_the_result_turns_with_the_cameras(trained: Trained, name: str) -> None:
    """The world may lie on its side and have another unit: the pictures are the same."""

    def change(matrices: np.ndarray) -> np.ndarray:
        changed = matrices.copy()
        changed[:, :3, :3] = TURN @ matrices[:, :3, :3]
        changed[:, :3, 3] = 0.4 * matrices[:, :3, 3] @ TURN.T + PLACE
        return changed

    assert np.linalg.det(TURN) == pytest.approx(1)
    made = made_of(trained, name, change, "turned")
    assert problems(splats_of(made), PLACE, TURN, 0.4) == []


def exchanged(matrices: np.ndarray) -> np.ndarray:
    """The first two cameras stand in each other's places."""
    return matrices[[1, 0, *range(2, len(matrices))]]


def rolled(matrices: np.ndarray) -> np.ndarray:
    """As if X pointed left and Y down in a camera."""
    return matrices @ np.diag([-1.0, -1, 1, 1])


def backwards(matrices: np.ndarray) -> np.ndarray:
    """OpenCV's axes in place of OpenGL's."""
    return matrices @ np.diag([1.0, -1, -1, 1])


def mirrored(matrices: np.ndarray) -> np.ndarray:
    """The cameras of a mirror image of the scene, which is what a swapped sign of X gives: left of it is right."""
    mirror = np.diag([-1.0, 1, 1, 1])
    return mirror @ matrices @ mirror


WRONG = {change.__name__: change for change in (exchanged, rolled, backwards, mirrored)}
# LRM looks at the first view alone, which stands in the mirror's plane: it cannot tell.
WRONG_FOR = [(name, wrong) for name in FAMILIES for wrong in WRONG if (FAMILIES[name], wrong) != ("lrm", "mirrored")]


@pytest.mark.parametrize(("name", "wrong"), WRONG_FOR)
def test_wrong_cameras_are_noticed(trained: Trained, name: str, wrong: str) -> None:
    """Otherwise the tests above would prove nothing."""
    try:
        made = made_of(trained, name, WRONG[wrong], wrong)
    except GenerateError as error:
        assert error.failure.kind == "bad_request", error
        return
    found = problems(splats_of(made), np.zeros(3), np.eye(3), 1.0)
    assert any("middle" in problem or "arm" in problem for problem in found), found


def test_unchanged_cameras_from_a_file_are_right(trained: Trained) -> None:
    for name in FAMILIES:
        made = made_of(trained, name, lambda matrices: matrices, "same")
        assert problems(splats_of(made), np.zeros(3), np.eye(3), 1.0) == [], name


# ---- the command line


def test_the_command_line(trained: Trained, tmp_path: Path) -> None:
    item = bpy.data.objects["Jack"]
    item.location, item.scale = PLACE.tolist(), (SCALE,) * 3
    report = tmp_path / "report.json"
    words = ("generate", "--object", "Jack", "--resolution", "64", "--quality", "preview")
    words += ("--model", "lgm", "--weights", trained.checkpoint("lgm"), "--json", str(report))
    assert commands.execute(words) == commands.SUCCESS
    told = json.loads(report.read_text())
    splats = next(item for item in told["objects"] if item["role"] == "splats")
    assert problems(splat_object.read_splats(bpy.data.objects[splats["name"]]), PLACE, np.eye(3), SCALE) == []
    assert told["views"] == 4 and told["backend"]["model"] == "lgm"
    assert len(told["backend"]["weights_sha256"]) == 64
