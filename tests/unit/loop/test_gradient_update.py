"""Updates by reward gradients: the gradient is that of the plain graph, and what each setting does to it."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.curved_model import Curved, ExactMix, Hill, gradient_update
from helpers.plane_model import Plane
from torch import Tensor

from sdpo.errors import RewardError, UserError
from sdpo.loop.divergence import NotFiniteError
from sdpo.loop.gradient_cost import gradient_evaluations
from sdpo.loop.gradient_update import GradientUpdate
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.reward_mix import RewardMix
from sdpo.loop.rollout import draw_noise
from sdpo.method import gaussian, seeds
from sdpo.method.algorithms import SRG, DRaFT, ReFL, RewardGradient
from sdpo.method.algorithms.reward_gradient import Term
from sdpo.method.augment import Augment
from sdpo.prompts import Prompt

T, N = 4, 6
PROMPTS = [Prompt("x") for _ in range(N)]


@dataclass(frozen=True)
class Terms(RewardGradient):
    """Rewards given images."""

    chosen: Sequence[Term] = ()

    def terms(self, num_steps: int, generator: torch.Generator) -> list[Term]:
        return list(self.chosen)


def exact_mix() -> RewardMix:
    return ExactMix({"hill": Hill()}, {"hill": 1.0})


def record(update: GradientUpdate) -> list[Tensor]:
    """Replaces the optimizer step of an update; returns the list that will hold the gradients of its weights."""
    found: list[Tensor] = []
    optimization = update.optimization
    step = optimization.step

    def keep(watch: Any) -> Tensor:
        found.extend(p.grad.clone() for p in optimization.parameters if p.grad is not None)
        return step(watch)

    optimization.step = keep  # type: ignore[method-assign]
    return found


def run(update: GradientUpdate, micro_batch: int = N, epoch: int = 1) -> Any:
    return update.run(PROMPTS, range(N), PromptEmbeddings(update.policy.backbone), epoch, micro_batch)


def gradients(policy: Policy, algorithm: RewardGradient, micro_batch: int = N, **options: Any) -> list[Tensor]:
    """The gradients of one minibatch of N trajectories of T steps."""
    update = gradient_update(policy, algorithm, [T], N, **{"mix": exact_mix(), **options})
    found = record(update)
    run(update, micro_batch)
    return found


def naive(policy: Policy, terms: Sequence[Term], kl_weight: float = 0.0, eta: float = 1.0) -> list[Tensor]:
    """The same gradients by one graph of the whole sampler for each term."""
    denoiser = policy.backbone.denoiser(T, eta)
    start, noise = draw_noise(policy, denoiser, [(0, 1, i) for i in range(N)])
    parameters = list(policy.backbone.trainable_parameters().values())
    loss = torch.zeros(())
    for term in terms:
        x = start[:, 0]
        for step in range(term.step + 1):
            x = x.detach() if step == term.first else x
            transition = policy.transition(denoiser, x, torch.full((N,), step), {})
            entered, x = x, gaussian.sample(transition.mean, transition.std, noise[step])
        images = [transition.x0]
        for redraw in range(term.redraws):
            fresh = seeds.normal((2, 1, 1), [(0, 1, i, f"redraw {redraw}") for i in range(N)])
            again = denoiser.noised(transition.x0.detach(), fresh, torch.full((N,), term.step))
            images.append(policy.transition(denoiser, again, torch.full((N,), term.step), {}).x0)
        rewards = torch.stack([Hill()(image, [], []).mean() for image in images]).mean()
        loss = loss - term.weight * rewards
        if kl_weight:
            with torch.no_grad(), policy.backbone.reference():
                base = policy.transition(denoiser, entered, torch.full((N,), term.step), {}).x0
            loss = loss + term.weight * kl_weight * 0.5 * (transition.x0 - base).square().flatten(1).mean(1).mean()
    return list(torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("micro_batch", [N, 4, 1])
@pytest.mark.parametrize(
    "algorithm",
    [
        SRG(),
        SRG(temporal_decay=0.7, through=2),
        SRG(through=3),
        SRG(through=T),
        DRaFT(),
        DRaFT(through=2),
        DRaFT(through=T),
        DRaFT(low_variance=2),
        ReFL(),
    ],
    ids=str,
)
def test_the_gradient_is_that_of_the_plain_graph(algorithm: RewardGradient, micro_batch: int) -> None:
    policy = Policy(Curved())
    terms = algorithm.terms(T, _generator_of_update())
    for found, expected in zip(gradients(policy, algorithm, micro_batch), naive(policy, terms), strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_gradient_through_the_whole_sampler_is_that_of_central_differences() -> None:
    policy = Policy(Curved())
    found = gradients(policy, DRaFT(through=T))
    parameters = list(policy.backbone.trainable_parameters().values())
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    denoiser = policy.backbone.denoiser(T, 1.0)
    start, noise = draw_noise(policy, denoiser, [(0, 1, i) for i in range(N)])

    def loss(distance: float) -> float:
        with torch.no_grad():
            for parameter, change in zip(parameters, direction, strict=True):
                parameter += distance * change
            x = start[:, 0]
            for step in range(T):
                transition = policy.transition(denoiser, x, torch.full((N,), step), {})
                x = gaussian.sample(transition.mean, transition.std, noise[step])
            value = -Hill()(transition.x0, [], []).mean().item()
            for parameter, change in zip(parameters, direction, strict=True):
                parameter -= distance * change
        return value

    slope = sum((gradient * change).sum().item() for gradient, change in zip(found, direction, strict=True))
    assert abs(slope) > 0.01
    assert slope == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-6)


def _generator_of_update() -> torch.Generator:
    """The generator of the first minibatch of epoch 1, after its number of steps was drawn."""
    generator = seeds.generator(0, 1, "gradient update 0")
    torch.randint(1, (1,), generator=generator)
    return generator


def test_a_deterministic_sampler_needs_no_noise() -> None:
    policy = Policy(Curved())
    for algorithm in (SRG(), DRaFT(through=T)):
        terms = algorithm.terms(T, torch.Generator())
        for found, expected in zip(gradients(policy, algorithm, eta=0.0), naive(policy, terms, eta=0.0), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("algorithm", [SRG(), SRG(through=2), DRaFT(through=T)], ids=str)
def test_the_divergence_pulls_towards_the_reference_model(algorithm: RewardGradient) -> None:
    class Moved(Curved):
        """Its reference model has other weights."""

        @contextlib.contextmanager
        def reference(self) -> Iterator[None]:
            kept = {name: p.data for name, p in self.network_module.named_parameters()}
            for p in self.network_module.parameters():
                p.data = 0.9 * p.data
            yield
            for name, p in self.network_module.named_parameters():
                p.data = kept[name]

    policy = Policy(Moved())
    terms = algorithm.terms(T, torch.Generator())
    with_penalty = gradients(policy, algorithm, kl_weight=3.0)
    expected = naive(policy, terms, kl_weight=3.0)
    for found, wanted, without in zip(with_penalty, expected, naive(policy, terms), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        assert (wanted - without).abs().max() > 1e-3


def test_random_steps_have_the_mean_gradient_of_all_steps() -> None:
    policy = Policy(Curved())
    algorithm, every = SRG(temporal_decay=0.8, steps_per_update=2), SRG(temporal_decay=0.8)
    draws = [algorithm.terms(T, seeds.generator("draw", n)) for n in range(4000)]
    assert all(len(terms) == 2 for terms in draws)
    weights = torch.zeros(T)
    for terms in draws:
        for term in terms:
            weights[term.step] += term.weight / len(draws)
    wanted = torch.tensor([term.weight for term in every.terms(T, torch.Generator())])
    torch.testing.assert_close(weights, wanted, rtol=0.06, atol=0.0)
    assert wanted.sum().item() == pytest.approx(1.0)
    for found, expected in zip(
        gradients(policy, algorithm), naive(policy, algorithm.terms(T, _generator_of_update())), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_refl_draws_late_steps_and_stops_sampling_there() -> None:
    drawn = {ReFL(first_step=0.5).terms(T, seeds.generator("refl", n))[0].step for n in range(50)}
    assert drawn == {2, 3}
    assert gradient_evaluations([Term(2, 1.0)]).forward == 2


def test_refl_leaves_images_above_the_margin_alone() -> None:
    policy = Policy(Curved())
    below = gradients(policy, ReFL(margin=1000.0))
    for found, plain in zip(below, gradients(policy, ReFL()), strict=True):
        torch.testing.assert_close(found, plain)
    assert all(not g.any() for g in gradients(policy, ReFL(margin=-1000.0)))


@pytest.mark.parametrize(
    "algorithm", [SRG(), SRG(through=2), SRG(through=T), DRaFT(through=2), DRaFT(low_variance=2), ReFL()], ids=str
)
def test_the_cost_is_counted_as_it_is_spent(algorithm: RewardGradient) -> None:
    policy = Policy(Curved())
    update = gradient_update(policy, algorithm, [T], N, mix=exact_mix())
    outcome = run(update)
    cost = gradient_evaluations(algorithm.terms(T, _generator_of_update()))
    assert policy.with_gradient == cost.backward * N
    assert policy.evaluations - policy.with_gradient == cost.forward * N
    assert outcome.queries == cost.rewarded * N


def test_every_update_draws_its_number_of_steps() -> None:
    policy = Policy(Curved())
    algorithm = SRG(num_steps=[1, 4])
    update = gradient_update(policy, algorithm, [1, 4], 1)
    found: set[int] = set()
    for epoch in range(1, 4):
        before = policy.evaluations
        run(update, 1, epoch)
        found.add(policy.evaluations - before)
    assert all(N <= evaluations <= 4 * N for evaluations in found) and len(found) > 1


def test_views_average_the_reward_and_change_with_every_image() -> None:
    seen: list[Tensor] = []

    class Watching:
        differentiable = True

        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
            seen.append(images.detach())
            return images.flatten(1).mean(1)

    policy = Policy(Plane())
    mix = RewardMix({"watching": Watching()}, {"watching": 1.0})
    algorithm = SRG(reward_augment=Augment(copies=3, noise=0.1))
    update = gradient_update(policy, algorithm, [1], N, mix=mix)
    outcome = run(update)
    assert outcome.queries == 3 * N and len(seen[0]) == 3 * N
    assert len({tuple(view.flatten().tolist()) for view in seen[0]}) > N
    again: list[Tensor] = list(seen)
    seen.clear()
    run(gradient_update(Policy(Plane()), algorithm, [1], N, mix=mix, decode_batch=2), micro_batch=2)
    torch.testing.assert_close(torch.cat(seen), torch.cat(again))


def test_every_step_and_every_redraw_has_views_of_its_own() -> None:
    noises: list[Tensor] = []

    class Gray(Plane):
        def decode(self, latents: Tensor, gradient: bool = False) -> Tensor:
            return 0.5 + 0 * latents

    class Watching:
        differentiable = True

        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
            noises.append(images.detach() - 0.5)
            return images.flatten(1).mean(1)

    algorithm = Terms(chosen=[Term(0, 0.5, redraws=1), Term(1, 0.5)], reward_augment=Augment(noise=0.1))
    mix = RewardMix({"watching": Watching()}, {"watching": 1.0})
    run(gradient_update(Policy(Gray()), algorithm, [2], N, mix=mix))
    assert len(noises) == 3
    for first, second in itertools.combinations(noises, 2):
        assert (first - second).abs().min() > 0


def test_the_loss_weight_multiplies_the_gradient() -> None:
    once, three_times = gradients(Policy(Curved()), SRG()), gradients(Policy(Curved()), SRG(), loss_weight=3.0)
    for gradient, threefold in zip(once, three_times, strict=True):
        torch.testing.assert_close(threefold, 3 * gradient)


def test_one_image_cannot_standardise_several_rewards() -> None:
    mix = RewardMix({"hill": Hill(), "other": Hill()}, {"hill": 1.0, "other": 1.0})
    with pytest.raises(UserError, match="train.batch_size"):
        run(gradient_update(Policy(Plane()), DRaFT(), [T], 1, mix=mix))


def test_objectives_without_a_meaning_are_refused() -> None:
    class Sums(SRG):
        def objective(self, rewards: Tensor) -> Tensor:
            return rewards.sum()

    class Detaches(SRG):
        def objective(self, rewards: Tensor) -> Tensor:
            return rewards.detach()

    for algorithm, text in ((Sums(), "one value for each reward"), (Detaches(), "has no gradient")):
        with pytest.raises(UserError, match=text):
            run(gradient_update(Policy(Plane()), algorithm, [T], N))


def test_several_rewards_are_standardised_from_the_first_update_on() -> None:
    class Large(Hill):
        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
            return 1000 * images.flatten(1)[:, 0]

    policy = Policy(Plane())
    rewards = {"hill": Hill(), "large": Large()}
    update = gradient_update(policy, SRG(), [T], 3, mix=RewardMix(rewards, {"hill": 1.0, "large": 1.0}))
    found = record(update)
    run(update, 3)
    assert len(found) == 2 and all(g.abs().max() < 10 for g in found)


def test_a_reward_that_fails_or_is_not_finite_ends_the_update_by_name() -> None:
    class Infinite(Hill):
        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
            return images.flatten(1).sum(1) / 0

    mix = RewardMix({"infinite": Infinite()}, {"infinite": 1.0})
    with pytest.raises(RewardError, match="'infinite' returned"):
        run(gradient_update(Policy(Plane()), SRG(), [T], N, mix=mix))


def test_a_gradient_that_is_not_finite_is_found_before_it_reaches_the_weights() -> None:
    class Root(Hill):
        def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
            return (images * 0).flatten(1).sum(1).sqrt()

    policy = Policy(Plane())
    update = gradient_update(policy, SRG(), [T], N, mix=RewardMix({"root": Root()}, {"root": 1.0}))
    before = policy.backbone.network_module.shift.clone()
    outcome = run(update)

    class Alone:
        count, is_main = 1, True

        def gather(self, items: list[Any]) -> list[Any]:
            return items

    with pytest.raises(
        NotFiniteError, match=r"or the reward's gradient at it, of step 0 for prompt 'x', in optimizer step 1"
    ):
        update.check(outcome.result, 1, Alone())  # type: ignore[arg-type]
    assert torch.equal(policy.backbone.network_module.shift, before)


@pytest.mark.parametrize("algorithm", [SRG(), SRG(through=64), DRaFT(through=64)], ids=str)
def test_memory_grows_neither_with_steps_nor_with_trajectories(algorithm: RewardGradient) -> None:
    class Wide(Curved):
        """Remembers the most network outputs that were alive at once."""

        alive, most = 0, 0

        def network(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
            output = super().network(latents, timesteps, conditioning)
            if output.requires_grad:
                token = _Token()
                output.grad_fn.metadata["token"] = token  # lives as long as the graph
                del token
                gc.collect()
                Wide.most = max(Wide.most, _Token.alive)
            return output

    class _Token:
        alive = 0

        def __init__(self) -> None:
            _Token.alive += 1

        def __del__(self) -> None:
            _Token.alive -= 1

    found = {}
    for steps, trajectories in ((2, 2), (16, 2), (2, 16)):
        Wide.most = 0
        policy = Policy(Wide())
        update = gradient_update(policy, algorithm, [steps], trajectories)
        update.run([Prompt("x")] * trajectories, range(trajectories), PromptEmbeddings(policy.backbone), 1, 1)
        found[steps, trajectories] = Wide.most
    assert set(found.values()) <= {1, 2} and len(set(found.values())) == 1, found


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ([], "return at least one term"),
        ([Term(1, 0.5), Term(1, 0.5)], "one for each step"),
        ([Term(T, 1.0)], "use a step from 0 to 3"),
        ([Term(1, 1.0, through=3)], "through from 1 to step"),
        ([Term(1, float("nan"))], "a finite weight"),
        ([Term(1, 0.5, redraws=1), Term(2, 0.5, through=2)], "redraws beside a gradient"),
    ],
)
def test_terms_without_a_meaning_are_refused(chosen: list[Term], text: str) -> None:
    with pytest.raises(UserError, match=text):
        run(gradient_update(Policy(Curved()), Terms(chosen=chosen), [T], N))


@pytest.mark.parametrize("algorithm", [SRG(), SRG(through=2), DRaFT(through=T), DRaFT(low_variance=1)], ids=str)
def test_the_loss_scaler_changes_no_result(algorithm: RewardGradient) -> None:
    policy = Policy(Curved())
    plain = gradients(policy, algorithm)
    update = gradient_update(policy, algorithm, [T], N, mix=exact_mix())
    update.optimization.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    found = record(update)
    outcome = run(update)
    for scaled, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(scaled / 1024, expected, rtol=1e-9, atol=1e-12)
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in plain]))
    torch.testing.assert_close(outcome.result.metrics["grad_norm"], norm, rtol=1e-6, atol=0, check_dtype=False)


@pytest.mark.parametrize(("largest", "used"), [(1e9, 1024.0), (100.0, 32.0), (2.0, 1.0)])
def test_the_decoder_is_passed_at_the_largest_scale_that_does_not_overflow(largest: float, used: float) -> None:
    seen: list[float] = []

    class Overflows(torch.autograd.Function):
        """A decoder whose gradient overflows above a bound."""

        @staticmethod
        def forward(context: Any, latents: Tensor) -> Tensor:
            return latents.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            seen.append(gradient.abs().max().item())
            return torch.where(gradient.abs() > largest, torch.inf, gradient)

    class Half(Curved):
        decoder_scales = (1024.0, 32.0, 1.0)

        def decode(self, latents: Tensor, gradient: bool = False) -> Tensor:
            return Overflows.apply(latents)

    for found, plain in zip(gradients(Policy(Half()), DRaFT()), gradients(Policy(Curved()), DRaFT()), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-9)
    assert seen[-1] == pytest.approx(used, rel=0.5) and len(seen) == 1 + [1024.0, 32.0, 1.0].index(used)
