"""The server that stands in for one behind a network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.reward_server import RewardServer, reward_server


@pytest.fixture
def server() -> Iterator[RewardServer]:
    with reward_server() as server:
        yield server
