"""Reading a configuration, and saying what is wrong with one, imports neither torch nor numpy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = "{'torch', 'numpy', 'diffusers', 'transformers', 'PIL', 'matplotlib'}"


@pytest.mark.parametrize(
    "call",
    [
        "Config.load('emoji'); Config.load('emoji').to_yaml()",
        "Config.load('emoji', ['algorithm=grpo', 'advantage.normalizer=prompt']).build_algorithm()",
        "refused(['trian.lr=1'], 'train')",
        "refused(['train.learning_rate=fast'], 'valid number')",
        "refused(['algorithm=sdop'], 'sdpo')",
        "refused(['algorithm.clip_rang=1'], 'clip_range')",
        "refused(['algorithm.clip_range=x'], 'valid number')",
        "refused(['algorithm.branches=1'], 'at least 2')",
        "refused(['algorithm.credit=futur', 'algorithm.reward_plan=al'], 'future')",
        "refused(['advantage.normalizer=pairs'], 'pair')",
        "refused(['sample.eta=0'], 'eta')",
        "refused(['callbacks=[nowhere:Mine]'], 'cannot be imported')",
    ],
)
def test_no_heavy_library_is_imported(call: str) -> None:
    code = f"""
import sys
from sdpo.config import Config
from sdpo.errors import UserError

def refused(overrides, word):
    try:
        Config.load('emoji', overrides)
    except UserError as error:
        assert word in str(error), error
    else:
        raise AssertionError(overrides)

{call}
loaded = {HEAVY} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)
