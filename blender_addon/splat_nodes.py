"""The node group that shows stored splats: its inputs, how a modifier's inputs are set, and which faces it chooses.

The faces themselves are made in splat_faces.py. Sockets and inputs go by their names, which no Blender has renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import bpy

from . import splat_faces
from .node_building import NodeGraph, socket

NAME = "Gaussmith Splats"
POINTS = "Gaussmith Points"
VERSION_KEY, BASES_KEY, FACING_KEY = "gaussmith_version", "gaussmith_bases", "gaussmith_facing"
VERSION = 2  # raise it when the tree changes: files with an older one get the new tree at the next import

DISPLAY, DENSITY, CUT, SIZE = "Display", "Viewport Density", "Opacity Cut", "Size"
MATERIAL = "Material"
DISPLAYS = ("Splats", "Ellipsoids", "Points")
VIEWPORT_SPLATS = 200_000  # of more than these the viewport shows so many at first, which takes it half a second
OPACITY_CUT = 0.01  # half as many faces along a ray as with the rasteriser's own 1/255, and no visible difference


def add_modifier(item: bpy.types.Object, material: bpy.types.Material, bases: int) -> Any:
    """Hangs the node group for `bases` coefficients on the object, at first with no more splats in the viewport
    than it can show at once."""
    modifier: Any = item.modifiers.new(NAME, "NODES")
    modifier.node_group = ensure(bases)
    set_input(modifier, MATERIAL, material)
    count = len(item.data.attributes["position"].data) if "position" in item.data.attributes else 0
    if count > VIEWPORT_SPLATS:
        set_input(modifier, DENSITY, VIEWPORT_SPLATS / count)
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


def mesh_to_points() -> Any:
    """The node group that turns a mesh's vertices into a point cloud, all else left alone.

    One for all results: Blender 4.5 may crash where such a group is made and removed over and over. Nothing uses it
    afterwards, so it is not saved.
    """
    if (made := bpy.data.node_groups.get(POINTS)) is not None:
        return made
    graph, inputs = splat_faces.new_group(POINTS, {"Geometry": "Geometry"}, {"Geometry": "Geometry"})
    points = graph.add("GeometryNodeMeshToPoints", {"Mesh": inputs["Geometry"]})
    return splat_faces.finish(graph, [("Geometry", points.outputs["Points"])])


def ensure(bases: int, *, facing: bool = True) -> Any:
    """The node group for splats of `bases` coefficients (1, 4, 9 or 16); one for all objects alike."""
    for _ in ensure_slices(bases, facing=facing):
        pass
    return bpy.data.node_groups[_name(bases, facing)]


def ensure_slices(bases: int, *, facing: bool = True) -> Iterator[None]:
    """Makes the node group where it is missing, a part at a time: each node and link costs Blender a whole check."""
    if not _is_current(_name(bases, facing)):
        groups = []
        for name, make in _parts(bases, facing):
            if not _is_current(name):
                tree = yield from make(name)
                _replace(name, tree)
                yield
            groups.append(bpy.data.node_groups[name])
        name = _name(bases, facing)
        tree = yield from _build(name, groups)
        tree[BASES_KEY], tree[FACING_KEY] = bases, facing
        _replace(name, tree)


def _parts(bases: int, facing: bool) -> list[tuple[str, Callable[[str], Generator[None, None, Any]]]]:
    """The groups that the main one uses, by name: shape, colours, bare, and outline where renders face the camera."""
    degree = _harmonics(bases)
    parts: list[tuple[str, Callable[[str], Generator[None, None, Any]]]] = [
        (f"{NAME} Shape", splat_faces.shape_group),
        (f"{NAME} Colours{degree}", lambda name: splat_faces.colours_group(name, bases)),
        (f"{NAME} Bare{degree}", lambda name: splat_faces.bare_group(name, bases)),
    ]
    return [*parts, (f"{NAME} Outline", splat_faces.outline_group)] if facing else parts


def _is_current(name: str) -> bool:
    tree = bpy.data.node_groups.get(name)
    return tree is not None and tree.get(VERSION_KEY) == VERSION


def _replace(name: str, tree: Any) -> None:
    """Gives the new tree its name and the place of an older one, if there is."""
    tree[VERSION_KEY] = VERSION
    old = bpy.data.node_groups.get(name)
    if old is not None and old != tree:
        old.user_remap(tree)
        bpy.data.node_groups.remove(old)
    tree.name = name


def _harmonics(bases: int) -> str:
    return "" if bases == 1 else f" SH{int(bases**0.5) - 1}"


def _name(bases: int, facing: bool) -> str:
    return f"{NAME}{_harmonics(bases)}" if facing else f"{NAME}{_harmonics(bases)} All Round"


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


def _build(name: str, groups: list[Any]) -> Generator[None, None, Any]:
    """The main group of its parts, as _parts lists them."""
    graph, inputs = splat_faces.new_group(name, {"Geometry": "Geometry"}, {"Geometry": "Geometry"})
    graph.tree.is_modifier = True
    _interface(graph)
    yield
    shape_tree, colours, bare, *outline_tree = groups
    computed = graph.add("GeometryNodeGroup", node_tree=shape_tree)
    graph.feed(computed.inputs["Size"], inputs[SIZE])
    graph.feed(computed.inputs["Cut"], inputs[CUT])
    shape = splat_faces.Shape(*(computed.outputs[key] for key in splat_faces.SHAPE_OUTPUTS))
    outline = _outline(graph, outline_tree[0], shape) if outline_tree else None
    kept = splat_faces.kept_points(graph, inputs["Geometry"], shape, inputs[CUT], inputs[DENSITY])
    yield
    points, still, still_outline = splat_faces.frozen(graph, kept, shape, outline)
    points = _through(graph, bare, {"Geometry": points})
    yield
    faces = splat_faces.faces(graph, points, still, still_outline)
    yield
    faces = splat_faces.whitened(graph, faces, kept, shape, outline)
    faces = _through(graph, colours, {"Geometry": faces, "Splats": kept})
    yield
    ellipsoids = splat_faces.ellipsoids(graph, points, still)
    ellipsoids = _through(graph, colours, {"Geometry": ellipsoids, "Splats": kept})
    yield
    chosen = _choice(graph, inputs[DISPLAY], (faces, ellipsoids, splat_faces.round_points(graph, kept, shape)))
    material = {"Geometry": chosen, "Material": inputs[MATERIAL]}
    yield
    shown = graph.add("GeometryNodeSetMaterial", material).outputs["Geometry"]
    splat_faces.finish(graph, [("Geometry", shown)])
    next(item for item in graph.tree.interface.items_tree if item.name == DISPLAY).default_value = DISPLAYS[0]
    return graph.tree


def _outline(graph: NodeGraph, tree: Any, shape: splat_faces.Shape) -> splat_faces.Outline:
    computed = graph.add("GeometryNodeGroup", node_tree=tree)
    graph.feed(computed.inputs["Rotation"], shape.rotation)
    graph.feed(computed.inputs["Scales"], shape.scales)
    return splat_faces.Outline(*(computed.outputs[key] for key in splat_faces.OUTLINE_OUTPUTS))


def _through(graph: NodeGraph, tree: Any, inputs: dict[str, Any]) -> Any:
    """The geometry after a group."""
    node = graph.add("GeometryNodeGroup", node_tree=tree)
    for name, value in inputs.items():
        graph.feed(node.inputs[name], value)
    return node.outputs["Geometry"]


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
