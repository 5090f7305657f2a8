"""Rewards over HTTP, against a server that is slow, fails, is wrong or malformed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import Any

import pytest
import requests
import torch
from helpers.paths import REPOSITORY
from helpers.reward_calls import ask
from helpers.reward_server import RewardServer, fixed, red

from sdpo.errors import RewardError, UserError
from sdpo.rewards import checked_scores, load_reward
from sdpo.rewards.remote.http import HttpReward

PROMPTS = [f"prompt {i}" for i in range(11)]


def test_scores_in_order_over_several_requests(server: RewardServer) -> None:
    server.answers = [red]
    scores = ask(HttpReward(server.url, batch_size=4, concurrency=3), PROMPTS[:11])
    assert torch.allclose(scores, torch.arange(11) / 255)
    sent = sorted(len(r["images"]) for r in server.requests)
    assert sent == [3, 4, 4]
    assert sorted(p for r in server.requests for p in r["prompts"]) == sorted(PROMPTS)
    assert {m["i"] for r in server.requests for m in r["metadata"]} == set(range(11))


def test_requests_run_at_once_but_no_more_than_asked(server: RewardServer) -> None:
    def slow(request: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.2)
        return red(request)

    server.answers = [slow]
    ask(HttpReward(server.url, batch_size=1, concurrency=3), PROMPTS[:9])
    assert server.most_at_once == 3


def test_a_slow_server_is_asked_again_then_named(server: RewardServer) -> None:
    def slow(request: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(1.0)
        return red(request)

    server.answers = [slow, red]
    assert ask(HttpReward(server.url, timeout=0.3, backoff=0), PROMPTS[:3]).shape == (3,)
    server.answers = [slow]
    with pytest.raises(RewardError, match=rf"{server.url}.*[Tt]imed out"):
        ask(HttpReward(server.url, timeout=0.2, retries=1, backoff=0), PROMPTS[:3])
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_retried(server: RewardServer, status: int) -> None:
    server.answers = [fixed(status, "busy"), fixed(status, "busy"), red]
    assert ask(HttpReward(server.url, backoff=0), PROMPTS[:3]).tolist() == pytest.approx([0, 1 / 255, 2 / 255])
    assert len(server.requests) == 3


def test_a_lasting_failure_shows_status_and_answer(server: RewardServer) -> None:
    server.answers = [fixed(500, "the model fell over " + 500 * "x")]
    with pytest.raises(RewardError, match=rf"{server.url} answered 500: the model fell over x{{180}} …$"):
        ask(HttpReward(server.url, retries=2, backoff=0), PROMPTS[:3])
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refused_request_fails_at_once(server: RewardServer, status: int) -> None:
    server.answers = [fixed(status, {"error": "no"})]
    with pytest.raises(RewardError, match=rf"answered {status}: .*no"):
        ask(HttpReward(server.url), PROMPTS[:3])
    assert len(server.requests) == 1


def test_the_server_says_when_to_come_back(server: RewardServer) -> None:
    server.answers = [fixed(429, "later"), red]
    server.answer_headers = {"Retry-After": "1"}
    start = time.monotonic()
    ask(HttpReward(server.url, backoff=0), PROMPTS[:3])
    assert time.monotonic() - start >= 1


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(RewardError, match="http://127.0.0.1:9/ cannot be reached"):
        ask(HttpReward("http://127.0.0.1:9/", retries=1, backoff=0), PROMPTS[:3])


@pytest.mark.parametrize(
    "content",
    [
        {"scores": [1.0, 2.0]},
        {"scores": [1.0, 2.0, 3.0, 4.0]},
        {"scores": 1.0},
        {"score": [1.0, 2.0, 3.0]},
        [1.0, 2.0, 3.0],
        None,
        {"scores": [1.0, "2", 3.0]},
        {"scores": [1.0, True, 3.0]},
        {"scores": [1.0, None, 3.0]},
        {"scores": [[1.0], [2.0], [3.0]]},
        '{"scores": [1.0, NaN, 3.0]}',
        '{"scores": [1.0, Infinity, 3.0]}',
        '{"scores": [1.0, 2.0',
        "<html>hello</html>",
        "",
    ],
)
def test_an_answer_that_is_not_one_number_an_image(server: RewardServer, content: Any) -> None:
    server.answers = [fixed(200, content)]
    with pytest.raises(RewardError, match=server.url):
        ask(HttpReward(server.url), PROMPTS[:3])
    assert len(server.requests) == 1


def test_one_failed_request_of_many_fails_the_call(server: RewardServer) -> None:
    def third_fails(request: dict[str, Any]) -> tuple[int, Any]:
        return (400, "prompt 2 is not allowed") if "prompt 2" in request["prompts"] else red(request)

    server.answers = [third_fails]
    with pytest.raises(RewardError, match="prompt 2 is not allowed"):
        ask(HttpReward(server.url, batch_size=1), PROMPTS[:6])


def test_a_redirect_is_named_and_not_followed(server: RewardServer) -> None:
    server.answers, server.answer_headers = [fixed(307, "moved"), red], {"Location": f"{server.url}/elsewhere"}
    with pytest.raises(RewardError, match="answered 307: moved"):
        ask(HttpReward(server.url, token_env=None), PROMPTS[:3])
    assert len(server.requests) == 1


def test_token_and_settings(server: RewardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [red]
    monkeypatch.setenv("MY_TOKEN", "abc")
    ask(HttpReward(server.url, token_env="MY_TOKEN", headers={"X-Run": "7"}), PROMPTS[:3])
    assert server.headers[0]["Authorization"] == "Bearer abc"
    assert server.headers[0]["X-Run"] == "7"
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(UserError, match="MY_TOKEN is not set"):
        HttpReward(server.url, token_env="MY_TOKEN")
    with pytest.raises(UserError, match="reward_options.http.url"):
        load_reward("http")
    with pytest.raises(UserError, match="http://"):
        HttpReward("localhost:8000")
    with pytest.raises(UserError, match="concurrency"):
        HttpReward(server.url, concurrency=0)
    with pytest.raises(UserError, match="cannot be built"):
        load_reward("http", options={"url": server.url, "speed": 3})


def test_the_example_server() -> None:
    script = REPOSITORY / "examples" / "reward_server.py"
    process = subprocess.Popen(
        [sys.executable, str(script), "--reward", "colorfulness", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = re.search(r"http://\S+", process.stdout.readline())
        assert url is not None
        images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
        remote = load_reward("http", options={"url": url[0], "batch_size": 2})
        prompts, metadata = ["a"] * 5, [{} for _ in range(5)]
        here = load_reward("colorfulness")
        assert torch.allclose(
            checked_scores("http", remote, images, prompts, metadata),
            checked_scores("colorfulness", here, images, prompts, metadata),
            atol=1e-3,
        )
        assert requests.post(url[0], json={"images": ["?"], "prompts": ["a"]}, timeout=10).status_code == 400
    finally:
        process.terminate()
        process.wait()
