"""Credentials of remote rewards: read from the environment, sent as headers, never quoted in an error."""

from __future__ import annotations

import pytest

from sdpo.errors import RewardError, UserError
from sdpo.rewards.remote.http import HttpReward


def test_a_server_that_repeats_its_headers_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("OTHER", "staple-staple")
    reward = HttpReward("http://127.0.0.1:9/", token_env="MY_TOKEN", headers_env={"X-Api-Key": "OTHER"}, retries=0)
    sent = reward._client._session.headers
    assert sent["Authorization"] == "Bearer correct-horse-battery" and sent["X-Api-Key"] == "staple-staple"
    with pytest.raises(RewardError) as refused:
        reward._scores({"echo": dict(sent)}, 1)
    assert "correct-horse" not in str(refused.value) and "staple" not in str(refused.value)
    with pytest.raises(UserError, match="MISSING is not set"):
        HttpReward("http://x/", headers_env={"X-Api-Key": "MISSING"})
