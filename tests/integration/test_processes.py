"""One, two and four processes make the same run; when one fails, all end; only the main process writes files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import bad_rewards, small_run
from helpers.command_line import succeeded
from helpers.launched_processes import ended, launch
from helpers.run_files import epochs, lora_weights, rows_without_time
from PIL import Image

from sdpo import Trainer
from sdpo.cli.main import main
from sdpo.loop.policy_update import PolicyUpdate

SETTINGS: dict[str, Any] = dict(sample={"prompts_per_epoch": 16}, train={"batch_size": 8}, evaluate={"every": 2})


def train(model: Path, run: Path, synchronised: bool = True) -> None:
    """Train, and record each process's samples, weights and written files beside the run's directory."""
    rank = int(os.environ["RANK"])
    seen: list[dict[str, Any]] = []
    written: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and str(run) in str(arguments[0]):
            written.append(f"{event} {arguments[0]}")

    sys.addaudithook(watch)
    trainer = Trainer(small_run.config(model, run, **SETTINGS))
    update = PolicyUpdate.run

    def watched(self: PolicyUpdate, trajectories: Any, advantages: torch.Tensor, *rest: Any) -> Any:
        seen.append(
            {
                "index": trajectories.sample_index,
                "prompts": trajectories.prompts,
                "states": trajectories.states,
                "log_prob": trajectories.log_prob,
                "advantages": advantages,
            }
        )
        return update(self, trajectories, advantages, *rest)

    PolicyUpdate.run = watched  # type: ignore[method-assign]  # this process ends with the run
    if not synchronised:
        trainer.parts.optimization.all_reduce = lambda tensor: tensor
    trainer.train()
    weights = {n: p.detach().clone() for n, p in trainer.parts.backbone.trainable_parameters().items()}
    torch.save({"seen": seen, "weights": weights, "written": written}, f"{run}.rank{rank}.pt")


Record = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs: `1`, `2`, `4`, …"""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def runs(tiny_pipeline: Path, folder: Path) -> dict[str, list[Record]]:
    """Records of each rank: of 1, 2 and 4 processes, of 2 without averaged gradients, and of resumed runs."""
    launches = {"1": 1, "2": 2, "4": 4, "unsynchronised": 2, "2 then 1": 1, "1 then 2": 2}
    found = {}
    for name, count in launches.items():
        run = folder / name.replace(" ", "_")
        if " then " in name:  # as if the other launch had ended after epoch 2
            shutil.copytree(folder / name[0], run)
            shutil.rmtree(run / "checkpoints" / "3")
        logs = folder / f"{run.name}.logs"
        codes, texts = ended(launch(count, train, tiny_pipeline, run, name != "unsynchronised", logs=logs), logs)
        assert codes == [0] * count, texts
        found[name] = [torch.load(f"{run}.rank{rank}.pt") for rank in range(count)]
        found[name][0]["rows"] = rows_without_time(run)
    return found


def together(ranks: list[Record], epoch: int, name: str) -> Any:
    """A quantity from all ranks, in the order of the global sample index."""
    index = torch.cat([rank["seen"][epoch]["index"] for rank in ranks])
    assert sorted(index.tolist()) == list(range(16))
    if name == "prompts":
        every = [p for rank in ranks for p in rank["seen"][epoch]["prompts"]]
        return [every[i] for i in index.argsort().tolist()]
    return torch.cat([rank["seen"][epoch][name] for rank in ranks])[index.argsort()]


