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

from collections.abc import Generator
from typing import Any, NamedTuple

import bpy

from .node_building import NodeGraph, socket
from .splat_material import AXIS, COLOUR, FACES, HARMONIC, ROWS

THIN = 6.0  # a splat this many times thinner along one axis than along another needs no square across the latter
FLATTEST = 1e-3  # the least ratio of axes that is drawn, so that a scale of 0 has a reciprocal
OUTLINE_MARGIN = 1.02  # the affine outline of a splat is a little smaller than its perspective one
SOLID = 1.5  # standard deviations that solid stand-ins reach
INDEX = "gs_index"
AXES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
TURNS = ((0.0, 1.5707963267948966, 0.0), (1.5707963267948966, 0.0, 0.0), (0.0, 0.0, 0.0))  # a grid lies across Z


class Inputs(NamedTuple):
    """The node group's inputs, as outputs of its Group Input."""

    geometry: Any
    density: Any
    cut: Any
    size: Any


class SplatFields:
    """What the tree computes of each splat, to be evaluated on the points."""

    def __init__(self, graph: NodeGraph, inputs: Inputs) -> None:
        self.graph = graph
        self.rotation = self.stored("rotation", "QUATERNION")
        self.base = self.stored("radiance:base", "FLOAT_COLOR")
        self.opacity = graph.add("FunctionNodeSeparateColor", {"Color": self.base}).outputs["Alpha"]
        x, y, z = graph.separate(graph.vector("SCALE", self.stored("scale", "FLOAT_VECTOR"), inputs.size))
        largest = graph.math("MAXIMUM", graph.math("MAXIMUM", x, y), z)
        floor = graph.math("MAXIMUM", graph.math("MULTIPLY", largest, FLATTEST), 1e-12)
        self.scales = [graph.math("MAXIMUM", value, floor) for value in (x, y, z)]
        visible = graph.math("MAXIMUM", graph.math("DIVIDE", self.opacity, inputs.cut), 1.0)
        logarithm = graph.math("MULTIPLY", graph.math("LOGARITHM", visible, 2.718281828459045), 2.0)
        self.reach = graph.math("SQRT", logarithm)  # the cut, in standard deviations

    def stored(self, name: str, kind: str) -> Any:
        node = self.graph.add("GeometryNodeInputNamedAttribute", {"Name": name}, data_type=kind)
        return socket(node.outputs, "Attribute")

    def axes(self) -> list[Any]:
        """The splat's unit axes, columns of R."""
        turned = [{"Vector": axis, "Rotation": self.rotation} for axis in AXES]
        return [self.graph.add("FunctionNodeRotateVector", inputs).outputs["Vector"] for inputs in turned]

    def present(self) -> Any:
        """For each axis 1 or 0: whether a square stands across it."""
        graph = self.graph
        smallest = graph.math("MINIMUM", graph.math("MINIMUM", *self.scales[:2]), self.scales[2])
        limit = graph.math("MULTIPLY", smallest, THIN)
        return graph.combine(*(graph.math("LESS_THAN", value, limit) for value in self.scales))

    def rows(self) -> list[Any]:
        """The whitening transform, one colour (row, offset) for each axis."""
        graph = self.graph
        centre = graph.add("GeometryNodeInputPosition").outputs["Position"]
        rows = []
        for axis, size in zip(self.axes(), self.scales, strict=True):
            row = graph.vector("SCALE", axis, graph.math("DIVIDE", 1.0, size))
            offset = graph.math("MULTIPLY", graph.vector("DOT_PRODUCT", row, centre), -1.0)
            red, green, blue = graph.separate(row)
            channels = {"Red": red, "Green": green, "Blue": blue, "Alpha": offset}
            rows.append(graph.add("FunctionNodeCombineColor", channels).outputs["Color"])
        return rows


class View:
    """The scene's camera in the object's space, and whether this evaluation turns the splats to it: a render does."""

    def __init__(self, graph: NodeGraph, viewport: Any) -> None:
        camera = graph.add("GeometryNodeInputActiveCamera").outputs["Active Camera"]
        info = graph.add("GeometryNodeObjectInfo", {"Object": camera}, transform_space="RELATIVE")
        self.position, self.rotation = info.outputs["Location"], info.outputs["Rotation"]
        found = graph.math("GREATER_THAN", graph.vector("LENGTH", info.outputs["Scale"]), 0.0)  # no camera: scale 0
        self.faced = graph.math("MULTIPLY", found, graph.math("SUBTRACT", 1.0, viewport))
        self.orthographic: Any = 0.0
        if hasattr(bpy.types, "GeometryNodeCameraInfo"):  # 4.5; before, any camera is taken for a perspective one
            self.orthographic = graph.add("GeometryNodeCameraInfo", {"Camera": camera}).outputs["Is Orthographic"]

    def axes(self, graph: NodeGraph) -> list[Any]:
        """Right, up and back."""
        turned = [{"Vector": axis, "Rotation": self.rotation} for axis in AXES]
        return [graph.add("FunctionNodeRotateVector", inputs).outputs["Vector"] for inputs in turned]


