"""The geometry nodes that turn stored splats into faces to render: one across each axis of the splat that needs it.

A face across axis i spans the other two. It reaches sqrt(2) k standard deviations, where k is the distance at which
this splat's opacity falls below the cut: then the face that a ray meets most squarely (in the splat's whitened frame)
always covers the ray's whole cross-section. A splat much thinner along one axis than along the others needs one face only.
Attributes of a splat go onto its faces, not their corners, which takes a quarter of the memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import bpy

from .node_building import NodeGraph, socket
from .splat_material import AXIS, COLOUR, FACES, HARMONIC, ROWS

NAME = "Gaussmith Splats"
VERSION_KEY = "gaussmith_version"
VERSION = 1  # raise it when the tree changes: files with an older one get the new tree at the next import

DISPLAY, DENSITY, CUT, SIZE, MATERIAL = "Display", "Viewport Density", "Opacity Cut", "Size", "Material"
DISPLAYS = ("Splats", "Ellipsoids", "Points")
OPACITY_CUT = 1 / 255  # the rasteriser's own
THIN = 6.0  # a splat this many times thinner along one axis than along another needs no face across the latter
FLATTEST = 1e-3  # the least ratio of axes that is drawn, so that a scale of 0 has a reciprocal
SOLID = 1.5  # standard deviations that solid stand-ins reach
INDEX = "gs_index"
AXES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
TURNS = ((0.0, 1.5707963267948966, 0.0), (1.5707963267948966, 0.0, 0.0), (0.0, 0.0, 0.0))  # a grid lies across Z


def add_modifier(item: bpy.types.Object, material: bpy.types.Material, bases: int) -> Any:
    """Hangs the node group for `bases` coefficients on the object."""
    modifier: Any = item.modifiers.new(NAME, "NODES")
    modifier.node_group = ensure(bases)
    set_input(modifier, MATERIAL, material)
    return modifier


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


def ensure(bases: int) -> Any:
    """The node group for splats of `bases` coefficients (1, 4, 9 or 16); one for all objects alike."""
    for _ in ensure_slices(bases):
        pass
    return bpy.data.node_groups[_name(bases)]


def ensure_slices(bases: int) -> Iterator[None]:
    """Makes the node group where it is missing, a part at a time: Blender takes 0.1 s for all its nodes and links."""
    tree = bpy.data.node_groups.get(_name(bases))
    if tree is not None and tree.get(VERSION_KEY) == VERSION:
        return
    new = yield from _build(_name(bases), bases)
    if tree is not None:
        tree.user_remap(new)
        bpy.data.node_groups.remove(tree)
    new.name = _name(bases)
    new[VERSION_KEY] = VERSION


def _name(bases: int) -> str:
    return NAME if bases == 1 else f"{NAME} SH{int(bases**0.5) - 1}"


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


def _build(name: str, bases: int) -> Generator[None, None, Any]:
    graph, source = _new_tree(name)
    _interface(graph)
    inputs = source.outputs
    yield
    fields = _Fields(graph, inputs)
    yield
    kept = _kept(graph, inputs, fields)
    points = _ready(graph, kept, fields, bases)
    yield
    squares = _squares(graph, points)
    yield
    squares = _whitened(graph, squares, kept, fields)
    yield
    squares = yield from _coloured(graph, squares, kept, fields, bases)
    ellipsoids = _ellipsoids(graph, points)
    ellipsoids = yield from _coloured(graph, ellipsoids, kept, fields, bases)
    shown = (squares, ellipsoids, _points(graph, kept, fields, bases))
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


class _Fields:
    """What the tree computes of each splat."""

    def __init__(self, graph: NodeGraph, inputs: Any) -> None:
        self.graph = graph
        self.rotation = self.stored("rotation", "QUATERNION")
        base = self.stored("radiance:base", "FLOAT_COLOR")
        self.base = base
        self.opacity = graph.add("FunctionNodeSeparateColor", {"Color": base}).outputs["Alpha"]
        scales = graph.vector("SCALE", self.stored("scale", "FLOAT_VECTOR"), inputs[SIZE])
        x, y, z = graph.separate(scales)
        largest = graph.math("MAXIMUM", graph.math("MAXIMUM", x, y), z)
        floor = graph.math("MAXIMUM", graph.math("MULTIPLY", largest, FLATTEST), 1e-12)
        self.scales = [graph.math("MAXIMUM", value, floor) for value in (x, y, z)]
        smallest = graph.math("MINIMUM", graph.math("MINIMUM", *self.scales[:2]), self.scales[2])
        limit = graph.math("MULTIPLY", smallest, THIN)
        self.present = graph.combine(*(graph.math("LESS_THAN", value, limit) for value in self.scales))
        visible = graph.math("MAXIMUM", graph.math("DIVIDE", self.opacity, inputs[CUT]), 1.0)
        logarithm = graph.math("MULTIPLY", graph.math("LOGARITHM", visible, 2.718281828459045), 2.0)
        self.reach = graph.math("SQRT", logarithm)  # the cut, in standard deviations

    def stored(self, name: str, kind: str) -> Any:
        node = self.graph.add("GeometryNodeInputNamedAttribute", data_type=kind)
        node.inputs["Name"].default_value = name
        return socket(node.outputs, "Attribute")

    def rows(self) -> list[Any]:
        """The whitening transform, one colour (row, offset) for each axis."""
        graph = self.graph
        centre = graph.add("GeometryNodeInputPosition").outputs["Position"]
        rows = []
        for axis, size in zip(AXES, self.scales, strict=True):
            turned = graph.add("FunctionNodeRotateVector", {"Vector": axis, "Rotation": self.rotation})
            row = graph.vector("SCALE", turned.outputs["Vector"], graph.math("DIVIDE", 1.0, size))
            offset = graph.math("MULTIPLY", graph.vector("DOT_PRODUCT", row, centre), -1.0)
            red, green, blue = graph.separate(row)
            channels = {"Red": red, "Green": green, "Blue": blue, "Alpha": offset}
            rows.append(graph.add("FunctionNodeCombineColor", channels).outputs["Color"])
        return rows


def _kept(graph: NodeGraph, inputs: Any, fields: _Fields) -> Any:
    """The splats that are drawn at all, as points."""
    parts = graph.add("GeometryNodeSeparateComponents", {"Geometry": inputs["Geometry"]})
    from_mesh = graph.add("GeometryNodeMeshToPoints", {"Mesh": parts.outputs["Mesh"]})
    both = graph.add("GeometryNodeJoinGeometry")
    graph.feed(both.inputs["Geometry"], parts.outputs["Point Cloud"])
    graph.feed(both.inputs["Geometry"], from_mesh.outputs["Points"])
    visible = graph.math("GREATER_THAN", fields.opacity, inputs[CUT])
    chance = graph.add("FunctionNodeRandomValue", data_type="FLOAT")
    drawn = graph.math("LESS_THAN", socket(chance.outputs, "Value"), inputs[DENSITY])
    viewport = graph.add("GeometryNodeIsViewport").outputs["Is Viewport"]
    everywhere = graph.math("SUBTRACT", 1.0, viewport)
    selection = graph.math("MULTIPLY", visible, graph.math("MAXIMUM", drawn, everywhere))
    separated = graph.add(
        "GeometryNodeSeparateGeometry", {"Geometry": both.outputs["Geometry"], "Selection": selection}, domain="POINT"
    )
    return separated.outputs["Selection"]


def _without(graph: NodeGraph, geometry: Any, name: str) -> Any:
    node = graph.add("GeometryNodeRemoveAttribute", {"Geometry": geometry, "Name": name})
    return node.outputs["Geometry"]


def _store(graph: NodeGraph, geometry: Any, name: str, kind: str, value: Any, *, domain: str) -> Any:
    inputs = {"Geometry": geometry, "Name": name, "Value": value}
    return graph.add("GeometryNodeStoreNamedAttribute", inputs, data_type=kind, domain=domain).outputs["Geometry"]


def _sampled(graph: NodeGraph, points: Any, value: Any, index: Any, kind: str) -> Any:
    inputs = {"Geometry": points, "Value": value, "Index": index}
    return socket(graph.add("GeometryNodeSampleIndex", inputs, data_type=kind, domain="POINT").outputs, "Value")


def _captured(graph: NodeGraph, points: Any, kind: str, value: Any) -> tuple[Any, Any]:
    """The points with the value frozen on them, and that value to read later."""
    node = graph.add("GeometryNodeCaptureAttribute", {"Geometry": points}, domain="POINT")
    node.capture_items.new(kind, "Value")
    graph.feed(socket(node.inputs, "Value"), value)
    return node.outputs["Geometry"], socket(node.outputs, "Value")


class _Ready(NamedTuple):
    """Points without what they store, so that instances do not carry it along; only their number as `gs_index`."""

    points: Any
    rotation: Any
    scales: Any  # standard deviations
    reach: Any  # how many of them a face covers
    present: Any  # for each axis, whether a face stands across it


def _ready(graph: NodeGraph, kept: Any, fields: _Fields, bases: int) -> _Ready:
    points, rotation = _captured(graph, kept, "ROTATION", fields.rotation)
    points, scales = _captured(graph, points, "VECTOR", graph.combine(*fields.scales))
    points, reach = _captured(graph, points, "FLOAT", graph.math("MULTIPLY", fields.reach, 1.4142135623730951))
    points, present = _captured(graph, points, "VECTOR", fields.present)
    points = _store(graph, points, INDEX, "INT", graph.add("GeometryNodeInputIndex").outputs["Index"], domain="POINT")
    for name in ("rotation", "scale", "radiance:base", *(f"radiance:sh_{i}" for i in range(bases - 1))):
        points = _without(graph, points, name)
    return _Ready(points, rotation, scales, reach, present)


def _squares(graph: NodeGraph, ready: _Ready) -> Any:
    """One square across each axis that needs it."""
    size = graph.vector("SCALE", ready.scales, ready.reach)
    joined = graph.add("GeometryNodeJoinGeometry")
    for axis, turn, wanted in zip(AXES, TURNS, graph.separate(ready.present), strict=True):
        grid = graph.add("GeometryNodeMeshGrid", {"Size X": 2.0, "Size Y": 2.0, "Vertices X": 2, "Vertices Y": 2})
        turned = graph.add("GeometryNodeTransform", {"Geometry": grid.outputs["Mesh"], "Rotation": turn})
        marked = _store(graph, turned.outputs["Geometry"], AXIS, "FLOAT_VECTOR", axis, domain="FACE")
        inputs = {"Points": ready.points, "Selection": wanted, "Instance": marked}
        inputs |= {"Rotation": ready.rotation, "Scale": size}
        graph.feed(joined.inputs["Geometry"], graph.add("GeometryNodeInstanceOnPoints", inputs).outputs["Instances"])
    return graph.add("GeometryNodeRealizeInstances", {"Geometry": joined.outputs["Geometry"]}).outputs["Geometry"]


def _ellipsoids(graph: NodeGraph, ready: _Ready) -> Any:
    """A solid ellipsoid for each splat, for the solid viewport; evenly opaque."""
    ball = graph.add("GeometryNodeMeshIcoSphere", {"Radius": 1.0, "Subdivisions": 2}).outputs["Mesh"]
    size = graph.vector("SCALE", ready.scales, SOLID)
    inputs = {"Points": ready.points, "Instance": ball, "Rotation": ready.rotation, "Scale": size}
    instances = graph.add("GeometryNodeInstanceOnPoints", inputs).outputs["Instances"]
    return graph.add("GeometryNodeRealizeInstances", {"Geometry": instances}).outputs["Geometry"]


def _whitened(graph: NodeGraph, geometry: Any, kept: Any, fields: _Fields) -> Any:
    """The faces with their splat's whitening transform and the set of its faces."""
    index = fields.stored(INDEX, "INT")
    for name, row in zip(ROWS, fields.rows(), strict=True):
        value = _sampled(graph, kept, row, index, "FLOAT_COLOR")
        geometry = _store(graph, geometry, name, "FLOAT_COLOR", value, domain="FACE")
    value = _sampled(graph, kept, fields.present, index, "FLOAT_VECTOR")
    return _store(graph, geometry, FACES, "FLOAT_VECTOR", value, domain="FACE")


