"""LPIPS with random weights in the public files' form, against a plain writing-out of the paper's formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.cameras import BadInput
from backend.lpips import default_folder, find_lpips

# torchvision's list of VGG16, less its last pooling: a number is a convolution with its ReLU, two entries; M: a pooling
LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


def random_vgg() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state, number, channels = {}, 0, 3
    for layer in LAYERS:
        if isinstance(layer, str):
            number += 1
            continue
        spread = (2 / (9 * channels)) ** 0.5  # keeps the features' size
        state[f"features.{number}.weight"] = spread * torch.randn(layer, channels, 3, 3, generator=generator)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(layer, generator=generator)
        number, channels = number + 2, layer
    return state


def random_lines() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    widths = enumerate((64, 128, 256, 512, 512))
    return {f"lin{block}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for block, width in widths}


def slow_lpips(got: Tensor, want: Tensor, state: dict[str, Tensor]) -> float:
    """One pair of pictures [H,W,3], layer by layer and place by place."""

    def features(image: Tensor) -> list[Tensor]:
        x = 2 * image.permute(2, 0, 1) - 1
        mean, deviation = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
        x = torch.stack([(x[channel] - mean[channel]) / deviation[channel] for channel in range(3)])[None]
        found, number = [], 0
        for layer in LAYERS:
            if isinstance(layer, str):
                found.append(x[0])
                x, number = F.max_pool2d(x, kernel_size=2, stride=2), number + 1
                continue
            weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
            x, number = F.relu(F.conv2d(x, weight, bias, padding=1)), number + 2
        return [*found, x[0]]

    total = 0.0
    for block, (a, b) in enumerate(zip(features(got), features(want), strict=True)):
        weight = state[f"lin{block}.model.1.weight"].flatten()
        places = [(row, column) for row in range(a.shape[1]) for column in range(a.shape[2])]
        sums = 0.0
        for row, column in places:
            unit_a = a[:, row, column] / (a[:, row, column].norm() + 1e-10)
            unit_b = b[:, row, column] / (b[:, row, column].norm() + 1e-10)
            sums += float((weight * (unit_a - unit_b) ** 2).sum())
        total += sums / len(places)
    return total


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files as they are published; VGG16's has its classifier too."""
    folder = tmp_path_factory.mktemp("lpips")
    classifier = {"classifier.6.weight": torch.zeros(10, 4), "classifier.6.bias": torch.zeros(10)}
    torch.save({**random_vgg(), **classifier}, folder / "vgg16-397923af.pth", _use_new_zipfile_serialization=False)
    torch.save(random_lines(), folder / "vgg.pth")
    return folder


def test_the_distance_is_the_papers(published):
    model = find_lpips(published)
    assert model is not None
    generator = torch.Generator().manual_seed(2)
    got, want = torch.rand(2, 2, 18, 21, 3, generator=generator)
    distances = model(got, want)
    slow = [slow_lpips(got[view], want[view], {**random_vgg(), **random_lines()}) for view in range(2)]
    assert distances.tolist() == pytest.approx(slow, rel=1e-4)
    assert distances[0] != distances[1] and float(model(want, want).abs().max()) == 0


def test_it_can_be_a_loss(published):
    model = find_lpips(published)
    assert model is not None
    got = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(3)).requires_grad_()
    model(got, torch.full((1, 16, 16, 3), 0.5)).sum().backward()
    assert got.grad is not None and float(got.grad.abs().sum()) > 0
    assert not any(weight.requires_grad for weight in model.parameters())


def test_one_safetensors_file_does_as_well(published, tmp_path):
    safetensors.torch.save_file({**random_vgg(), **random_lines()}, tmp_path / "both.safetensors")
    one, two = find_lpips(tmp_path / "both.safetensors"), find_lpips(published)
    assert one is not None and two is not None
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_its_place_is_beside_the_checkpoints(published, tmp_path, monkeypatch):
    monkeypatch.setenv("GAUSSMITH_WEIGHTS", str(tmp_path))
    assert find_lpips() is None, "absent, which is no error"
    (tmp_path / "lpips").symlink_to(published, target_is_directory=True)
    assert default_folder() == tmp_path / "lpips" and find_lpips() is not None


def test_a_path_without_the_weights(published, tmp_path):
    with pytest.raises(BadInput, match="lpips: expected a file or a folder with the weights of LPIPS, found nothing"):
        find_lpips(tmp_path / "none")
    with pytest.raises(BadInput, match=r"31 tensors missing .*vgg\.features\.0\.bias") as error:
        find_lpips(tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(BadInput, match=r"5 tensors missing .*weights\.0"):
        find_lpips(published / "vgg16-397923af.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"broken\.safetensors: expected tensors that can be read"):
        find_lpips(tmp_path / "broken.safetensors")
    torch.save({**random_lines(), "lin0.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "wrong.pth")
    with pytest.raises(BadInput, match=r"wrong shape .*expected \[64\], found \[3\]"):
        find_lpips(tmp_path / "wrong.pth")


def test_pictures_smaller_than_the_network_are_refused(published):
    model = find_lpips(published)
    assert model is not None
    with pytest.raises(ValueError, match="at least 16 pixels"):
        model(torch.zeros(1, 15, 40, 3), torch.zeros(1, 15, 40, 3))
