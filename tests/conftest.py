"""Fixtures for several test files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder `shared` beside the checkout, with golden values and benchmark data."""
    folder = Path(__file__).resolve().parents[1] / "../shared"
    if not folder.is_dir():
        pytest.skip("the folder 'shared' is not beside the checkout")
    return folder
