"""A backend that answers each job at once, over a real socket: captured views with a million splats, a prompt or a
picture with views of one colour, and such views with a box of the wished size. Run by an environment's Python.

python fake_backend.py --endpoint-file FILE        in the folder that holds blender_addon; the token comes by stdin
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import zmq

sys.path.insert(0, str(Path.cwd()))

from blender_addon import protocol
from blender_addon.front_ends import FRONT_ENDS, Rig

COUNT = 1_000_000
STEPS = 40
BASES = 4  # harmonics of degree 1, as a fit may give
BOX = ((-0.5, -0.25, 0.0), (0.5, 0.25, 0.5), (0.0, -0.25, 0.25))  # its corners, and the middle of its front


def splats(job_id: str) -> protocol.Splats:
    random = np.random.default_rng(0)
    directions = random.normal(size=(COUNT, 3)).astype(np.float32)
    quats = random.normal(size=(COUNT, 4)).astype(np.float32)
    return protocol.Splats(
        job_id=job_id,
        means=directions / np.linalg.norm(directions, axis=1, keepdims=True),
        quats=quats / np.linalg.norm(quats, axis=1, keepdims=True),
        scales=np.full((COUNT, 3), 0.003, np.float32),
        opacities=np.full(COUNT, 0.9, np.float32),
        sh=random.uniform(-0.5, 0.5, (COUNT, BASES, 3)).astype(np.float32),
    )


def box(job_id: str, size: float) -> protocol.Splats:
    """Three splats that span a box whose longest side is `size`, standing on the world's origin."""
    means = np.array(BOX, np.float32) * np.float32(size)
    return protocol.Splats(
        job_id=job_id,
        means=means,
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (len(means), 1)),
        scales=np.full((len(means), 3), 0.1 * size, np.float32),
        opacities=np.full(len(means), 0.9, np.float32),
        sh=np.zeros((len(means), 1, 3), np.float32),
    )


def cameras(rig: Rig) -> tuple[np.ndarray, np.ndarray]:
    """[V,4,4] camera to world, OpenCV axes, and [V,3,3] of a rig."""
    places = []
    for elevation, azimuth in np.radians(rig.angles):
        level = math.cos(elevation)
        back = np.array([level * math.sin(azimuth), -level * math.cos(azimuth), math.sin(elevation)])
        right = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
        place = np.eye(4, dtype=np.float32)
        place[:3] = np.stack([right, np.cross(-back, right), -back, rig.radius * back], axis=1)
        places.append(place)
    focal = rig.side / rig.width if rig.width else rig.side / 2 / math.tan(math.radians(rig.fov) / 2)
    K = np.array([[focal, 0, rig.side / 2], [0, focal, rig.side / 2], [0, 0, 1]], np.float32)
    return np.stack(places), np.tile(K, (len(places), 1, 1))


def imagined(wanted: protocol.Imagine, candidate: int) -> protocol.Imagined:
    """Views of a square whose colour tells the seed, and whose blue tells which view it is."""
    rig, seed = FRONT_ENDS[wanted.front_end].rig, wanted.seed + candidate
    c2w, Ks = cameras(rig)
    images = np.zeros((len(c2w), rig.side, rig.side, 4), np.uint8)
    inside = slice(rig.side // 4, 3 * rig.side // 4)
    for view, image in enumerate(images):
        image[inside, inside] = (seed * 40 % 256, 120, 30 * view, 255)
    if wanted.views is not None:
        images = np.where((np.arange(len(images)) == wanted.redo)[:, None, None, None], images, wanted.views)
    flat = np.full(len(c2w), rig.width > 0)
    return protocol.Imagined(wanted.job_id, images, c2w, Ks, flat, candidate, seed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint-file", type=Path, required=True)
    target = parser.parse_args().endpoint_file
    sys.stdin.readline()  # the token: this backend trusts whoever started it
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    part = target.with_suffix(".part")
    part.write_text(json.dumps({"endpoint": f"tcp://127.0.0.1:{port}"}))
    part.replace(target)
    while True:
        peer, *frames = socket.recv_multipart()
        for answer in answers(protocol.decode(frames)):
            socket.send_multipart([peer, *protocol.encode(answer)])


def answers(message: protocol.Message):
    match message:
        case protocol.Hello():
            yield protocol.Welcome(protocol.VERSION, "cpu", "fake", 0, ("fit", "grm", "lgm"), ("starter",))
        case protocol.Imagine():
            for candidate in range(message.candidates):
                yield protocol.Progress(message.job_id, "views", candidate, message.candidates)
                yield imagined(message, candidate)
            told = {"front_end": message.front_end, "redo": message.redo, "sides": list(message.sides)}
            yield protocol.Done(message.job_id, told | {"pictures": message.picture_bytes.tolist()})
        case protocol.CutOut():
            yield protocol.Preview(message.job_id, np.full((8, 8, 4), 200, np.uint8))
            yield protocol.Done(message.job_id, {"cut": message.cut, "bytes": len(message.picture)})
        case protocol.Reconstruct() if message.size:
            yield box(message.job_id, message.size)
            yield protocol.Done(message.job_id, {"psnr": 30.0, "model": message.model, "weights": message.weights})
        case protocol.Reconstruct():
            for step in range(STEPS):
                yield protocol.Progress(message.job_id, "fit", step, STEPS, step / STEPS)
                time.sleep(0.05)
            yield splats(message.job_id)
            yield protocol.Done(message.job_id, {"psnr": 30.0})


if __name__ == "__main__":
    main()
