"""Ordinary things in outline: buildings, vehicles, animals, figures, tools, and those of household.py."""

from __future__ import annotations

import numpy as np

from backend.procedural.household import HOUSEHOLD
from backend.procedural.plans import ALONG_X, STANDING, Maker, Plan, Thing, about_z, leaning, pick


def _tree(rng: np.random.Generator, make: Maker) -> str:
    h, r = rng.uniform(0.3, 0.6), rng.uniform(0.06, 0.14)
    make.add("trunk", pick(rng, ("cylinder", "tapered cylinder")), (r, r, h), (0, 0, -h))
    count, w = int(rng.integers(2, 5)), rng.uniform(0.4, 0.7)
    if rng.random() < 0.5:
        for k in range(count):
            make.add("crown", "cone", (w * (1 - 0.2 * k),) * 2 + (0.35,), (0, 0, 0.1 + 0.35 * k))
    else:
        for _ in range(count):
            make.add("crown", "ball", (0.8 * w,) * 3, (*rng.uniform(-0.35, 0.35, 2), 0.3 + rng.uniform(-0.2, 0.4)))
    return "tree"


def _house(rng: np.random.Generator, make: Maker) -> str:
    w, d, h = rng.uniform(0.5, 0.9), rng.uniform(0.5, 0.9), rng.uniform(0.3, 0.7)
    make.add("walls", "box", (w, d, h), (0, 0, 0))
    roof = rng.uniform(0.2, 0.45)
    make.add("roof", pick(rng, ("wedge", "wedge", "pyramid")), (1.12 * w, 1.12 * d, roof), (0, 0, h + roof))
    make.add("door", "box", (0.13, 0.03, 0.5 * h), (rng.uniform(-0.5, 0.5) * w, -d, -0.5 * h))
    for side in (-1, 1):
        make.pair("windows", "box", (0.04, 0.14, 0.14), (w, 0.5 * side * d, 0.2 * h))
    if rng.random() < 0.6:
        make.add("chimney", "box", (0.09, 0.09, 0.3), (0.5 * w, 0.3 * d, h + roof))
    return pick(rng, ("house", "hut"))


def _tower(rng: np.random.Generator, make: Maker) -> str:
    w, h = rng.uniform(0.3, 0.5), rng.uniform(0.6, 1)
    round_ = rng.random() < 0.6
    make.add("walls", "cylinder" if round_ else "box", (w, w, h), (0, 0, 0))
    make.add("ledge", "cylinder" if round_ else "box", (1.2 * w, 1.2 * w, 0.07), (0, 0, h))
    if rng.random() < 0.5:
        make.add("roof", "cone" if round_ else "pyramid", (1.3 * w, 1.3 * w, 0.35), (0, 0, h + 0.4))
    else:
        for k in range(8):
            x, y, _ = about_z(k * np.pi / 4) @ np.array([1.08 * w, 0, 0])
            make.add("battlements", "box", (0.09, 0.09, 0.1), (x, y, h + 0.15))
    make.add("door", "box", (0.12, 0.05, 0.2), (0, -w, 0.2 - h))
    return "tower"


def _car(rng: np.random.Generator, make: Maker) -> str:
    w, d, h = rng.uniform(0.35, 0.5), rng.uniform(0.8, 1.1), rng.uniform(0.15, 0.28)
    make.add("body", pick(rng, ("rounded box", "rounded box", "box")), (w, d, h), (0, 0, 0))
    long, place = rng.uniform(0.35, 0.9), rng.uniform(-0.1, 0.1)
    make.add("cabin", pick(rng, ("rounded box", "box")), (0.88 * w, long * 0.7 * d, 0.8 * h), (0, place, 1.5 * h))
    make.add("windows", "box", (0.9 * w, long * 0.55 * d, 0.4 * h), (0, place, 1.6 * h))
    r = rng.uniform(0.14, 0.24)
    make.four("wheels", pick(rng, ("cylinder", "cylinder", "ring")), (r, r, 0.09), (w, 0.62 * d, -h), ALONG_X)
    make.pair("lights", "ball", (0.06, 0.05, 0.06), (0.7 * w, -d, 0.2 * h))
    return pick(rng, ("car", "toy car"))


