"""What an import loads: `import sdpo` no heavy library, the trainer no reward model."""

from __future__ import annotations

import subprocess
import sys


def test_importing_sdpo_imports_no_heavy_library() -> None:
    code = "import sdpo, sys; assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_trainer_imports_no_reward_model() -> None:
    code = (
        "import sdpo.trainer, sdpo.rewards, sys; from sdpo.rewards import REWARDS; "
        "loaded = {path.split(':')[0] for path in REWARDS.values()} & set(sys.modules); assert not loaded, loaded; "
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
