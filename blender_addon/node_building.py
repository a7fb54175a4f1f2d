"""Writing node trees as expressions: each call adds a node, links its inputs and returns an output to go on with.

Works for geometry and shader trees alike. Sockets are found by name, since their order differs between Blenders; of
several with one name (a node that handles many types) the one in use is meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

COLUMN, ROW = 190, 150  # distance of nodes in the editor


class NodeGraph:
    """A tree under construction."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self._depth: dict[str, int] = {}  # by node: links from the tree's start

    def add(self, kind: str, inputs: dict[str, Any] | None = None, **settings: Any) -> Any:
        """A node of type `kind`; `settings` are its own properties, `inputs` values or other nodes' outputs."""
        node = self.tree.nodes.new(kind)
        for name, value in settings.items():
            setattr(node, name, value)
        for name, value in (inputs or {}).items():
            self.feed(socket(node.inputs, name), value)
        return node

    def feed(self, target: Any, value: Any) -> None:
        """Links an output to the input socket, or sets its value."""
        if hasattr(value, "is_output"):
            self.tree.links.new(value, target)
            name = target.node.name
            self._depth[name] = max(self._depth.get(name, 0), self._depth.get(value.node.name, 0) + 1)
        else:
            target.default_value = value

    def math(self, operation: str, *values: Any, clamp: bool = False) -> Any:
        """A number made of numbers."""
        node = self.add("ShaderNodeMath", operation=operation, use_clamp=clamp)
        for target, value in zip(node.inputs, values, strict=False):
            self.feed(target, value)
        return node.outputs["Value"]

    def vector(self, operation: str, *values: Any) -> Any:
        """A vector, or for DOT_PRODUCT and LENGTH a number, made of vectors; SCALE takes a vector and a number."""
        node = self.add("ShaderNodeVectorMath", operation=operation)
        usable = [target for target in node.inputs if target.enabled]
        for target, value in zip(usable, values, strict=False):
            self.feed(target, value)
        return next(output for output in node.outputs if output.enabled)

    def combine(self, x: Any, y: Any, z: Any) -> Any:
        return self.add("ShaderNodeCombineXYZ", {"X": x, "Y": y, "Z": z}).outputs["Vector"]

    def separate(self, vector: Any) -> tuple[Any, Any, Any]:
        outputs = self.add("ShaderNodeSeparateXYZ", {"Vector": vector}).outputs
        return outputs["X"], outputs["Y"], outputs["Z"]

    def arrange(self) -> None:
        """Puts the nodes into columns by how far they are from the tree's start, so that a person can read it."""
        rows: dict[int, int] = {}
        for node in self.tree.nodes:
            column = self._depth.get(node.name, 0)
            node.location = (column * COLUMN, -rows.get(column, 0) * ROW)
            rows[column] = rows.get(column, 0) + 1


def socket(sockets: Any, name: str) -> Any:
    """The socket of this name that is in use. KeyError that lists the names there are."""
    found = list(_named(sockets, name))
    if not found:
        raise KeyError(f"no socket {name!r} among {[item.name for item in sockets]}")
    return found[0]


def _named(sockets: Any, name: str) -> Iterator[Any]:
    return (item for item in sockets if item.name == name and item.enabled)
