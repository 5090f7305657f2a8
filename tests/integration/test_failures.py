"""What goes wrong around a run: one message, exit code 2, nothing lost, nothing silently different."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import Run
from safetensors.torch import load_file, save_file

from sdpo import Config, Trainer
from sdpo.errors import UserError


def failed(result: Any, *words: str) -> None:
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


@pytest.fixture
def command(tiny_overrides: list[str]) -> list[str]:
    return ["train", "emoji", *tiny_overrides, "lora={rank: 2, alpha: 4}", "--output-dir", "run"]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_user_code_that_cannot_be_imported_or_built(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "typo.py").write_text("def reward(:\n")
    (tmp_path / "undefined.py").write_text("x = y\n")
    (tmp_path / "lost.py").write_text("class R:\n    def __init__(self): open('no/such/file')\n")
    failed(sdpo(*command, "rewards={typo:reward: 1}"), "typo:reward", "SyntaxError")
    failed(sdpo(*command, "rewards={undefined:reward: 1}"), "NameError")
    failed(sdpo(*command, "rewards={':f': 1}"), "':f'")
    failed(sdpo(*command, "rewards={lost:R: 1}"), "lost:R", "no/such/file")


@pytest.mark.parametrize("setting", ["device=gpu", "device=cuda:99", "scoring.device=gpu", "seed=-1", f"seed={2**63}"])
def test_settings_that_no_machine_has(sdpo: Run, command: list[str], setting: str) -> None:
    failed(sdpo(*command, setting), setting.split("=")[0].split(".")[-1])


def test_other_commands_on_settings_that_no_machine_has(sdpo: Run, tiny_pipeline: Path) -> None:
    failed(sdpo("sample", str(tiny_pipeline), "cat", "--device", "gpu"), "device=gpu")
    failed(sdpo("sample", str(tiny_pipeline), "cat", "--seed", str(2**64)), "--seed")
    failed(sdpo("sample", str(tiny_pipeline), "cat", "--steps", "0"), "--steps")
    failed(sdpo("evaluate", str(tiny_pipeline), "--device", "gpu"), "device=gpu")


def test_a_dry_run_looks_for_what_is_named(sdpo: Run, tmp_path: Path) -> None:
    failed(sdpo("train", "emoji", "--dry-run", "rewards={colorfulnes: 1.0}"), "did you mean 'colorfulness'")
    failed(sdpo("train", "emoji", "--dry-run", "prompts.train=nofile.txt"), "nofile.txt")
    failed(sdpo("train", "emoji", "--dry-run", "model.path=/nope"), "/nope")
    assert sdpo("train", "aesthetic", "--dry-run").returncode == 0, "a model of the hub is not looked for"
    failed(sdpo("train", "emoji", "--dry-run", "evaluate.steps=1,2"), "write [1, 2, 4]")
    failed(sdpo("train", "emoji", "--dry-run", "epochs", "=", "3"), "without spaces around =")


def test_compare_needs_a_run(sdpo: Run, tiny_pipeline: Path) -> None:
    failed(sdpo("sample", str(tiny_pipeline), "cat", "--compare"), "--compare needs the directory of a run")
    failed(sdpo("sample", "./nope", "cat"), "no run and no model at ./nope")


def test_options_reach_the_rewards_that_have_them(sdpo: Run, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "mine.py").write_text(
        "class R:\n    def __init__(self, strength=1.0): self.s = strength\n"
        "    def __call__(self, images, prompts, metadata): return self.s * images[:, 0].mean((1, 2))\n"
    )
    both = ["score", "--reward", "mine:R", "--reward", "colorfulness", "red.png", "--json"]
    assert json.loads(sdpo(*both, "--option", "strength=2").stdout)[0]["mine:R"] == 2
    assert json.loads(sdpo(*both, "--option", "mine:R.strength=3").stdout)[0]["mine:R"] == 3
    failed(sdpo(*both, "--option", "strenth=2"), "strenth", "mine:R has strength")
    failed(sdpo(*both, "--option", "strength"), "path=/models")


def test_what_a_repeated_command_says(sdpo: Run, command: list[str]) -> None:
    assert "trained epochs 1 to 2" in sdpo(*command).stdout
    assert "finished before (2 epochs)" in sdpo(*command).stdout


def test_an_option_outside_its_choices(sdpo: Run, command: list[str]) -> None:
    options = ["rewards={imagereward: 1}", "reward_options={imagereward: {mode: offical}}"]
    failed(sdpo(*command, *options), "reward_options.imagereward.mode", "official", "offical")
    options = ["rewards={aesthetic: 1}", "reward_options={aesthetic: {resize: pill}}"]
    failed(sdpo(*command, *options), "reward_options.aesthetic.resize")


def test_buffer_that_never_reaches_its_count(sdpo: Run, command: list[str]) -> None:
    failed(sdpo(*command, "advantage={buffer_size: 8, min_count: 16}"), "min_count (16)")


@pytest.mark.parametrize("place", ["sdpo.run.metrics.MetricsFile.append", "sdpo.evaluation.history.write_evaluation"])
def test_a_full_disk(sdpo: Run, command: list[str], monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        failed(sdpo(*command), "No space left", "rerun the command")
    assert sdpo(*command).returncode == 0


def test_memory_that_runs_out_names_what_to_turn(
    sdpo: Run, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*arguments: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr("sdpo.loop.policy_update.PolicyUpdate.run", out_of_memory)
    failed(sdpo(*command), "3 GiB", "train.micro_batch", "scoring.offload")


def test_divergence_is_named_and_the_checkpoint_stays(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    failed(
        sdpo(*command, "train.learning_rate=1e30", "train.warmup_steps=0", "epochs=9"), "not finite", "learning_rate"
    )
    for row in rows(tmp_path / "run"):
        assert all(value is None or abs(value) < float("inf") for value in row.values())


def test_the_length_of_a_decaying_run_cannot_be_changed(sdpo: Run, command: list[str]) -> None:
    decaying = [*command, "train.lr_schedule=cosine"]
    assert sdpo(*decaying).returncode == 0
    failed(sdpo(*decaying, "epochs=4"), "epochs: 2 → 4")


def test_a_constant_rate_can_go_on(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    constant = [*command, "train.lr_schedule=constant"]
    assert sdpo(*constant).returncode == 0
    assert sdpo(*constant, "epochs=3").returncode == 0
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [1, 2, 3]


def test_a_config_that_was_cut_off(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    assert sdpo(*command).returncode == 0
    (tmp_path / "run" / "config.yaml").write_text("")
    failed(sdpo(*command), "another configuration")


def test_evaluations_of_a_discarded_run_do_not_reach_the_report(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    import shutil

    assert sdpo(*command).returncode == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert sdpo(*command, "epochs=1").returncode == 0
    found = sorted(p.name for p in (tmp_path / "run" / "evaluation").glob("*.json"))
    assert found == ["epoch_0000.json", "epoch_0001.json"]


def test_the_plan_final_claims_nothing_about_the_first_step(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    assert sdpo(*command, "algorithm.reward_plan=final").returncode == 0
    assert all(
        row["reward/first_step"] is None and row["reward_queries"] == row["images"] for row in rows(tmp_path / "run")
    )


def test_evaluations_of_the_base_model_are_counted(sdpo: Run, tmp_path: Path, command: list[str]) -> None:
    result = sdpo(*command, "train.kl_weight=0.1")
    assert result.returncode == 0
    # Three steps are sampled; two are updated, each once with the policy and once with the base model.
    assert all(row["denoiser_evaluations"] == (3 + 2 + 2) * row["images"] for row in rows(tmp_path / "run"))


# -- a LoRA to start from ---------------------------------------------------------------------------------------------


@pytest.fixture
def lora(sdpo: Run, tmp_path: Path, command: list[str]) -> Path:
    assert sdpo(*command, "train.ema_decay=0.5").returncode == 0
    return tmp_path / "run" / "lora"


def test_training_goes_on_from_a_lora(sdpo: Run, tmp_path: Path, tiny_overrides: list[str], lora: Path) -> None:
    settings = ["train", "emoji", *tiny_overrides, "epochs=1", "train.learning_rate=1e-12"]
    result = sdpo(*settings, f"lora={{rank: 2, alpha: 4, path: {lora}}}", "--output-dir", "more")
    assert result.returncode == 0, result.stderr
    name = "lora/pytorch_lora_weights.safetensors"
    before, after = load_file(tmp_path / "run" / name), load_file(tmp_path / "more" / name)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)
    assert max(v.abs().max() for k, v in before.items() if "lora_B" in k) > 1e-4
    # It draws what the other run's end drew: the scale is the same too.
    ends = [json.loads((tmp_path / p).read_text())["scores"]["colorfulness"]["1"] for p in (
        "run/evaluation/epoch_0002.json", "more/evaluation/epoch_0000.json",
    )]  # fmt: skip
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_a_lora_that_does_not_fit(sdpo: Run, tmp_path: Path, tiny_overrides: list[str], lora: Path) -> None:
    base = ["train", "emoji", *tiny_overrides, "--output-dir", "more"]
    failed(sdpo(*base, f"lora={{rank: 2, alpha: 2, path: {lora}}}"), "lora.alpha=4")
    failed(sdpo(*base, f"lora={{rank: 4, alpha: 4, path: {lora}}}"), "lora.rank=2")
    failed(sdpo(*base, "lora={rank: 2, alpha: 4, path: nowhere}"), "nowhere")
    other = tmp_path / "other"
    other.mkdir()
    save_file({"text_encoder.x.lora_A.weight": torch.ones(2, 2)}, other / "pytorch_lora_weights.safetensors")
    failed(sdpo(*base, f"lora={{rank: 2, alpha: 4, path: {other}}}"), str(other))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(load_file(lora / "pytorch_lora_weights.safetensors"), pickled / "pytorch_lora_weights.bin")
    failed(sdpo(*base, f"lora={{rank: 2, alpha: 4, path: {pickled}}}"), str(pickled))


def test_the_average_is_what_is_evaluated_and_saved(tmp_path: Path, lora: Path) -> None:
    run = lora.parent
    saved = load_file(lora / "pytorch_lora_weights.safetensors")
    average = load_file(run / "checkpoints" / "2" / "ema.safetensors")
    weights = load_file(run / "checkpoints" / "2" / "weights.safetensors")
    key = next(k for k in average if "lora_B" in k and not torch.equal(average[k], weights[k]))
    found = saved["unet." + key.replace(".default", "")]
    assert torch.equal(found, average[key]) and not torch.equal(found, weights[key])


# -- the user's own pipeline -----------------------------------------------------------------------------------------


def own(path: Path, dtype: torch.dtype) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(path, safety_checker=None, dtype=dtype)


def settings(run: Path, **values: Any) -> Config:
    base: dict[str, Any] = dict(
        epochs=1, output_dir=str(run), lora={"rank": 2, "targets": None}, rewards={"colorfulness": 1.0},
        prompts={"train": ["cat", "dog"], "unseen": None}, sample={"num_steps": 2, "prompts_per_epoch": 4},
        train={"batch_size": 4}, evaluate={"every": 0, "steps": [1], "images_per_prompt": 1, "judge": None},
    )  # fmt: skip
    return Config.load("emoji", **base | values)


def test_a_run_remembers_where_its_pipeline_came_from(sdpo: Run, tmp_path: Path, tiny_pipeline: Path) -> None:
    Trainer(settings(tmp_path / "run"), pipeline=own(tiny_pipeline, torch.float32)).train()
    assert Config.load(tmp_path / "run" / "config.yaml").model.path == str(tiny_pipeline)
    assert sdpo("sample", "run", "cat").returncode == 0

    pipeline = own(tiny_pipeline, torch.float32)
    pipeline.register_to_config(_name_or_path=None)
    Trainer(settings(tmp_path / "nameless"), pipeline=pipeline).train()
    failed(sdpo("sample", "nameless", "cat"), "model.path")


@pytest.mark.parametrize("lora", [{"rank": 2, "targets": None}, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pipeline_in_half_precision_trains(
    tiny_pipeline: Path, tmp_path: Path, dtype: torch.dtype, lora: Any
) -> None:
    trainer = Trainer(settings(tmp_path / "run", lora=lora), pipeline=own(tiny_pipeline, dtype))
    assert trainer.config.model.dtype == str(dtype).removeprefix("torch.")
    assert all(p.dtype == torch.float32 for p in trainer.parts.backbone.trainable_parameters().values())
    before = {n: p.detach().clone() for n, p in trainer.parts.backbone.trainable_parameters().items()}
    trainer.train()
    after = trainer.parts.backbone.trainable_parameters()
    assert any(not torch.equal(before[n], after[n]) for n in before)


def test_the_weights_of_a_run_must_fit_the_model(sdpo: Run, tmp_path: Path, tiny_pipeline: Path) -> None:
    Trainer(settings(tmp_path / "run"), pipeline=own(tiny_pipeline, torch.float32)).train()
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace(str(tiny_pipeline), "emoji"))
    failed(sdpo("sample", "run", "cat"), "cannot be loaded onto this model")


def test_the_base_model_is_the_one_without_what_was_trained(tiny_pipeline: Path, tmp_path: Path) -> None:
    for lora in ({"rank": 2, "targets": None}, None):
        trainer = Trainer(settings(tmp_path / str(lora), lora=lora), pipeline=own(tiny_pipeline, torch.float32))
        backbone = trainer.parts.backbone
        x, t = torch.randn(1, *backbone.latent_shape), torch.tensor([500])
        with torch.no_grad():
            base = backbone.network(x, t, backbone.encode(["cat"]))
            for parameter in backbone.trainable_parameters().values():
                parameter += 0.1
            tuned = backbone.network(x, t, backbone.encode(["cat"]))
            with backbone.reference():
                assert torch.equal(backbone.network(x, t, backbone.encode(["cat"])), base)
            assert torch.equal(backbone.network(x, t, backbone.encode(["cat"])), tuned)
        assert not torch.allclose(base, tuned)


def test_trackers_end_without_ending_the_processes(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    finished = []

    class Tracker:
        def log(self, values: dict[str, Any], step: int | None = None, **rest: Any) -> None:
            assert None not in values.values()

        def finish(self) -> None:
            finished.append(os.getpid())

    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, *a, **k: setattr(self, "trackers", [Tracker()]))
    monkeypatch.setattr(Accelerator, "end_training", lambda self: pytest.fail("ends the group of processes"))
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: self.trackers[0].log(values, step))
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *a, **k: [])
    Trainer(settings(tmp_path / "run", trackers=["tensorboard"]), pipeline=own(tiny_pipeline, torch.float32)).train()
    assert finished


def test_a_reward_given_in_python_is_asked_for_by_name(sdpo: Run, tiny_pipeline: Path, tmp_path: Path) -> None:
    def redness(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> torch.Tensor:
        return images[:, 0].mean((1, 2))

    Trainer(settings(tmp_path / "run"), pipeline=own(tiny_pipeline, torch.float32), reward=redness).train()
    failed(sdpo("evaluate", "run", "--steps", "1"), "'redness' was a Python object", "--reward")
    assert sdpo("evaluate", "run", "--steps", "1", "--reward", "colorfulness").returncode == 0


def test_others_can_read_the_weights(tiny_pipeline: Path, tmp_path: Path) -> None:
    Trainer(settings(tmp_path / "run"), pipeline=own(tiny_pipeline, torch.float32)).train()
    before = os.umask(0)
    os.umask(before)
    mode = (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").stat().st_mode & 0o777
    assert mode == 0o666 & ~before


def test_the_embedded_model_loads_as_the_readme_says() -> None:
    from diffusers import DiffusionPipeline

    import sdpo

    pipeline = DiffusionPipeline.from_pretrained(sdpo.embedded("emoji"), safety_checker=None)
    image = pipeline("a fox", num_inference_steps=1, guidance_scale=1.0).images[0]
    assert image.size == (64, 64)
    with pytest.raises(UserError, match="there is: emoji"):
        sdpo.embedded("emojis")


def test_python_users_see_the_same_errors(tiny_pipeline: Path, tmp_path: Path) -> None:
    def broken(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [float("nan")] * len(prompts)

    with pytest.raises(UserError, match="'broken' returned nan"):
        Trainer(settings(tmp_path / "run"), pipeline=own(tiny_pipeline, torch.float32), reward=broken).train()
