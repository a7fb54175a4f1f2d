"""What a user sees while views are being made."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Least-squares maps from a latent's four channels to red, green and blue, widely used for previews: [4,3].
SD_TO_RGB = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))
SDXL_TO_RGB = ((0.392, 0.401, 0.433), (-0.246, -0.019, 0.066), (0.107, 0.184, 0.161), (-0.225, -0.226, -0.304))


def rough_views(latents: Tensor, to_rgb: tuple[tuple[float, ...], ...]) -> Tensor:
    """[V,h,w,3] 0..1: what latents [V,4,h,w], scaled as the denoiser sees them, show about; one pixel each."""
    colours = torch.einsum("vchw,cd->vhwd", latents.float(), torch.tensor(to_rgb, device=latents.device))
    return ((colours + 1) / 2).clamp(0, 1).cpu()


def contact_sheet(views: Tensor) -> np.ndarray:
    """[H,W,4] uint8: views [V,h,w,3|4], 0..1, beside one another in about as many rows as columns, row by row."""
    count, height, width, channels = views.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = torch.zeros(rows * columns, height, width, 4)
    sheet[:count, ..., 3] = 1
    sheet[:count, ..., :channels] = views.float().cpu()
    sheet = sheet.view(rows, columns, height, width, 4).permute(0, 2, 1, 3, 4).reshape(rows * height, -1, 4)
    return (sheet.clamp(0, 1) * 255).round().byte().numpy()
