"""The whole path on a small scene of its own: build, capture, splats by the methods fast and best, mesh, save, compare;
then a prompt, which becomes views, splats and a mesh at the 3D cursor of the same scene.

    make demo        writes out/demo.blend, out/demo.png, out/prompt.png and out/demo.json

Runs with the bpy wheel (no Blender needed) and the backend's environment named by GAUSSMITH_PYTHON.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Vector

import blender_addon
from blender_addon import api, result
from blender_addon.families import DEFAULT_METHOD, MethodName
from blender_addon.views import CapturedViews

VIEWS = 16  # the starter network takes 8
RESOLUTION = 320
CHECKED = ((25.0, 12.0), (140.0, 32.0), (265.0, 50.0))  # azimuth and elevation in degrees of cameras not used
CHECKED_DISTANCE = 5.2  # scene units, a little farther than the capture's own orbit
PROMPT, PROMPT_SEED = "a red wooden chair", 0
PROMPT_SIZE, PROMPT_PLACE = 1.6, (0.5, -1.0, 0.5)  # metres; where the cursor is, beside the figure


def mix_material(name: str, pattern: str, scale: float, colours: tuple[tuple[float, ...], tuple[float, ...]]):
    """A rough material whose base colour is a procedural pattern between two colours."""
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    texture, ramp = nodes.new(pattern), nodes.new("ShaderNodeValToRGB")
    texture.inputs["Scale"].default_value = scale
    for element, colour in zip(ramp.color_ramp.elements, colours, strict=True):
        element.color = (*colour, 1)
    ramp.color_ramp.elements[0].position, ramp.color_ramp.elements[1].position = 0.4, 0.6
    shader = next(node for node in nodes if node.type == "BSDF_PRINCIPLED")
    shader.inputs["Roughness"].default_value = 0.9
    links.new(texture.outputs[0], ramp.inputs[0])
    links.new(ramp.outputs[0], shader.inputs["Base Color"])
    return material


def build_scene() -> bpy.types.Object:
    """Suzanne on a plinth, away from the origin and turned, selected, under a soft sky and a sun; its empty."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.resolution_x = scene.render.resolution_y = RESOLUTION
    scene.world = bpy.data.worlds.new("Sky")
    scene.world.use_nodes = True
    scene.world.node_tree.nodes["Background"].inputs[0].default_value = (0.9, 0.95, 1.0, 1)
    bpy.ops.object.light_add(type="SUN", rotation=(0.7, 0.2, 0.5))
    bpy.context.object.data.energy = 1.5
    bpy.context.object.data.angle = 0.5

    bpy.ops.object.empty_add(location=(3.0, -2.0, 0.5), rotation=(0, 0, 0.6))
    parent = bpy.context.object
    parent.name = "Figure"
    bpy.ops.mesh.primitive_monkey_add(size=1.6, location=(0, 0, 1.25), rotation=(-0.45, 0, 0))
    head = bpy.context.object
    head.modifiers.new("Smooth", "SUBSURF").render_levels = 2
    bpy.ops.object.shade_smooth()
    bpy.ops.mesh.primitive_cylinder_add(radius=0.75, depth=0.5, location=(0, 0, 0.25), vertices=48)
    plinth = bpy.context.object
    head.data.materials.append(
        mix_material("Glaze", "ShaderNodeTexVoronoi", 5, ((0.03, 0.25, 0.4), (0.85, 0.55, 0.15)))
    )
    plinth.data.materials.append(mix_material("Wood", "ShaderNodeTexNoise", 6, ((0.35, 0.14, 0.06), (0.75, 0.5, 0.3))))
    for child in (head, plinth):
        child.parent = parent
    bpy.ops.object.select_all(action="DESELECT")
    for thing in (parent, head, plinth):
        thing.select_set(True)
    bpy.context.view_layer.objects.active = head
    return parent


def add_checking_cameras(middle: Vector) -> list[bpy.types.Object]:
    """Cameras between and above those of the capture, all aimed at a place; the scene's only ones."""
    for old in [item for item in bpy.context.scene.objects if item.type == "CAMERA"]:
        bpy.data.objects.remove(old)
    made = []
    for azimuth, elevation in np.radians(CHECKED):
        across = CHECKED_DISTANCE * math.cos(elevation)
        offset = Vector(
            (across * math.sin(azimuth), -across * math.cos(azimuth), CHECKED_DISTANCE * math.sin(elevation))
        )
        camera = bpy.data.objects.new("Check", bpy.data.cameras.new("Check"))
        camera.location = middle + offset
        camera.rotation_euler = (-offset).to_track_quat("-Z", "Y").to_euler()
        bpy.context.scene.collection.objects.link(camera)
        made.append(camera)
    bpy.context.scene.camera = made[0]
    return made


def photograph(things: list[bpy.types.Object]) -> CapturedViews:
    """The things alone, from the checking cameras, through Blender's own renderer."""
    return api.capture_views(
        source="cameras", objects=things, resolution=RESOLUTION, quality="preview", depth=False, others="hidden"
    )


def on_white(views: CapturedViews) -> np.ndarray:
    """[V,H,W,3] float, 0..1."""
    alpha = views.images[..., 3:] / 255
    return views.images[..., :3] / 255 * alpha + 1 - alpha


def psnr(got: CapturedViews, want: CapturedViews) -> float:
    """dB between two captures on white."""
    return float(-10 * math.log10(max(np.mean((on_white(got) - on_white(want)) ** 2), 1e-10)))


