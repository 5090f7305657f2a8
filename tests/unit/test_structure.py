"""The import column of the design: mathematics knows no files, only backbones know diffusers and peft."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdpo

ROOT = Path(sdpo.__file__).parent
# The mathematics: what each room may import of the others.
PURE: dict[str, set[str]] = {
    "types": set(),
    "gaussian": set(),
    "seeds": set(),
    "dense": {"types"},
    "returns": {"types"},
    "advantages": {"types"},
    "denoisers": {"types", "gaussian"},
    "algorithms": {"types", "returns"},
}
# The edges: one third party each, and never each other.
EDGES = {"prompts", "rewards", "backbones"}
EDGES_MAY: set[str] = {"errors", "environment", "interrupt", "types", "denoisers", "gaussian"}
FORBIDDEN_IN_PURE = {"diffusers", "peft", "accelerate", "transformers", "yaml", "pydantic", "json", "pathlib", "os"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "sdpo":
            found |= {f"sdpo.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def files(place: str) -> list[Path]:
    path = ROOT / place
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def rooms(file: Path) -> set[str]:
    """The parts of sdpo that a file imports."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("sdpo.")}


@pytest.mark.parametrize("place", PURE)
def test_mathematics_imports_what_it_may(place: str) -> None:
    for file in files(place):
        assert not {name.split(".")[0] for name in imports(file)} & FORBIDDEN_IN_PURE, file
        assert rooms(file) <= PURE[place] | {place}, file


@pytest.mark.parametrize("place", sorted(EDGES))
def test_edges_do_not_know_each_other(place: str) -> None:
    for file in files(place):
        assert rooms(file) <= EDGES_MAY | {place}, file


def test_only_backbones_import_diffusers_and_peft() -> None:
    allowed = {ROOT / "backbones"}
    for file in sorted(ROOT.rglob("*.py")):
        if not {file, *file.parents} & allowed:
            assert not {name.split(".")[0] for name in imports(file)} & {"diffusers", "peft"}, file


def test_the_file_of_a_family_is_small() -> None:
    for file in files("backbones"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 200, file


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
