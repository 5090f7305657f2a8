"""Hostile prompts, tokens in the environment and the user's own modules in a real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command_line import Run, succeeded

HOSTILE = [
    "<script>alert('p')</script>",
    "</style><img src=x onerror=alert(1)>",
    "../../../escape",
    "[/red] ${body} {x}",
]


def test_a_real_run_with_hostile_prompts_and_a_token(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "correct-horse-battery")
    (tmp_path / "mine.py").write_text(
        "import os\nclass Judge:\n    def __init__(self, key_env): self.key = os.environ[key_env]\n"
        "    def __call__(self, images, prompts, metadata): return images.mean((1, 2, 3))\n"
    )
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in HOSTILE))
    overrides = [*tiny_overrides, "epochs=1", "prompts={train: prompts.jsonl, unseen: prompts.jsonl}", "lora={rank: 1}"]
    overrides += ["rewards={mine:Judge: 1.0}", "reward_options={mine:Judge: {key_env: JUDGE_KEY}}"]
    before = {*tmp_path.iterdir(), tmp_path / "run", tmp_path / "__pycache__"}
    result = succeeded(sdpo("train", "emoji", *overrides, "--output-dir", "run"))
    assert set(tmp_path.iterdir()) <= before and not (tmp_path.parent / "escape").exists()

    page = (tmp_path / "run" / "report.html").read_text()
    assert "&lt;script&gt;alert(&#39;p&#39;)&lt;/script&gt;" in page and "&lt;img src=x onerror" in page
    assert "<script" not in page and "<img src=x" not in page and page.count("</style>") == 1
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"correct-horse" not in path.read_bytes(), path
    assert "correct-horse" not in result.stdout + result.stderr


def test_a_dotted_path_imports_the_users_module_and_no_other(sdpo: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("open('imported', 'w').close()\ndef reward(*a): ...\n")
    (tmp_path / "other.py").write_text("open('other-imported', 'w').close()\n")
    succeeded(sdpo("train", "emoji", "--dry-run"))
    assert not (tmp_path / "imported").exists()
    succeeded(sdpo("train", "emoji", "rewards={mine:reward: 1.0}", "--dry-run"))
    assert (tmp_path / "imported").exists() and not (tmp_path / "other-imported").exists()
