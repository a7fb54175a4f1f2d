"""A field whose shape and colours are known: an ellipsoid, coloured by place; and networks that always answer it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backend.image_encoder import DinoConfig
from backend.models import lrm, triposr
from backend.triplane import Reading, Triplane

SEMI_AXES = (0.45, 0.35, 0.25)  # small enough for the features that fade towards the cube's sides
MIDDLE = (0.1, -0.05, 0.08)
STEEPNESS = {"softplus": 800.0, "exp": 8.0}  # raw density in the middle less that at the surface
CONTRAST = 5.0  # raw colour per unit of a coordinate
TINY = DinoConfig(width=8, layers=1, heads=2, hidden=16, patch=8, native_side=16)


def field_planes(radius: float, side: int, *, middle: tuple[float, float, float], size: float) -> Tensor:
    """[3,4,side,side] features: what the coordinates add to the ellipsoid's equation, then x, y and z.

    Plane 0 has x along its columns and y along its rows, plane 1 has z along its rows.
    """
    line = ((torch.arange(side) + 0.5) / side * 2 - 1) * radius
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    x, y, z = (
        ((value - centre) / (size * axis)) ** 2
        for value, centre, axis in zip((columns, rows, rows), middle, SEMI_AXES, strict=True)
    )
    nothing = torch.zeros_like(rows)
    first = torch.stack([x + y, columns, rows, nothing])
    return torch.stack([first, torch.stack([z, nothing, nothing, rows]), torch.zeros_like(first)])


def field_decoder(surface: float, steepness: float) -> nn.Sequential:
    """[P,12] features to the raw density `surface` on the ellipsoid, and raw colours that grow with x, y and z."""
    linear = nn.Linear(12, 4)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([surface + steepness, 0.0, 0.0, 0.0]))
        for plane in range(3):
            linear.weight[0, 4 * plane] = -steepness
            for channel in (1, 2, 3):
                linear.weight[channel, 4 * plane + channel] = CONTRAST
    return nn.Sequential(linear)


def decoder_for(reading: Reading) -> nn.Sequential:
    kind = "exp" if reading.radius < 1 else "softplus"
    return field_decoder(reading.raw(reading.level), STEEPNESS[kind])


def ellipsoid(reading: Reading, *, side: int = 64, middle: tuple[float, float, float] = MIDDLE) -> Triplane:
    planes = field_planes(reading.radius, side, middle=middle, size=1.0)
    return Triplane(planes, decoder_for(reading), reading, torch.eye(4, dtype=torch.float64))


class KnownLrm(lrm.Lrm):
    """OpenLRM that sees an ellipsoid in every picture."""

    def __init__(self, *, middle: tuple[float, float, float] = MIDDLE, size: float = 1.0) -> None:
        super().__init__(lrm.LrmConfig("1.1", 16, TINY, width=8, layers=1, heads=2, plane_channels=4, plane_side=16))
        self.synthesizer.decoder.net = decoder_for(lrm.READING)
        self.register_buffer("known", field_planes(1.0, 32, middle=middle, size=size))

    def forward(self, image: Tensor, camera: Tensor) -> Tensor:
        del image, camera
        return self.get_buffer("known")[None]


class KnownTripoSr(triposr.TripoSr):
    """TripoSR that sees an ellipsoid in every picture."""

    def __init__(self, *, middle: tuple[float, float, float] = MIDDLE, size: float = 1.0) -> None:
        super().__init__(
            triposr.TripoSrConfig(
                16, TINY, plane_side=16, channels=8, heads=2, head_width=4, layers=1, norm_groups=2, plane_channels=4
            )
        )
        self.decoder.layers = decoder_for(self.reading)
        self.register_buffer("known", field_planes(self.config.radius, 32, middle=middle, size=size))

    def forward(self, image: Tensor) -> Tensor:
        del image
        return self.get_buffer("known")[None]