@pytest.mark.parametrize("count", ["2", "4"])
def test_samples_advantages_and_weights_do_not_depend_on_the_number_of_processes(
    runs: dict[str, list[Record]], count: str
) -> None:
    one, several = runs["1"], runs[count]
    for epoch in range(3):
        assert together(one, epoch, "prompts") == together(several, epoch, "prompts")
        for name in ("states", "log_prob", "advantages"):
            torch.testing.assert_close(
                together(several, epoch, name), together(one, epoch, name), atol=1e-4, rtol=1e-4, msg=f"{name} {epoch}"
            )
    for name, weight in one[0]["weights"].items():
        torch.testing.assert_close(several[0]["weights"][name], weight, atol=1e-5, rtol=0)
        assert all(torch.equal(rank["weights"][name], several[0]["weights"][name]) for rank in several), "all the same"
    for alone, shared in zip(one[0]["rows"], several[0]["rows"], strict=True):
        for name, value in alone.items():
            assert shared[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert all(rank["written"] == [] for rank in several[1:]) and several[0]["written"]


def test_without_averaged_gradients_the_weights_differ(runs: dict[str, list[Record]]) -> None:
    one, (first, second) = runs["1"][0]["weights"], (rank["weights"] for rank in runs["unsynchronised"])
    assert max((first[n] - second[n]).abs().max() for n in one) > 1e-4
    assert max((first[n] - one[n]).abs().max() for n in one) > 1e-4


@pytest.mark.parametrize("stages", ["2 then 1", "1 then 2"])
def test_a_run_is_resumed_by_another_number_of_processes(runs: dict[str, list[Record]], stages: str) -> None:
    for name, weight in runs["1"][0]["weights"].items():
        torch.testing.assert_close(runs[stages][0]["weights"][name], weight, atol=1e-5, rtol=0)
    assert [row["epoch"] for row in runs[stages][0]["rows"]] == [1, 2, 3]
    assert len(runs[stages][0]["seen"]) == 1, "it trained epoch 3 alone"


def test_a_real_launch_makes_the_run_of_one_process(
    runs: dict[str, list[Record]], folder: Path, tiny_pipeline: Path
) -> None:
    run = folder / "launched"
    command = small_run.arguments(tiny_pipeline, run, **SETTINGS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    succeeded(subprocess.run([*launcher, "-m", "sdpo", *command], capture_output=True, text=True))
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    one, two = lora_weights(folder / "1"), lora_weights(run)
    assert one.keys() == two.keys() and all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
    assert max(one[k].abs().max() for k in one if "lora_B" in k) > 1e-4, "nothing was learned"
    for alone, shared in zip(runs["1"][0]["rows"], rows_without_time(run), strict=True):
        assert alone.keys() == shared.keys()
        for name in ("images", "reward_queries", "denoiser_evaluations"):
            assert alone[name] == shared[name]
        for name in ("train/loss", "train/grad_norm", "reward/last_step", "reward/first_step"):
            assert alone[name] == pytest.approx(shared[name], rel=1e-3), name


@pytest.mark.parametrize("how", ["raises", "killed"])
def test_a_process_that_fails_ends_the_run(tiny_pipeline: Path, tmp_path: Path, how: str) -> None:
    name = bad_rewards.path_to("Breaks")
    # The second evaluation comes after two epochs; the call that fails is one of the third.
    options = {name: {"at": 8, "rank": 1, "killed": how == "killed"}}
    settings = {**SETTINGS, "rewards": {name: 1.0}, "reward_options": options, "checkpoint": {"every": 100}}
    command = small_run.arguments(tiny_pipeline, tmp_path / "run", epochs=6, **settings)
    logs = tmp_path / "logs"
    codes, texts = ended(launch(2, main, command, logs=logs), logs)
    errors = [[line for line in text.splitlines() if "sdpo: error" in line] for text in texts]
    assert not any("Traceback" in text for text in texts), texts
    if how == "raises":
        assert codes == [2, 2]
        assert errors[0] == [] and len(errors[1]) == 1, "the process that failed says so, and no other"
        assert "the judge is asleep" in errors[1][0] and "[process 1 of 2]" in errors[1][0]
    else:
        assert codes == [2, -signal.SIGKILL]
        assert len(errors[0]) == 1 and "another process of this run has ended" in errors[0][0]
    saved = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(saved) == 1 and int(saved[0]) == len(epochs(tmp_path / "run")) >= 1, "the last epoch is not lost"


def command(folder: Path, words: list[str]) -> int:
    """Run a command, and record the files below a folder that another process than the first writes."""
    written: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and str(folder) in str(arguments[0]):
            written.append(f"{event} {arguments[0]}")

    if os.environ["RANK"] != "0":
        sys.addaudithook(watch)
    code = main(words)
    print("".join(written), end="", flush=True)
    return code


def test_every_command_prints_and_writes_once(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# animals\ncat\ndog\nfox\n" + "cat " * 100)
    run, output = tmp_path / "run", tmp_path / "output"
    values = {**SETTINGS, "prompts": {"train": str(tmp_path / "prompts.txt")}, "epochs": 1}
    assert main(small_run.arguments(tiny_pipeline, run, **values)) == 0
    output.mkdir()
    (run / "checkpoints" / "7").mkdir()  # as if the run had trained further than its result
    Image.new("LA", (8, 8)).save(output / "clear.png")
    evaluate = ["evaluate", str(run), "--steps", "1", "--images-per-prompt", "1"]
    commands: list[tuple[list[str], str, int]] = [
        (evaluate, "written to", 3),
        ([*evaluate, "--output", str(output / "e.json")], "written to", 3),
        (["sample", str(run), "cat " * 100, "-o", str(output / "x.png")], "written to", 2),
        (["score", "--reward", "colorfulness", str(output), "-o", str(tmp_path / "s.json")], "mean of 2 images", 1),
        (["report", str(run)], "written to", 0),
        (["compare", f"a={run}", f"b={run}", "--output-dir", str(tmp_path / "all")], "written to", 0),
        (["export", str(run), "--to", "diffusers"], "written to", 0),
        (["train", str(run / "config.yaml"), "--dry-run"], "seed: 42", 1),
    ]
    for number, (words, said, warnings) in enumerate(commands):
        logs = tmp_path / f"logs{number}"
        codes, (first, second) = ended(launch(2, command, tmp_path, words, logs=logs), logs)
        ours = [line for line in second.splitlines() if "Gloo" not in line and "Loading" not in line and line.strip()]
        assert codes == [0, 0] and not [line for line in ours if logs.name not in line], (words, first, second)
        assert first.count(said) == 1 and first.count("sdpo: warning") == warnings, (words, first)


def test_uneven_batches_are_refused_before_anything_starts(tiny_pipeline: Path, tmp_path: Path) -> None:
    command = small_run.arguments(tiny_pipeline, tmp_path / "run", **SETTINGS)
    codes, texts = ended(launch(3, main, command, logs=tmp_path / "logs"), tmp_path / "logs")
    assert codes == [2, 2, 2] and not (tmp_path / "run").exists()
    assert any("train.batch_size=9 with sample.prompts_per_epoch=18" in text for text in texts)
