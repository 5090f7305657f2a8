"""The client of rewards on a server: JSON over HTTP with time limits and retries, and images as text."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from torch import Tensor
from urllib3.util import Retry

from sdpo.errors import RewardError, UserError

RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""The HTTP statuses after which a request is tried again; any other status than 200 is an error at once."""

_LONGEST_WAIT = 120.0  # seconds before a retry, also where a server's Retry-After is longer
_SHOWN = 200  # characters of an answer that a message quotes

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Retry(Retry):
    """Retries that wait as long as a server asks, up to a limit."""

    def get_retry_after(self, response: Any) -> float | None:
        seconds = super().get_retry_after(response)
        return None if seconds is None else min(seconds, _LONGEST_WAIT)


class JsonClient:
    """Sends JSON to one address and returns the JSON of the answer.

    Args:
        url: an address that begins with http:// or https://.
        timeout: seconds to connect, and seconds without a byte of the answer.
        retries: further tries after a failed connection, a timeout or a status in `RETRIED`.
        backoff: seconds before the second retry, which later retries double; the first retry is immediate. Each wait
            has a random addition of up to `backoff` seconds. A server's `Retry-After` header takes precedence.
        concurrency: the number of requests at the same time.
        headers: HTTP headers of every request.

    Raises:
        UserError: if the address or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        concurrency: int = 4,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"the address of a reward server must begin with http:// or https://, not {url!r}")
        if timeout <= 0 or retries < 0 or backoff < 0 or concurrency < 1:
            raise UserError(
                f"{url}: timeout must be above 0, retries and backoff at least 0, concurrency at least 1; got "
                f"timeout={timeout}, retries={retries}, backoff={backoff}, concurrency={concurrency}"
            )
        self.url = url
        self.timeout = timeout
        self.concurrency = concurrency
        retry = _Retry(
            total=retries,
            allowed_methods=None,  # POST too: asking twice for a score changes nothing
            status_forcelist=RETRIED,
            backoff_factor=backoff,
            backoff_jitter=backoff,
            backoff_max=_LONGEST_WAIT,
            raise_on_status=False,
        )
        self._session = requests.Session()
        self._session.headers.update(headers or {})
        self._sent = [word for value in (headers or {}).values() for word in value.split() if len(word) >= 8]
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency, max_retries=retry))

    def post(self, payload: Any) -> Any:
        """Send one request and return its answer.

        Args:
            payload: what JSON can hold.

        Raises:
            RewardError: if no answer came after all tries, its status is not 200, or it is not JSON; the message has
                the address and the beginning of the answer.
        """
        try:
            # A redirect would take images and tokens to an address that nobody configured.
            response = self._session.post(self.url, json=payload, timeout=self.timeout, allow_redirects=False)
        except requests.RequestException as error:
            raise RewardError(f"{self.url} cannot be reached: {error}") from error
        if response.status_code != 200:
            raise RewardError(f"{self.url} answered {response.status_code}: {self.excerpt(response.text)}")
        try:
            return response.json()
        except ValueError as error:
            raise RewardError(
                f"{self.url} answered with text that is not JSON: {self.excerpt(response.text)}"
            ) from error

    def excerpt(self, answer: object) -> str:
        """The beginning of a server's answer for a message, without the values of the request's headers."""
        text = str(answer)
        for word in self._sent:
            text = text.replace(word, "[hidden]")
        return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply a function to every item, `concurrency` at the same time; the first failure cancels the rest."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)


def png_base64(image: Tensor) -> str:
    """Encode an image, float [3, H, W] in [0, 1], as a base64 PNG."""
    pixels = image.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)  # an image is sent once
    return base64.b64encode(buffer.getvalue()).decode("ascii")
