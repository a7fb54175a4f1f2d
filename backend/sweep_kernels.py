"""The loops of plane-sweep stereo: matching cost, regularisation along scanlines, the winning plane, and the vote."""

from __future__ import annotations

import math

import numba
import numpy as np

NEUTRAL = np.float32(0.5)  # cost where the other picture shows nothing: that of no correlation
NOISE = np.float32(1e-4)  # variance of grey values (0..1) below which a window says little
BRIGHTNESS = np.float32(0.25)  # most that a difference of mean brightness can cost
BEHIND = 1e-9  # camera z under which a pinhole sees nothing, as a share of the depth swept


@numba.njit(fastmath=True, cache=True)
def _window_sum(image, radius, out):
    """Sums over square windows, cut at the frame, by running sums along rows and then columns."""
    height, width = image.shape
    rows = np.empty((height, width), np.float32)
    for y in range(height):
        running = np.float32(0)
        for x in range(min(radius, width)):
            running += image[y, x]
        for x in range(width):
            if x + radius < width:
                running += image[y, x + radius]
            if x - radius - 1 >= 0:
                running -= image[y, x - radius - 1]
            rows[y, x] = running
    for y in range(height):
        first, last = max(0, y - radius), min(height - 1, y + radius)
        for x in range(width):
            out[y, x] = 0
        for line in range(first, last + 1):
            for x in range(width):
                out[y, x] += rows[line, x]


@numba.njit(fastmath=True, cache=True)
def _pixel(x, y, z, lens):
    """Column and row, with pixel centres at whole numbers, of a camera-space point before a pinhole."""
    scale = 1.0 if lens[4] > 0 else 1 / z
    return lens[0] * scale * x + lens[2] - 0.5, lens[1] * scale * y + lens[3] - 0.5


@numba.njit(fastmath=True, cache=True)
def _warp(other, ahead, shift, lens, depth, warped, inside):
    """The other picture as seen through a plane at `depth`; `inside` is 0 where it does not reach."""
    height, width = warped.shape
    rows, columns = other.shape
    for y in range(height):
        for x in range(width):
            warped[y, x], inside[y, x] = 0, 0
            z = depth * ahead[y, x, 2] + shift[y, x, 2]
            if z <= BEHIND * depth:
                continue
            u, v = _pixel(depth * ahead[y, x, 0] + shift[y, x, 0], depth * ahead[y, x, 1] + shift[y, x, 1], z, lens)
            if not (u >= 0 and v >= 0 and u < columns - 1 and v < rows - 1):
                continue
            i, j = int(v), int(u)
            a, b = v - i, u - j
            upper = (1 - b) * other[i, j] + b * other[i, j + 1]
            lower = (1 - b) * other[i + 1, j] + b * other[i + 1, j + 1]
            warped[y, x], inside[y, x] = (1 - a) * upper + a * lower, 1


@numba.njit(fastmath=True, cache=True)
def _compare(grey, warped, inside, radius, cost):
    """cost [h,w]: (1 - zero-mean normalised correlation) / 2 of windows, plus a little for a change of brightness."""
    height, width = grey.shape
    sums = np.empty((6, height, width), np.float32)
    _window_sum(inside, radius, sums[0])
    _window_sum(inside * grey, radius, sums[1])
    _window_sum(warped, radius, sums[2])
    _window_sum(inside * grey * grey, radius, sums[3])
    _window_sum(warped * warped, radius, sums[4])
    _window_sum(grey * warped, radius, sums[5])
    enough = 0.5 * (2 * radius + 1) ** 2
    for y in range(height):
        for x in range(width):
            n = sums[0, y, x]
            if inside[y, x] == 0 or n < enough:
                cost[y, x] = NEUTRAL
                continue
            mean, mean_other = sums[1, y, x] / n, sums[2, y, x] / n
            variance = max(sums[3, y, x] / n - mean * mean, np.float32(0)) + NOISE
            variance_other = max(sums[4, y, x] / n - mean_other * mean_other, np.float32(0)) + NOISE
            covariance = sums[5, y, x] / n - mean * mean_other
            # where a window is flat, correlation is near 0 and the plain brightness tells what does not fit
            brightness = min(abs(mean - mean_other), BRIGHTNESS)
            cost[y, x] = 0.5 * (1 - covariance / math.sqrt(variance * variance_other)) + brightness


