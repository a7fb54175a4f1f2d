"""The README's figures of captures with depth: 24 views of a scene, 8 cameras not used, and Blender's own geometry.

    make figures        writes out/figures/SCENE/ and prints a line for each scene

Runs with the bpy wheel; the backend's environment, named by GAUSSMITH_PYTHON, reconstructs and scores. The scenes are
those of `bench/scenes` in the folder `shared` beside the checkout.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import bpy
import numpy as np
from mathutils import Vector

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import blender_addon  # noqa: E402
from blender_addon import api  # noqa: E402

SCENES = ROOT / "../shared/bench/scenes"
CHOSEN = {"suzanne": "02_suzanne_vertex_colour_6cams", "table-top": "04_tabletop_32cams"}
VIEWS, RESOLUTION = 24, 384
CHECKED = tuple((22.0 + 45 * turn, (5.0, 25.0, 45.0, 60.0)[turn % 4]) for turn in range(8))  # azimuth, elevation
CHECKED_DISTANCE = 3.2  # radii of the objects' box


def corners(items: Sequence[bpy.types.Object]) -> np.ndarray:
    """[N,3] world."""
    return np.array([item.matrix_world @ Vector(corner) for item in items for corner in item.bound_box])


def leave_checking_cameras(items: Sequence[bpy.types.Object]) -> None:
    """The scene's own cameras give way to those that the reconstruction never sees."""
    for camera in [item for item in bpy.context.scene.objects if item.type == "CAMERA"]:
        bpy.data.objects.remove(camera)
    low, high = corners(items).min(axis=0), corners(items).max(axis=0)
    middle, distance = Vector((low + high) / 2), CHECKED_DISTANCE * float(np.linalg.norm(high - low)) / 2
    for azimuth, elevation in np.radians(CHECKED):
        level = math.cos(elevation)
        away = Vector((level * math.sin(azimuth), -level * math.cos(azimuth), math.sin(elevation))) * distance
        camera = bpy.data.objects.new("Check", bpy.data.cameras.new("Check"))
        camera.location, camera.rotation_euler = middle + away, (-away).to_track_quat("-Z", "Y").to_euler()
        bpy.context.scene.collection.objects.link(camera)
        bpy.context.scene.camera = camera


def save_geometry(items: Sequence[bpy.types.Object], path: Path) -> None:
    """What Blender would render: vertices [N,3] world and triangles [M,3]."""
    graph = bpy.context.evaluated_depsgraph_get()
    vertices: list[np.ndarray] = []
    faces: list[np.ndarray] = []
    for item in items:
        mesh = item.evaluated_get(graph).to_mesh()
        mesh.calc_loop_triangles()
        places, triangles = np.empty(3 * len(mesh.vertices)), np.empty(3 * len(mesh.loop_triangles), np.int32)
        mesh.vertices.foreach_get("co", places)
        mesh.loop_triangles.foreach_get("vertices", triangles)
        matrix = np.array(item.matrix_world)
        faces.append(triangles.reshape(-1, 3) + sum(map(len, vertices)))
        vertices.append(places.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3])
    np.savez(path, vertices=np.concatenate(vertices), faces=np.concatenate(faces))


def capture(scene: str, folder: Path) -> None:
    bpy.ops.wm.open_mainfile(filepath=str(SCENES / f"{scene}.blend"))
    items = [item for item in bpy.context.scene.objects if item.type == "MESH"]
    words = {"objects": items, "resolution": RESOLUTION, "quality": "preview"}
    api.capture_views(source="orbit", views=VIEWS, **words).save(folder / "views")
    leave_checking_cameras(items)
    api.capture_views(source="cameras", depth=False, **words).save(folder / "checked")
    save_geometry(items, folder / "geometry.npz")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "figures")
    out = parser.parse_args().out.resolve()
    if not SCENES.is_dir():
        sys.stderr.write(f"there is no folder {SCENES}\n")
        return 1
    python = os.environ["GAUSSMITH_PYTHON"]
    blender_addon.register()
    for name, scene in CHOSEN.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        capture(scene, folder)
        words = ["--out", str(folder / "result"), "--mesh", "--cameras", str(folder / "checked" / "transforms.json")]
        subprocess.run([python, "-m", "backend", "reconstruct", str(folder / "views"), *words], cwd=ROOT, check=True)
        subprocess.run([python, "-m", "tests.score_capture", str(folder)], cwd=ROOT, check=True)
    blender_addon.unregister()
    return 0


if __name__ == "__main__":
    sys.exit(main())
