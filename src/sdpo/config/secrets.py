"""Keeping secrets out of what a run writes: configurations name environment variables, and never hold a token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Of a key, as words between anything that is no letter: `Authorization`, `api_key`, `X-Auth-Token`, `password`.
_KEY = re.compile(
    r"(?i)(?<![a-z])(authorization|auth|token|apikey|secret|password|passwd|pwd|cookie|credentials?"
    r"|(api|access|auth|private|secret|subscription)[-_ ]?(key|token))(?![a-z])"
)
# Of a value: the forms in which services give out tokens, and addresses that hold a password or a signed query.
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
# In a message: `Authorization: …`, `api_key=…`.
_ASSIGNED = re.compile(
    r"(?i)((?<![a-z])(?:authorization|password|passwd|secret|cookie|api[-_]?key|(?:access|auth)[-_]token)[\"']?\s*[:=]\s*)"
    r"(?:(?:bearer|basic)\s+)?[^\s,}\"']{4,}"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HIDDEN = "[hidden]"


def find_secrets(value: Any, path: str = "") -> Iterator[str]:
    """Where a configuration holds what looks like a secret: a telling key with a text, or a telling text.

    Keys that end in `_env` name an environment variable, which is what a configuration should hold.
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
    """A message without what looks like a secret."""
    return _ASSIGNED.sub(rf"\1{_HIDDEN}", _VALUE.sub(_HIDDEN, text))


def refusal(places: list[str]) -> str:
    """What to do about secrets in a configuration; does not repeat them."""
    return (
        f"what looks like a secret is at {', '.join(places)}. Configurations are written to config.yaml, reports and "
        "trackers: put it into an environment variable and name that: reward_options.http.token_env=MY_TOKEN (sent as "
        "a bearer token), 'reward_options.http.headers_env={X-Api-Key: MY_TOKEN}', or reward_options.vlm.api_key_env"
    )
