"""A backend that answers each job at once with a million splats, over a real socket. Run by an environment's Python.

python fake_backend.py --endpoint-file FILE        in the folder that holds blender_addon; the token comes by stdin
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import zmq

sys.path.insert(0, str(Path.cwd()))

from blender_addon import protocol

COUNT = 1_000_000
STEPS = 40
BASES = 4  # harmonics of degree 1, as a fit may give


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
            yield protocol.Welcome(protocol.VERSION, "cpu", "fake", 0, ("fit",))
        case protocol.Reconstruct():
            for step in range(STEPS):
                yield protocol.Progress(message.job_id, "fit", step, STEPS, step / STEPS)
                time.sleep(0.05)
            yield splats(message.job_id)
            yield protocol.Done(message.job_id, {"psnr": 30.0})


if __name__ == "__main__":
    main()