def kept_points(graph: NodeGraph, inputs: Inputs, fields: SplatFields, viewport: Any) -> Any:
    """The splats that are drawn at all, as points."""
    parts = graph.add("GeometryNodeSeparateComponents", {"Geometry": inputs.geometry})
    from_mesh = graph.add("GeometryNodeMeshToPoints", {"Mesh": parts.outputs["Mesh"]})
    both = graph.add("GeometryNodeJoinGeometry")
    graph.feed(both.inputs["Geometry"], parts.outputs["Point Cloud"])
    graph.feed(both.inputs["Geometry"], from_mesh.outputs["Points"])
    visible = graph.math("GREATER_THAN", fields.opacity, inputs.cut)
    chance = graph.add("FunctionNodeRandomValue", data_type="FLOAT")
    drawn = graph.math("LESS_THAN", socket(chance.outputs, "Value"), inputs.density)
    everywhere = graph.math("SUBTRACT", 1.0, viewport)
    selection = graph.math("MULTIPLY", visible, graph.math("MAXIMUM", drawn, everywhere))
    separated = {"Geometry": both.outputs["Geometry"], "Selection": selection}
    return graph.add("GeometryNodeSeparateGeometry", separated, domain="POINT").outputs["Selection"]


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


class BarePoints(NamedTuple):
    """Points without what they store, so that instances do not carry it along; only their number as `gs_index`."""

    points: Any
    rotation: Any
    scales: Any  # standard deviations
    reach: Any  # how many of them are drawn
    present: Any  # for each axis, whether a square stands across it
    outline: tuple[Any, Any] | None  # rotation and standard deviations of the face parallel to the camera's picture


def bare_points(graph: NodeGraph, kept: Any, fields: SplatFields, view: View | None, bases: int) -> BarePoints:
    """Freezes on the points what instances need, then takes all they store away."""
    points, rotation = _captured(graph, kept, "ROTATION", fields.rotation)
    points, scales = _captured(graph, points, "VECTOR", graph.combine(*fields.scales))
    points, reach = _captured(graph, points, "FLOAT", fields.reach)
    points, present = _captured(graph, points, "VECTOR", fields.present())
    outline = None
    if view is not None:
        turn, sides = _outline(graph, fields, view)
        points, turn = _captured(graph, points, "ROTATION", turn)
        points, sides = _captured(graph, points, "VECTOR", sides)
        outline = turn, sides
    points = _store(graph, points, INDEX, "INT", graph.add("GeometryNodeInputIndex").outputs["Index"], domain="POINT")
    for name in ("rotation", "scale", "radiance:base", *(f"radiance:sh_{i}" for i in range(bases - 1))):
        points = _without(graph, points, name)
    return BarePoints(points, rotation, scales, reach, present, outline)


def _outline(graph: NodeGraph, fields: SplatFields, view: View) -> tuple[Any, Any]:
    """The splat seen by the camera, on the plane through its centre parallel to the picture.

    Its covariance there is P S P^T, with P the projection onto the plane along the ray to the centre. Returns the
    rotation that turns X and Y onto the principal axes, and the standard deviations along them (z is 1).
    """
    right, up, back = view.axes(graph)
    centre = graph.add("GeometryNodeInputPosition").outputs["Position"]
    ray = graph.vector("NORMALIZE", graph.vector("SUBTRACT", centre, view.position))
    straight = graph.vector("SCALE", graph.vector("SUBTRACT", back, ray), view.orthographic)
    ray = graph.vector("ADD", ray, straight)  # an orthographic camera's rays are its axis; the sign is of no matter
    slope = graph.math("DIVIDE", 1.0, graph.vector("DOT_PRODUCT", ray, back))
    sheared = []
    for side in (right, up):
        along = graph.math("MULTIPLY", graph.vector("DOT_PRODUCT", side, ray), slope)
        sheared.append(graph.vector("SUBTRACT", side, graph.vector("SCALE", back, along)))
    stretched = [graph.vector("SCALE", axis, size) for axis, size in zip(fields.axes(), fields.scales, strict=True)]
    x = graph.combine(*(graph.vector("DOT_PRODUCT", sheared[0], axis) for axis in stretched))
    y = graph.combine(*(graph.vector("DOT_PRODUCT", sheared[1], axis) for axis in stretched))
    xx, yy, xy = (graph.vector("DOT_PRODUCT", *pair) for pair in ((x, x), (y, y), (x, y)))
    difference, twice = graph.math("SUBTRACT", xx, yy), graph.math("MULTIPLY", xy, 2.0)
    angle = graph.math("MULTIPLY", graph.math("ARCTAN2", twice, difference), 0.5)
    spread = graph.vector("LENGTH", graph.combine(difference, twice, 0.0))
    total = graph.math("ADD", xx, yy)
    long = graph.math("SQRT", graph.math("MULTIPLY", graph.math("ADD", total, spread), 0.5))
    short = graph.math(
        "SQRT", graph.math("MAXIMUM", graph.math("MULTIPLY", graph.math("SUBTRACT", total, spread), 0.5), 0.0)
    )
    about = graph.add("FunctionNodeAxisAngleToRotation", {"Axis": (0.0, 0.0, 1.0), "Angle": angle}).outputs["Rotation"]
    turn = {"Rotation": view.rotation, "Rotate By": about}
    rotation = graph.add("FunctionNodeRotateRotation", turn, rotation_space="LOCAL").outputs["Rotation"]
    return rotation, graph.combine(long, short, 1.0)