def _truck(rng: np.random.Generator, make: Maker) -> str:
    w, d = rng.uniform(0.32, 0.42), rng.uniform(0.5, 0.8)
    make.add("cab", pick(rng, ("box", "rounded box")), (w, 0.25, 0.35), (0, -d - 0.28, 0.15))
    make.add("window", "box", (0.8 * w, 0.03, 0.13), (0, -d - 0.52, 0.28))
    load = pick(rng, ("box", "box", "cylinder"))
    half, turn = ((w, d, 0.42), None) if load == "box" else ((w, 0.42, d), STANDING)
    make.add("load", load, half, (0, 0, 0.25), turn)
    make.add("chassis", "box", (0.8 * w, d + 0.5, 0.06), (0, -0.1, -0.22))
    for y in (-d - 0.25, -0.1, 0.6 * d):
        make.pair("wheels", "cylinder", (0.18, 0.18, 0.08), (w, y, -0.25), ALONG_X)
    return pick(rng, ("truck", "lorry"))


def _plane(rng: np.random.Generator, make: Maker) -> str:
    span, tail = rng.uniform(0.7, 1.1), rng.uniform(0.25, 0.4)
    make.add("fuselage", pick(rng, ("capsule", "egg")), (0.16, 0.16, 1), (0, 0, 0), STANDING)
    make.add("wings", "rounded box", (span, rng.uniform(0.12, 0.25), 0.03), (0, -0.1, rng.uniform(-0.1, 0.12)))
    make.add("tail", "rounded box", (tail, 0.1, 0.025), (0, 0.85, 0.05))
    make.add("fin", "rounded box", (0.025, 0.12, 0.22), (0, 0.85, 0.25))
    make.pair("engines", "capsule", (0.07, 0.07, 0.18), (0.5 * span, -0.15, -0.1), STANDING)
    return pick(rng, ("aeroplane", "airplane"))


def _boat(rng: np.random.Generator, make: Maker) -> str:
    w = rng.uniform(0.3, 0.45)
    make.add("hull", "bowl", (w, 1, 0.25), (0, 0, 0))
    make.add("deck", "rounded box", (0.75 * w, 0.7, 0.04), (0, 0, 0.1))
    if rng.random() < 0.5:
        make.add("mast", "cylinder", (0.035, 0.035, 0.7), (0, 0, 0.6))
        make.add("sail", "wedge", (0.02, 0.4, 0.55), (0, 0.2, 0.75))
    else:
        make.add("cabin", "box", (0.6 * w, 0.3, 0.2), (0, 0.2, 0.3))
        make.add("funnel", "cylinder", (0.08, 0.08, 0.18), (0, 0.3, 0.6))
    return "boat"


def _animal(rng: np.random.Generator, make: Maker) -> str:
    w, d, h = rng.uniform(0.22, 0.4), rng.uniform(0.5, 0.8), rng.uniform(0.22, 0.38)
    body, r, leg = (
        pick(rng, ("rounded box", "ball", "capsule", "egg")),
        rng.uniform(0.06, 0.13),
        rng.uniform(0.15, 0.35),
    )
    lying = body in ("capsule", "egg")
    make.add("body", body, (w, h, d) if lying else (w, d, h), (0, 0, 0), STANDING if lying else None)
    head, up = rng.uniform(0.2, 0.36), rng.uniform(0.1, 0.6)
    face = pick(rng, ("ball", "rounded box", "egg"))
    make.add("head", face, (head, 1.1 * head, head), (0, -d - 0.3 * head, up))
    make.add("neck", "capsule", (0.5 * head, 0.5 * head, 0.35), (0, -0.8 * d, 0.5 * up), leaning(0.6))
    make.add(
        "snout", pick(rng, ("ball", "rounded box", "cone")), (0.5 * head,) * 3, (0, -d - 1.3 * head, up - 0.2 * head)
    )
    make.pair(
        "ears", pick(rng, ("cone", "egg", "ball")), (0.1, 0.05, rng.uniform(0.1, 0.3)), (0.6 * head, -d, up + head)
    )
    make.pair("eyes", "ball", (0.045,) * 3, (0.5 * head, -d - 1.2 * head, up + 0.35 * head))
    make.four("legs", pick(rng, ("cylinder", "capsule", "box")), (r, r, leg), (0.75 * w, 0.65 * d, -h - 0.6 * leg))
    make.add("tail", "horn", (0.15, 0.12, rng.uniform(0.2, 0.4)), (0, d + 0.1, 0.2), leaning(rng.uniform(-1.2, 0.2)))
    return pick(rng, ("animal", "toy animal"))


