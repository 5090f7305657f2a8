"""The vision-language judge, against a server that answers as a chat model does."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from helpers.reward_calls import ask
from helpers.reward_server import Answer, RewardServer, fixed
from PIL import Image

from sdpo.errors import RewardError, UserError
from sdpo.rewards import checked_scores, load_reward
from sdpo.rewards.remote.vlm import VlmJudge

PROMPTS = ["prompt 0", "prompt 1"]


def says(text: str | None, reason: str = "stop", **message: Any) -> Answer:
    return fixed(200, {"choices": [{"message": {"content": text, **message}, "finish_reason": reason}]})


def judge(server: RewardServer, **options: Any) -> VlmJudge:
    return VlmJudge(server.url + "/v1", "some-model", backoff=0, **options)


def test_the_judge_asks_with_prompt_and_image(server: RewardServer, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_last_score_of_an_answer_counts(server: RewardServer, text: str, score: float) -> None:
    server.answers = [says(text)]
    assert ask(judge(server), PROMPTS[:2]).tolist() == pytest.approx([score] * 2)


def test_another_scale_and_pattern(server: RewardServer) -> None:
    server.answers = [says("rating -1")]
    assert ask(judge(server, pattern=r"rating (-?\d)", scale=(-2, 2)), PROMPTS[:1]).tolist() == pytest.approx([0.25])


@pytest.mark.parametrize(
    "answer",
    [says("I cannot judge this."), says(None, refusal="no"), says("Score: 9", reason="content_filter"), says("")],
)
def test_a_refusal_is_an_error_or_the_minimum_as_chosen(server: RewardServer, answer: Answer) -> None:
    server.answers = [answer]
    with pytest.raises(RewardError, match="no score for prompt 'prompt 0'.*on_refusal=minimum"):
        ask(judge(server), PROMPTS[:1])
    assert ask(judge(server, on_refusal="minimum"), PROMPTS[:1]).tolist() == [0.0]


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
def test_a_failed_answer_is_never_the_minimum(server: RewardServer, answer: Answer, message: str) -> None:
    server.answers = [answer]
    with pytest.raises(RewardError, match=message):
        ask(judge(server, on_refusal="minimum"), PROMPTS[:1])


def test_the_judge_retries(server: RewardServer) -> None:
    server.answers = [fixed(500, "busy"), fixed(500, "busy"), says("Score: 5")]
    assert ask(judge(server, concurrency=1), PROMPTS[:2]).tolist() == [0.5, 0.5]
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
def test_settings_that_make_no_sense(server: RewardServer, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="reward_options.vlm"):
        judge(server, **options)


def test_the_judge_needs_a_server() -> None:
    with pytest.raises(UserError, match="reward_options.vlm.base_url"):
        load_reward("vlm")
