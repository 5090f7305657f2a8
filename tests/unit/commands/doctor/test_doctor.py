"""The doctor finds what it looks for, writes nothing, and leaves the weights as they were."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from helpers.command_line import Run

from sdpo import Config
from sdpo.commands.doctor import Finding, examine, gradient, machine, model
from sdpo.commands.doctor.model import Patient
from sdpo.errors import UserError
from sdpo.estimate.memory import checkpoint_bytes, estimate_memory
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt, load_prompts

REWARDS = """
import torch
calls = 0
def good(images, prompts, metadata): return images.std((1, 2, 3))
def constant(images, prompts, metadata): return torch.zeros(len(prompts))
def noisy(images, prompts, metadata): return torch.rand(len(prompts))
def relative(images, prompts, metadata): return images.std((1, 2, 3)) - images.std((1, 2, 3)).mean()
def sometimes(images, prompts, metadata):
    global calls
    calls += 1
    return images.std((1, 2, 3)) * (1 + 1e-2 * (calls > 1))
def empty(images, prompts, metadata): return -images.std((1, 2, 3))
def short(images, prompts, metadata): return torch.zeros(len(prompts) - 1)
def nan(images, prompts, metadata): return torch.full((len(prompts),), float("nan"))
def raises(images, prompts, metadata): raise RuntimeError("the judge is asleep")
"""


def lines(output: str) -> dict[str, str]:
    """By check, its lines with their status."""
    found: dict[str, str] = {}
    for line in output.splitlines():
        match = re.match(r"(ok|WARN|FAIL) +((?:reward )?\S+)", line)
        if match:
            found[match[2]] = found.get(match[2], "") + line
    return found


def test_a_healthy_run_and_every_kind_of_sick_reward(sdpo: Run, tmp_path: Path, tiny_overrides: list[str]) -> None:
    (tmp_path / "mine.py").write_text(REWARDS)
    healthy = sdpo("doctor", "emoji", *tiny_overrides, "rewards={mine:good: 1}")
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    found = lines(healthy.stdout)
    needed = "batches hub precision memory disk log-prob log-ratio determinism gradient images".split()
    assert set(found) == {*needed, "reward mine:good"} and all(line.startswith("ok") for line in found.values()), found
    assert "11 ok, 0 WARN, 0 FAIL" in healthy.stdout

    names = re.findall(r"def (\w+)", REWARDS)
    sick = sdpo("doctor", "emoji", *tiny_overrides, f"rewards={{{', '.join(f'mine:{n}: 1' for n in names)}}}")
    assert sick.returncode == 1 and "Traceback" not in sick.stdout + sick.stderr
    found = lines(sick.stdout)
    expected = {
        "good": "ok", "constant": "FAIL.*nothing to learn", "noisy": "FAIL.*differently when asked twice",
        "relative": "FAIL.*alone differently than in a batch", "sometimes": "WARN.*asked twice",
        "empty": "WARN.*likes a blank image", "short": "FAIL.*one score an image", "nan": "FAIL.*nan for prompt",
        "raises": "FAIL.*the judge is asleep",
    }  # fmt: skip
    for name, pattern in expected.items():
        assert re.match(pattern, found[f"reward mine:{name}"]), found[f"reward mine:{name}"]
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["mine.py"], "nothing is written"


def test_mistakes_of_the_user_have_exit_code_2(sdpo: Run) -> None:
    assert sdpo("doctor", "emojy").returncode == 2
    assert sdpo("doctor", "emoji", "rewards={colorfulnes: 1}").returncode == 2
    assert sdpo("doctor", "emoji", "stop_when=[{metric: x, below: 1}]").returncode == 2
    assert sdpo("doctor", "emoji", "--steps").returncode == 2


def test_a_model_that_cannot_be_loaded_is_a_finding(sdpo: Run, tmp_path: Path, tiny_pipeline: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "broken")
    (tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    result = sdpo("doctor", "emoji", "model.path=./broken", "evaluate.judge=null")
    found = lines(result.stdout)
    assert result.returncode == 1 and found["model"].startswith("FAIL") and "./broken" in found["model"]
    assert found["reward emoji_score"].startswith("WARN") and "no samples" in found["reward emoji_score"]


def config(tiny_pipeline: Path, **values: Any) -> Config:
    base: dict[str, Any] = dict(
        model={"path": str(tiny_pipeline)}, lora={"rank": 2}, prompts={"train": ["cat", "dog"], "unseen": None},
        sample={"num_steps": 3, "prompts_per_epoch": 8}, train={"batch_size": 4}, output_dir="run",
        rewards={"colorfulness": 1.0}, evaluate={"judge": None},
    )  # fmt: skip
    return Config.load("emoji", **{**base, **values})


@pytest.fixture
def patient(tiny_pipeline: Path) -> Patient:
    return Patient.admit(config(tiny_pipeline), [Prompt("cat"), Prompt("dog")], torch.device("cpu"))


def one(findings: Any) -> Finding:
    (found,) = findings
    return found


@pytest.mark.parametrize("lora", [{"rank": 2}, None])
def test_weights_are_left_as_they_were(tiny_pipeline: Path, lora: Any) -> None:
    patient = Patient.admit(config(tiny_pipeline, lora=lora), [Prompt("cat")], torch.device("cpu"))
    network = patient.backbone.network_module
    before = {name: (p, p.data_ptr(), p.detach().clone(), p.requires_grad) for name, p in network.named_parameters()}
    parts = patient.sample()
    assert one(gradient.gradients(patient, parts)).status == "ok"
    for name, parameter in network.named_parameters():
        kept, place, value, trained = before[name]
        assert parameter is kept and parameter.data_ptr() == place and torch.equal(parameter, value)
        assert parameter.grad is None and parameter.requires_grad == trained
    assert one(model.log_ratio(patient, parts)).status == "ok"


def test_zeros_come_back_after_an_error_too() -> None:
    parameters = {"a": torch.nn.Parameter(torch.zeros(3)), "b": torch.nn.Parameter(torch.ones(3))}
    with pytest.raises(RuntimeError), gradient.without_zeros(parameters) as filled:
        assert filled == 1 and parameters["a"].all() and parameters["b"].eq(1).all()
        raise RuntimeError
    assert not parameters["a"].any()


def test_gradients_that_do_not_arrive_or_arrive_elsewhere(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = patient.sample()
    trained = patient.backbone.trainable_parameters()
    unused = torch.nn.Parameter(torch.ones(2))
    monkeypatch.setattr(patient.backbone, "trainable_parameters", lambda: {**trained, "unused": unused})
    found = one(gradient.gradients(patient, parts))
    assert found.status == "WARN" and "at unused" in found.text  # some families have a few of these
    many = {f"unused.{i}": torch.nn.Parameter(torch.ones(2)) for i in range(len(trained))}
    monkeypatch.setattr(patient.backbone, "trainable_parameters", lambda: {**trained, **many})
    assert one(gradient.gradients(patient, parts)).status == "FAIL"
    monkeypatch.setattr(patient.backbone, "trainable_parameters", lambda: trained)
    frozen = next(n for n, p in patient.backbone.network_module.named_parameters() if n not in trained)
    patient.backbone.network_module.get_parameter(frozen).requires_grad_(True)
    found = one(gradient.gradients(patient, parts))
    assert found.status == "FAIL" and f"at {frozen}" in found.text


def test_a_network_that_draws_random_numbers_is_found(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, clean = patient.sample(), patient.backbone.network

    def dropout(*arguments: Any) -> torch.Tensor:
        return torch.nn.functional.dropout(clean(*arguments), 0.1)

    monkeypatch.setattr(patient.backbone, "network", dropout)
    assert one(model.log_ratio(patient, parts)).status == "FAIL"
    assert one(model.determinism(patient, parts)).status == "FAIL"
    monkeypatch.setattr(patient.backbone, "network", lambda *a: clean(*a) * (1 + 3e-5))
    assert one(model.log_ratio(patient, parts)).status == "WARN"


@pytest.mark.parametrize(("sampled", "updated"), [(4, 4), (4, 1), ("auto", "auto")])
def test_micro_batches_that_round_differently_are_found(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, sampled: Any, updated: Any
) -> None:
    sample = {"num_steps": 3, "prompts_per_epoch": 8, "micro_batch": sampled}
    train = {"batch_size": 4, "micro_batch": updated}
    model_config = {"path": str(tiny_pipeline), "dtype": "bfloat16"}
    chosen = config(tiny_pipeline, model=model_config, sample=sample, train=train, device="cpu")
    patient = Patient.admit(chosen, [Prompt("cat"), Prompt("dog")], torch.device("cpu"))
    clean = patient.backbone.network
    rounded = lambda latents, *rest: clean(latents, *rest) * (1 + 1e-2 * len(latents))  # noqa: E731
    monkeypatch.setattr(patient.backbone, "network", rounded)
    found = one(model.log_ratio(patient, patient.sample()))
    if sampled == updated:
        assert found.status == "ok"
    else:
        assert found.status == "FAIL" and "sample.micro_batch (now 4) and train.micro_batch (now 1) equal" in found.text


def test_values_that_are_not_finite_are_found(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = patient.sample()
    parts[1].log_prob[0, 1, 2] = torch.nan
    found = one(model.log_probabilities(patient, parts))
    assert found.status == "FAIL" and "log-probability not finite at step 2 of 3" in found.text
    monkeypatch.setattr(patient.backbone, "decode", lambda x: torch.full((len(x), 3, 8, 8), torch.nan))
    images, found = model.images(patient, patient.sample())
    assert images is None and found.status == "FAIL"
    monkeypatch.setattr(patient.backbone, "decode", lambda x: torch.zeros(len(x), 3, 8, 8))
    assert model.images(patient, patient.sample())[1].status == "WARN"  # as a decoder that overflowed draws them


def test_no_random_step_is_no_training() -> None:
    still = Trajectories(
        [], [], torch.zeros(1), torch.zeros(1, 2, 2, 1, 1, 1), torch.zeros(1, 2, 1), torch.zeros(1).bool()
    )
    patient: Any = None
    assert one(model.log_probabilities(patient, [still])).status == "FAIL"


def test_the_hub_is_asked_only_where_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*arguments: Any, **options: Any) -> None:
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "head", silent)
    assert one(machine.hub({})).status == "ok"
    chosen = Config.load("pickscore", output_dir="run")
    missing = machine.absent(chosen, list(chosen.rewards))
    assert set(missing) == {"model", "pickscore"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in one(machine.hub(missing)).text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert one(machine.hub(missing)).status == "FAIL"
    findings = list(examine(chosen))  # and in seconds, without a model
    assert [f.check for f in findings if f.status == "FAIL"] == ["hub"]
    monkeypatch.setattr(requests, "head", lambda *a, **o: None)
    assert one(machine.hub(missing)).status == "WARN"


def test_disk_and_memory(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen, usage = config(tiny_pipeline), namedtuple("usage", "free")
    need = 5 * checkpoint_bytes(chosen, 1000) + 4000
    for free, status in ((10 * need, "ok"), (1.5 * need, "WARN"), (0.5 * need, "FAIL")):
        monkeypatch.setattr("sdpo.commands.doctor.machine.shutil.disk_usage", lambda path, free=free: usage(free))
        assert one(machine.disk(chosen, 1000)).status == status
    (tmp_path / "run").write_text("a file")
    assert one(machine.disk(chosen, 1000)).status == "FAIL"
    estimate = estimate_memory(chosen, weight_bytes=0, trained=1000, latent_elements=4)
    more = estimate.training + estimate.trajectories
    for free, status in ((10 * more, "ok"), (1.2 * more, "WARN"), (0.5 * more, "FAIL")):
        monkeypatch.setattr(machine, "free_memory", lambda device, free=free: free)
        assert one(machine.memory(estimate, torch.device("cpu"))).status == status
    monkeypatch.undo()
    assert machine.free_memory(torch.device("cpu")) is None or machine.free_memory(torch.device("cpu")) > 1e6


def test_a_directory_of_another_run_is_found(tiny_pipeline: Path, tmp_path: Path) -> None:
    chosen = config(tiny_pipeline, output_dir=str(tmp_path))
    (tmp_path / "config.yaml").write_text(chosen.to_yaml())
    assert [f.status for f in machine.disk(chosen, 10)] == ["ok", "ok"]
    (tmp_path / "config.yaml").write_text(chosen.model_copy(update={"seed": 7}).to_yaml())
    assert [f.status for f in machine.disk(chosen, 10)] == ["ok", "FAIL"]


def test_numbers_that_do_not_go_together(tiny_pipeline: Path) -> None:
    chosen = config(
        tiny_pipeline, epochs=1, train={"batch_size": 8, "warmup_steps": 99}, advantage={"normalizer": "stepwise"}
    )
    prompts = load_prompts("simple_animals")
    assert [(f.check, f.status) for f in machine.batches(chosen, prompts)] == [
        ("batches", "ok"), ("warm-up", "WARN"), ("advantages", "WARN"),
    ]  # fmt: skip


def test_the_estimate_by_hand(tiny_pipeline: Path) -> None:
    chosen = config(tiny_pipeline, train={"batch_size": 4, "ema_decay": 0.9}, lora=None)
    found = estimate_memory(chosen, weight_bytes=7, trained=10, latent_elements=5, micro_batch=2, processes=2)
    # Gradient, two moments, average and the base model's copy; 4 groups of 2, and 2 while sampled, of float32.
    assert (found.weights, found.training) == (7, 10 * (4 + 8 + 4 + 4))
    assert found.trajectories == 4 * 5 * 2 * (4 * 4 + 2 * 10) and found.total == sum(
        (found.weights, found.training, found.trajectories)
    )
    assert checkpoint_bytes(chosen, 10) == 10 * (4 + 4 + 8)


def test_half_precision_on_a_cpu_is_told(tiny_pipeline: Path) -> None:
    half = config(tiny_pipeline, model={"path": str(tiny_pipeline), "dtype": "float16"})
    found = one(model.precision(Patient.admit(half, [Prompt("cat")], torch.device("cpu"))))
    assert found.status == "WARN" and "float16 is for GPUs" in found.text
    with pytest.raises(UserError):
        Patient.admit(config(tiny_pipeline, model={"path": "./nowhere"}), [Prompt("cat")], torch.device("cpu"))