@numba.njit(fastmath=True, cache=True)
def _best_half(costs, out):
    """The mean of the smaller half of costs [K,h,w]: the others may not see the surface."""
    count, height, width = costs.shape
    half = (count + 1) // 2
    ranked = np.empty(count, np.float32)
    for y in range(height):
        for x in range(width):
            for k in range(count):
                value, at = costs[k, y, x], k
                while at > 0 and ranked[at - 1] > value:
                    ranked[at] = ranked[at - 1]
                    at -= 1
                ranked[at] = value
            total = np.float32(0)
            for k in range(half):
                total += ranked[k]
            out[y, x] = total / half


@numba.njit(fastmath=True, parallel=True, cache=True)
def match(grey, others, ahead, shift, lenses, depths, radius, cost):
    """Fill cost [D,h,w], about 0..1, of seeing the picture `grey` [h,w] in `others` [K,h,w] at each of `depths` [D].

    ahead, shift  [K,h,w,3] the pixel's point at depth z is z ahead + shift in the space of camera k
    lenses        [K,5] fx, fy, cx, cy and 1 for an orthographic camera
    """
    height, width = grey.shape
    for plane in numba.prange(len(depths)):
        warped, inside = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
        costs = np.empty((len(others), height, width), np.float32)
        for k in range(len(others)):
            _warp(others[k], ahead[k], shift[k], lenses[k], depths[plane], warped, inside)
            _compare(grey, warped, inside, radius, costs[k])
        _best_half(costs, cost[plane])


@numba.njit(fastmath=True, cache=True)
def _along(cost, previous, least, step, jump, current, total):
    """One step of semi-global matching's recursion (Hirschmueller 2008, equation 13): the least entry of `current`."""
    planes = len(cost)
    lowest = np.float32(1e9)
    for d in range(planes):
        best = min(previous[d], least + jump)
        if d > 0:
            best = min(best, previous[d - 1] + step)
        if d + 1 < planes:
            best = min(best, previous[d + 1] + step)
        current[d] = cost[d] + best - least
        total[d] += current[d]
        lowest = min(lowest, current[d])
    return lowest


@numba.njit(fastmath=True, cache=True)
def _line(cost, grey, step, jump, total):
    """Both ways along one line: cost and total [n,D], grey [n]. A jump is cheaper where the brightness changes."""
    length, planes = cost.shape
    buffers = np.zeros((2, planes), np.float32)
    for way in range(2):
        buffers[:] = 0
        least = np.float32(0)
        for n in range(length):
            at = n if way == 0 else length - 1 - n
            before = max(at - 1, 0) if way == 0 else min(at + 1, length - 1)
            edge = abs(grey[at] - grey[before])
            price = max(step, jump / (1 + 20 * edge))
            least = _along(cost[at], buffers[n % 2], least, step, price, buffers[1 - n % 2], total[at])


@numba.njit(fastmath=True, parallel=True, cache=True)
def regularise(cost, grey, step, jump):
    """[h,w,D] path costs of semi-global matching from left, right, above and below, of cost [D,h,w] and grey [h,w].

    step  cost of one plane more or less than the neighbouring pixel;  jump  of any larger change
    """
    planes, height, width = cost.shape
    local = np.empty((height, width, planes), np.float32)
    total = np.zeros((height, width, planes), np.float32)
    for y in numba.prange(height):
        for d in range(planes):
            for x in range(width):
                local[y, x, d] = cost[d, y, x]
        _line(local[y], grey[y], step, jump, total[y])
    for x in numba.prange(width):
        _line(local[:, x], grey[:, x], step, jump, total[:, x])
    return total


@numba.njit(parallel=True, cache=True)
def winners(total, first, spacing, contrast):
    """[h,w] float32: first + spacing * the plane of least cost, with a fraction; NaN where none stands out.

    The fraction is the vertex of the parabola through the least cost and its neighbours. `contrast` is how far under
    the mean over the planes the least cost must lie.
    """
    height, width, planes = total.shape
    place = np.empty((height, width), np.float32)
    for y in numba.prange(height):
        for x in range(width):
            column = total[y, x]
            best = np.argmin(column)
            if column.mean() - column[best] < contrast:
                place[y, x] = np.nan
                continue
            fraction = 0.0
            if 0 < best < planes - 1:
                before, here, after = column[best - 1], column[best], column[best + 1]
                bend = before - 2 * here + after
                if bend > 1e-9:
                    fraction = 0.5 * (before - after) / bend
            place[y, x] = first + spacing * (best + fraction)
    return place


