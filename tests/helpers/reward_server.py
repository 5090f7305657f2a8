"""A server of scores for rewards behind a network: slow, failing, wrong and malformed where a test asks for that."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class RewardServer:
    """A server on a port of this machine.

    Attributes:
        answers: give the answer to one POST each, in order; the last one answers all that follow.
        answer_headers: the headers of all answers.
        requests: the requests so far, each with its path.
        headers: the headers of the requests.
        most_at_once: the most requests that were being answered at once.
        url: the address.
    """

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


@contextlib.contextmanager
def reward_server() -> Iterator[RewardServer]:
    """A context in which a server runs."""
    server = RewardServer()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


def red(request: dict[str, Any]) -> tuple[int, Any]:
    """Score by the mean of the red channel, which shows that pixels and order arrive."""
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in request["images"]]
    return 200, {"scores": [float(image[..., 0].mean()) / 255 for image in images]}


def fixed(status: int, content: Any) -> Answer:
    return lambda request: (status, content)
