"""A run's configuration: read from JSON, refused by name, and what it says of the rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backend.bad_input import BadInput
from backend.train import rate_at
from backend.train_config import config_data, config_from
from tests.training_runs import RUN


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stepz": 3}, r"stepz: expected one of family, network"),
        ({"data": {"sise": 3}}, r"data\.sise: expected one of seed, size"),
        ({"stages": [{"size": "large"}]}, r"stages\.0\.size: expected a whole number, found large"),
        ({"stages": [{"until": 0.5}]}, r"stages: expected shares that rise, the last one 1"),
        ({"stages": [{"weights": {"beauty": 1}}]}, r"stages\.0\.weights\.beauty: expected one of rgb, alpha"),
        ({"stages": [{"views": [2, 8]}]}, r"stages\.0\.inputs: expected from 1 to 2"),
        ({"family": "gan"}, r"family: expected one of grm, lgm"),
        ({"steps": 0}, r"steps: expected a number above 0, or else minutes above 0"),
        ({"minutes": 1}, r"steps: expected a number above 0, or else minutes above 0"),
        ({"batch": 3, "micro_batch": 2}, r"micro_batch: expected a divisor of 3"),
        ({"precision": "float8"}, r"precision: expected float32 or bfloat16, found float8"),
        ({"rate": True}, r"rate: expected a number, found True"),
    ],
)
def test_configurations_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        config_from(RUN | {"steps": 2} | changes)


def test_a_configuration_is_what_it_was_after_json() -> None:
    config = config_from(RUN | {"steps": 2, "data": {"assets": "some/folder", "fov": [30, 40]}})
    assert config.data.assets == Path("some/folder") and config.data.fov == (30.0, 40.0)
    assert config_from(json.loads(json.dumps(config_data(config)))) == config


def test_the_rate_rises_and_falls() -> None:
    config = config_from(RUN | {"steps": 100, "warm_up": 0.1, "rate": 2.0})
    rates = [rate_at(share / 1000, config) for share in range(1000)]
    assert 0 < rates[0] < 0.01 and rates[50] == pytest.approx(1.0) and rates[100] == pytest.approx(2.0)
    assert rates[550] == pytest.approx(1.0) and rates[-1] < 1e-4
    assert rates[:100] == sorted(rates[:100]) and rates[100:] == sorted(rates[100:], reverse=True)
