"""The faces that stand in for splats, as geometry nodes.

Three squares, one across each axis of the splat, work from everywhere. A square across axis i spans the other two. It
reaches sqrt(2) k standard deviations, where k is the distance at which this splat's opacity falls below the cut: then
the square that a ray meets most squarely (in the splat's whitened frame) covers the ray's whole cross-section. A splat
much thinner along one axis than along the others needs one square only.

One rectangle parallel to the camera's picture works for that camera, and so for renders: it covers the splat's outline
as projected onto that plane, its rays sort by depth as the rasteriser's do, and a ray meets a quarter of the faces.

What a splat stores goes onto its faces, not their corners, which takes a quarter of the memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

import bpy

from .node_building import NodeGraph, socket
from .splat_material import AXIS, COLOUR, FACES, HARMONIC, ROWS

THIN = 6.0  # a splat this many times thinner along one axis than along another needs no square across the latter
FLATTEST = 1e-3  # the least ratio of axes that is drawn, so that a scale of 0 has a reciprocal
OUTLINE_MARGIN = 1.02  # the affine outline of a splat is a little smaller than its perspective one
SOLID = 1.5  # standard deviations that solid stand-ins reach
INDEX = "gs_index"
BASE = "radiance:base"
SH_PREFIX = "radiance:sh_"
AXES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
TURNS = ((0.0, 1.5707963267948966, 0.0), (1.5707963267948966, 0.0, 0.0), (0.0, 0.0, 0.0))  # a grid lies across Z


class Shape(NamedTuple):
    """What one group computes of each splat, to be evaluated on the points. Fields in the order of its outputs."""

    rotation: Any
    scales: Any  # standard deviations
    opacity: Any
    reach: Any  # the distance at which the splat fades into the cut, in standard deviations
    present: Any  # for each axis 1 or 0: whether a square stands across it
    row_x: Any  # the whitening transform: colours (row, offset)
    row_y: Any
    row_z: Any


SHAPE_OUTPUTS = {
    "Rotation": "Rotation",
    "Scales": "Vector",
    "Opacity": "Float",
    "Reach": "Float",
    "Present": "Vector",
    "Row X": "Color",
    "Row Y": "Color",
    "Row Z": "Color",
}


def shape_group(name: str) -> Generator[None, None, Any]:
    """The group that computes a Shape from the size factor and the opacity cut."""
    graph, inputs = new_group(name, {"Size": "Float", "Cut": "Float"}, SHAPE_OUTPUTS)
    rotation = stored(graph, "rotation", "QUATERNION")
    opacity = graph.add("FunctionNodeSeparateColor", {"Color": stored(graph, BASE, "FLOAT_COLOR")}).outputs["Alpha"]
    x, y, z = graph.separate(graph.vector("SCALE", stored(graph, "scale", "FLOAT_VECTOR"), inputs["Size"]))
    largest = graph.math("MAXIMUM", graph.math("MAXIMUM", x, y), z)
    floor = graph.math("MAXIMUM", graph.math("MULTIPLY", largest, FLATTEST), 1e-12)
    scales = [graph.math("MAXIMUM", value, floor) for value in (x, y, z)]
    yield
    visible = graph.math("MAXIMUM", graph.math("DIVIDE", opacity, inputs["Cut"]), 1.0)
    reach = graph.math("SQRT", graph.math("MULTIPLY", graph.math("LOGARITHM", visible, 2.718281828459045), 2.0))
    smallest = graph.math("MINIMUM", graph.math("MINIMUM", *scales[:2]), scales[2])
    limit = graph.math("MULTIPLY", smallest, THIN)
    present = graph.combine(*(graph.math("LESS_THAN", value, limit) for value in scales))
    yield
    rows = yield from _rows(graph, rotation, scales)
    return finish(
        graph, zip(SHAPE_OUTPUTS, (rotation, graph.combine(*scales), opacity, reach, present, *rows), strict=True)
    )


def _rows(graph: NodeGraph, rotation: Any, scales: list[Any]) -> Generator[None, None, list[Any]]:
    centre = graph.add("GeometryNodeInputPosition").outputs["Position"]
    rows = []
    for axis, size in zip(turned_axes(graph, rotation), scales, strict=True):
        row = graph.vector("SCALE", axis, graph.math("DIVIDE", 1.0, size))
        offset = graph.math("MULTIPLY", graph.vector("DOT_PRODUCT", row, centre), -1.0)
        red, green, blue = graph.separate(row)
        channels = {"Red": red, "Green": green, "Blue": blue, "Alpha": offset}
        rows.append(graph.add("FunctionNodeCombineColor", channels).outputs["Color"])
        yield
    return rows


class Outline(NamedTuple):
    """Each splat's face parallel to the picture of the scene's camera. Fields in the order of the group's outputs."""

    faced: Any  # 1 where this evaluation turns the splats to the camera: a render does
    rotation: Any
    sides: Any  # standard deviations along the face's two sides; z is 1


