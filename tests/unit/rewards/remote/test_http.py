"""Rewards behind a network, against a server that this file starts: slow, failing, wrong, malformed."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from helpers.paths import REPOSITORY
from PIL import Image

from sdpo.errors import RewardError, UserError
from sdpo.rewards import checked_scores, load_reward
from sdpo.rewards.remote.http import HttpReward
from sdpo.rewards.remote.vlm import VlmJudge

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Server:
    """Answers each POST with what `self.answers` gives for it; the last one stays."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Answer] = []
        self.answer_headers: dict[str, str] = {}
        self.most_at_once = self._at_once = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                    outer.requests.append({"path": self.path, **request})
                    outer.headers.append(dict(self.headers))
                    answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                status, content = answer(request)
                with lock:
                    outer._at_once -= 1
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    for name, value in {**outer.answer_headers, "Content-Length": str(len(data))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except ConnectionError:
                    pass  # the client has given up, as a test wants it to

            def log_message(self, *args: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def red(request: dict[str, Any]) -> tuple[int, Any]:
    """Scores by the mean of the red channel: shows that pixels and order arrive."""
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in request["images"]]
    return 200, {"scores": [float(image[..., 0].mean()) / 255 for image in images]}


def fixed(status: int, content: Any) -> Answer:
    return lambda request: (status, content)


def call(reward: Any, count: int = 3) -> torch.Tensor:
    images = torch.zeros(count, 3, 8, 8)
    images[:, 0] = torch.arange(count).view(-1, 1, 1) / 255
    return checked_scores("r", reward, images, [f"prompt {i}" for i in range(count)], [{"i": i} for i in range(count)])


def test_scores_in_order_over_several_requests(server: Server) -> None:
    server.answers = [red]
    scores = call(HttpReward(server.url, batch_size=4, concurrency=3), count=11)
    assert torch.allclose(scores, torch.arange(11) / 255)
    sent = sorted(len(r["images"]) for r in server.requests)
    assert sent == [3, 4, 4]
    assert sorted(p for r in server.requests for p in r["prompts"]) == sorted(f"prompt {i}" for i in range(11))
    assert {m["i"] for r in server.requests for m in r["metadata"]} == set(range(11))


def test_requests_run_at_once_but_no_more_than_asked(server: Server) -> None:
    def slow(request: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.2)
        return red(request)

    server.answers = [slow]
    call(HttpReward(server.url, batch_size=1, concurrency=3), count=9)
    assert server.most_at_once == 3


def test_a_slow_server_is_asked_again_then_named(server: Server) -> None:
    def slow(request: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(1.0)
        return red(request)

    server.answers = [slow, red]
    assert call(HttpReward(server.url, timeout=0.3, backoff=0)).shape == (3,)
    server.answers = [slow]
    with pytest.raises(RewardError, match=rf"{server.url}.*[Tt]imed out"):
        call(HttpReward(server.url, timeout=0.2, retries=1, backoff=0))
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_retried(server: Server, status: int) -> None:
    server.answers = [fixed(status, "busy"), fixed(status, "busy"), red]
    assert call(HttpReward(server.url, backoff=0)).tolist() == pytest.approx([0, 1 / 255, 2 / 255])
    assert len(server.requests) == 3


def test_a_lasting_failure_shows_status_and_answer(server: Server) -> None:
    server.answers = [fixed(500, "the model fell over " + 500 * "x")]
    with pytest.raises(RewardError, match=rf"{server.url} answered 500: the model fell over x{{180}} …$"):
        call(HttpReward(server.url, retries=2, backoff=0))
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refused_request_fails_at_once(server: Server, status: int) -> None:
    server.answers = [fixed(status, {"error": "no"})]
    with pytest.raises(RewardError, match=rf"answered {status}: .*no"):
        call(HttpReward(server.url))
    assert len(server.requests) == 1


def test_the_server_says_when_to_come_back(server: Server) -> None:
    server.answers = [fixed(429, "later"), red]
    server.answer_headers = {"Retry-After": "1"}
    start = time.monotonic()
    call(HttpReward(server.url, backoff=0))
    assert time.monotonic() - start >= 1


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(RewardError, match="http://127.0.0.1:9/ cannot be reached"):
        call(HttpReward("http://127.0.0.1:9/", retries=1, backoff=0))


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
def test_an_answer_that_is_not_one_number_an_image(server: Server, content: Any) -> None:
    server.answers = [fixed(200, content)]
    with pytest.raises(RewardError, match=server.url):
        call(HttpReward(server.url))
    assert len(server.requests) == 1


def test_one_failed_request_of_many_fails_the_call(server: Server) -> None:
    def third_fails(request: dict[str, Any]) -> tuple[int, Any]:
        return (400, "prompt 2 is not allowed") if "prompt 2" in request["prompts"] else red(request)

    server.answers = [third_fails]
    with pytest.raises(RewardError, match="prompt 2 is not allowed"):
        call(HttpReward(server.url, batch_size=1), count=6)


def test_a_redirect_is_named_and_not_followed(server: Server) -> None:
    server.answers, server.answer_headers = [fixed(307, "moved"), red], {"Location": f"{server.url}/elsewhere"}
    with pytest.raises(RewardError, match="answered 307: moved"):
        call(HttpReward(server.url, token_env=None))
    assert len(server.requests) == 1


def test_token_and_settings(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [red]
    monkeypatch.setenv("MY_TOKEN", "abc")
    call(HttpReward(server.url, token_env="MY_TOKEN", headers={"X-Run": "7"}))
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
        import requests

        assert requests.post(url[0], json={"images": ["?"], "prompts": ["a"]}, timeout=10).status_code == 400
    finally:
        process.terminate()
        process.wait()


def says(text: str | None, reason: str = "stop", **message: Any) -> Answer:
    return fixed(200, {"choices": [{"message": {"content": text, **message}, "finish_reason": reason}]})


def judge(server: Server, **options: Any) -> VlmJudge:
    return VlmJudge(server.url + "/v1", "some-model", backoff=0, **options)


def test_the_judge_asks_with_prompt_and_image(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server.answers = [says("Nice. Score: 7")]
    reward = judge(server, api_key_env="JUDGE_KEY", template="Is it {prompt}? {not a field}", max_tokens=9)
    scores = checked_scores("vlm", reward, torch.ones(1, 3, 8, 8), ["a {fox}"], [{}])
    assert scores.tolist() == pytest.approx([0.7])
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("some-model", 9, 0.0)
    text, image = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "Is it a {fox}? {not a field}"}
    data = image["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).tolist() == [[[255] * 3] * 8] * 8
    assert server.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 10", 1.0),
        ("I first thought Score: 3, but\n**Score:** 6.5", 0.65),
        ("score = 0", 0.0),
        ("SCORE: **4**", 0.4),
    ],
)
def test_the_last_score_of_an_answer_counts(server: Server, text: str, score: float) -> None:
    server.answers = [says(text)]
    assert call(judge(server), count=2).tolist() == pytest.approx([score] * 2)


def test_another_scale_and_pattern(server: Server) -> None:
    server.answers = [says("rating -1")]
    assert call(judge(server, pattern=r"rating (-?\d)", scale=(-2, 2)), count=1).tolist() == pytest.approx([0.25])


@pytest.mark.parametrize(
    "answer",
    [says("I cannot judge this."), says(None, refusal="no"), says("Score: 9", reason="content_filter"), says("")],
)
def test_a_refusal_is_an_error_or_the_minimum_as_chosen(server: Server, answer: Answer) -> None:
    server.answers = [answer]
    with pytest.raises(RewardError, match="no score for prompt 'prompt 0'.*on_refusal=minimum"):
        call(judge(server), count=1)
    assert call(judge(server, on_refusal="minimum"), count=1).tolist() == [0.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (says("The image shows", reason="length"), "raise reward_options.vlm.max_tokens"),
        (says("Score: 11"), "outside 0 … 10"),
        (fixed(200, {"error": "no such model"}), "no such model"),
        (fixed(200, {"choices": []}), "did not answer with a chat completion"),
        (fixed(200, [1]), "did not answer with a chat completion"),
        (fixed(200, '{"choices": ['), "not JSON"),
        (fixed(401, "wrong key"), "answered 401: wrong key"),
    ],
)
def test_a_failed_answer_is_never_the_minimum(server: Server, answer: Answer, message: str) -> None:
    server.answers = [answer]
    with pytest.raises(RewardError, match=message):
        call(judge(server, on_refusal="minimum"), count=1)


def test_the_judge_retries(server: Server) -> None:
    server.answers = [fixed(500, "busy"), fixed(500, "busy"), says("Score: 5")]
    assert call(judge(server, concurrency=1), count=2).tolist() == [0.5, 0.5]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"template": "no field"},
        {"pattern": "("},
        {"pattern": "score"},
        {"scale": (3, 3)},
        {"on_refusal": "zero"},
    ],
)
def test_settings_that_make_no_sense(server: Server, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="reward_options.vlm"):
        judge(server, **options)


def test_the_judge_needs_a_server() -> None:
    with pytest.raises(UserError, match="reward_options.vlm.base_url"):
        load_reward("vlm")