def _bird(rng: np.random.Generator, make: Maker) -> str:
    d = rng.uniform(0.45, 0.65)
    make.add("body", pick(rng, ("egg", "ball")), (0.35, 0.4, d), (0, 0, 0), leaning(rng.uniform(0.3, 1.2)))
    make.add("head", "ball", (0.22,) * 3, (0, -0.5 * d, d))
    make.add("beak", "cone", (0.08, 0.08, 0.16), (0, -0.5 * d - 0.3, d), STANDING)
    make.pair("eyes", "ball", (0.04,) * 3, (0.12, -0.5 * d - 0.17, d + 0.08))
    make.pair("wings", "egg", (0.07, 0.25, 0.42), (0.36, 0.1, 0), leaning(0.5))
    make.pair("legs", "cylinder", (0.035, 0.035, 0.25), (0.14, 0, -0.6))
    make.pair("feet", "box", (0.09, 0.14, 0.025), (0.14, -0.06, -0.83))
    return "bird"


def _fish(rng: np.random.Generator, make: Maker) -> str:
    w, h, d = rng.uniform(0.15, 0.3), rng.uniform(0.25, 0.5), rng.uniform(0.6, 0.9)
    make.add("body", pick(rng, ("egg", "ball")), (w, h, d), (0, 0, 0), STANDING)
    make.add(
        "tail", pick(rng, ("wedge", "heart", "cone")), (0.35, 0.06, 0.3), (0, d + 0.15, 0), about_z(np.pi / 2) @ ALONG_X
    )
    make.pair("fins", "egg", (0.05, 0.12, 0.25), (w, 0, -0.1), leaning(-0.9))
    make.pair("eyes", "ball", (0.06,) * 3, (0.7 * w, -0.72 * d, 0.15 * h))
    return "fish"


def _figure(rng: np.random.Generator, make: Maker) -> str:
    w, h, limb = rng.uniform(0.22, 0.38), rng.uniform(0.3, 0.42), rng.uniform(0.07, 0.12)
    rough = rng.random() < 0.5
    body, arm = ("box", "box") if rough else (pick(rng, ("capsule", "rounded box", "egg")), "capsule")
    make.add("body", body, (w, 0.6 * w + 0.06, h), (0, 0, 0))
    head = rng.uniform(0.16, 0.3)
    make.add("head", "box" if rough and rng.random() < 0.6 else "ball", (head,) * 3, (0, 0, h + 0.95 * head))
    make.pair("arms", arm, (limb, limb, 0.8 * h), (w + 0.7 * limb, 0, 0.1 * h), leaning(rng.uniform(-0.6, 0.6)))
    make.pair("legs", arm, (1.1 * limb, 1.1 * limb, 0.9 * h), (0.5 * w, 0, -1.7 * h))
    make.pair("feet", "rounded box", (limb, 1.7 * limb, 0.5 * limb), (0.5 * w, -0.5 * limb, -2.6 * h))
    make.pair("eyes", "ball", (0.04,) * 3, (0.4 * head, -0.95 * head, h + 1.1 * head))
    if rng.random() < 0.5:
        make.add("hat", pick(rng, ("cone", "cylinder", "dome")), (head, head, 0.6 * head), (0, 0, h + 2.2 * head))
    return "robot" if rough else pick(rng, ("figure", "doll"))


def _snowman(rng: np.random.Generator, make: Maker) -> str:
    z = 0.0
    for k, r in enumerate(np.array([0.5, 0.37, 0.26]) * rng.uniform(0.9, 1.1, 3)):
        z += 0.85 * r if k else 0
        make.add("body", "ball", (r, r, r), (0, 0, z))
        z += 0.85 * r
    make.add("nose", "cone", (0.05, 0.05, 0.15), (0, -0.35, z - 0.2), STANDING)
    make.add("hat", "cylinder", (0.2, 0.2, 0.15), (0, 0, z + 0.15))
    make.add("brim", "cylinder", (0.32, 0.32, 0.03), (0, 0, z + 0.02))
    return "snowman"


