"""From a prompt or a picture to a result in its place, with a child process that plays the backend.

The result is a box as the fake backend makes it: as long as the wished size, half as deep and as high, its front
towards -Y, standing on the origin.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import (  # noqa: E402
    imagining_operators,
    operators,
    picture_files,
    pictures,
    preferences,
    properties,
    protocol,
    registration,
    result,
    splat_object,
    studio,
)
from blender_addon.backend_process import start_backend  # noqa: E402
from blender_addon.imagining_properties import GaussmithImagining  # noqa: E402
from blender_addon.preview import premultiplied  # noqa: E402
from blender_addon.session import Session  # noqa: E402
from blender_addon.views import CaptureError  # noqa: E402

FAKE = Path(__file__).resolve().parent / "real" / "fake_backend.py"
SECONDS = 60.0
STARTER_VIEWS, SIDE = 4, 128


class Listening(Session):
    """A session that keeps what it was asked."""

    def __init__(self, launch: Any) -> None:
        super().__init__(launch, lambda _job: None)
        self.asked: list[Any] = []

    def submit(self, request: Any, label: str = "") -> Any:
        self.asked.append(request)
        return super().submit(request, label)


@dataclass
class Bench:
    """The extension, switched on, with the fake backend; the default cube is selected."""

    studio: studio.Studio
    session: Listening
    folder: Path
    chosen: Any = field(init=False)

    def __post_init__(self) -> None:
        self.chosen = bpy.context.scene.gaussmith

    def tick_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline, (self.phase, self.studio.problem)
            time.sleep(min(self.studio.tick(), 0.02))

    @property
    def phase(self) -> str:
        return self.studio.generation.phase if self.studio.generation is not None else ""

    def run(self, *, ends: str = "DONE") -> None:
        """Follows a run to its end."""
        self.tick_until(lambda: not self.studio.busy)
        assert self.phase == ends, self.studio.problem

    def generate(self, *, ends: str = "DONE", **settings: Any) -> None:
        for name, value in settings.items():
            setattr(self.chosen.imagining, name, value)
        assert bpy.ops.gaussmith.generate() == {"FINISHED"}
        self.run(ends=ends)

    @property
    def newest(self) -> Any:
        return bpy.data.objects[self.chosen.last_result]

    def box(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lowest and highest corner of the newest result, and the middle of its front, in the world."""
        bpy.context.view_layer.update()
        item = result.part(self.newest, "SPLATS")
        assert item is not None
        means = splat_object.read_splats(item).means
        return means.min(axis=0), means.max(axis=0), means[2]

    def picture(self, name: str = "chair.png", *, value: int = 128) -> Path:
        path = self.folder / name
        path.write_bytes(pictures.png(np.full((6, 8, 4), value, np.uint8)))
        return path