OUTLINE_OUTPUTS = {"Faced": "Float", "Rotation": "Rotation", "Sides": "Vector"}


def outline_group(name: str) -> Generator[None, None, Any]:
    """The group that computes an Outline from a splat's rotation and scales.

    On the plane through the splat's centre parallel to the picture, its covariance is P S P^T, with P the projection
    onto the plane along the ray to the centre.
    """
    graph, inputs = new_group(name, {"Rotation": "Rotation", "Scales": "Vector"}, OUTLINE_OUTPUTS)
    camera = graph.add("GeometryNodeInputActiveCamera").outputs["Active Camera"]
    info = graph.add("GeometryNodeObjectInfo", {"Object": camera}, transform_space="RELATIVE").outputs
    found = graph.math("GREATER_THAN", graph.vector("LENGTH", info["Scale"]), 0.0)  # no camera: scale 0
    viewport = graph.add("GeometryNodeIsViewport").outputs["Is Viewport"]
    faced = graph.math("MULTIPLY", found, graph.math("SUBTRACT", 1.0, viewport))
    right, up, back = turned_axes(graph, info["Rotation"])
    ray = _ray(graph, camera, info["Location"], back)
    slope = graph.math("DIVIDE", 1.0, graph.vector("DOT_PRODUCT", ray, back))
    yield
    axes = turned_axes(graph, inputs["Rotation"])
    stretched = [
        graph.vector("SCALE", axis, size) for axis, size in zip(axes, graph.separate(inputs["Scales"]), strict=True)
    ]
    across = []
    for side in (right, up):
        along = graph.math("MULTIPLY", graph.vector("DOT_PRODUCT", side, ray), slope)
        sheared = graph.vector("SUBTRACT", side, graph.vector("SCALE", back, along))
        across.append(graph.combine(*(graph.vector("DOT_PRODUCT", sheared, axis) for axis in stretched)))
        yield
    angle, sides = _principal(graph, *across)
    yield
    about = graph.add("FunctionNodeAxisAngleToRotation", {"Axis": (0.0, 0.0, 1.0), "Angle": angle}).outputs["Rotation"]
    turn = {"Rotation": info["Rotation"], "Rotate By": about}
    rotation = graph.add("FunctionNodeRotateRotation", turn, rotation_space="LOCAL").outputs["Rotation"]
    return finish(graph, zip(OUTLINE_OUTPUTS, (faced, rotation, sides), strict=True))


def _ray(graph: NodeGraph, camera: Any, position: Any, back: Any) -> Any:
    """The direction in which the camera sees the splat's centre; its sign is of no matter."""
    centre = graph.add("GeometryNodeInputPosition").outputs["Position"]
    ray = graph.vector("NORMALIZE", graph.vector("SUBTRACT", centre, position))
    if not hasattr(bpy.types, "GeometryNodeCameraInfo"):  # before 4.5 any camera is taken for a perspective one
        return ray
    straight = graph.add("GeometryNodeCameraInfo", {"Camera": camera}).outputs["Is Orthographic"]
    return graph.vector("ADD", ray, graph.vector("SCALE", graph.vector("SUBTRACT", back, ray), straight))


def _principal(graph: NodeGraph, x: Any, y: Any) -> tuple[Any, Any]:
    """Angle of the long axis, and standard deviations along both, of the covariance with entries x.x, x.y, y.y."""
    xx, yy, xy = (graph.vector("DOT_PRODUCT", *pair) for pair in ((x, x), (y, y), (x, y)))
    difference, twice = graph.math("SUBTRACT", xx, yy), graph.math("MULTIPLY", xy, 2.0)
    angle = graph.math("MULTIPLY", graph.math("ARCTAN2", twice, difference), 0.5)
    spread = graph.vector("LENGTH", graph.combine(difference, twice, 0.0))
    total = graph.math("ADD", xx, yy)
    long = graph.math("SQRT", graph.math("MULTIPLY", graph.math("ADD", total, spread), 0.5))
    rest = graph.math("MULTIPLY", graph.math("SUBTRACT", total, spread), 0.5)
    return angle, graph.combine(long, graph.math("SQRT", graph.math("MAXIMUM", rest, 0.0)), 1.0)


