"""Serve any reward of sdpo, or your own callable, as JSON over HTTP.

    python examples/reward_server.py --reward colorfulness --port 8765
    sdpo train emoji 'rewards={http: 1.0}' reward_options.http.url=http://localhost:8765/

Request:  {"images": ["<base64 PNG>", ...], "prompts": ["...", ...], "metadata": [{...}, ...]}
Answer:   {"scores": [0.12, ...]}   or, with status 400 or 500, {"error": "what is wrong"}
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from PIL import Image

from sdpo.errors import UserError
from sdpo.rewards import Reward, checked_scores, load_reward


def decode(image: str) -> torch.Tensor:
    """Decode a base64 PNG to float32 [3, H, W] in [0, 1]."""
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def make_handler(name: str, reward: Reward) -> type[BaseHTTPRequestHandler]:
    """Make the class of request handlers that score images with `reward`, called `name` in error messages."""
    one_at_a_time = threading.Lock()  # requests arrive in parallel, but the model has one device

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open

        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                request = json.loads(body)
                images = torch.stack([decode(image) for image in request["images"]])
                prompts = request["prompts"]
                metadata = request.get("metadata") or [{} for _ in prompts]
            except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
                self.answer(400, {"error": f"{type(error).__name__}: {error}"})
                return
            try:
                with one_at_a_time, torch.no_grad():
                    scores = checked_scores(name, reward, images, prompts, metadata)
            except UserError as error:
                self.answer(500, {"error": str(error)})
                return
            self.answer(200, {"scores": scores.tolist()})

        def answer(self, status: int, content: dict[str, object]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    return Handler


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", default="colorfulness", help="a name from `sdpo rewards`, or my_module:my_reward")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765, help="0 picks a free port")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    reward = load_reward(arguments.reward, arguments.device)
    server = ThreadingHTTPServer((arguments.host, arguments.port), make_handler(arguments.reward, reward))
    print(f"serving {arguments.reward} on http://{arguments.host}:{server.server_address[1]}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
