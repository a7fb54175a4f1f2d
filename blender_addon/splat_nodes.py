"""The node group that shows stored splats: its inputs, how a modifier's inputs are set, and which faces it chooses.

The faces themselves are made in splat_faces.py. Sockets and inputs go by their names, which no Blender has renamed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import bpy

from . import splat_faces
from .node_building import NodeGraph, socket

NAME = "Gaussmith Splats"
VERSION_KEY, BASES_KEY, FACING_KEY = "gaussmith_version", "gaussmith_bases", "gaussmith_facing"
VERSION = 1  # raise it when the tree changes: files with an older one get the new tree at the next import

DISPLAY, DENSITY, CUT, SIZE = "Display", "Viewport Density", "Opacity Cut", "Size"
MATERIAL = "Material"
DISPLAYS = ("Splats", "Ellipsoids", "Points")
OPACITY_CUT = 0.01  # the rasteriser's own, 1/255, costs half as many faces again along a ray and shows no difference


def add_modifier(item: bpy.types.Object, material: bpy.types.Material, bases: int) -> Any:
    """Hangs the node group for `bases` coefficients on the object; its renders face the camera."""
    modifier: Any = item.modifiers.new(NAME, "NODES")
    modifier.node_group = ensure(bases)
    set_input(modifier, MATERIAL, material)
    return modifier


def faces_camera(item: bpy.types.Object) -> bool:
    """Whether renders of the object turn its splats to the scene's camera."""
    modifier = modifier_of(item)
    return modifier is not None and bool(modifier.node_group[FACING_KEY])


def set_faces_camera(item: bpy.types.Object, wanted: bool) -> None:
    """Chooses between splats that renders turn to the scene's camera and splats that are the same from everywhere.

    Turned splats render several times quicker and sort as the rasteriser sorts them. The price: whenever the camera
    moves, Blender evaluates the nodes again, in the viewport too, since it cannot know that only renders depend on it;
    and mirrors and shadows see the splats from the side.
    """
    modifier = modifier_of(item)
    if modifier is not None:
        modifier.node_group = ensure(int(modifier.node_group[BASES_KEY]), facing=wanted)


def modifier_of(item: bpy.types.Object) -> Any | None:
    """The object's splat modifier, if it has one."""
    trees = (getattr(modifier, "node_group", None) for modifier in item.modifiers)
    found = [m for m, tree in zip(item.modifiers, trees, strict=True) if tree is not None and VERSION_KEY in tree]
    return found[0] if found else None


def set_input(modifier: Any, name: str, value: Any) -> None:
    """Sets an input of a geometry nodes modifier by its name, in every Blender (5.2 has a new place for them)."""
    identifier = _identifier(modifier.node_group, name)
    properties = getattr(modifier, "properties", None)
    if properties is not None and hasattr(properties, "inputs"):
        getattr(properties.inputs, identifier).value = value
    else:
        modifier[identifier] = DISPLAYS.index(value) if name == DISPLAY else value  # a menu input holds a number
    modifier.id_data.update_tag()


def get_input(modifier: Any, name: str) -> Any:
    """The value of an input of a geometry nodes modifier by its name."""
    identifier = _identifier(modifier.node_group, name)
    properties = getattr(modifier, "properties", None)
    if properties is not None and hasattr(properties, "inputs"):
        return getattr(properties.inputs, identifier).value
    value = modifier[identifier]
    return DISPLAYS[value] if name == DISPLAY else value


def _identifier(tree: Any, name: str) -> str:
    found = [i for i in tree.interface.items_tree if i.item_type == "SOCKET" and i.in_out == "INPUT" and i.name == name]
    if not found:
        raise KeyError(f"the node group {tree.name!r} has no input {name!r}")
    return found[0].identifier


# ---- the trees


def mesh_to_points(name: str) -> Any:
    """A node group that turns a mesh's vertices into a point cloud, all else left alone."""
    graph, source = _new_tree(name)
    points = graph.add("GeometryNodeMeshToPoints", {"Mesh": source.outputs["Geometry"]})
    _finish(graph, points.outputs["Points"])
    return graph.tree


def ensure(bases: int, *, facing: bool = True) -> Any:
    """The node group for splats of `bases` coefficients (1, 4, 9 or 16); one for all objects alike."""
    for _ in ensure_slices(bases, facing=facing):
        pass
    return bpy.data.node_groups[_name(bases, facing)]


