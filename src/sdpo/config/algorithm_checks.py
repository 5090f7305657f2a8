"""Checks of settings against the kind of algorithm: policy updates, reward gradients, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdpo.config.sections import SampleConfig, TrainConfig

if TYPE_CHECKING:
    from sdpo.method.algorithms import RewardGradient

# Settings of policy updates alone, and the value at which each says nothing.
_OF_POLICY_UPDATES: dict[str, dict[str, Any]] = {
    "sample": {
        "shared_noise": True,
        "share_first_step": "auto",
        "branch_at": None,
        "branch_weights": None,
        "after_branch": "common",
        "lookahead": None,
    },
    "train": {
        "inner_epochs": 1,
        "timestep_fraction": 1.0,
        "first_steps": None,
        "step_shuffle": True,
        "accumulate_steps": None,
    },
}


def check_policy_settings_unset(sample: SampleConfig, train: TrainConfig, name: str) -> None:
    """Refuse settings of policy updates for an algorithm that makes none.

    Args:
        sample: the section `sample`.
        train: the section `train`.
        name: the algorithm's name.

    Raises:
        ValueError: naming the first such setting.
    """
    for section, settings in (("sample", sample), ("train", train)):
        for key, neutral in _OF_POLICY_UPDATES[section].items():
            value = getattr(settings, key)
            if value != neutral:
                raise ValueError(
                    f"{section}.{key} is {value}, a setting of policy updates, but {name} follows the gradient of the "
                    f"reward: set it to {as_written(neutral)}"
                )


def as_written(value: object) -> str:
    """A plain value as a configuration file holds it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def check_step_numbers(algorithm: RewardGradient, sample: SampleConfig) -> None:
    """Refuse a number of steps that `algorithm.num_steps` would replace.

    Raises:
        ValueError: naming the two settings.
    """
    if algorithm.num_steps and sample.num_steps not in algorithm.num_steps:
        raise ValueError(
            f"sample.num_steps ({sample.num_steps}) is not among the algorithm's own num_steps "
            f"({algorithm.num_steps}), from which every update draws its number of steps: use one of them, or leave "
            "that list empty"
        )


def resolve_kl_form(train: TrainConfig, name: str, has_policy: bool, has_gradient: bool) -> TrainConfig:
    """The section `train` with the form of the divergence that the algorithm has.

    Args:
        train: the section `train`.
        name: the algorithm's name.
        has_policy: whether the algorithm makes policy updates.
        has_gradient: whether it follows reward gradients.

    Raises:
        ValueError: if the algorithm does not have the form that is set.
    """
    if has_policy and has_gradient and train.kl_form is None:
        return train  # each of the two updates has a form of its own
    own = "transition" if has_policy else "clean"
    if train.kl_form is None or train.kl_weight == 0 and train.kl_form == ("clean" if has_policy else "transition"):
        return train.model_copy(update={"kl_form": own})
    if train.kl_form == "clean" and not has_gradient:
        raise ValueError(
            f"train.kl_form=clean is defined for reward gradients, but {name} makes policy updates: use "
            "train.kl_form=transition"
        )
    if train.kl_form != "clean" and not has_policy:
        raise ValueError(
            f"train.kl_form={train.kl_form} compares the random steps of policy updates, but {name} follows the "
            "gradient of the reward: use train.kl_form=clean"
        )
    return train
