"""Our pictures beside Cycles' of the same objects from the same cameras: contact sheets and the mean difference.

    python tests/blender/compare_pictures.py BPY_PYTHON [--assets FOLDER] [--out FOLDER]

Runs in the backend's environment; BPY_PYTHON is a Python with the bpy wheel. Ours are the upper rows, Cycles' the
lower. What Cycles has made is kept in the folder and made again only for objects that have changed.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

COLUMNS = 8
FLIP = np.diag([1.0, -1, -1, 1])  # from OpenCV's camera axes to Blender's


# ---- in the backend's environment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bpy_python", type=Path)
    parser.add_argument("--assets", type=Path, default=ROOT / "../shared/assets")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "pictures")
    parser.add_argument("--count", type=int, default=8, help="objects of either kind")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    from backend.data import DataConfig

    config = DataConfig(size=options.size, views=options.views, inputs=options.views, assets=options.assets)
    kinds = {"real": replace(config, real_share=1.0), "procedural": replace(config, real_share=0.0)}
    for kind, chosen in kinds.items():
        folder = options.out / kind
        folder.mkdir(parents=True, exist_ok=True)
        ours = [_ours(chosen, index, folder) for index in range(options.first, options.first + options.count)]
        subprocess.run([options.bpy_python, __file__, "--cycles", folder], check=True)
        _compare(kind, ours, folder, options.out)
    return 0


def _ours(config, index: int, folder: Path) -> tuple[str, np.ndarray]:
    """The file stem of a sample and our pictures [V,H,W,4]; a file for Cycles, new only where something has changed."""
    from backend.data import scene, take

    prepared = scene(config, index)
    stem = f"{index:03}_{prepared.asset.name}"
    fields = _fields(prepared)
    target = folder / f"{stem}.npz"
    if not target.exists() or not _same(target, fields):
        np.savez(target, allow_pickle=False, **fields)
        for old in folder.glob(f"{stem}_*.png"):
            old.unlink()
    return stem, take([prepared])[0].views.images.numpy()


def _fields(prepared) -> dict[str, np.ndarray]:
    asset, cameras = prepared.asset, prepared.cameras
    fields = {name: getattr(asset, name) for name in ("vertices", "faces", "uvs", "normals", "face_material")}
    fields |= {"c2w": cameras.c2w.numpy(), "Ks": cameras.Ks.numpy(), "orthographic": cameras.orthographic.numpy()}
    fields["size"] = np.array(cameras.width)
    for number, material in enumerate(asset.materials):
        fields[f"material_{number}"] = np.array([*material.base_color, material.roughness, material.metallic])
        if material.texture is not None:
            fields[f"texture_{number}"] = material.texture
    return fields


def _same(path: Path, fields: dict[str, np.ndarray]) -> bool:
    with np.load(path) as old:
        return set(old.files) == set(fields) and all(np.array_equal(old[name], fields[name]) for name in fields)


def _compare(kind: str, ours: list[tuple[str, np.ndarray]], folder: Path, out: Path) -> None:
    from PIL import Image

    tiles, differences = [], []
    for stem, pictures in ours:
        for view, picture in enumerate(pictures):
            theirs = np.asarray(Image.open(folder / f"{stem}_{view}.png")).astype(np.float32) / 255
            inside = (picture[..., 3] > 0.5) & (theirs[..., 3] > 0.5)
            signed = (picture - theirs)[inside][:, :3]
            differences.append(np.abs(signed).mean())
            alpha = np.abs(picture - theirs)[..., 3].mean()
            sys.stdout.write(f"{stem} {view}: {differences[-1]:.4f}, signed {signed.mean():+.4f}, alpha {alpha:.4f}\n")
            tiles.append(np.concatenate([_on_white(picture), _on_white(theirs)]))
    tiles += [np.ones_like(tiles[0])] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[start : start + COLUMNS], axis=1) for start in range(0, len(tiles), COLUMNS)]
    Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8)).save(out / f"{kind}.png")
    sys.stdout.write(f"{kind}: mean absolute difference {np.mean(differences):.4f}, sheet {out / kind}.png\n")


def _on_white(picture: np.ndarray) -> np.ndarray:
    return picture[..., :3] * picture[..., 3:] + 1 - picture[..., 3:]


# ---- in Blender


def render_folder(folder: Path) -> None:
    """Cycles' pictures of every object in the folder that has none yet."""
    import bpy

    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            fields = {name: file[name] for name in file.files}
        missing = [view for view in range(len(fields["c2w"])) if not (folder / f"{path.stem}_{view}.png").exists()]
        if not missing:
            continue
        bpy.ops.wm.read_factory_settings(use_empty=True)
        _set_up_scene(bpy.context.scene, int(fields["size"]))
        _make_object(bpy, fields)
        for view in missing:
            _render(bpy, fields, view, folder / f"{path.stem}_{view}.png")