@pytest.fixture
def bench(factory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    python = tmp_path / "python"
    python.touch()
    monkeypatch.setenv(preferences.PYTHON_VARIABLE, str(python))
    monkeypatch.setattr(preferences, "user_folder", lambda name, create=True: tmp_path / name)
    registration.register()
    session = Listening(
        lambda: start_backend(
            Path(sys.executable), log=tmp_path / "log.txt", cache=tmp_path / "cache", command=(str(FAKE),)
        )
    )
    studio.current().session = session
    made = Bench(studio.current(), session, tmp_path)
    made.chosen.source = "PROMPT"
    made.chosen.imagining.prompt = "a red wooden chair"
    yield made
    registration.unregister()


def test_a_prompt_runs_through_to_the_cursor(bench: Bench) -> None:
    bpy.context.scene.cursor.location = (1, 2, 3)
    bench.chosen.seed = 3
    bench.generate(size=0.8)
    low, high, front = bench.box()
    np.testing.assert_allclose(low, (0.6, 1.8, 3), atol=1e-5)
    np.testing.assert_allclose(high, (1.4, 2.2, 3.4), atol=1e-5)
    assert front[1] == pytest.approx(1.8), "the front looks towards -Y"
    assert bench.newest.name == "a red wooden chair" and tuple(bench.newest.location) == (1, 2, 3)
    imagine, reconstruct = bench.session.asked
    assert isinstance(imagine, protocol.Imagine) and imagine.prompt == "a red wooden chair" and imagine.seed == 3
    assert reconstruct.images.shape == (STARTER_VIEWS, SIDE, SIDE, 4) and reconstruct.size == pytest.approx(0.8)
    assert reconstruct.model == "grm" and reconstruct.c2w.shape == (STARTER_VIEWS, 4, 4)
    recipe = result.recipe_of(bench.newest)
    assert recipe["imagined_by"] == "Starter: a red wooden chair (seed 3)" and recipe["times"]["imagine_seconds"] > 0
    assert not bench.studio.candidates.items


def test_one_undo_step_brings_the_result_and_takes_it_away(bench: Bench) -> None:
    bpy.ops.ed.undo_push(message="before")
    bench.generate()
    name = bench.chosen.last_result
    if bpy.ops.ed.undo.poll():
        bpy.ops.ed.undo()
        assert name not in bpy.data.objects
        bpy.ops.ed.redo()
        assert name in bpy.data.objects


@pytest.mark.parametrize(("degrees", "towards"), [(0, (0, -1)), (90, (1, 0)), (180, (0, 1)), (-90, (-1, 0))])
def test_facing(bench: Bench, degrees: float, towards: tuple[float, float]) -> None:
    bench.generate(facing=math.radians(degrees), place="ORIGIN", size=2)
    low, high, front = bench.box()
    np.testing.assert_allclose(front[:2], 0.5 * np.array(towards), atol=1e-5)
    assert low[2] == pytest.approx(0) and high[2] == pytest.approx(1)


def test_the_size_is_in_metres(bench: Bench) -> None:
    bpy.context.scene.unit_settings.scale_length = 0.01
    bench.generate(size=0.5, place="ORIGIN")
    low, high, _ = bench.box()
    np.testing.assert_allclose(high - low, (50, 25, 25), atol=1e-3)
    bpy.context.scene.unit_settings.system = "NONE"
    bench.generate(size=0.5, place="ORIGIN")
    low, high, _ = bench.box()
    np.testing.assert_allclose(high - low, (0.5, 0.25, 0.25), atol=1e-5)


def test_it_stands_on_the_selection(bench: Bench) -> None:
    cube = bpy.context.object
    cube.location, cube.scale = (4, -1, 2), (3, 1, 0.5)
    bench.generate(place="SELECTION")
    low, high, _ = bench.box()
    np.testing.assert_allclose((low + high)[:2] / 2, (4, -1), atol=1e-5)
    assert low[2] == pytest.approx(2.5)
    bpy.ops.object.select_all(action="DESELECT")
    assert operators.nothing_to_capture(bpy.context) == "Select what the result shall stand on"
    assert not bpy.ops.gaussmith.generate.poll()
    light = bpy.data.objects["Light"]
    light.select_set(True)
    with pytest.raises(RuntimeError, match="Nothing is selected that a result can stand on"):
        bpy.ops.gaussmith.generate()


def test_the_reason_for_a_grey_button(bench: Bench) -> None:
    assert bpy.ops.gaussmith.generate.poll()
    bench.chosen.imagining.prompt = "  "
    assert operators.nothing_to_capture(bpy.context) == "Type a prompt or choose a picture first"
    bench.chosen.source = "PICTURE"
    assert not bpy.ops.gaussmith.generate.poll()
    bench.chosen.imagining.picture_front = "//chair.png"
    assert bpy.ops.gaussmith.generate.poll()


def test_what_a_blend_stores_never_changes(bench: Bench) -> None:
    assert [(item[0], item[-1]) for item in properties.SOURCES[5:]] == [("PROMPT", 5), ("PICTURE", 6)]
    assert [item[-1] for item in properties.SOURCES] == list(range(7))
    found = {
        source: {item.identifier: item.value for item in enum.enum_items}
        for source, enum in GaussmithImagining.bl_rna.properties.items()
        if source in ("prompt_front_end", "picture_front_end")
    }
    assert found["prompt_front_end"] == {
        **{"starter": 0, "mvadapter-sdxl": 1, "mvadapter-sd21": 3, "mvdream": 7, "instant3d": 9},
    }
    assert found["picture_front_end"] == {
        **{"starter": 0, "mvadapter-sdxl-image": 2, "mvadapter-sd21-image": 4, "zero123plus-1.2": 5},
        **{"zero123plus-1.1": 6, "imagedream": 8},
    }


def test_the_models_offered_are_those_that_suit(bench: Bench) -> None:
    bench.session.start()
    bench.tick_until(lambda: bench.session.welcome is not None)
    offered = [item[0] for item in properties.model_items(bench.chosen, None)]
    bench.chosen.imagining.prompt_front_end = "mvdream"
    more = [item[0] for item in properties.model_items(bench.chosen, None)]
    bench.chosen.source = "ORBIT"
    assert (offered, more) == (["fit", "grm"], ["fit", "grm", "lgm"])
    assert [item[0] for item in properties.model_items(bench.chosen, None)] == ["fit", "grm", "lgm"]
    assert studio.lacks_weights("mvdream") and not studio.lacks_weights("starter")


# ---- candidates


def choosing(bench: Bench, count: int = 2) -> list[Any]:
    bench.chosen.seed = 5
    bench.generate(ends="CHOOSING", candidates=count)
    return bench.studio.candidates.items


def test_two_candidates_and_the_second_is_used(bench: Bench) -> None:
    before = set(bpy.data.objects.keys())
    first, second = choosing(bench)
    assert set(bpy.data.objects.keys()) == before, "nothing joins the scene before one is chosen"
    assert (first.seed, second.seed) == (5, 6)
    bench.chosen.imagining.size, bench.chosen.imagining.place = 3, "ORIGIN"  # what counts is what the panel says now
    assert bpy.ops.gaussmith.use_candidate(number=second.number) == {"FINISHED"}
    bench.run()
    low, high, _ = bench.box()
    assert (high - low)[0] == pytest.approx(3)
    np.testing.assert_array_equal(bench.session.asked[-1].images, second.imagined.images)
    assert result.recipe_of(bench.newest)["imagined_by"] == "Starter: a red wooden chair (seed 6)"
    assert len(bench.studio.candidates.items) == 2, "another one can be tried"
    assert bpy.ops.gaussmith.use_candidate(number=first.number) == {"FINISHED"}
    bench.run()
    np.testing.assert_array_equal(bench.session.asked[-1].images, first.imagined.images)


def test_one_view_is_made_anew(bench: Bench) -> None:
    first, second = choosing(bench)
    before = [first.imagined.images.copy(), second.imagined.images.copy()]
    assert bpy.ops.gaussmith.redo_view(number=second.number, view=2) == {"FINISHED"}
    bench.run(ends="CHOOSING")
    asked = bench.session.asked[-1]
    assert asked.redo == 2 and asked.candidates == 1 and asked.seed != second.seed
    np.testing.assert_array_equal(asked.views, before[1])
    np.testing.assert_array_equal(second.imagined.images[[0, 1, 3]], before[1][[0, 1, 3]])
    assert second.changed == (2,) and bench.studio.candidates.items == [first, second]
    np.testing.assert_array_equal(first.imagined.images, before[0])
    bpy.ops.gaussmith.use_candidate(number=second.number)
    bench.run()
    assert result.recipe_of(bench.newest)["imagined_by"].endswith("(seed 6, 1 changed)")


def test_more_and_fewer_candidates(bench: Bench) -> None:
    first, second = choosing(bench)
    assert bpy.ops.gaussmith.more_candidates() == {"FINISHED"}
    bench.run(ends="CHOOSING")
    assert [item.seed for item in bench.studio.candidates.items] == [5, 6, 7]
    bpy.ops.gaussmith.discard_candidate(number=first.number)
    third = bench.studio.candidates.items[-1]
    assert bench.studio.candidates.items == [second, third]
    with pytest.raises(RuntimeError, match="no candidate 1"):
        bpy.ops.gaussmith.use_candidate(number=first.number)
    for item in (second, third):
        bpy.ops.gaussmith.discard_candidate(number=item.number)
    assert not bpy.ops.gaussmith.use_candidate.poll()


def test_a_picture_in_a_view_s_place(bench: Bench) -> None:
    item = choosing(bench)[0]
    kept = item.imagined.images.copy()
    wide = np.zeros((40, 80, 4), np.uint8)
    wide[10:30, 20:60] = (10, 200, 30, 255)
    file = bench.folder / "mine.png"
    file.write_bytes(pictures.png(wide))
    assert bpy.ops.gaussmith.replace_view(number=item.number, view=1, filepath=str(file)) == {"FINISHED"}
    new = item.imagined.images[1]
    assert new.shape == (SIDE, SIDE, 4) and tuple(new[64, 64]) == (10, 200, 30, 255)
    rows, columns = np.nonzero(new[..., 3])
    assert np.ptp(columns) == pytest.approx(64, abs=4) and np.ptp(rows) == pytest.approx(32, abs=4), "not stretched"
    np.testing.assert_array_equal(item.imagined.images[[0, 2, 3]], kept[[0, 2, 3]])
    assert item.changed == (1,) and not bpy.data.images.get("mine.png")
    for path, said in (
        (bench.picture("whole.png", value=255), "transparency"),
        (bench.folder / "none.png", "There is no picture"),
    ):
        with pytest.raises(RuntimeError, match=said):
            bpy.ops.gaussmith.replace_view(number=item.number, view=1, filepath=str(path))
    with pytest.raises(RuntimeError, match="has no view 9"):
        bpy.ops.gaussmith.redo_view(number=item.number, view=8)


def test_a_failed_run_leaves_the_candidates(bench: Bench) -> None:
    choosing(bench)
    bench.chosen.imagining.place = "SELECTION"
    bpy.ops.object.select_all(action="DESELECT")
    with pytest.raises(RuntimeError, match="Nothing is selected"):
        bpy.ops.gaussmith.use_candidate(number=1)
    assert len(bench.studio.candidates.items) == 2
    studio._before_undo()
    assert len(bench.studio.candidates.items) == 2, "an undo is about the scene, which has no part of them"


def test_another_file_drops_the_candidates(bench: Bench) -> None:
    choosing(bench)
    bpy.ops.wm.read_homefile(use_empty=True)
    assert not bench.studio.candidates.items and bench.studio.candidates.order is None


def test_cancel_while_views_are_made(bench: Bench) -> None:
    assert bpy.ops.gaussmith.generate() == {"FINISHED"}
    assert bench.phase == "IMAGINING" and bpy.ops.gaussmith.cancel() == {"FINISHED"}
    assert bench.phase == "CANCELLED" and not bench.studio.busy


# ---- pictures


def test_pictures_of_sides_go_straight_to_the_reconstruction(bench: Bench) -> None:
    bench.chosen.source = "PICTURE"
    front, back = bench.picture("front.png"), bench.picture("back.png", value=7)
    bench.generate(picture_front=str(front), picture_back=str(back), candidates=4, cut="ALPHA")
    asked = bench.session.asked[0]
    assert asked.sides == ("front", "back") and asked.picture_names == ("front.png", "back.png")
    assert asked.pictures.tobytes() == front.read_bytes() + back.read_bytes()
    assert (asked.candidates, asked.cut, asked.prompt) == (1, "alpha", ""), "the prompt of another source stays out"
    assert result.recipe_of(bench.newest)["imagined_by"] == "front.png, back.png"


def test_pictures_that_cannot_be_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.chosen.source = "PICTURE"
    bench.chosen.imagining.picture_front = str(bench.folder / "gone.png")
    with pytest.raises(RuntimeError, match=r"There is no picture .*gone\.png"):
        bpy.ops.gaussmith.generate()
    assert bench.studio.problem is not None and not bench.session.asked
    file = bench.picture()
    monkeypatch.setattr(picture_files, "LARGEST_FILE", 10)
    with pytest.raises(CaptureError, match=r"chair\.png: a picture's file may have 0 MB"):
        picture_files.read(file)
    with pytest.raises(CaptureError, match="must be a file"):
        picture_files.read(bench.folder)


@pytest.mark.parametrize(("ending", "kind"), [("exr", "OPEN_EXR"), ("hdr", "HDR"), ("dpx", "DPX"), ("cin", "CINEON")])
def test_what_only_blender_reads_is_sent_as_png(bench: Bench, ending: str, kind: str) -> None:
    if kind == "CINEON" and bpy.app.version < (4, 3):
        pytest.skip("Blender 4.2 crashes when it writes a Cineon file")
    path = bench.folder / f"a.{ending}"
    image = bpy.data.images.new("made", 4, 2, float_buffer=True, alpha=False)
    rows = np.ones((2, 4, 4), np.float32)
    rows[0, :, :3], rows[1, :, :3] = (0.5, 0.25, 0.1), (0.1, 0.25, 0.5)  # the first row is the bottom one
    image.pixels.foreach_set(rows.reshape(-1))
    image.filepath_raw, image.file_format = str(path), kind
    image.save()
    names = set(bpy.data.images.keys())
    data = picture_files.read(path)
    assert data.startswith(b"\x89PNG") and set(bpy.data.images.keys()) == names
    back = bench.folder / "back.png"
    back.write_bytes(data)
    top = picture_files._pixels(bpy.data.images.load(str(back)))[0, 0]
    assert top[2] > top[1] > top[0], "the top row is bluish"
    (bench.folder / f"bad.{ending}").write_text("no picture")
    with pytest.raises(CaptureError, match=f"bad.{ending} is no picture"):
        picture_files.read(bench.folder / f"bad.{ending}")


def test_the_cut_is_shown_before_a_run(bench: Bench) -> None:
    bench.chosen.source = "PICTURE"
    assert not bpy.ops.gaussmith.preview_cut.poll()
    path = bench.picture()
    bench.chosen.imagining.picture_front = str(path)
    assert bpy.ops.gaussmith.preview_cut() == {"FINISHED"}
    bench.tick_until(lambda: not bench.studio.cut.busy)
    asked = bench.session.asked[0]
    assert isinstance(asked, protocol.CutOut) and asked.picture.tobytes() == path.read_bytes() and asked.cut == "auto"
    assert bench.studio.cut.shown == 1 and bench.studio.cut._of == (str(path), "auto")
    path.unlink()
    with pytest.raises(RuntimeError, match="There is no picture"):
        bpy.ops.gaussmith.preview_cut()


def test_a_dropped_picture_starts_nothing(bench: Bench) -> None:
    bench.chosen.source = "ORBIT"
    bench.chosen.imagining.picture_left = "old.png"
    path = bench.picture()
    assert bpy.ops.gaussmith.use_picture(filepath=str(path)) == {"FINISHED"}
    assert bench.chosen.source == "PICTURE" and bench.chosen.imagining.picture_front == str(path)
    assert not bench.chosen.imagining.picture_left and not bench.studio.busy and not bench.session.asked
    assert bpy.ops.gaussmith.use_picture(filepath=str(path), start=True) == {"FINISHED"}
    assert bench.studio.busy
    bench.run()
    with pytest.raises(RuntimeError, match="There is no picture"):
        bpy.ops.gaussmith.use_picture(filepath="/nowhere.png")


def test_the_file_handler_takes_pictures_in_the_viewport(bench: Bench) -> None:
    handler = imagining_operators.GAUSSMITH_FH_picture
    endings = handler.bl_file_extensions.split(";")
    assert {".png", ".jpg", ".webp", ".exr"} <= set(endings) and all(ending.startswith(".") for ending in endings)
    operator = getattr(bpy.ops.gaussmith, handler.bl_import_operator.removeprefix("gaussmith."))
    assert "filepath" in operator.get_rna_type().properties
    area = replace(Area(), type="VIEW_3D")
    assert handler.poll_drop(Context(area)) and not handler.poll_drop(Context(Area())) and not handler.poll_drop(
        Context(None)
    )  # fmt: skip


@dataclass(frozen=True)
class Area:
    type: str = "IMAGE_EDITOR"


@dataclass(frozen=True)
class Context:
    area: Area | None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/a/b.png", "/a/b.png"),
        (' "/a/b c.png"\n', "/a/b c.png"),
        ("file:///a/b%20c.png\nfile:///d.png", "/a/b c.png"),
        ("", None),
        ("\0", None),
    ],
)
def test_a_pasted_path(text: str, path: str | None) -> None:
    assert imagining_operators.pasted(text) == (Path(path) if path is not None else None)