def faces(graph: NodeGraph, bare: BarePoints, view: View | None) -> Any:
    """Squares across the splats' axes, or where the camera is faced, one rectangle a splat."""
    squares = _squares(graph, bare)
    if view is None or bare.outline is None:
        return _realized(graph, squares)
    turn, sides = bare.outline
    size = graph.vector("SCALE", sides, graph.math("MULTIPLY", bare.reach, OUTLINE_MARGIN))
    facing = _instances(graph, bare, _square(graph), turn, size, True)
    switch = graph.add("GeometryNodeSwitch", input_type="GEOMETRY")
    for name, value in {"Switch": view.faced, "False": squares, "True": facing}.items():
        graph.feed(socket(switch.inputs, name), value)
    return _realized(graph, socket(switch.outputs, "Output"))


def _squares(graph: NodeGraph, bare: BarePoints) -> Any:
    size = graph.vector("SCALE", bare.scales, graph.math("MULTIPLY", bare.reach, 1.4142135623730951))
    joined = graph.add("GeometryNodeJoinGeometry")
    for axis, turn, wanted in zip(AXES, TURNS, graph.separate(bare.present), strict=True):
        turned = graph.add("GeometryNodeTransform", {"Geometry": _square(graph), "Rotation": turn})
        marked = _store(graph, turned.outputs["Geometry"], AXIS, "FLOAT_VECTOR", axis, domain="FACE")
        placed = _instances(graph, bare, marked, bare.rotation, size, wanted)
        graph.feed(joined.inputs["Geometry"], placed)
    return joined.outputs["Geometry"]


def ellipsoids(graph: NodeGraph, bare: BarePoints) -> Any:
    """A solid ellipsoid for each splat, for the solid viewport; evenly opaque."""
    ball = graph.add("GeometryNodeMeshIcoSphere", {"Radius": 1.0, "Subdivisions": 2}).outputs["Mesh"]
    size = graph.vector("SCALE", bare.scales, SOLID)
    return _realized(graph, _instances(graph, bare, ball, bare.rotation, size, True))


def _square(graph: NodeGraph) -> Any:
    sizes = {"Size X": 2.0, "Size Y": 2.0, "Vertices X": 2, "Vertices Y": 2}
    return graph.add("GeometryNodeMeshGrid", sizes).outputs["Mesh"]


def _instances(graph: NodeGraph, bare: BarePoints, shape: Any, turn: Any, size: Any, wanted: Any) -> Any:
    inputs = {"Points": bare.points, "Selection": wanted, "Instance": shape, "Rotation": turn, "Scale": size}
    return graph.add("GeometryNodeInstanceOnPoints", inputs).outputs["Instances"]


def _realized(graph: NodeGraph, instances: Any) -> Any:
    return graph.add("GeometryNodeRealizeInstances", {"Geometry": instances}).outputs["Geometry"]


def whitened(graph: NodeGraph, geometry: Any, kept: Any, fields: SplatFields, view: View | None) -> Any:
    """The faces with their splat's whitening transform and, where squares share a splat, the set of its squares."""
    index = fields.stored(INDEX, "INT")
    for name, row in zip(ROWS, fields.rows(), strict=True):
        value = _sampled(graph, kept, row, index, "FLOAT_COLOR")
        geometry = _store(graph, geometry, name, "FLOAT_COLOR", value, domain="FACE")
    shared = fields.present()
    if view is not None:
        shared = graph.vector("SCALE", shared, graph.math("SUBTRACT", 1.0, view.faced))
    value = _sampled(graph, kept, shared, index, "FLOAT_VECTOR")
    return _store(graph, geometry, FACES, "FLOAT_VECTOR", value, domain="FACE")


def coloured(graph: NodeGraph, geometry: Any, kept: Any, fields: SplatFields, bases: int) -> Generator[None, None, Any]:
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


def round_points(graph: NodeGraph, kept: Any, fields: SplatFields, bases: int) -> Any:
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
