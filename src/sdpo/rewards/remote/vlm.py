"""A vision-language model as a judge, behind an API of OpenAI's chat completions (vLLM, SGLang, Ollama …).

Each image is one request. The model answers with a text that ends with `Score: <number>`.
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
    """Scores images by the number that a vision-language model writes, scaled to 0 … 1.

    Args:
        base_url: the address of the API with its version, such as `http://localhost:8000/v1`.
        model: the server's name of the model.
        device: ignored: the server chooses its own device.
        template: the text of the request; `{prompt}` is replaced by the prompt.
        pattern: a regular expression with one group, which ignores case; its last match in the answer is the score.
        scale: the lowest and the highest score that the template allows.
        on_refusal: how an answer without a score counts (a refusal, or a text that the pattern does not match): as an
            `error`, or as the `minimum`, 0. A failed request is always an error.
        max_tokens: the longest answer, in tokens; an answer that is cut off before its score is an error.
        temperature: the sampling temperature of the answer.
        api_key_env: the environment variable that holds the API key; if it is not set, no key is sent.
        concurrency: the number of requests at the same time.
        timeout: seconds to connect, and seconds without a byte of the answer.
        retries: further tries after a failed connection, a timeout, or status 408, 425, 429, 500, 502, 503, 504.
        backoff: seconds before the second retry, which later retries double; the first retry is immediate.

    Raises:
        UserError: if an argument is missing or out of range.
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
            raise UserError(f"reward_options.vlm.scale must be the lowest score and then the highest, not {scale}")
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
        """Score images by the judge.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.
            metadata: ignored.

        Returns:
            Scores in [0, 1], float32 [N], on the CPU.

        Raises:
            RewardError: if a request fails after its retries, or an answer has no score in the scale.
        """
        images = images.detach().cpu()
        return torch.tensor(self._client.map(lambda i: self._judge(images[i], prompts[i]), range(len(prompts))))

    def _judge(self, image: Tensor, prompt: str) -> float:
        """Ask for the score of one image, float [3, H, W] in [0, 1], and scale the score to [0, 1]."""
        question = [
            {"type": "text", "text": self._template.replace("{prompt}", prompt)},  # a prompt may hold braces
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png_base64(image)}"}},
        ]
        answer = self._client.post({**self._settings, "messages": [{"role": "user", "content": question}]})
        try:
            choice = answer["choices"][0]
            message, reason = choice["message"], choice.get("finish_reason")
            text = message.get("content") or ""
            refusal = message.get("refusal")
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            excerpt = self._client.excerpt(answer)
            raise RewardError(f"{self._client.url} did not answer with a chat completion: {excerpt}") from error
        found = None if refusal or reason == "content_filter" else self._pattern.findall(text)
        return self._scaled(found[-1], prompt, text) if found else self._without_score(prompt, refusal or text, reason)

    def _scaled(self, score: str, prompt: str, text: str) -> float:
        """Scale the score that an answer gives to [0, 1]."""
        try:
            scaled = (float(score) - self._low) / (self._high - self._low)
        except ValueError as error:
            raise RewardError(
                f"{self._client.url}: {score!r} is not a number; fix reward_options.vlm.pattern"
            ) from error
        if not 0 <= scaled <= 1:
            raise RewardError(
                f"{self._client.url}: score {score} for prompt {prompt!r} is outside {self._low:g} … {self._high:g}. "
                f"The model says: {self._client.excerpt(text)}"
            )
        return scaled

    def _without_score(self, prompt: str, text: str, reason: str | None) -> float:
        """Count an answer without a score as `on_refusal` says; an answer that was cut off is always an error."""
        said = self._client.excerpt(text)
        if reason == "length":
            raise RewardError(
                f"{self._client.url}: the answer for prompt {prompt!r} was cut off before its score; raise "
                f"reward_options.vlm.max_tokens ({self._settings['max_tokens']}). The model says: {said}"
            )
        if self._on_refusal == "minimum":
            return 0.0
        raise RewardError(
            f"{self._client.url}: no score for prompt {prompt!r}; the model says: {said}. "
            "Set reward_options.vlm.on_refusal=minimum to count this as 0."
        )
