"""Things of the house in outline: furniture, vessels, packages, food."""

from __future__ import annotations

import numpy as np

from backend.procedural.plans import STANDING, Maker, Thing, about_z, leaning, pick


def _table(rng: np.random.Generator, make: Maker) -> str:
    w, d, h, t = rng.uniform(0.6, 1.2), rng.uniform(0.5, 0.8), rng.uniform(0.3, 0.7), rng.uniform(0.03, 0.08)
    make.add("top", pick(rng, ("box", "box", "rounded box", "cylinder")), (w, d, t), (0, 0, h))
    r = rng.uniform(0.03, 0.09)
    if rng.random() < 0.7:
        inset = rng.uniform(0.65, 0.72)
        make.four("legs", pick(rng, ("box", "cylinder", "cone")), (r, r, h), (inset * w, inset * d, 0), leaning(np.pi))
    else:
        make.add("leg", "cylinder", (r, r, h), (0, 0, 0))
        make.add("foot", pick(rng, ("cylinder", "dome", "cross")), (0.4, 0.4, 0.05), (0, 0, -h))
    return pick(rng, ("table", "desk"))


def _chair(rng: np.random.Generator, make: Maker) -> str:
    w, h, back = rng.uniform(0.35, 0.5), rng.uniform(0.25, 0.5), rng.uniform(0.3, 0.55)
    r, t = rng.uniform(0.03, 0.06), rng.uniform(0.03, 0.1)
    seat = pick(rng, ("box", "rounded box"))
    make.add("seat", seat, (w, w, t), (0, 0, 0))
    make.four("legs", pick(rng, ("box", "cylinder")), (r, r, h), (w - r, w - r, -h))
    style = rng.random()
    if style < 0.5:
        make.add("back", seat, (w, r, back), (0, w - r, back), leaning(-rng.uniform(0, 0.2)))
    else:
        for x in np.linspace(-w + r, w - r, int(rng.integers(2, 6))):
            make.add("back", "cylinder", (r, r, back), (x, w - r, back))
        make.add("rail", "box", (w, r, 0.08), (0, w - r, 2 * back))
    if rng.random() < 0.3:
        make.pair("arms", "box", (r, w, r), (w, 0, 0.5 * back))
    return "chair"


def _stool(rng: np.random.Generator, make: Maker) -> str:
    w, h, r = rng.uniform(0.35, 0.55), rng.uniform(0.4, 0.8), rng.uniform(0.03, 0.07)
    make.add("seat", pick(rng, ("cylinder", "rounded box", "box")), (w, w, 0.06), (0, 0, h))
    count = int(rng.integers(3, 5))
    for k in range(count):
        turn = about_z(2 * np.pi * k / count)
        x, y, z = turn @ np.array([0.8 * w, 0, 0])
        make.add(
            "legs",
            "cylinder",
            (r, r, 1.02 * h),
            (x, y, z),
            turn @ np.array([[0.98, 0, -0.2], [0, 1, 0], [0.2, 0, 0.98]]),
        )
    if rng.random() < 0.5:
        make.add("ring", "ring", (0.8 * w, 0.8 * w, r), (0, 0, -0.3 * h))
    return "stool"


def _lamp(rng: np.random.Generator, make: Maker) -> str:
    h, r = rng.uniform(0.5, 1), rng.uniform(0.02, 0.06)
    make.add("base", pick(rng, ("cylinder", "dome", "box", "vase")), (0.3, 0.3, rng.uniform(0.04, 0.25)), (0, 0, -h))
    make.add("stem", "cylinder", (r, r, h), (0, 0, 0))
    shade = pick(rng, ("lampshade", "lampshade", "ball", "dome", "cone"))
    make.add("shade", shade, (rng.uniform(0.3, 0.5),) * 2 + (rng.uniform(0.2, 0.35),), (0, 0, h))
    return "lamp"


