"""A problem on which one step alone matters, and branching at one step finds which."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from helpers.plane_model import optimize
from helpers.updates import update_settings
from torch import Tensor, nn

from sdpo.backbones import Backbone, Conditioning
from sdpo.loop.branched_rollout import BranchedRollout
from sdpo.loop.normalization import normalize
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.policy_update import PolicyUpdate
from sdpo.loop.returns import epoch_returns
from sdpo.loop.reward_mix import RewardMix
from sdpo.loop.scoring import Scorer
from sdpo.method.advantages import Normalizer, PairNormalizer, StepwiseNormalizer
from sdpo.method.algorithms import POLICY_ALGORITHMS
from sdpo.method.branching import Branching
from sdpo.method.credit import Credit, FutureCredit, GainCredit
from sdpo.method.denoisers import RectifiedFlow
from sdpo.method.reward_plans import AllSteps, FinalStep, RewardPlan
from sdpo.method.types import Trajectories
from sdpo.prompts import Prompt

SIGMAS = (1.0, 0.9, 0.6, 0.1)
STEPS, DECISIVE, GROUPS, BRANCHES = len(SIGMAS), 1, 64, 4


class Alone:
    """One process."""

    count, is_main = 1, True

    def mean(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, items: list[Tensor]) -> list[Tensor]:
        return items


class TwoSides(Backbone):
    """Images are −2 or 2. Until step 1 the network does not look at x; then it keeps to the side on which x lies.

    Each step draws x_{i+1} = (1−σ') x̂ + σ' ε anew, so that the noise of step 1 alone chooses the side: what comes
    before is forgotten, and later noise is too small to change sides. Each step's x̂ has a learnable shift.
    """

    def __init__(self) -> None:
        self.network_module = nn.ParameterDict({"shift": nn.Parameter(torch.zeros(STEPS))})
        self.latent_shape = (1, 1, 1)
        self.device = torch.device("cpu")

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return {"nothing": torch.zeros(len(prompts), 1)}

    def network(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        step = timesteps.long()
        sigma, shift = (values[step].reshape(-1, 1, 1, 1) for values in (torch.tensor(SIGMAS), self.shift))
        side = torch.where((step > DECISIVE).reshape(-1, 1, 1, 1), 2 * latents.sign(), 0.0)
        return (latents - side - shift) / sigma  # the velocity whose x̂ is side + shift

    @property
    def shift(self) -> Tensor:
        return self.network_module["shift"]

    def decode(self, latents: Tensor, gradient: bool = False) -> Tensor:
        return latents

    def denoiser(self, num_steps: int, eta: float) -> RectifiedFlow:
        return RectifiedFlow(torch.tensor([*SIGMAS, 0.0]), torch.arange(num_steps), eta)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.network_module.named_parameters())

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        shift = self.network_module["shift"]
        trained, shift.data = shift.data, torch.zeros_like(shift)
        try:
            yield
        finally:
            shift.data = trained


def side(images: Tensor, prompts: list[str], metadata: list[Mapping[str, object]]) -> Tensor:
    return images.flatten(1)[:, 0].sign()


def collected(policy: Policy, branching: Branching, plan: RewardPlan, epoch: int) -> tuple[Trajectories, Tensor]:
    """An epoch's groups, and their dense rewards."""
    denoiser = policy.backbone.denoiser(STEPS, 1.0)
    rollout = BranchedRollout(policy, PromptEmbeddings(policy.backbone), branching, denoiser, denoiser, BRANCHES, 0)
    (part,) = rollout([Prompt("x")] * GROUPS, range(GROUPS), epoch, GROUPS)
    scorer = Scorer(policy.backbone, RewardMix({"side": side}, {"side": 1.0}), plan)
    scorer.add(part)
    return part, scorer.finish().dense


def learn(
    branching: Branching, name: str = "sdpo", credit: Credit | None = None, normalizer: Normalizer | None = None
) -> Tensor:
    """The shift of each step's x̂ after a few epochs."""
    policy, plan = Policy(TwoSides()), FinalStep() if credit is None else AllSteps()
    # The published clip ranges are made for log-probabilities averaged over thousands of latent elements; here is one.
    setting = {"beta": 0.01, "clip_range": 0.0} if name == "d3po" else {"clip_range": 0.2}
    algorithm = POLICY_ALGORITHMS[name](
        branches=BRANCHES, discount=1.0, reward_plan=plan, credit=credit or FutureCredit(), **setting
    )
    optimization = optimize(policy, torch.optim.AdamW, lr=0.03)
    update = PolicyUpdate(policy, algorithm, update_settings(batch_size=32), optimization)
    for epoch in range(1, 11):
        trajectories, dense = collected(policy, branching, plan, epoch)
        returns = epoch_returns(algorithm, dense, trajectories, Alone())
        advantages = normalize(returns, trajectories, normalizer or PairNormalizer(), Alone())
        denoiser, embeddings = policy.backbone.denoiser(STEPS, 1.0), PromptEmbeddings(policy.backbone)
        result = update.run(trajectories, advantages, denoiser, embeddings, epoch, 32)
        assert result.metrics["on_policy_log_ratio"] == 0
    return policy.backbone.network_module["shift"].detach()  # type: ignore[union-attr,index]


@pytest.mark.parametrize("name", ["sdpo", "ddpo", "d3po", "grpo"])
def test_branching_at_the_step_that_matters_learns_it_and_at_no_other_anything(name: str) -> None:
    for step in range(STEPS - 1):
        shift = learn(Branching.at(step, STEPS), name)
        assert (shift[[i for i in range(STEPS) if i != step]] == 0).all(), "the other steps are not trained"
        assert shift[step] > 0.3 if step == DECISIVE else shift[step] == 0, (step, shift)


@pytest.mark.parametrize("lookahead", [1, 2])
@pytest.mark.parametrize("credit", [GainCredit(), GainCredit(0.0), FutureCredit()], ids=str)
def test_a_lookahead_is_enough_where_the_next_image_shows_the_side(lookahead: int, credit: Credit) -> None:
    shift = learn(Branching.at(DECISIVE, STEPS, lookahead=lookahead), credit=credit)
    assert shift[DECISIVE] > 0.3 and shift.count_nonzero() == 1


@pytest.mark.parametrize("normalizer", [PairNormalizer(), StepwiseNormalizer()], ids=lambda n: type(n).__name__)
def test_a_random_step_finds_the_one_that_matters(normalizer: Normalizer) -> None:
    """Every step is tried; the spread of rewards between branches tells which one to give the weight."""
    anywhere = Branching((1.0,) * (STEPS - 1))
    trajectories, dense = collected(Policy(TwoSides()), anywhere, FinalStep(), epoch=1)
    assert trajectories.branched is not None
    last = dense[torch.arange(GROUPS), :, trajectories.branched.seen - 1]
    steps = trajectories.branched.step
    spreads = torch.stack([last[steps == step].std(1).mean() for step in range(STEPS - 1)])
    assert spreads.argmax() == DECISIVE and (spreads > 0).sum() == 1, spreads
    found = learn(Branching(tuple((spreads / spreads.sum()).tolist())), normalizer=normalizer)
    assert found[DECISIVE] > 0.3 and found.count_nonzero() == 1
    shift = learn(anywhere)
    assert shift[DECISIVE] > 0.1 and shift[DECISIVE] == shift.abs().max()


def test_with_noise_of_their_own_all_branches_are_moved_by_what_follows() -> None:
    """Branches that part at the first step differ in their sides, by the noise of step 1, which it has no part in."""
    rewards = collected(Policy(TwoSides()), Branching.at(0, STEPS, "independent"), FinalStep(), epoch=1)[1]
    assert rewards[..., -1].std(1).mean() > 0.5
    rewards = collected(Policy(TwoSides()), Branching.at(0, STEPS, "common"), FinalStep(), epoch=1)[1]
    assert (rewards[..., -1].std(1) == 0).all()
