"""Secrets in configurations: rejected, never repeated in a message."""

from __future__ import annotations

import string
from typing import Any

import pytest
from helpers.command_line import Run, failed
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo import Config
from sdpo.config.secrets import find_secrets, redact
from sdpo.errors import UserError

SECRET = "hf_" + "abcDEF123" * 4
HTTP = {"rewards": {"http": 1.0}}


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "Basic dXNlcjpwYXNz"}},
        {"headers": {"X-Api-Key": "0123456789"}},
        {"headers": {"X-Team": f"Bearer {SECRET}"}},
        {"headers": {SECRET: "x"}},
        {"url": "https://user:hunter22@example.org/"},
        {"url": "https://example.org/score?api_key=0123456789"},
        {"token_env": SECRET},
        {"token_env": "sk-not-a-name"},
        {"headers_env": {"X-Api-Key": "not a name"}},
        {"options": {"deep": [{"password": "hunter22"}]}},
        {"model": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3"},
        {"key": "-----BEGIN OPENSSH PRIVATE KEY-----"},
    ],
)
def test_secrets_in_a_configuration_are_refused_and_not_repeated(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="environment variable") as refused:
        Config.load("emoji", **HTTP, reward_options={"http": options})
    message = redact(str(refused.value))
    assert "reward_options.http." in message
    for secret in (SECRET, "hunter22", "0123456789", "dXNlcjpwYXNz", "eyJhbGci", "not-a-name", "PRIVATE KEY"):
        assert secret not in message


def test_secrets_anywhere_else_are_refused_too() -> None:
    with pytest.raises(UserError, match="model.path"):
        Config.load("emoji", model={"path": f"https://user:{SECRET}@example.org/model"})


def test_what_a_reward_needs_is_no_secret() -> None:
    options = {
        "url": "https://example.org:8000/score?model=a", "headers": {"X-Team": "vision", "Accept": "*/*"},
        "token_env": "MY_TOKEN", "headers_env": {"X-Api-Key": "OTHER"}, "max_tokens": 256, "tokenizer": "bert",
        "template": "Judge by basic principles: {prompt}", "revision": "5736be03b2652728fb87788c9797b0570450ab72",
        "path": "/models/sk-something-very-long",
    }  # fmt: skip
    assert not list(find_secrets({"reward_options": {"http": options}}))
    Config.load("emoji", **HTTP, reward_options={"http": options})
    Config.load("emoji", prompts={"train": ["password: hunter22", "a sk-1234567890abcdef1234 fox"]})  # prompts are text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(string.ascii_letters + string.digits, min_size=20, max_size=60), st.sampled_from(["hf_", "sk-", "ghp_"]))
def test_tokens_are_found_wherever_they_stand(body: str, prefix: str) -> None:
    token = f"{prefix}{body}1"
    assert list(find_secrets({"a": [{"b": token}]})) == ["a.0.b"]
    assert token not in redact(f"the server at http://x/ said: '{token}', and so on")


def test_messages_on_the_terminal_hide_what_was_typed(sdpo: Run) -> None:
    for override in (
        f"reward_options.http.headers={{Authorization: Bearer {SECRET}",  # no YAML
        f"reward_options.http.headers={{Authorization: Bearer {SECRET}}}",
        f"epochs={SECRET}",
    ):
        result = sdpo("train", "emoji", override, "--dry-run")
        assert SECRET not in failed(result) + result.stdout