def _mug(rng: np.random.Generator, make: Maker) -> str:
    w, h = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.8)
    make.add("body", pick(rng, ("cup", "cup", "vase")), (w, w, h), (0, 0, 0))
    make.add("handle", "ring", (0.6 * h, 0.6 * h, 0.12 * w), (w, 0, 0), STANDING)
    return pick(rng, ("mug", "jug"))


def _teapot(rng: np.random.Generator, make: Maker) -> str:
    w, h = rng.uniform(0.55, 0.8), rng.uniform(0.4, 0.65)
    make.add("body", pick(rng, ("ball", "egg", "rounded box")), (w, w, h), (0, 0, 0))
    make.add(
        "spout",
        "horn",
        (0.3, 0.25, 0.45),
        (w + 0.03, 0, 0.1),
        about_z(0) @ np.array([[0.7, 0, 0.7], [0, 1, 0], [-0.7, 0, 0.7]]),
    )
    make.add("handle", "ring", (0.7 * h, 0.7 * h, 0.08), (-w, 0, 0), STANDING)
    make.add("lid", "dome", (0.35 * w, 0.35 * w, 0.08), (0, 0, h))
    make.add("knob", "ball", (0.08, 0.08, 0.08), (0, 0, h + 0.14))
    return "teapot"


def _plant(rng: np.random.Generator, make: Maker) -> str:
    make.add("pot", pick(rng, ("cup", "bowl", "box", "vase")), (0.4, 0.4, rng.uniform(0.25, 0.45)), (0, 0, -0.5))
    make.add("soil", "cylinder", (0.3, 0.3, 0.05), (0, 0, -0.25))
    leaf, count = pick(rng, ("egg", "horn", "capsule")), int(rng.integers(5, 9))
    long, lean = rng.uniform(0.4, 0.7), rng.uniform(0.2, 0.8)
    for k in range(count):
        turn = about_z(2.4 * k) @ leaning(lean * (0.3 + k / count))
        make.add(
            "leaves", leaf, (0.16, 0.06, long), tuple(turn @ np.array([0, 0, long]) + np.array([0, 0, -0.3])), turn
        )
    return "potted plant"


def _shelf(rng: np.random.Generator, make: Maker) -> str:
    w, d, h, t = rng.uniform(0.4, 0.8), rng.uniform(0.18, 0.35), rng.uniform(0.6, 1), rng.uniform(0.025, 0.05)
    make.pair("sides", "box", (t, d, h), (w, 0, 0))
    levels = np.linspace(-h + t, h - t, int(rng.integers(3, 6)))
    for z in levels:
        make.add("boards", "box", (w, d, t), (0, 0, z))
    if rng.random() < 0.6:
        make.add("back", "box", (w, 0.5 * t, h), (0, d, 0))
    for z in levels[:-1][rng.random(len(levels) - 1) < 0.6]:
        tall = 0.5 * (levels[1] - levels[0]) - t
        half = (0.4 * w, 0.7 * d, tall * rng.uniform(0.4, 0.9))
        make.add(
            "items",
            pick(rng, ("box", "cylinder", "ball")),
            half,
            (rng.uniform(-0.4, 0.4) * w, 0, z + t + half[2]),
        )
    return "shelf"


def _cabinet(rng: np.random.Generator, make: Maker) -> str:
    w, d, h = rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.5), rng.uniform(0.4, 1)
    make.add("body", pick(rng, ("box", "rounded box")), (w, d, h), (0, 0, 0))
    rows = int(rng.integers(1, 5))
    for k in range(rows):
        z = h * (2 * k + 1 - rows) / rows
        make.add("drawers", "box", (0.9 * w, 0.04, 0.85 * h / rows), (0, -d, z))
        make.add("handles", pick(rng, ("ball",)), (0.05, 0.05, 0.05), (0, -d - 0.06, z))
    make.four("feet", "cylinder", (0.05, 0.05, 0.1), (0.85 * w, 0.85 * d, -h - 0.08))
    return pick(rng, ("cabinet", "chest of drawers"))


