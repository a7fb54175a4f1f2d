"""LPIPS (Zhang et al. 2018), version 0.1: how different two pictures look, by the features of a VGG16.

Its weights do not come along. They are two public files: torchvision's VGG16 (`features.0.weight` and so on) and the
linear layers of LPIPS (`lin0.model.1.weight` and so on), as files of torch.save or safetensors, in one folder or joined
in one file. Without a path they are looked for in the folder `lpips` beside the fetched checkpoints.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.bad_input import BadInput
from backend.checkpoint_files import ENDINGS, load_into
from backend.safe_pickle import StoredTensor
from backend.torch_files import PickledFile
from backend.weights import weights_folder

FOLDER = "lpips"
# Channels of the convolutions of each block, of which each but the first begins by halving the picture.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SMALLEST = 2 ** (len(BLOCKS) - 1)  # pixels of a side: smaller pictures have nothing left in the last block
# Mean and deviation of ImageNet's pictures, whose range is -1..1 here
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10  # added to a feature's length


class Features(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman 2015), numbered as torchvision numbers its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        self._blocks: list[list[str]] = []
        number, channels = 0, 3
        for widths in BLOCKS:
            names = []
            for width in widths:
                names.append(str(number))
                self.features[names[-1]] = nn.Conv2d(channels, width, 3, padding=1)
                number, channels = number + 2, width  # a ReLU has a number of its own
            self._blocks.append(names)
            number += 1  # and so has the pooling

    def forward(self, images: Tensor) -> list[Tensor]:
        """The last features [V,C,H',W'] of each of the five blocks, after the ReLU.

        images  [V,3,H,W] less the mean and over the deviation of ImageNet
        """
        found = []
        for block, names in enumerate(self._blocks):
            images = F.max_pool2d(images, 2) if block else images
            for name in names:
                images = F.relu(self.features[name](images))
            found.append(images)
        return found


class Lpips(nn.Module):
    """The distance: squared differences of unit-length features, weighted by channel, averaged over the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = Features()
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(widths[-1])) for widths in BLOCKS)

    def forward(self, got: Tensor, want: Tensor) -> Tensor:
        """[V] distances, 0 for equal ones, of pictures [V,H,W,3] sRGB, 0..1, of at least 16 pixels a side."""
        if min(got.shape[1:3]) < SMALLEST:
            raise ValueError(f"lpips: expected pictures of at least {SMALLEST} pixels a side, found {got.shape[1:3]}")
        total = got.new_zeros(len(got))
        for weight, a, b in zip(self.weights, self.features(got), self.features(want), strict=True):
            difference = (_unit(a) - _unit(b)).square()
            total = total + torch.einsum("vchw,c->vhw", difference, weight).mean((1, 2))
        return total

    def features(self, images: Tensor) -> list[Tensor]:
        """The features [V,C,H',W'] of each of the five blocks, of pictures [V,H,W,3] sRGB, 0..1."""
        shift, scale = (torch.tensor(values).to(images) for values in (SHIFT, SCALE))
        return self.vgg(((2 * images - 1 - shift) / scale).permute(0, 3, 1, 2))


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + EPSILON)


# ---- files


def default_folder() -> Path:
    """Where the weights are looked for."""
    return weights_folder() / FOLDER


def find_lpips(path: Path | None = None) -> Lpips | None:
    """The distance with its weights, ready to use, on the CPU. None where no path is given and the folder is not there.

    path  a file with all tensors, or a folder of files that have them together

    Raises BadInput for a path without them.
    """
    place = default_folder() if path is None else path
    if path is None and not place.is_dir():
        return None
    if not place.exists():
        raise BadInput(f"lpips: expected a file or a folder with the weights of LPIPS, found nothing at {place}")
    model = Lpips()
    published = {_published(name): name for name in model.state_dict()}
    files = sorted(file for file in place.iterdir() if file.suffix in ENDINGS) if place.is_dir() else [place]
    state = {}
    for file in files:
        state |= {published[name]: tensor for name, tensor in _read(file, set(published)).items()}
    shaped = {name: tensor.reshape(-1) if name.startswith("weights.") else tensor for name, tensor in state.items()}
    try:
        load_into(model, shaped)
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from error
    return model.eval().requires_grad_(False)


def _published(name: str) -> str:
    """A tensor's name in the public files: ours are `vgg.features.0.weight` and `weights.0`."""
    block = name.removeprefix("weights.")
    return name.removeprefix("vgg.") if block == name else f"lin{block}.model.1.weight"


def _read(file: Path, names: set[str]) -> dict[str, Tensor]:
    """Those of the named tensors that a file has. Raises BadInput."""
    try:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in names & set(opened.keys())}
        with PickledFile(file) as opened:
            content = opened.content if isinstance(opened.content, dict) else {}
            found = {name: value for name, value in content.items() if name in names}
            return opened.load({name: value for name, value in found.items() if isinstance(value, StoredTensor)})
    except (OSError, safetensors.SafetensorError) as error:
        raise BadInput(f"{file}: expected tensors that can be read, found: {error}") from error