# ---- again, vary, and the prompts of before


def test_vary_changes_the_seed(bench: Bench) -> None:
    seeds = set()
    for _ in range(5):
        bpy.ops.gaussmith.vary()
        seeds.add(bench.chosen.seed)
    assert len(seeds) > 1 and max(seeds) < 1_000_000


def test_generate_again(bench: Bench) -> None:
    bench.chosen.seed, bench.chosen.output = 3, "BOTH"
    bench.generate(size=0.8, place="ORIGIN", negative_prompt="legs", facing=1.5)
    first = bench.session.asked[:2]
    bench.chosen.source, bench.chosen.seed, bench.chosen.output = "ORBIT", 9, "SPLATS"
    bench.chosen.imagining.prompt, bench.chosen.imagining.size = "something else", 5
    assert bpy.ops.gaussmith.generate_again() == {"FINISHED"}
    bench.run()
    again = bench.session.asked[2:]
    for old, new in zip(first, again, strict=True):
        assert replace_arrays(old) == replace_arrays(new)
    assert bench.chosen.imagining.prompt == "a red wooden chair" and bench.chosen.source == "PROMPT"
    for item in list(bpy.data.objects):
        bpy.data.objects.remove(item)
    assert not bpy.ops.gaussmith.generate_again.poll()


def replace_arrays(request: Any) -> dict[str, Any]:
    """The plain fields of a request."""
    return {name: value for name, value in vars(request).items() if not hasattr(value, "shape") and name != "job_id"}


def test_the_prompts_of_before(bench: Bench) -> None:
    bench.generate()
    bench.generate(prompt="a lamp")
    assert bench.studio.history.prompts == ("a lamp", "a red wooden chair")
    assert (bench.folder / "prompts" / "prompts.json").is_file()
    bench.chosen.source = "PICTURE"
    bench.generate(picture_front=str(bench.picture()))
    assert bench.studio.history.prompts == ("a lamp", "a red wooden chair"), "a picture has no prompt"


def test_faint_pixels_do_not_glow_in_icons() -> None:
    """Blender draws icons as colours multiplied by alpha."""
    image = np.array([[[200, 100, 0, 255], [200, 100, 50, 51], [255, 255, 255, 0]]], np.uint8)
    assert premultiplied(image).tolist() == [[[200, 100, 0, 255], [40, 20, 10, 51], [0, 0, 0, 0]]]
