"""One result in the scene: an empty that holds the splats and the mesh, shows either, and remembers how it was made."""

from __future__ import annotations

import json
from typing import Any, Literal

import bpy
from mathutils import Matrix, Vector

from . import splat_object
from .placement import Spot

Display = Literal["SPLATS", "MESH"]
RECIPE = "gaussmith_recipe"  # a custom property of the empty: JSON text
ROLE = "gaussmith_role"  # a custom property of each child: "SPLATS" or "MESH"

DISPLAYS = (
    ("SPLATS", "Splats", "Show the Gaussian splats"),
    ("MESH", "Mesh", "Show the textured mesh"),
)


def _display_changed(settings: GaussmithResult, _context: bpy.types.Context) -> None:
    apply_display(settings.id_data)


class GaussmithResult(bpy.types.PropertyGroup):
    """Hung on every object as `gaussmith`; it means something on the empty of a result."""

    display: bpy.props.EnumProperty(  # type: ignore[valid-type]
        name="Show",
        description="Which face of the result the viewport and renders show",
        items=DISPLAYS,
        default="SPLATS",
        update=_display_changed,
    )


def assemble(
    context: bpy.types.Context,
    name: str,
    splats: bpy.types.Object | None,
    mesh: bpy.types.Object | None,
    recipe: dict[str, Any],
    *,
    origin: tuple[float, float, float] | None = None,
    spot: Spot | None = None,
) -> bpy.types.Object:
    """Puts the parts under one new empty in one new collection and returns the empty.

    The collection, named after the result, joins the scene's root. The empty stands at `origin` or else in the middle
    of the parts' bounding box; the parts keep their places in the world. With a `spot`, parts that stand on the world's
    origin are moved there, and the empty is what they stand on. Raises ValueError when there is no part.
    """
    roles: tuple[tuple[bpy.types.Object | None, Display], ...] = ((splats, "SPLATS"), (mesh, "MESH"))
    parts = [(part, role) for part, role in roles if part is not None]
    if not parts:
        raise ValueError("a result needs splats, a mesh or both")
    collection = bpy.data.collections.new(name)
    context.scene.collection.children.link(collection)
    low, high = bounds([part for part, _ in parts])
    empty = bpy.data.objects.new(name, None)
    origin = (0.0, 0.0, 0.0) if spot is not None else origin
    empty.location = origin if origin is not None else (low + high) / 2
    empty.empty_display_type = "CUBE" if spot is None else "PLAIN_AXES"
    empty.empty_display_size = max(max(high - low) / 2, 1e-3)
    collection.objects.link(empty)
    for part, role in parts:
        collection.objects.link(part)
        part[ROLE] = role
        adopt(empty, part)
    if spot is not None:
        empty.location, empty.rotation_euler.z = spot.location, spot.facing
    empty[RECIPE] = json.dumps(recipe, sort_keys=True)
    show(empty, "SPLATS" if splats is not None else "MESH")
    return empty


def adopt(empty: bpy.types.Object, part: bpy.types.Object) -> None:
    """Parents without moving: the part's location takes the empty's off, and no inverse is hidden in the relation."""
    part.location = part.location - empty.location
    part.parent = empty
    part.matrix_parent_inverse = Matrix.Identity(4)


def bounds(parts: list[bpy.types.Object]) -> tuple[Vector, Vector]:
    """The lowest and highest corner, in the world, of the parts' own points (splat centres, mesh vertices)."""
    corners = [splat_object.world_bounds(part) for part in parts]
    low = Vector(min(pair[0][axis] for pair in corners) for axis in range(3))
    high = Vector(max(pair[1][axis] for pair in corners) for axis in range(3))
    return low, high


def is_result(item: bpy.types.Object | None) -> bool:
    return item is not None and RECIPE in item


def owner(item: bpy.types.Object | None) -> bpy.types.Object | None:
    """The result's empty that the object is or belongs to, if any."""
    while item is not None and not is_result(item):
        item = item.parent
    return item


def part(empty: bpy.types.Object, role: Display) -> bpy.types.Object | None:
    """The result's splats or mesh, if it has them."""
    return next((child for child in empty.children if child.get(ROLE) == role), None)


def show(empty: bpy.types.Object, display: Display) -> None:
    """Shows one face of the result and hides the other, in the viewport and in renders."""
    settings = getattr(empty, "gaussmith", None)
    if settings is None:  # the property is registered with the extension; a script may assemble without it
        apply_display(empty, display)
    else:
        settings.display = display  # its update calls apply_display


def apply_display(empty: bpy.types.Object, display: Display | None = None) -> None:
    """Hides and shows the children after the empty's property. A result of one part always shows that part."""
    chosen = display or empty.gaussmith.display
    children = {role: child for role in ("SPLATS", "MESH") if (child := part(empty, role)) is not None}
    if chosen not in children and children:
        chosen = next(iter(children))
    for role, child in children.items():
        child.hide_viewport = child.hide_render = role != chosen


def recipe_of(empty: bpy.types.Object) -> dict[str, Any]:
    """How the result was made; empty when nothing readable is stored."""
    try:
        stored = json.loads(empty.get(RECIPE, "{}"))
    except (TypeError, json.JSONDecodeError):
        return {}
    return stored if isinstance(stored, dict) else {}
