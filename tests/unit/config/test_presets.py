"""Every preset is a legal run that explains what it costs, without a network or any weights."""

from __future__ import annotations

import pytest
from helpers.command_line import Run, succeeded
from helpers.paths import REPOSITORY

from sdpo.config.differences import differences
from sdpo.config.load import preset_names, preset_summary
from sdpo.config.schema import Config
from sdpo.estimate.cost import epoch_cost
from sdpo.estimate.memory_peaks import estimate_peaks
from sdpo.method.advantages import PairNormalizer
from sdpo.method.credit import GainCredit

HUB = {"sdxl-turbo-pickscore", "lcm-aesthetic", "sd35-turbo-pickscore", "flux-schnell-hpsv2", "z-image-turbo-pickscore",
       "sana-sprint-pickscore", "sdxl-lightning-pickscore", "hyper-sd-pickscore"}  # fmt: skip


@pytest.mark.parametrize("name", preset_names())
def test_a_dry_run_needs_no_network(sdpo: Run, name: str) -> None:
    assert "# an epoch" in succeeded(sdpo("train", name, "--dry-run")).stdout
    assert preset_summary(name) and not preset_summary(name).startswith("#")


def test_the_presets_of_real_few_step_models() -> None:
    assert {*preset_names()} >= HUB
    for name in HUB:
        config = Config.load(name)
        assert 2 <= config.sample.num_steps <= 8 and config.lora is not None
        assert config.sample.num_steps in config.evaluate.steps
        assert config.train.batch_size >= 32
    sd35 = Config.load("sd35-turbo-pickscore")
    assert sd35.model.scheduler == {"shift_terminal": 0.25} and 1 not in sd35.evaluate.steps
    assert Config.load("sana-sprint-pickscore").sample.guidance_scale == 4.5
    for name in ("sdxl-lightning-pickscore", "hyper-sd-pickscore"):  # SDXL's own timesteps do not begin at the noise
        model = Config.load(name).model
        fused = model.fuse_lora
        assert fused is not None and fused.scale == 1 and "4step" in str(fused.weight_name)
        assert model.scheduler is not None and model.scheduler["timestep_spacing"] == "trailing"


GRADIENT = {
    *(f"sd-turbo-{reward}-gradient" for reward in ("aesthetic", "pickscore", "hpsv2", "imagereward")),
    *("sdxl-turbo-pickscore-gradient", "lcm-aesthetic-gradient", "flux-schnell-hpsv2-gradient"),
    *("flux2-klein-hpsv2-gradient", "sd35-turbo-pickscore-gradient", "sana-sprint-pickscore-gradient"),
    "z-image-turbo-pickscore-gradient",
}  # fmt: skip


def test_presets_of_reward_gradients_are_guarded_and_fit_their_gpu() -> None:
    assert {*preset_names()} >= GRADIENT
    for name in GRADIENT:
        config = Config.load(name)
        assert config.gradient_algorithm() is not None and config.evaluate.held_out and len(config.stop_when) == 2
        assert config.train.kl_weight > 0 and config.train.kl_form == "clean" and config.train.ema_decay is not None
        assert "not a published set-up" in preset_summary(name)
        found = estimate_peaks(config)
        fits = 16e9 if name.startswith("sd-turbo") else 24e9
        assert found is None and "klein" in name or found is not None and found.peak < fits, name


def test_presets_for_an_evening_need_no_history_and_fit_their_gpu() -> None:
    for reward in ("aesthetic", "pickscore", "hpsv2", "imagereward"):
        config = Config.load(f"sd-turbo-{reward}-1gpu")
        assert config.rewards == {reward: 1.0} and config.sample.num_steps == 4
        assert isinstance(config.build_algorithm().credit, GainCredit)
        assert isinstance(config.build_normalizer(), PairNormalizer)
        assert config.evaluate.held_out and len(config.stop_when) == 2
        found = estimate_peaks(config)
        assert found is not None and found.peak < 24e9


@pytest.mark.parametrize("name", preset_names())
def test_below_float32_sampling_and_update_share_a_micro_batch(name: str) -> None:
    config = Config.load(name)
    assert config.model.dtype == "float32" or config.sample.micro_batch == config.train.micro_batch


@pytest.mark.parametrize("name", ["aesthetic-1gpu", "aesthetic-4gpu"])
def test_variants_for_other_machines_are_the_same_experiment(name: str) -> None:
    """Nothing but what fits the machine differs from the published set-up."""
    published, variant = (Config.load(n).model_dump() for n in ("aesthetic", name))
    for config in (published, variant):
        for section, key in (("sample", "micro_batch"), ("train", "micro_batch"), ("model", "text_encoders")):
            del config[section][key]
        del config["scoring"]
    assert published == variant


@pytest.mark.parametrize("reward", ["aesthetic", "hpsv2", "imagereward", "pickscore"])
def test_plus_presets_differ_from_the_published_ones_in_the_new_parts_alone(reward: str) -> None:
    published, plus = (Config.load(name).model_dump(mode="json") for name in (reward, f"{reward}-plus"))
    assert set(differences(published, plus, frozenset())) == {
        "algorithm.branches", "algorithm.credit", "algorithm.discount", "algorithm.reward_plan",
        "advantage.normalizer", "sample.branch_at", "sample.lookahead", "train.batch_size",
    }  # fmt: skip
    assert f"The preset {reward} with" in preset_summary(f"{reward}-plus")


def test_the_page_of_costs_has_every_preset_of_sd_turbo() -> None:
    """Hours: 0.80 TFLOP an evaluation, 2.2 times that with a LoRA's backward pass, at 60 and 40 TFLOP/s."""
    rows = []
    for name in preset_names():
        config = Config.load(name)
        if config.model.path == "stabilityai/sd-turbo":
            epoch, n = epoch_cost(config), config.epochs
            tflop = n * (epoch.forward + 2.2 * epoch.backward) * 0.80
            counts = (epoch.trajectories, epoch.forward, epoch.backward, epoch.queries, epoch.optimizer_steps)
            cells = [f"`{name}`", str(config.sample.num_steps), *(f"{n * count:,}" for count in counts)]
            rows.append("| " + " | ".join([*cells, f"{tflop / 60 / 3600:.1f} to {tflop / 40 / 3600:.1f}"]) + " |")
    page = (REPOSITORY / "docs" / "presets.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if "| 50 |" in line or "| 4 |" in line] == rows


@pytest.mark.parametrize(
    ("override", "ways_out"),
    [
        ("train.ema_decay=null", ("train.ema_decay", "train.ema_warmup=true")),
        ("evaluate.every=0", ("evaluate.every", "stop_when=[]")),
    ],
)
def test_a_preset_without_one_of_its_guards_says_how(sdpo: Run, override: str, ways_out: tuple[str, str]) -> None:
    refused = sdpo("train", "emoji-gradient", override, "--dry-run")
    assert refused.returncode == 2 and all(way in refused.stderr for way in ways_out)
    assert "# an epoch" in succeeded(sdpo("train", "emoji-gradient", override, ways_out[1], "--dry-run")).stdout