def _coloured(graph: NodeGraph, geometry: Any, kept: Any, fields: _Fields, bases: int) -> Generator[None, None, Any]:
    """The faces with their splat's colour and harmonics."""
    index = fields.stored(INDEX, "INT")
    value = _sampled(graph, kept, fields.base, index, "FLOAT_COLOR")
    geometry = _store(graph, geometry, COLOUR, "FLOAT_COLOR", value, domain="FACE")
    for number in range(bases - 1):
        coefficient = fields.stored(f"radiance:sh_{number}", "FLOAT_VECTOR")
        value = _sampled(graph, kept, coefficient, index, "FLOAT_VECTOR")
        geometry = _store(graph, geometry, f"{HARMONIC}{number}", "FLOAT_VECTOR", value, domain="FACE")
        if number % 3 == 2:
            yield
    yield
    return _without(graph, geometry, INDEX)


def _points(graph: NodeGraph, kept: Any, fields: _Fields, bases: int) -> Any:
    """A round point of each splat's mean size: the quickest to draw."""
    x, y, z = fields.scales
    volume = graph.math("MULTIPLY", graph.math("MULTIPLY", x, y), z)
    radius = graph.math("MULTIPLY", graph.math("POWER", volume, 1 / 3), SOLID)
    points = _store(graph, kept, COLOUR, "FLOAT_COLOR", fields.base, domain="POINT")
    for number in range(bases - 1):
        coefficient = fields.stored(f"radiance:sh_{number}", "FLOAT_VECTOR")
        points = _store(graph, points, f"{HARMONIC}{number}", "FLOAT_VECTOR", coefficient, domain="POINT")
    sized = graph.add("GeometryNodeSetPointRadius", {"Points": points, "Radius": radius})
    return sized.outputs["Points"]