def _sofa(rng: np.random.Generator, make: Maker) -> str:
    w, d = rng.uniform(0.6, 1.1), rng.uniform(0.4, 0.5)
    make.add("seat", "rounded box", (w, d, 0.2), (0, 0, 0))
    make.add("back", "rounded box", (w, 0.14, 0.42), (0, d, 0.25))
    make.pair("arms", "rounded box", (0.13, d, 0.3), (w, 0, 0.1))
    count = int(rng.integers(1, 4))
    for k in range(count):
        make.add(
            "cushions",
            "rounded box",
            (0.85 * w / count, 0.8 * d, 0.1),
            (w * (2 * k + 1 - count) / count * 0.9, -0.08, 0.25),
        )
    make.four("feet", "cylinder", (0.05, 0.05, 0.1), (0.9 * w, 0.8 * d, -0.25))
    return "sofa" if count > 1 else "armchair"


def _bed(rng: np.random.Generator, make: Maker) -> str:
    w, d = rng.uniform(0.45, 0.8), rng.uniform(0.9, 1.1)
    make.add("frame", "box", (w, d, 0.1), (0, 0, -0.15))
    make.add("mattress", "rounded box", (0.95 * w, 0.97 * d, 0.13), (0, 0, 0.05))
    make.add("headboard", pick(rng, ("box", "rounded box")), (w, 0.05, 0.4), (0, d, 0.1))
    make.pair("pillows", "rounded box", (0.38 * w, 0.2, 0.08), (0.45 * w, 0.7 * d, 0.23))
    make.add("blanket", "rounded box", (0.99 * w, 0.6 * d, 0.08), (0, -0.35 * d, 0.13))
    make.four("legs", "box", (0.05, 0.05, 0.15), (0.9 * w, 0.93 * d, -0.35))
    return "bed"


def _burger(rng: np.random.Generator, make: Maker) -> str:
    make.add("bun", "rounded box", (0.7, 0.7, 0.14), (0, 0, 0))
    z = 0.12
    for noun in ("patty", "cheese", "lettuce", "tomato")[: int(rng.integers(1, 5))]:
        t = rng.uniform(0.03, 0.12)
        make.add(noun, pick(rng, ("cylinder", "flower", "box")), *_layer(rng, z, t))
        z += 2 * t
    make.add("top", "dome", (0.72, 0.72, 0.22), (0, 0, z + 0.2))
    return pick(rng, ("burger", "sandwich"))


def _layer(rng: np.random.Generator, z: float, t: float) -> tuple[tuple, tuple]:
    w = rng.uniform(0.6, 0.8)
    return (w, w, t), (0, 0, z + t)


def _cake(rng: np.random.Generator, make: Maker) -> str:
    z, w = 0.0, rng.uniform(0.6, 0.8)
    for k in range(int(rng.integers(1, 4))):
        h = rng.uniform(0.12, 0.25)
        make.add(f"layer#{k}", "cylinder", (w, w, h), (0, 0, z + h))
        make.add("icing", "ring", (w, w, 0.05), (0, 0, z + 2 * h))
        z, w = z + 2 * h, w * rng.uniform(0.6, 0.8)
    for k in range(int(rng.integers(1, 7))):
        x, y, _ = about_z(1.1 * k) @ np.array([0.7 * w, 0, 0])
        make.add("candles", "cylinder", (0.03, 0.03, 0.15), (x, y, z + 0.15))
    return "cake"


def _ice_cream(rng: np.random.Generator, make: Maker) -> str:
    make.add("cone", "cone", (0.35, 0.35, 0.6), (0, 0, -0.5), leaning(np.pi))
    for k in range(int(rng.integers(1, 4))):
        make.add(f"scoop#{k}", "ball", (0.36, 0.36, 0.32), (0, 0, 0.2 + 0.42 * k))
    return "ice cream"