@numba.njit(parallel=True, cache=True)
def confirm(depth, other, there_and_back, lenses, tolerance, reach, votes):
    """Add 1 to votes [h,w] where the depth map of another camera says the same as `depth` [h,w].

    The pixel's point goes to the other camera, takes the depth found there, and comes back: it must land within `reach`
    pixels of where it left, at a depth within `tolerance` of the old one (for an orthographic camera: within
    2 `reach` pixels' size).
    there_and_back  [2,4,4] from this camera's space to the other's, and back
    lenses          [2,5] of this camera and the other, as in `match`
    """
    to_other, to_view, lens, other_lens = there_and_back[0], there_and_back[1], lenses[0], lenses[1]
    height, width = depth.shape
    for y in numba.prange(height):
        for x in range(width):
            z = depth[y, x]
            if z <= 0:
                continue
            X, Y, Z = _carried(to_other, _unprojected(x, y, z, lens))
            if Z <= 0:
                continue
            u, v = _pixel(X, Y, Z, other_lens)
            if not (u >= -0.5 and v >= -0.5 and u < width - 0.5 and v < height - 0.5):
                continue
            i, j = int(v + 0.5), int(u + 0.5)
            found = other[i, j]
            if found <= 0:
                continue
            X, Y, Z = _carried(to_view, _unprojected(u, v, found, other_lens))
            if Z <= 0:
                continue
            u, v = _pixel(X, Y, Z, lens)
            allowed = 2 * reach / lens[0] if lens[4] > 0 else tolerance * z
            if abs(Z - z) < allowed and (u - x) ** 2 + (v - y) ** 2 < reach * reach:
                votes[y, x] += 1


@numba.njit(cache=True)
def _unprojected(u, v, z, lens):
    """The camera-space point of a column and row, with pixel centres at whole numbers, at depth z."""
    scale = 1.0 if lens[4] > 0 else z
    return (u + 0.5 - lens[2]) / lens[0] * scale, (v + 0.5 - lens[3]) / lens[1] * scale, z


@numba.njit(cache=True)
def _carried(pose, point):
    """A point moved by a [3,4] matrix."""
    x, y, z = point
    return (
        pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3],
        pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3],
        pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3],
    )


@numba.njit(parallel=True, cache=True)
def nearest_depths(points, viewmats, lenses, height, width):
    """[V,h,w] float32 depth of the nearest of the world points [P,3] in each pixel of V cameras; 0 where there is none.

    viewmats  [V,3,4] world to camera;  lenses  [V,5] as in `match`
    """
    depths = np.zeros((len(viewmats), height, width), np.float32)
    for view in numba.prange(len(viewmats)):
        for p in range(len(points)):
            X, Y, Z = _carried(viewmats[view], (points[p, 0], points[p, 1], points[p, 2]))
            if Z <= 0:
                continue
            u, v = _pixel(X, Y, Z, lenses[view])
            if not (u >= -0.5 and v >= -0.5 and u < width - 0.5 and v < height - 0.5):
                continue
            i, j = int(v + 0.5), int(u + 0.5)
            old = depths[view, i, j]
            if old == 0 or Z < old:
                depths[view, i, j] = Z
    return depths


@numba.njit(parallel=True, cache=True)
def sees_through(points, viewmats, lenses, depths, margin):
    """[P] how many cameras see a surface, depths [V,h,w] (0: unknown), clearly behind each world point [P,3].

    margin  relative depth by which the surface must lie behind the point
    """
    _, height, width = depths.shape
    views = np.zeros(len(points), np.int32)
    for p in numba.prange(len(points)):
        for view in range(len(viewmats)):
            X, Y, Z = _carried(viewmats[view], (points[p, 0], points[p, 1], points[p, 2]))
            if Z <= 0:
                continue
            u, v = _pixel(X, Y, Z, lenses[view])
            if u >= -0.5 and v >= -0.5 and u < width - 0.5 and v < height - 0.5:
                surface = depths[view, int(v + 0.5), int(u + 0.5)]
                views[p] += surface > Z * (1 + margin)
    return views
