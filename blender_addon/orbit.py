"""Where an orbit's cameras stand: bounding sphere, angles, matrices. numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Few views: one ring, as reconstruction networks expect. More: rings that also see the top and the underside.
_AUTOMATIC_ELEVATIONS: tuple[tuple[int, tuple[float, ...]], ...] = (
    (5, (20.0,)),
    (11, (25.0, -10.0)),
    (17, (20.0, -20.0, 50.0)),
    (64, (20.0, -15.0, 45.0, 0.0, 70.0, -45.0)),
)
_EXTREME_DIRECTIONS = 256
_SHRINKING_STEPS = 300


@dataclass(frozen=True)
class Sphere:
    """centre [3] float64 and radius, scene units."""

    centre: np.ndarray
    radius: float


def bounding_sphere(points: np.ndarray) -> Sphere:
    """The smallest sphere around points [N,3], to within about a per cent; it always holds every point.

    Badoiu and Clarkson's step towards the farthest point, run on the points that are outermost in many directions."""
    points = np.asarray(points, dtype=np.float64)
    outer = extremes(points)
    centre = (outer.min(axis=0) + outer.max(axis=0)) / 2
    best = Sphere(centre, float(np.linalg.norm(outer - centre, axis=1).max()))
    for step in range(1, _SHRINKING_STEPS):
        offsets = outer - centre
        distances = np.linalg.norm(offsets, axis=1)
        farthest = int(distances.argmax())
        if distances[farthest] < best.radius:
            best = Sphere(centre, float(distances[farthest]))
        centre = centre + offsets[farthest] / (step + 1)
    return Sphere(best.centre, float(np.linalg.norm(points - best.centre, axis=1).max()))


def extremes(points: np.ndarray) -> np.ndarray:
    """Those of points [N,3] that are outermost in one of many directions, so a few hundred at most."""
    best = [int(np.argmax(points @ direction)) for direction in _spread_directions(_EXTREME_DIRECTIONS)]
    return points[np.unique(best)]


def _spread_directions(count: int) -> np.ndarray:
    """[count,3] unit vectors on a Fibonacci spiral."""
    index = np.arange(count)
    z = 1 - 2 * (index + 0.5) / count
    turn = index * math.pi * (3 - math.sqrt(5))
    ring = np.sqrt(1 - z * z)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=1)


def angles(count: int, elevations: tuple[float, ...] = (), *, first_azimuth: float = 0.0) -> list[tuple[float, float]]:
    """(azimuth, elevation) in degrees of `count` views, evenly around. Azimuth 0 looks from -Y, Blender's front view,
    90 from +X. The views take `elevations` in turn; empty: chosen for the count."""
    if not elevations:
        elevations = next(rings for limit, rings in _AUTOMATIC_ELEVATIONS if count <= limit)
    return [(first_azimuth + 360 * i / count, elevations[i % len(elevations)]) for i in range(count)]


def angles_of(direction: np.ndarray) -> tuple[float, float]:
    """(azimuth, elevation) in degrees of a camera that stands in `direction` [3] from the centre; undoes `matrix`."""
    x, y, z = direction / np.linalg.norm(direction)
    return math.degrees(math.atan2(x, -y)), math.degrees(math.asin(np.clip(z, -1, 1)))


def matrix(centre: np.ndarray, distance: float, azimuth: float, elevation: float) -> np.ndarray:
    """[4,4] float64 c2w, OpenCV axes: on the sphere around `centre`, looking at it, level; sound at the poles too."""
    a, e = math.radians(azimuth), math.radians(elevation)
    outward = np.array([math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e)])
    right = np.array([math.cos(a), math.sin(a), 0.0])
    c2w = np.eye(4)
    c2w[:3, 0], c2w[:3, 1], c2w[:3, 2] = right, np.cross(-outward, right), -outward
    c2w[:3, 3] = centre + distance * outward
    return c2w


def fitting_distance(radius: float, *, lens: float, sensor: float) -> float:
    """The distance from which a sphere of `radius` just touches the edges of a square picture (lens and sensor in
    mm)."""
    return radius / math.sin(math.atan2(sensor / 2, lens))
