"""A vision-language model as a judge, behind any API that speaks OpenAI's chat completions (vLLM, SGLang, Ollama …).

Each image is one request. The model answers in its own words and ends with `Score: <number>`.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal

import torch
from torch import Tensor

from sdpo.errors import RewardError, UserError
from sdpo.rewards.remote.json_client import JsonClient, png_base64

TEMPLATE = (
    "Look at the image, which was drawn for this prompt:\n{prompt}\n\n"
    "Judge how well it shows what the prompt asks for, and how well it is drawn. Reason in one or two sentences, then "
    "end with a line of the form\nScore: <a number from 0 (worst) to 10 (best)>"
)
PATTERN = r"score\s*[:=]\s*\**\s*(-?\d+(?:\.\d+)?)"


class VlmJudge:
    """The score a vision-language model writes, scaled to 0 … 1.

    Args:
        base_url: up to and including the version, such as `http://localhost:8000/v1`.
        model: as the server names it.
        device: ignored: the server has its own.
        template: of the request; `{prompt}` in it becomes the prompt.
        pattern: a regular expression with one group; its last match in the answer is the score. Case does not matter.
        scale: the lowest and the highest score that the template allows.
        on_refusal: what an answer without a score is (a refusal, or words that the pattern does not match): an `error`,
            or the `minimum`, 0. A failed request is always an error.
        max_tokens: of an answer; one cut off by it is an error.
        temperature: of the answer.
        api_key_env: environment variable with the key; none is sent where it is not set.
        concurrency: requests under way at once.
        timeout: seconds to connect, and seconds without a byte of answer.
        retries: see `JsonClient`.
        backoff: see `JsonClient`.

    Raises:
        UserError: if an argument is missing or makes no sense.
    """

    remote = True

    def __init__(
        self,
        base_url: str = "",
        model: str = "",
        *,
        device: str = "cpu",
        template: str = TEMPLATE,
        pattern: str = PATTERN,
        scale: tuple[float, float] = (0.0, 10.0),
        on_refusal: Literal["error", "minimum"] = "error",
        max_tokens: int = 256,
        temperature: float = 0.0,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 3,
        backoff: float = 0.5,
    ) -> None:
        if not base_url or not model:
            raise UserError(
                "reward 'vlm' needs a server and a model: reward_options.vlm.base_url=http://localhost:8000/v1 "
                "reward_options.vlm.model=NAME"
            )
        if "{prompt}" not in template:
            raise UserError("reward_options.vlm.template has no {prompt}")
        try:
            self._pattern = re.compile(pattern, re.IGNORECASE)
        except re.error as error:
            raise UserError(f"reward_options.vlm.pattern {pattern!r} is not a regular expression: {error}") from error
        if self._pattern.groups != 1:
            raise UserError(f"reward_options.vlm.pattern {pattern!r} must have one group, the number")
        self._low, self._high = (float(bound) for bound in scale)
        if self._low >= self._high:
            raise UserError(f"reward_options.vlm.scale must be the lowest score, then the highest, not {scale}")
        if on_refusal not in ("error", "minimum"):
            raise UserError(f"reward_options.vlm.on_refusal must be error or minimum, not {on_refusal!r}")
        self._template = template
        self._on_refusal = on_refusal
        self._settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        key = os.environ.get(api_key_env)
        self._client = JsonClient(
            base_url.rstrip("/") + "/chat/completions",
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            concurrency=concurrency,
            headers={"Authorization": f"Bearer {key}"} if key else None,
        )

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """float32 [N] in [0, 1] of images [N, 3, H, W] in [0, 1].

        Raises:
            RewardError: if a request fails after its retries, or an answer has no score in the scale.
        """
        images = images.detach().cpu()
        return torch.tensor(self._client.map(lambda i: self._judge(images[i], prompts[i]), range(len(prompts))))

    def _judge(self, image: Tensor, prompt: str) -> float:
        question = [
            {"type": "text", "text": self._template.replace("{prompt}", prompt)},  # a prompt may hold braces
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png_base64(image)}"}},
        ]
        excerpt = self._client.excerpt
        answer = self._client.post({**self._settings, "messages": [{"role": "user", "content": question}]})
        try:
            choice = answer["choices"][0]
            message, reason = choice["message"], choice.get("finish_reason")
            text = message.get("content") or ""
            refused = bool(message.get("refusal")) or reason == "content_filter"
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise RewardError(f"{self._client.url} did not answer with a chat completion: {excerpt(answer)}") from error
        found = None if refused else self._pattern.findall(text)
        if not found:
            if reason == "length":
                raise RewardError(
                    f"{self._client.url}: the answer for prompt {prompt!r} was cut off before its score; raise "
                    f"reward_options.vlm.max_tokens ({self._settings['max_tokens']}). It says: {excerpt(text)}"
                )
            if self._on_refusal == "minimum":
                return 0.0
            raise RewardError(
                f"{self._client.url}: no score for prompt {prompt!r}; the model says: "
                f"{excerpt(message.get('refusal') or text)}. reward_options.vlm.on_refusal=minimum counts this as 0."
            )
        try:
            score = (float(found[-1]) - self._low) / (self._high - self._low)
        except ValueError as error:
            raise RewardError(f"{self._client.url}: {found[-1]!r} is not a number; mend the pattern") from error
        if not 0 <= score <= 1:
            raise RewardError(
                f"{self._client.url}: score {found[-1]} for prompt {prompt!r} is outside {self._low:g} … "
                f"{self._high:g}. The model says: {excerpt(text)}"
            )
        return score
