"""Damaged and senseless inputs: never a traceback or a hang; exit code 2, or 0 where legal; nothing overwritten."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.command_line import Result, Run, failed, succeeded
from helpers.mutations import damaged, time_limit, unsettle
from helpers.run_files import contents

from sdpo import Config
from sdpo.config.load import PRESETS

TEXT = (PRESETS / "emoji.yaml").read_bytes()
HOSTILE = [
    b"a: &a [x, x]\nb: &b [*a, *a]\nreward_options: {emoji_score: {x: &z [*b, *b, *z]}}\n",
    b"reward_options: {emoji_score: &a {x: *a}}\n",
    "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9) if i else '0'}]\n" for i in range(30)).encode()
    + b"reward_options: {emoji_score: {x: *l29}}\n",
    b"[" * 20000,
    b"{a: " * 5000,
    b"epochs: " + b"9" * 5000,
    b"seed: 2024-13-45\n",
    b"epochs: !!python/object/apply:os.system ['touch pwned']\n",
    b"epochs: !!int x\n",
    b"epochs: !!binary x\n",
    b"? [a, b]\n: c\n",
    b"? {a: b}\n: c\n",
    b"prompts: {train: [\"\\ud800\"]}\n",
    b"reward_options: {emoji_score: {x: \"\\ud800\"}}\n",
    b"sample: {prompts_per_epoch: 1000000007}\n",
    b"sample: {prompts_per_epoch: 1" + b"0" * 400 + b"}\n",
    b"algorithm: {clip_range: .nan}\n",
    b"algorithm: {branches: 1" + b"0" * 400 + b"}\n",
    b"<<: {epochs: 3}\n",
    b"\xff\xfe\x00\x00",
]  # fmt: skip


RECORDS: list[Any] = [
    {"prompt": "a cat", "kind": "x", "n": [1, 2, {"a": None}]},
    "a dog",
    {"prompt": "[/red] <script>"},
]
JSONL = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
LINES = "a cat\n# a comment\n\na dog\n☃ bear\n".encode()
SENSELESS = [
    b"[" * 100000, b'{"prompt": ' + b"[" * 100000, b"9" * 5000, b'{"prompt": "\\ud800"}', b'"\\udfff"', b"null", b"[]",
    b'{"prompt": "x", "n": NaN}', b'{"prompt": "x", "n": ' + b"1" * 5000 + b"}", b"\0\n", b"\xef\xbb\xbfa cat\n", b"",
    b"\x85\xe2\x80\xa8", b'{"prompt": ""}', b'{"prompt": 5}', b'{"prompt": "a\\u0000b"}', b"\r\r",
    b'{"prompt": "x", "prompt": []}',
]  # fmt: skip
# Overrides by the key that the message names; None: a dry run accepts them.
OVERRIDES = {
    "epochs=1" + "0" * 400: "config: epochs: ",
    "epochs=.nan": "config: epochs: ",
    "seed=&a [*a]": "override 'seed=",
    "model.path=" + "x" * 300: None,  # a name on the hub, which a dry run does not look for
    "prompts.train=" + "x" * 300: "prompts: there is no file 'xxx",
    "prompts.train=/dev/null": "prompts: there is no file '/dev/null'",
    "rewards={'': 1}": "rewards: there is no reward ''",
    "rewards={..: 1}": "rewards: '..' cannot be imported",
    "rewards={'os:path': 1}": "rewards: 'os:path' is a module",
    "algorithm=[1]": "config: algorithm: ",
    "algorithm={name: {}}": "config: algorithm: ",
    "evaluate.steps={}": "config: evaluate.steps: ",
    "stop_when=[{metric: 3}]": "config: stop_when.0.metric: ",
    "train.betas=[1]": "config: train.betas.0: ",
    "sample.eta=1e400": "config: sample.eta: ",
    "output_dir=" + "x" * 5000: None,  # a dry run makes no directory
    "lora.targets=[]": None,
    "model.dtype=[/red]": "config: model.dtype: ",
    "trackers=0x": "config: trackers: ",
    "train=": "config: train: ",
}


def accepted_or_refused(sdpo: Run, folder: Path, *arguments: str) -> Result:
    """Run a command that succeeds or fails with a message, in time, and changes no file."""
    before = contents(folder)
    with time_limit(" ".join(arguments)):
        result = sdpo(*arguments)
    assert "Traceback" not in result.stdout + result.stderr
    assert result.returncode == 0 or failed(result).startswith("sdpo: error: ")
    assert contents(folder) == before
    return result


@pytest.mark.parametrize("block", range(4))
def test_config_files(sdpo: Run, tmp_path: Path, block: int) -> None:
    codes = []
    for index in range(25 * block, 25 * block + 25):
        rng = random.Random(index)
        if index < len(HOSTILE):
            data = HOSTILE[index]
        elif index % 2:
            data = damaged(TEXT, rng)
        else:
            tree = yaml.safe_load(Config.load("emoji").to_yaml())
            data = yaml.dump(unsettle(tree, rng), allow_unicode=True).encode("utf-8", "surrogatepass")
        (tmp_path / "fuzzed.yaml").write_bytes(data)
        codes.append(accepted_or_refused(sdpo, tmp_path, "train", "fuzzed.yaml", "--dry-run").returncode)
    assert 2 in codes


def test_prompt_files(sdpo: Run, tmp_path: Path) -> None:
    codes = []
    for index in range(60):
        rng = random.Random(index)
        name, whole = ("fuzzed.jsonl", JSONL) if index % 2 else ("fuzzed.txt", LINES)
        if index < len(SENSELESS):
            name, data = "fuzzed.jsonl", SENSELESS[index]
        else:
            data = damaged(whole, rng)
        (tmp_path / name).write_bytes(data)
        result = accepted_or_refused(sdpo, tmp_path, "train", "emoji", f"prompts.train={name}", "--dry-run")
        codes.append(result.returncode)
    assert {0, 2} == set(codes)


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda text: text[:20])
def test_overrides(sdpo: Run, tmp_path: Path, override: str) -> None:
    result = accepted_or_refused(sdpo, tmp_path, "train", "emoji", override, "--dry-run")
    words = OVERRIDES[override]
    if words is None:
        succeeded(result)
    else:
        failed(result, f"sdpo: error: {words}")
