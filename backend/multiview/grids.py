"""Views side by side in one picture, row by row from the top left, as some denoisers make them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from backend.multiview.holding import put_back


def to_grid(views: Tensor, columns: int) -> Tensor:
    """[1,C,rows*h,columns*w], one picture, of views [V,C,h,w]."""
    count, channels, height, width = views.shape
    rows = count // columns
    placed = views.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return placed.reshape(1, channels, rows * height, columns * width)


def to_views(grid: Tensor, columns: int) -> Tensor:
    """[V,C,h,h], the square views of one picture [1,C,rows*h,columns*h]."""
    _, channels, height, width = grid.shape
    side = width // columns
    cut = grid.reshape(channels, height // side, side, columns, side).permute(1, 3, 0, 2, 4)
    return cut.reshape(-1, channels, side, side)


@dataclass(frozen=True)
class KeptViews:
    """Views of a grid that stay while one is made anew.

    latents  [1,C,H,W] of all views, without noise
    noise    [1,C,H,W] normal
    redo     number of the one to make
    columns  of the grid
    """

    latents: Tensor
    noise: Tensor
    redo: int
    columns: int

    def put_back(self, grid: Tensor, sigma: Tensor) -> Tensor:
        """The grid [1,C,H,W], whose noise has the deviation `sigma`, with what is to stay as noisy as the rest."""
        noise = to_views(self.noise, self.columns)
        views, known = to_views(grid, self.columns), to_views(self.latents, self.columns)
        return to_grid(put_back(views, known, self.redo, lambda clean: clean + sigma * noise), self.columns)
