"""Groups of existing runs: by what differs, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path

from helpers.command_line import Run, failed
from helpers.written_runs import change_evaluation, use_prompt_everywhere, write_run

from sdpo.commands.compare import compare_directories
from sdpo.commands.compare.comparison import make_comparison
from sdpo.commands.compare.groups import group_directories
from sdpo.commands.compare.measures import group_curve

FLAT = {1: [0.2, 0.2, 0.2], 4: [0.4, 0.4, 0.4]}
RISING = {1: [0.2, 0.4, 0.6], 4: [0.4, 0.5, 0.6]}


def test_runs_are_grouped_by_what_differs_besides_the_seed(tmp_path: Path) -> None:
    words = [
        write_run(tmp_path / "a", FLAT, seed=1, device="cpu", evaluate={"every": 1}),
        write_run(tmp_path / "b", FLAT, seed=2, device="cuda:1", evaluate={"every": 2}),
        write_run(tmp_path / "c", FLAT, seed=1, train={"learning_rate": 0.5}),
        write_run(tmp_path / "d", FLAT, seed=1, algorithm={"name": "ddpo", "clip_range": 0.1}),
        f"mine={write_run(tmp_path / 'e', FLAT, seed=3)}",
        f"mine={write_run(tmp_path / 'f', FLAT, seed=4, lora=None)}",
    ]
    found = [(group.name, group.seeds) for group in group_directories([str(w) for w in words])]
    names = ["sdpo (learning_rate=0.0001)", "sdpo (learning_rate=0.5)", "ddpo", "mine"]
    assert found == list(zip(names, [[1, 2], [1], [1], [3, 4]], strict=True))


def test_what_cannot_be_compared_is_refused(sdpo: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "a", FLAT)
    write_run(tmp_path / "other-reward", FLAT, reward="pickscore", seed=2)
    write_run(tmp_path / "other-steps", {8: [0.1, 0.2, 0.3]}, seed=2)
    write_run(tmp_path / "same", FLAT)
    write_run(tmp_path / "untrained", {1: [0.2], 4: [0.4]}, seed=2, epochs=2)
    write_run(tmp_path / "unevaluated", FLAT, seed=2)
    for file in (tmp_path / "unevaluated" / "evaluation").glob("*.json"):
        file.unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (["a", "other-reward"], ["share no reward", "a: aesthetic", "other-reward: pickscore"]),
        (["a", "other-steps"], ["share no step count", "a: 1, 4", "other-steps: 8"]),
        (["a", "same"], ["seed 42", "labels"]),
        (["a", "untrained"], ["untrained", "no evaluation", "repeat"]),
        (["a", "unevaluated"], ["unevaluated", "no evaluation"]),
        (["a", "folder"], ["folder", "config.yaml"]),
        (["a", "nowhere"], ["nowhere", "not a run's directory"]),
        (["nowhere"], ["nowhere", "--algorithms"]),
        ([], ["nothing to compare", "--algorithms"]),
        (["sdpo=a", "other-steps", "--output-dir", "file"], ["sdpo", "labels"]),
        (["a", "--output-dir", "file"], ["file", "cannot be written"]),
    ):
        failed(sdpo("compare", *arguments), *words)


def test_lost_costs(sdpo: Run, tmp_path: Path) -> None:
    """An evaluation without costs is left out of the curves; a result without costs is rejected."""
    for name, epoch in (("between", 1), ("last", 2)):
        run = write_run(tmp_path / name, FLAT, algorithm="ddpo")
        change_evaluation(run, epoch, images=None, seconds=None)
        (run / "metrics.jsonl").unlink()
    comparison = make_comparison(group_directories([str(tmp_path / "between")]))
    assert group_curve(comparison, comparison.groups[0], "aesthetic", 1).epochs == [0, 2]
    failed(sdpo("compare", "last"), "last does not say what it spent (samples, time)", "epoch 2 in metrics.jsonl")


def test_evaluations_of_other_prompts_are_said(tmp_path: Path) -> None:
    words = [write_run(tmp_path / "a", FLAT), write_run(tmp_path / "b", FLAT, seed=43)]
    use_prompt_everywhere(tmp_path / "b", "a moon")
    assert "different prompts" in " ".join(compare_directories(words, tmp_path / "out").comparison.notes)
