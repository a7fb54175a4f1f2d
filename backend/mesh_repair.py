"""Triangle meshes as indexed arrays: count what is wrong with them, and close them."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components

ROUNDS = 8  # of removing bad faces and filling the holes; one is nearly always enough
SHRINK, SWELL = 0.5, -0.53  # Taubin's steps, of the way to the neighbours' mean


def edge_keys(faces: np.ndarray) -> np.ndarray:
    """[3M,2] the directed edges of faces [M,3]: first all 0-1, then all 1-2, then all 2-0."""
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def boundary_edges(faces: np.ndarray) -> np.ndarray:
    """[E,2] directed edges without a partner the other way round."""
    edges = edge_keys(faces).astype(np.int64)
    size = int(faces.max(initial=0)) + 1
    forward, backward = edges[:, 0] * size + edges[:, 1], edges[:, 1] * size + edges[:, 0]
    return edges[~np.isin(forward, backward)]


def crowded_faces(faces: np.ndarray) -> np.ndarray:
    """[M] bool: faces with an edge that another face runs along in the same direction (non-manifold or flipped)."""
    edges = edge_keys(faces).astype(np.int64)
    keys = edges[:, 0] * (int(faces.max(initial=0)) + 1) + edges[:, 1]
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.any((counts[inverse] > 1).reshape(3, -1), axis=0)  # pyright: ignore[reportReturnType]


def component_labels(faces: np.ndarray, vertex_count: int) -> tuple[int, np.ndarray]:
    """Number of connected parts among the vertices that faces use, and [M] the part of each face."""
    if len(faces) == 0:
        return 0, np.zeros(0, dtype=np.int64)
    edges = edge_keys(faces)
    graph = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(vertex_count, vertex_count))
    _, labels = connected_components(graph, directed=False)
    parts, of_face = np.unique(labels[faces[:, 0]], return_inverse=True)
    return len(parts), of_face


def boundary_loops(faces: np.ndarray) -> list[np.ndarray]:
    """Closed chains of boundary edges, each the vertices in the order in which a filling face runs along them."""
    follow: dict[int, list[int]] = {}
    for start, end in boundary_edges(faces)[:, ::-1].tolist():  # turned round: the filling is on the other side
        follow.setdefault(start, []).append(end)
    loops = []
    while follow:
        path = [next(iter(follow))]
        while follow.get(path[-1]):
            ends = follow[path[-1]]
            step = ends.pop()
            if not ends:
                del follow[path[-1]]
            if step in path:  # a loop has closed; what came before it goes on
                at = path.index(step)
                loops.append(np.array(path[at:]))
                path = path[: at + 1]
            else:
                path.append(step)
        follow.pop(path[-1], None)
    return [loop for loop in loops if len(loop) > 2]


def without_degenerate(faces: np.ndarray) -> np.ndarray:
    """Faces with three different corners, each once."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return faces[np.sort(first)]


def compact(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the vertices that no face uses."""
    used, inverse = np.unique(faces, return_inverse=True)
    return vertices[used], inverse.reshape(-1, 3).astype(faces.dtype)


def close(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mesh whose every edge has one face on each side, by removing what is in the way and filling the holes.

    Two faces back to back vanish as a pair (they enclose nothing). A filled hole gets a vertex at its loop's centre.
    """
    for _ in range(ROUNDS):
        faces = without_degenerate(faces)
        faces = faces[~crowded_faces(faces)]
        loops = boundary_loops(faces)
        if not loops:
            break
        vertices, faces = _filled(vertices, faces, loops)
    return compact(vertices, faces)


def _filled(vertices: np.ndarray, faces: np.ndarray, loops: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    centres, added = [], []
    for loop in loops:
        if len(loop) == 3:
            added.append(loop[None])
            continue
        centre = len(vertices) + len(centres)
        centres.append(vertices[loop].mean(axis=0))
        added.append(np.stack([loop, np.roll(loop, -1), np.full(len(loop), centre)], axis=1))
    faces = np.concatenate([faces, *added]).astype(faces.dtype)
    return (np.concatenate([vertices, np.array(centres)]) if centres else vertices), faces


def taubin(
    vertices: np.ndarray, faces: np.ndarray, *, rounds: int, shrink: float = 0.5, swell: float = -0.53
) -> np.ndarray:
    """Smoothed vertices [N,3] that keep their volume (Taubin 1995): a step in, a slightly longer step out."""
    edges = edge_keys(faces)
    edges = np.concatenate([edges, edges[:, ::-1]])
    count = len(vertices)
    graph = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count)).tocsr()
    graph.data[:] = 1
    degree = np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1)
    smooth = vertices.astype(np.float64)
    for _ in range(rounds):
        for step in (SHRINK, SWELL):
            smooth = smooth + step * ((graph @ smooth) / degree[:, None] - smooth)
    return smooth