def ensure_slices(bases: int, *, facing: bool = True) -> Iterator[None]:
    """Makes the node group where it is missing, a part at a time: Blender takes 0.1 s for all its nodes and links."""
    name = _name(bases, facing)
    old = bpy.data.node_groups.get(name)
    if old is not None and old.get(VERSION_KEY) == VERSION:
        return
    tree = yield from _build(name, bases, facing)
    if old is not None:
        old.user_remap(tree)
        bpy.data.node_groups.remove(old)
    tree.name = name
    tree[VERSION_KEY], tree[BASES_KEY], tree[FACING_KEY] = VERSION, bases, facing


def _name(bases: int, facing: bool) -> str:
    harmonics = "" if bases == 1 else f" SH{int(bases**0.5) - 1}"
    return f"{NAME}{harmonics}" if facing else f"{NAME}{harmonics} All Round"


def _new_tree(name: str) -> tuple[NodeGraph, Any]:
    tree = bpy.data.node_groups.new(name, "GeometryNodeTree")
    tree.is_modifier = True
    tree.interface.new_socket("Geometry", in_out="INPUT", socket_type="NodeSocketGeometry")
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    graph = NodeGraph(tree)
    return graph, graph.add("NodeGroupInput")


def _finish(graph: NodeGraph, geometry: Any) -> None:
    graph.add("NodeGroupOutput", {"Geometry": geometry})
    graph.arrange()


def _number(graph: NodeGraph, name: str, text: str, value: float, limits: tuple[float, float]) -> None:
    item = graph.tree.interface.new_socket(name, description=text, in_out="INPUT", socket_type="NodeSocketFloat")
    item.min_value, item.max_value = limits
    item.default_value = value
    item.subtype = "FACTOR" if limits[1] == 1.0 else "NONE"


def _interface(graph: NodeGraph) -> None:
    interface = graph.tree.interface
    text = "What stands in for a splat"
    interface.new_socket(DISPLAY, description=text, in_out="INPUT", socket_type="NodeSocketMenu")
    _number(graph, DENSITY, "The share of splats the viewport shows; renders show all", 1.0, (0.0, 1.0))
    _number(graph, CUT, "Where a splat is fainter than this it is not drawn", OPACITY_CUT, (0.001, 1.0))
    _number(graph, SIZE, "Makes every splat larger or smaller", 1.0, (0.0, 10.0))
    interface.new_socket(MATERIAL, in_out="INPUT", socket_type="NodeSocketMaterial")


def _build(name: str, bases: int, facing: bool) -> Generator[None, None, Any]:
    graph, source = _new_tree(name)
    _interface(graph)
    inputs = source.outputs
    named = splat_faces.Inputs(*(inputs[key] for key in ("Geometry", DENSITY, CUT, SIZE)))
    viewport = graph.add("GeometryNodeIsViewport").outputs["Is Viewport"]
    fields = splat_faces.SplatFields(graph, named)
    view = splat_faces.View(graph, viewport) if facing else None
    yield
    kept = splat_faces.kept_points(graph, named, fields, viewport)
    bare = splat_faces.bare_points(graph, kept, fields, view, bases)
    yield
    faces = splat_faces.faces(graph, bare, view)
    yield
    faces = splat_faces.whitened(graph, faces, kept, fields, view)
    yield
    faces = yield from splat_faces.coloured(graph, faces, kept, fields, bases)
    ellipsoids = splat_faces.ellipsoids(graph, bare)
    ellipsoids = yield from splat_faces.coloured(graph, ellipsoids, kept, fields, bases)
    shown = (faces, ellipsoids, splat_faces.round_points(graph, kept, fields, bases))
    yield
    chosen = _choice(graph, inputs[DISPLAY], shown)
    material = {"Geometry": chosen, "Material": inputs[MATERIAL]}
    _finish(graph, graph.add("GeometryNodeSetMaterial", material).outputs["Geometry"])
    next(item for item in graph.tree.interface.items_tree if item.name == DISPLAY).default_value = DISPLAYS[0]
    return graph.tree


def _choice(graph: NodeGraph, display: Any, geometries: tuple[Any, ...]) -> Any:
    """The geometry that the Display input names."""
    menu = graph.add("GeometryNodeMenuSwitch", data_type="GEOMETRY")
    for index, title in enumerate(DISPLAYS):  # the first two items are there already, and keep the numbers 0 and 1
        if index < len(menu.enum_items):
            menu.enum_items[index].name = title
        else:
            menu.enum_items.new(title)
    graph.feed(socket(menu.inputs, "Menu"), display)
    for title, geometry in zip(DISPLAYS, geometries, strict=True):
        graph.feed(socket(menu.inputs, title), geometry)
    return menu.outputs["Output"]
