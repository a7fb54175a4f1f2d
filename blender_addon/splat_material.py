"""The material of splats: the Gaussian's own opacity along each viewing ray, and its colour from there.

With o the point seen and d the ray's direction in the splat's own whitened frame (where it is a unit ball), the ray
passes the centre at the squared Mahalanobis distance |o x d|^2 / |d|^2; its opacity is opacity * exp(-half of that):
the peak of the Gaussian along the ray. Nothing here knows a camera, so reflections and shadows see splats too.

    row_i = (column i of R) / scale_i, offset_i = -row_i . centre        stored by splat_nodes.py on every face
    o_i = row_i . P + offset_i      d_i = row_i . I                      P, I in the object's space

Three faces stand in for a splat, one across each of its axes; a ray uses the one it meets most squarely (in the
whitened frame), so that every ray meets a splat once, near the peak, and sorts there. Emission
alone: captured light is in the colour already. Emission is not sampled as a light, or Cycles would build a tree of a
million lamps.

Cycles follows a ray through as many clear faces as the scene's Transparent bounces say (8 by default) and then stops
in black. So the last face it will look at counts as solid: the scene's setting, read by a driver, says which that is.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import bpy

from .node_building import NodeGraph

NAME = "Gaussmith Splats"
VERSION_KEY = "gaussmith_version"
VERSION = 1  # raise it when the tree changes: files with an older one get the new tree at the next import

ROWS = ("gs_row_x", "gs_row_y", "gs_row_z")  # colour attributes: row_i and offset_i
COLOUR = "gs_base"  # colour attribute: raw DC coefficients, opacity
AXIS = "gs_axis"  # vector: 1 for the axis this face stands across; zero on solid stand-ins
FACES = "gs_faces"  # vector: 1 for each axis that has a face
HARMONIC = "gs_sh_"  # vector: one coefficient

BOUNCES_PATH = "cycles.transparent_max_bounces"
DEFAULT_BOUNCES = 8  # Cycles' own default
CLOSING = 100.0  # opacities from 1/100 on turn solid on the last face: all that the node group draws

SH_C0 = 0.28209479177387814
SH_C1 = 0.4886025119029199


def ensure(bases: int) -> bpy.types.Material:
    """The material for splats of `bases` harmonic coefficients (1, 4, 9 or 16); one for all objects alike."""
    for _ in ensure_slices(bases):
        pass
    return bpy.data.materials[_name(bases)]


def ensure_slices(bases: int) -> Iterator[None]:
    """Makes the material where it is missing, a part at a time; see splat_nodes.ensure_slices."""
    material = bpy.data.materials.get(_name(bases))
    if material is not None and material.get(VERSION_KEY) == VERSION:
        return
    material = material or bpy.data.materials.new(_name(bases))
    yield
    yield from _build(material, int(bases**0.5) - 1)
    material[VERSION_KEY] = VERSION


def _name(bases: int) -> str:
    return NAME if bases == 1 else f"{NAME} SH{int(bases**0.5) - 1}"


def _build(material: bpy.types.Material, degree: int) -> Iterator[None]:
    if material.node_tree is None:  # before 5.0 a new material has none
        material.use_nodes = True
    material.surface_render_method = "DITHERED"
    material.use_transparent_shadow = True
    if hasattr(material, "cycles"):  # Cycles may be switched off
        material.cycles.emission_sampling = "NONE"
    tree: Any = material.node_tree
    tree.nodes.clear()
    graph = NodeGraph(tree)
    base = graph.add("ShaderNodeAttribute", attribute_name=COLOUR)
    eye, alpha = _alpha(graph, base)
    alpha = graph.math("MULTIPLY", alpha, _closing(graph), clamp=True)
    yield
    captured = yield from _captured_colour(graph, base, eye, degree)
    linear = yield from _linear(graph, captured)
    emission = graph.add("ShaderNodeEmission", {"Color": linear})
    yield
    clear = graph.add("ShaderNodeBsdfTransparent")
    mix = graph.add("ShaderNodeMixShader")
    factor, below, above = mix.inputs
    graph.feed(factor, alpha)
    graph.feed(below, clear.outputs["BSDF"])
    graph.feed(above, emission.outputs["Emission"])
    yield
    graph.add("ShaderNodeOutputMaterial", {"Surface": mix.outputs["Shader"]})
    yield
    graph.arrange()


def _closing(graph: NodeGraph) -> Any:
    """1, and on the last face that Cycles will look at, so much that the face turns solid."""
    depth = graph.add("ShaderNodeLightPath").outputs["Transparent Depth"]
    limit = graph.add("ShaderNodeValue", label="Transparent Bounces of the Scene").outputs["Value"]
    limit.default_value = DEFAULT_BOUNCES
    driver = limit.driver_add("default_value").driver
    driver.type = "SUM"
    variable = driver.variables.new()
    variable.type = "CONTEXT_PROP"
    target = variable.targets[0]
    target.context_property = "ACTIVE_SCENE"
    target.data_path = BOUNCES_PATH
    target.use_fallback_value = True  # where Cycles is switched off
    target.fallback_value = DEFAULT_BOUNCES
    last = graph.math("GREATER_THAN", depth, graph.math("SUBTRACT", limit, 1.5))
    return graph.math("MULTIPLY_ADD", last, CLOSING - 1, 1.0)


def _alpha(graph: NodeGraph, base: Any) -> tuple[Any, Any]:
    """The viewing direction (object space, from the eye) and the splat's opacity along it."""
    point = graph.add("ShaderNodeTexCoord").outputs["Object"]
    incoming = graph.add("ShaderNodeNewGeometry").outputs["Incoming"]
    to_local = {"vector_type": "VECTOR", "convert_from": "WORLD", "convert_to": "OBJECT"}
    towards_eye = graph.add("ShaderNodeVectorTransform", {"Vector": incoming}, **to_local).outputs["Vector"]
    origins, directions = [], []
    for name in ROWS:
        row = graph.add("ShaderNodeAttribute", attribute_name=name)
        along = graph.vector("DOT_PRODUCT", row.outputs["Vector"], point)
        origins.append(graph.math("ADD", along, row.outputs["Alpha"]))
        directions.append(graph.vector("DOT_PRODUCT", row.outputs["Vector"], towards_eye))
    origin, direction = graph.combine(*origins), graph.combine(*directions)
    across = graph.vector("CROSS_PRODUCT", origin, direction)
    numerator = graph.vector("DOT_PRODUCT", across, across)
    distance = graph.math("DIVIDE", numerator, graph.vector("DOT_PRODUCT", direction, direction))
    falloff = graph.math("EXPONENT", graph.math("MULTIPLY", distance, -0.5))
    alpha = graph.math("MULTIPLY", base.outputs["Alpha"], falloff)
    alpha = graph.math("MULTIPLY", alpha, _squarest(graph, direction))
    eye = graph.vector("NORMALIZE", graph.vector("SCALE", towards_eye, -1.0))
    return eye, alpha


