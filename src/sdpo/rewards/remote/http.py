"""A reward on the user's own server, by JSON over HTTP.

The protocol: `POST url` with

    {"images": ["<base64 PNG>", …], "prompts": ["…", …], "metadata": [{…}, …]}

and the answer, status 200,

    {"scores": [0.12, …]}

with one finite number an image, in the order of the images. `examples/reward_server.py` is such a server.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdpo.errors import RewardError, UserError
from sdpo.rewards.remote.json_client import JsonClient, png_base64


class HttpReward:
    """Scores images by a server.

    Args:
        url: the address of the server.
        device: ignored: the server chooses its own device.
        batch_size: the largest number of images in a request.
        concurrency: the number of requests at the same time.
        timeout: seconds to connect, and seconds without a byte of the answer.
        retries: further tries after a failed connection, a timeout, or status 408, 425, 429, 500, 502, 503, 504.
        backoff: seconds before the second retry, which later retries double; the first retry is immediate.
        headers: HTTP headers of every request; a configuration file must not hold secrets in them.
        token_env: the environment variable that holds a bearer token.
        headers_env: further headers: their names, and the environment variables that hold their values.

    Raises:
        UserError: if an argument is out of range, or an environment variable is not set.
    """

    remote = True

    def __init__(
        self,
        url: str = "",
        *,
        device: str = "cpu",
        batch_size: int = 16,
        concurrency: int = 4,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        headers: Mapping[str, str] | None = None,
        token_env: str | None = None,
        headers_env: Mapping[str, str] | None = None,
    ) -> None:
        if not url:
            raise UserError("reward 'http' needs the address of your server: reward_options.http.url=http://host:port/")
        if batch_size < 1:
            raise UserError(f"reward_options.http.batch_size must be at least 1, not {batch_size}")
        headers = dict(headers or {})
        if token_env is not None:
            headers["Authorization"] = f"Bearer {_variable(token_env, 'token_env')}"
        for name, variable in (headers_env or {}).items():
            headers[name] = _variable(variable, f"headers_env.{name}")
        self.batch_size = batch_size
        self._client = JsonClient(
            url, timeout=timeout, retries=retries, backoff=backoff, concurrency=concurrency, headers=headers
        )

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        """Score images by the server.

        Args:
            images: float [N, 3, H, W] in [0, 1].
            prompts: the N prompts of the images.
            metadata: the N metadata of the prompts, which JSON can hold.

        Returns:
            Scores, float32 [N], on the CPU.

        Raises:
            RewardError: if a request fails after its retries, or an answer is not one finite number an image.
        """
        images = images.detach().cpu()

        def request(rows: slice) -> list[float]:
            answer = self._client.post(
                {
                    "images": [png_base64(image) for image in images[rows]],
                    "prompts": prompts[rows],
                    "metadata": metadata[rows],
                }
            )
            return self._scores(answer, len(prompts[rows]))

        chunks = [slice(start, start + self.batch_size) for start in range(0, len(prompts), self.batch_size)]
        return torch.tensor([score for part in self._client.map(request, chunks) for score in part])

    def _scores(self, answer: Any, count: int) -> list[float]:
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != count:
            raise RewardError(
                f"{self._client.url} must answer {{'scores': [one number an image]}} for {count} images; "
                f"it answered {self._client.excerpt(answer)}"
            )
        for score in scores:
            if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
                raise RewardError(
                    f"{self._client.url} gave {score!r} where a finite number belongs: {self._client.excerpt(answer)}"
                )
        return [float(score) for score in scores]


def _variable(name: str, option: str) -> str:
    """The value of an environment variable that an option names."""
    if not os.environ.get(name):
        raise UserError(f"reward_options.http.{option}: the environment variable {name} is not set")
    return os.environ[name]