def save_sheet(columns: list[CapturedViews], path: Path) -> None:
    """One row a camera, one column a capture, as a PNG."""
    sheet = np.concatenate([np.concatenate(list(on_white(views)), axis=0) for views in columns], axis=1)
    height, width = sheet.shape[:2]
    image = bpy.data.images.new("Sheet", width, height)
    pixels = np.concatenate([sheet, np.ones((height, width, 1))], axis=2)[::-1].astype(np.float32)
    image.pixels.foreach_set(np.ascontiguousarray(pixels).reshape(-1))
    image.filepath_raw, image.file_format = str(path), "PNG"
    image.save()
    bpy.data.images.remove(image)


class Console:
    """The terminal. Blender's own chatter, which comes from C and never ends, goes to a log file meanwhile."""

    def __init__(self, log: Path) -> None:
        self._terminal = os.fdopen(os.dup(1), "w")
        self._shown = ("", -1)
        sys.stdout.flush()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)

    def tell(self, line: str) -> None:
        self._terminal.write(line + "\n")
        self._terminal.flush()

    def progress(self, label: str, fraction: float) -> None:
        """One line a fifth of each stage."""
        shown = (label, int(fraction * 5))
        if shown != self._shown:
            self._shown = shown
            self.tell(f"{fraction:5.0%}  {label}")


def generate(method: MethodName, console: Console, *, mesh: bool = False) -> api.Generated:
    """The selected figure by one method, pictures included."""
    console.tell(f"Method {method}")
    return api.generate(
        source="orbit",
        views=VIEWS,
        resolution=RESOLUTION,
        quality="preview",
        method=method,
        mesh=mesh,
        name=f"Figure {method}",
        on_progress=console.progress,
    )


def photograph_all(figure: bpy.types.Object, fast: api.Generated, best: api.Generated) -> dict[str, CapturedViews]:
    """The original and what was made of it, from cameras that none of the methods had."""
    add_checking_cameras(figure.matrix_world @ Vector((0, 0, 0.9)))
    assert fast.splats is not None and best.splats is not None and best.mesh is not None
    seen = {"original": photograph([figure]), "fast": photograph([fast.splats])}
    result.show(best.empty, "MESH")
    mesh = photograph([best.mesh])
    result.show(best.empty, "SPLATS")
    return seen | {"best": photograph([best.splats]), "mesh": mesh}


def generate_prompt(console: Console) -> api.Generated:
    """The prompt's object at the 3D cursor, its pictures included."""
    console.tell(f'Prompt "{PROMPT}"')
    bpy.context.scene.cursor.location = PROMPT_PLACE
    return api.generate(
        prompt=PROMPT, seed=PROMPT_SEED, size=PROMPT_SIZE, mesh=True, name="Prompt", on_progress=console.progress
    )


def photograph_prompt(made: api.Generated) -> list[CapturedViews]:
    """Its splats and its mesh, in Cycles."""
    assert made.splats is not None and made.mesh is not None
    add_checking_cameras(Vector(PROMPT_PLACE) + Vector((0, 0, PROMPT_SIZE / 2)))
    seen = [photograph([made.splats])]
    result.show(made.empty, "MESH")
    return [*seen, photograph([made.mesh])]


def run(out: Path, console: Console) -> dict[str, Any]:
    """The demo; returns what it prints: times in seconds, PSNR in dB."""
    began = time.monotonic()
    figure = build_scene()
    fast = generate(DEFAULT_METHOD, console)
    best = generate("best", console, mesh=True)
    console.tell(f"Rendering {len(CHECKED)} unseen views of the original, the splats and the mesh")
    seen = photograph_all(figure, fast, best)
    save_sheet(list(seen.values()), out / "demo.png")
    assert fast.splats is not None
    fast.splats.hide_viewport = fast.splats.hide_render = True  # it stands where the better one stands
    asked = time.monotonic()
    prompted = generate_prompt(console)
    prompt_seconds = time.monotonic() - asked
    save_sheet(photograph_prompt(prompted), out / "prompt.png")
    bpy.ops.wm.save_as_mainfile(filepath=str(out / "demo.blend"), compress=True)
    original = seen.pop("original")
    return {
        "total_seconds": time.monotonic() - began,
        "psnr_unseen": {name: psnr(views, original) for name, views in seen.items()},
        "results": [told(made) for made in (fast, best)],
        "prompt": {"text": PROMPT, "seconds": prompt_seconds, **told(prompted)},
    }


def told(made: api.Generated) -> dict[str, Any]:
    """What one method's report is worth keeping."""
    return {name: made.report[name] for name in ("method", "made_by", "times", "psnr", "objects")}


def summary(figures: dict[str, Any], out: Path) -> str:
    lines = []
    for made in figures["results"]:
        times = made["times"]
        lines.append(
            f"{made['made_by']}: capture {times['capture_seconds']:.0f} s, "
            f"reconstruction {times['reconstruct_seconds']:.0f} s, {made['psnr']:.1f} dB on the captured views"
        )
    unseen = ", ".join(f"{name} {value:.1f} dB" for name, value in figures["psnr_unseen"].items())
    lines.append(f"PSNR from {len(CHECKED)} unseen cameras in Cycles: {unseen}")
    prompt = figures["prompt"]
    times = prompt["times"]
    lines.append(
        f'"{prompt["text"]}": {prompt["seconds"]:.0f} s, of them {times["imagine_seconds"]:.0f} s for its views and '
        f"{times['reconstruct_seconds']:.0f} s for splats and mesh"
    )
    lines.append(f"in all {figures['total_seconds']:.0f} s")
    lines.append(f"wrote {out / 'demo.blend'}, {out / 'demo.png'}, {out / 'prompt.png'} and {out / 'demo.json'}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"))
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    console = Console(out / "demo.log")
    blender_addon.register()
    try:
        figures = run(out, console)
    finally:
        blender_addon.unregister()
    (out / "demo.json").write_text(json.dumps(figures, indent=1))
    console.tell(summary(figures, out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