def _squarest(graph: NodeGraph, direction: Any) -> Any:
    """1 on the face that the ray meets most squarely among the splat's faces, else 0."""
    steepness = graph.vector("ABSOLUTE", direction)
    axis = graph.add("ShaderNodeAttribute", attribute_name=AXIS).outputs["Vector"]
    faces = graph.add("ShaderNodeAttribute", attribute_name=FACES).outputs["Vector"]
    mine = graph.vector("DOT_PRODUCT", steepness, axis)
    x, y, z = graph.separate(graph.vector("MULTIPLY", steepness, faces))
    best = graph.math("MAXIMUM", graph.math("MAXIMUM", x, y), z)
    return graph.math("GREATER_THAN", mine, graph.math("MULTIPLY_ADD", best, 1 - 1e-5, -1e-12))


def _captured_colour(graph: NodeGraph, base: Any, eye: Any, degree: int) -> Generator[None, None, Any]:
    """sRGB as captured, 0 or more: 0.5 + the harmonics' sum at the viewing direction."""
    total = graph.vector("MULTIPLY_ADD", base.outputs["Vector"], (SH_C0,) * 3, (0.5,) * 3)
    weights = _harmonics(graph, eye, degree)
    yield
    for index, weight in enumerate(weights):
        coefficient = graph.add("ShaderNodeAttribute", attribute_name=f"{HARMONIC}{index}").outputs["Vector"]
        total = graph.vector("ADD", total, graph.vector("SCALE", coefficient, weight))
        if index % 3 == 2:
            yield
    return graph.vector("MAXIMUM", total, (0.0, 0.0, 0.0))


def _harmonics(graph: NodeGraph, eye: Any, degree: int) -> list[Any]:
    """The basis after its first function at a unit direction, as splat_rotation.harmonics has it."""
    if degree == 0:
        return []
    x, y, z = graph.separate(eye)

    def times(factor: float, *parts: Any) -> Any:
        product = graph.math("MULTIPLY", parts[0], factor)
        for part in parts[1:]:
            product = graph.math("MULTIPLY", product, part)
        return product

    values = [times(-SH_C1, y), times(SH_C1, z), times(-SH_C1, x)]
    if degree == 1:
        return values
    xx, yy, zz = (graph.math("MULTIPLY", part, part) for part in (x, y, z))
    difference = graph.math("SUBTRACT", xx, yy)
    polar = graph.math("MULTIPLY_ADD", zz, 3.0, -1.0)  # 2zz - xx - yy at unit length
    c, d, e = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
    values += [times(c, x, y), times(-c, y, z), times(d, polar), times(-c, x, z), times(e, difference)]
    if degree == 2:
        return values
    three_x = graph.math("MULTIPLY_ADD", xx, 3.0, graph.math("MULTIPLY", yy, -1.0))  # 3xx - yy
    three_y = graph.math("MULTIPLY_ADD", yy, -3.0, xx)  # xx - 3yy
    five = graph.math("MULTIPLY_ADD", zz, 5.0, -1.0)  # 4zz - xx - yy at unit length
    top = graph.math("MULTIPLY_ADD", zz, 5.0, -3.0)  # 2zz - 3xx - 3yy at unit length
    c, d, e = 0.5900435899266435, 2.890611442640554, 0.4570457994644658
    f, g = 0.3731763325901154, 1.445305721320277
    values += [times(-c, y, three_x), times(d, x, graph.math("MULTIPLY", y, z)), times(-e, y, five)]
    return [*values, times(f, z, top), times(-e, x, five), times(g, z, difference), times(-c, x, three_y)]


def _linear(graph: NodeGraph, colour: Any) -> Generator[None, None, Any]:
    """sRGB to linear light, exactly (IEC 61966-2-1), channel by channel."""
    channels = []
    for value in graph.separate(colour):
        curve = graph.math("POWER", graph.math("MULTIPLY_ADD", value, 1 / 1.055, 0.055 / 1.055), 2.4)
        line = graph.math("MULTIPLY", value, 1 / 12.92)
        bright = graph.math("GREATER_THAN", value, 0.04045)
        channels.append(graph.math("MULTIPLY_ADD", graph.math("SUBTRACT", curve, line), bright, line))
        yield
    return graph.combine(*channels)