def colours_group(name: str, bases: int) -> Generator[None, None, Any]:
    """The group that gives faces the colour and harmonics of their splat, whose number they carry."""
    graph, inputs = new_group(name, {"Geometry": "Geometry", "Splats": "Geometry"}, {"Geometry": "Geometry"})
    geometry, index = inputs["Geometry"], stored(graph, INDEX, "INT")
    names = {BASE: (COLOUR, "FLOAT_COLOR")}
    names |= {f"{SH_PREFIX}{number}": (f"{HARMONIC}{number}", "FLOAT_VECTOR") for number in range(bases - 1)}
    for source, (target, kind) in names.items():
        value = _sampled(graph, inputs["Splats"], stored(graph, source, kind), index, kind)
        geometry = _store(graph, geometry, target, kind, value, domain="FACE")
        yield
    return finish(graph, [("Geometry", _without(graph, geometry, INDEX))])


def bare_group(name: str, bases: int) -> Generator[None, None, Any]:
    """The group that takes from points what splats store, so that instances do not carry it along, and numbers them."""
    graph, inputs = new_group(name, {"Geometry": "Geometry"}, {"Geometry": "Geometry"})
    index = graph.add("GeometryNodeInputIndex").outputs["Index"]
    points = _store(graph, inputs["Geometry"], INDEX, "INT", index, domain="POINT")
    for stale in ("rotation", "scale", BASE, *(f"{SH_PREFIX}{number}" for number in range(bases - 1))):
        points = _without(graph, points, stale)
        yield
    return finish(graph, [("Geometry", points)])


def kept_points(graph: NodeGraph, geometry: Any, shape: Shape, cut: Any, density: Any) -> Any:
    """The splats that are drawn at all, as points."""
    parts = graph.add("GeometryNodeSeparateComponents", {"Geometry": geometry})
    from_mesh = graph.add("GeometryNodeMeshToPoints", {"Mesh": parts.outputs["Mesh"]})
    both = graph.add("GeometryNodeJoinGeometry")
    graph.feed(both.inputs["Geometry"], parts.outputs["Point Cloud"])
    graph.feed(both.inputs["Geometry"], from_mesh.outputs["Points"])
    visible = graph.math("GREATER_THAN", shape.opacity, cut)
    chance = graph.add("FunctionNodeRandomValue", data_type="FLOAT")
    drawn = graph.math("LESS_THAN", socket(chance.outputs, "Value"), density)
    everywhere = graph.math("SUBTRACT", 1.0, graph.add("GeometryNodeIsViewport").outputs["Is Viewport"])
    selection = graph.math("MULTIPLY", visible, graph.math("MAXIMUM", drawn, everywhere))
    separated = {"Geometry": both.outputs["Geometry"], "Selection": selection}
    return graph.add("GeometryNodeSeparateGeometry", separated, domain="POINT").outputs["Selection"]


def frozen(graph: NodeGraph, points: Any, shape: Shape, outline: Outline | None) -> tuple[Any, Shape, Outline | None]:
    """The points with what instances need of them frozen, and that in place of the fields."""
    points, rotation = _captured(graph, points, "ROTATION", shape.rotation)
    points, scales = _captured(graph, points, "VECTOR", shape.scales)
    points, reach = _captured(graph, points, "FLOAT", shape.reach)
    points, present = _captured(graph, points, "VECTOR", shape.present)
    if outline is not None:
        points, turn = _captured(graph, points, "ROTATION", outline.rotation)
        points, sides = _captured(graph, points, "VECTOR", outline.sides)
        outline = outline._replace(rotation=turn, sides=sides)
    return points, shape._replace(rotation=rotation, scales=scales, reach=reach, present=present), outline


def faces(graph: NodeGraph, points: Any, shape: Shape, outline: Outline | None) -> Any:
    """Squares across the splats' axes, or where the camera is faced, one rectangle a splat."""
    squares = _squares(graph, points, shape)
    if outline is None:
        return _realized(graph, squares)
    size = graph.vector("SCALE", outline.sides, graph.math("MULTIPLY", shape.reach, OUTLINE_MARGIN))
    facing = _instances(graph, points, _square(graph), outline.rotation, size, True)
    switch = graph.add("GeometryNodeSwitch", input_type="GEOMETRY")
    for name, value in {"Switch": outline.faced, "False": squares, "True": facing}.items():
        graph.feed(socket(switch.inputs, name), value)
    return _realized(graph, socket(switch.outputs, "Output"))


def _squares(graph: NodeGraph, points: Any, shape: Shape) -> Any:
    size = graph.vector("SCALE", shape.scales, graph.math("MULTIPLY", shape.reach, 1.4142135623730951))
    joined = graph.add("GeometryNodeJoinGeometry")
    for axis, turn, wanted in zip(AXES, TURNS, graph.separate(shape.present), strict=True):
        turned = graph.add("GeometryNodeTransform", {"Geometry": _square(graph), "Rotation": turn})
        marked = _store(graph, turned.outputs["Geometry"], AXIS, "FLOAT_VECTOR", axis, domain="FACE")
        placed = _instances(graph, points, marked, shape.rotation, size, wanted)
        graph.feed(joined.inputs["Geometry"], placed)
    return joined.outputs["Geometry"]