def _fruit(rng: np.random.Generator, make: Maker) -> str:
    w, h = rng.uniform(0.6, 0.9), rng.uniform(0.6, 1)
    make.add("fruit", pick(rng, ("ball", "egg", "egg")), (w, w, h), (0, 0, 0))
    make.add("stalk", "horn", (0.1, 0.1, 0.2), (0, 0, h + 0.14))
    make.add("leaf", "egg", (0.3, 0.14, 0.03), (0.25, 0, h + 0.1), about_z(rng.uniform(0, 6)))
    return "fruit"


def _bottle(rng: np.random.Generator, make: Maker) -> str:
    w, h = rng.uniform(0.25, 0.45), rng.uniform(0.6, 0.9)
    make.add("body", "bottle", (w, w, h), (0, 0, 0))
    make.add("label", "cylinder", (1.015 * w, 1.015 * w, 0.3 * h), (0, 0, -0.45 * h))
    make.add("cap", "cylinder", (0.52 * w, 0.52 * w, 0.1), (0, 0, h + 0.02))
    return pick(rng, ("bottle", "jar"))


def _can(rng: np.random.Generator, make: Maker) -> str:
    w, h = rng.uniform(0.35, 0.6), rng.uniform(0.5, 0.8)
    make.add("body", "cylinder", (w, w, h), (0, 0, 0))
    for z in (-h, h):
        make.add("rims", "ring", (1.02 * w, 1.02 * w, 0.04), (0, 0, z))
    return pick(rng, ("can", "tin", "drum"))


def _carton(rng: np.random.Generator, make: Maker) -> str:
    w, d, h = rng.uniform(0.3, 0.8), rng.uniform(0.15, 0.5), rng.uniform(0.4, 0.9)
    make.add("sides", "box", (w, d, h), (0, 0, 0))
    if rng.random() < 0.4:
        make.add("ribbon", "box", (0.12 * w, 1.015 * d, 1.01 * h), (0, 0, 0))
        make.add("bow", pick(rng, ("ring", "flower")), (0.25, 0.25, 0.06), (0, 0, h + 0.1))
        return "present"
    return pick(rng, ("carton", "package"))


def _books(rng: np.random.Generator, make: Maker) -> str:
    z = 0.0
    for k in range(int(rng.integers(2, 6))):
        w, d, t = rng.uniform(0.5, 0.75), rng.uniform(0.4, 0.55), rng.uniform(0.05, 0.12)
        turn = about_z(rng.uniform(-0.4, 0.4))
        make.add("pages", "box", (0.97 * w, 0.97 * d, t), (0, 0, z + t), turn)
        for side in (0.0, 2 * t):
            make.add(
                f"covers#{k}",
                "box",
                (w, d, 0.016),
                (0, 0, z + side),
                turn,
            )
        z += 2 * t + 0.03
    return "stack of books"


def _screen(rng: np.random.Generator, make: Maker) -> str:
    w, h = rng.uniform(0.6, 1), rng.uniform(0.4, 0.6)
    make.add("case", pick(rng, ("box", "rounded box")), (w, 0.06, h), (0, 0, 0))
    make.add("picture", "box", (0.92 * w, 0.02, 0.88 * h), (0, -0.06, 0))
    make.add("stand", "box", (0.08, 0.05, 0.2), (0, 0.02, -h - 0.12))
    make.add("foot", pick(rng, ("box", "cylinder")), (0.35, 0.2, 0.03), (0, 0, -h - 0.3))
    return pick(rng, ("screen", "television"))


HOUSEHOLD: tuple[Thing, ...] = (
    _table,
    _chair,
    _stool,
    _lamp,
    _mug,
    _teapot,
    _plant,
    _shelf,
    _cabinet,
    _sofa,
    _bed,
    _bottle,
    _can,
    _carton,
    _books,
    _screen,
    _burger,
    _cake,
    _ice_cream,
    _fruit,
)