def _set_up_scene(scene, size: int) -> None:
    import bpy

    scene.render.engine = "CYCLES"
    cycles = scene.cycles
    cycles.samples, cycles.use_adaptive_sampling, cycles.use_denoising, cycles.seed = 32, False, False, 0
    cycles.max_bounces, cycles.caustics_reflective, cycles.caustics_refractive = 8, False, False
    scene.render.resolution_x = scene.render.resolution_y = size
    scene.render.resolution_percentage, scene.render.film_transparent, scene.render.dither_intensity = 100, True, 0
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
    scene.world = bpy.data.worlds.new("White")
    scene.world.use_nodes = True
    background = scene.world.node_tree.nodes["Background"]
    background.inputs["Color"].default_value, background.inputs["Strength"].default_value = (1, 1, 1, 1), 1.0


def _make_object(bpy, fields: dict[str, np.ndarray]) -> None:
    mesh = bpy.data.meshes.new("Object")
    mesh.from_pydata(fields["vertices"].tolist(), [], fields["faces"].tolist())
    mesh.polygons.foreach_set("material_index", fields["face_material"])
    mesh.uv_layers.new(name="UVMap").uv.foreach_set("vector", fields["uvs"].reshape(-1))
    mesh.polygons.foreach_set("use_smooth", np.ones(len(fields["faces"]), dtype=bool))
    mesh.normals_split_custom_set(fields["normals"].reshape(-1, 3).tolist())
    for number in range(sum(name.startswith("material_") for name in fields)):
        mesh.materials.append(_material(bpy, fields[f"material_{number}"], fields.get(f"texture_{number}")))
    bpy.context.scene.collection.objects.link(bpy.data.objects.new("Object", mesh))


def _material(bpy, numbers: np.ndarray, texture: np.ndarray | None):
    material = bpy.data.materials.new("Material")
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    principled = nodes["Principled BSDF"]
    principled.inputs["Base Color"].default_value = (*numbers[:3], 1)
    principled.inputs["Alpha"].default_value = numbers[3]
    principled.inputs["Roughness"].default_value, principled.inputs["Metallic"].default_value = numbers[4:6]
    if texture is None:
        return material
    image_node, mix = nodes.new("ShaderNodeTexImage"), nodes.new("ShaderNodeMix")
    image_node.image = _image(bpy, texture)
    mix.data_type, mix.blend_type, mix.inputs["Factor"].default_value = "RGBA", "MULTIPLY", 1.0
    mix.inputs[7].default_value = (*numbers[:3], 1)
    links.new(image_node.outputs["Color"], mix.inputs[6])
    links.new(mix.outputs[2], principled.inputs["Base Color"])
    if texture.shape[2] == 4:
        links.new(image_node.outputs["Alpha"], principled.inputs["Alpha"])
    return material


def _image(bpy, texture: np.ndarray):
    height, width, channels = texture.shape
    image = bpy.data.images.new("Texture", width, height, alpha=channels == 4)
    pixels = np.ones((height, width, 4), dtype=np.float32)
    pixels[..., :channels] = texture[::-1] / 255
    image.pixels.foreach_set(pixels.reshape(-1))
    image.update()
    image.pack()
    return image


def _render(bpy, fields: dict[str, np.ndarray], view: int, path: Path) -> None:
    from mathutils import Matrix

    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    focal, size = float(fields["Ks"][view, 0, 0]), float(fields["size"])
    camera.data.sensor_width, camera.data.clip_start = 36.0, 0.01
    if fields["orthographic"][view]:
        camera.data.type, camera.data.ortho_scale = "ORTHO", size / focal
    else:
        camera.data.lens = 36 * focal / size
    camera.matrix_world = Matrix((fields["c2w"][view].astype(float) @ FLIP).tolist())
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    bpy.context.scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cycles"]:
        render_folder(Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(main())
