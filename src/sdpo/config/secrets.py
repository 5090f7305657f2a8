"""Keeps secrets out of the files of a run: configurations name environment variables, and never hold a token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Keys that suggest a secret, as words between characters that are no letters: `Authorization`, `X-Auth-Token`.
_KEY = re.compile(
    r"(?i)(?<![a-z])(authorization|auth|token|apikey|secret|password|passwd|pwd|cookie|credentials?"
    r"|(api|access|auth|private|secret|subscription)[-_ ]?(key|token))(?![a-z])"
)
# Values that look like a secret: common forms of tokens, and addresses that hold a password or a signed query.
_VALUE = re.compile(
    r"(?i:\bbearer\s+[\w.~+/=-]{8,})"
    r"|\b(?:hf|sk|pk|rk|gh[opsu]|github_pat|glpat|xox[abprs]|r8|nvapi|gsk)[-_](?=[\w-]*\d)[\w-]{16,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?i:\b[a-z][a-z0-9+.-]*://[^\s/@:]*:[^\s/@]+@)"
    r"|(?i:[?&](?:[a-z]+[-_])?(?:key|token|sig|signature|secret|password|apikey)=[^&\s]{6,})"
)
_BASIC = re.compile(r"(?i)\s*basic\s+\S+\s*")
# Secrets in a message: `Authorization: …`, `api_key=…`.
_ASSIGNED = re.compile(
    r"(?i)((?<![a-z])(?:authorization|password|passwd|secret|cookie|api[-_]?key|(?:access|auth)[-_]token)[\"']?\s*[:=]\s*)"
    r"(?:(?:bearer|basic)\s+)?[^\s,}\"']{4,}"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HIDDEN = "[hidden]"


def find_secrets(value: Any, path: str = "") -> Iterator[str]:
    """Find the places of a configuration that seem to hold a secret, by their key or by the form of the value.

    Keys that end in `_env` name an environment variable, as a configuration should.

    Args:
        value: a part of a configuration.
        path: the place of that part, `section.key`.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from find_secrets(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from find_secrets(inner, f"{path}.{index}")
    elif isinstance(value, str) and value:
        key = path.rpartition(".")[2]
        if _VALUE.search(value) or _VALUE.search(path) or _BASIC.fullmatch(value):
            yield redact(path)
        elif key.endswith("_env") or ".headers_env." in path:
            if not _VARIABLE.fullmatch(value):
                yield path
        elif _KEY.search(key):
            yield path


def redact(text: str) -> str:
    """Replace everything in a message that looks like a secret."""
    return _ASSIGNED.sub(rf"\1{_HIDDEN}", _VALUE.sub(_HIDDEN, text))


def refusal(places: list[str]) -> str:
    """The error message about secrets in a configuration; it names their places and does not repeat them."""
    return (
        f"what looks like a secret is at {', '.join(places)}. Configurations are written to config.yaml, reports and "
        "trackers: put the secret into an environment variable and name the variable: "
        "reward_options.http.token_env=MY_TOKEN (sent as a bearer token), "
        "'reward_options.http.headers_env={X-Api-Key: MY_TOKEN}', or reward_options.vlm.api_key_env"
    )