def ellipsoids(graph: NodeGraph, points: Any, shape: Shape) -> Any:
    """A solid ellipsoid for each splat, for the solid viewport; evenly opaque."""
    ball = graph.add("GeometryNodeMeshIcoSphere", {"Radius": 1.0, "Subdivisions": 2}).outputs["Mesh"]
    size = graph.vector("SCALE", shape.scales, SOLID)
    return _realized(graph, _instances(graph, points, ball, shape.rotation, size, True))


def _square(graph: NodeGraph) -> Any:
    sizes = {"Size X": 2.0, "Size Y": 2.0, "Vertices X": 2, "Vertices Y": 2}
    return graph.add("GeometryNodeMeshGrid", sizes).outputs["Mesh"]


def _instances(graph: NodeGraph, points: Any, mesh: Any, turn: Any, size: Any, wanted: Any) -> Any:
    inputs = {"Points": points, "Selection": wanted, "Instance": mesh, "Rotation": turn, "Scale": size}
    return graph.add("GeometryNodeInstanceOnPoints", inputs).outputs["Instances"]


def _realized(graph: NodeGraph, instances: Any) -> Any:
    return graph.add("GeometryNodeRealizeInstances", {"Geometry": instances}).outputs["Geometry"]


def whitened(graph: NodeGraph, geometry: Any, kept: Any, shape: Shape, outline: Outline | None) -> Any:
    """The faces with their splat's whitening transform and, where squares share a splat, the set of its squares."""
    index = stored(graph, INDEX, "INT")
    for name, row in zip(ROWS, (shape.row_x, shape.row_y, shape.row_z), strict=True):
        value = _sampled(graph, kept, row, index, "FLOAT_COLOR")
        geometry = _store(graph, geometry, name, "FLOAT_COLOR", value, domain="FACE")
    shared = shape.present
    if outline is not None:
        shared = graph.vector("SCALE", shared, graph.math("SUBTRACT", 1.0, outline.faced))
    value = _sampled(graph, kept, shared, index, "FLOAT_VECTOR")
    return _store(graph, geometry, FACES, "FLOAT_VECTOR", value, domain="FACE")


def round_points(graph: NodeGraph, kept: Any, shape: Shape) -> Any:
    """A round point of each splat's mean size, in its base colour: the quickest to draw."""
    x, y, z = graph.separate(shape.scales)
    volume = graph.math("MULTIPLY", graph.math("MULTIPLY", x, y), z)
    radius = graph.math("MULTIPLY", graph.math("POWER", volume, 1 / 3), SOLID)
    base = stored(graph, BASE, "FLOAT_COLOR")
    points = _store(graph, kept, COLOUR, "FLOAT_COLOR", base, domain="POINT")
    return graph.add("GeometryNodeSetPointRadius", {"Points": points, "Radius": radius}).outputs["Points"]


# ---- groups and attributes


def new_group(name: str, inputs: dict[str, str], outputs: dict[str, str]) -> tuple[NodeGraph, Any]:
    """An empty geometry node group with these sockets, by name and kind, and its inputs as outputs of Group Input."""
    tree = bpy.data.node_groups.new(name, "GeometryNodeTree")
    for direction, sockets in (("INPUT", inputs), ("OUTPUT", outputs)):
        for title, kind in sockets.items():
            tree.interface.new_socket(title, in_out=direction, socket_type=f"NodeSocket{kind}")
    graph = NodeGraph(tree)
    return graph, graph.add("NodeGroupInput").outputs


def finish(graph: NodeGraph, outputs: Iterable[tuple[str, Any]]) -> Any:
    """Links the group's outputs and returns its tree."""
    graph.add("NodeGroupOutput", dict(outputs))
    graph.arrange()
    return graph.tree


def turned_axes(graph: NodeGraph, rotation: Any) -> list[Any]:
    """X, Y and Z after the rotation."""
    inputs = [{"Vector": axis, "Rotation": rotation} for axis in AXES]
    return [graph.add("FunctionNodeRotateVector", each).outputs["Vector"] for each in inputs]


def stored(graph: NodeGraph, name: str, kind: str) -> Any:
    """The value of a named attribute."""
    node = graph.add("GeometryNodeInputNamedAttribute", {"Name": name}, data_type=kind)
    return socket(node.outputs, "Attribute")


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