def _mushroom(rng: np.random.Generator, make: Maker) -> str:
    r, h = rng.uniform(0.1, 0.25), rng.uniform(0.3, 0.6)
    make.add("stem", pick(rng, ("cylinder", "tapered cylinder", "capsule")), (r, r, h), (0, 0, -h))
    w = rng.uniform(0.4, 0.8)
    make.add("cap", pick(rng, ("dome", "dome", "cone", "egg")), (w, w, rng.uniform(0.2, 0.4)), (0, 0, 0.15))
    return "mushroom"


def _hammer(rng: np.random.Generator, make: Maker) -> str:
    r = rng.uniform(0.06, 0.1)
    make.add("handle", pick(rng, ("cylinder", "capsule", "box")), (r, r, 0.9), (0, 0, 0))
    make.add(
        "head",
        pick(rng, ("box", "cylinder", "rounded box", "prism")),
        (0.15, 0.15, rng.uniform(0.3, 0.5)),
        (0, 0, 0.85),
        ALONG_X,
    )
    return pick(rng, ("hammer", "mallet"))


def _sword(rng: np.random.Generator, make: Maker) -> str:
    w = rng.uniform(0.06, 0.14)
    make.add("blade", "box", (w, 0.025, 0.75), (0, 0, 0.4))
    make.add("tip", "pyramid", (w, 0.025, 0.12), (0, 0, 1.27))
    make.add(
        "guard",
        pick(rng, ("box", "rounded box", "capsule")),
        (0.06, 0.06, rng.uniform(0.2, 0.35)),
        (0, 0, -0.35),
        ALONG_X,
    )
    make.add("grip", "cylinder", (0.05, 0.05, 0.2), (0, 0, -0.55))
    make.add("pommel", "ball", (0.09,) * 3, (0, 0, -0.78))
    return pick(rng, ("sword", "knife"))


def _dumbbell(rng: np.random.Generator, make: Maker) -> str:
    r, kind = rng.uniform(0.2, 0.45), pick(rng, ("cylinder", "ball", "prism"))
    make.add("bar", "cylinder", (0.07, 0.07, 0.9), (0, 0, 0), ALONG_X)
    make.pair("weights", kind, (r, r, rng.uniform(0.1, 0.3)), (0.75, 0, 0), ALONG_X)
    return "dumbbell"


def _ladder(rng: np.random.Generator, make: Maker) -> str:
    w, r, count = rng.uniform(0.2, 0.4), rng.uniform(0.03, 0.06), int(rng.integers(4, 9))
    make.pair("rails", pick(rng, ("box", "cylinder")), (r, r, 1), (w, 0, 0))
    for z in np.linspace(-0.8, 0.8, count):
        make.add("rungs", "cylinder", (0.8 * r, 0.8 * r, w), (0, 0, z), ALONG_X)
    return "ladder"


def _rocket(rng: np.random.Generator, make: Maker) -> str:
    w, h = rng.uniform(0.2, 0.35), rng.uniform(0.5, 0.8)
    make.add("body", "cylinder", (w, w, h), (0, 0, 0))
    make.add("nose", pick(rng, ("cone", "dome")), (w, w, rng.uniform(0.15, 0.3)), (0, 0, h + 0.2))
    count = int(rng.integers(3, 5))
    for k in range(count):
        turn = about_z(2 * np.pi * k / count)
        x, y, _ = turn @ np.array([1.2 * w, 0, 0])
        make.add("fins", pick(rng, ("wedge",)), (0.03, 0.5 * w, 0.25), (x, y, -h), turn @ about_z(np.pi / 2))
    make.add("window", "ball", (0.1, 0.04, 0.1), (0, -w, 0.4 * h))
    return "rocket"


OUTDOORS: tuple[Thing, ...] = (
    _tree,
    _house,
    _tower,
    _car,
    _truck,
    _plane,
    _boat,
    _animal,
    _animal,
    _bird,
    _fish,
    _figure,
    _figure,
    _snowman,
    _mushroom,
    _hammer,
    _sword,
    _dumbbell,
    _ladder,
    _rocket,
)


def thing(rng: np.random.Generator) -> Plan:
    """One of the things, of random proportions and bodies."""
    make = Maker()
    title = pick(rng, HOUSEHOLD + OUTDOORS)(rng, make)
    return Plan(title, tuple(make.pieces))
