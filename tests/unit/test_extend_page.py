"""docs/extend.md shows the code that lies under examples/, and its check of a loss passes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from helpers.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extend.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("name", ["own_algorithm.py", "own_callback.py", "own_gradient.py"])
def test_the_page_shows_the_example_as_it_is(name: str) -> None:
    assert (REPOSITORY / "examples" / name).read_text(encoding="utf-8") in BLOCKS


def test_the_check_of_the_loss_passes() -> None:
    (check,) = [block for block in BLOCKS if "WeightedRatio()" in block]
    subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY / "examples", check=True)
