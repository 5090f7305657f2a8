"""Computes the golden numbers of `test_baselines.py` with NumPy alone, from the equations of papers and authors' code.

    python tests/golden/make_baselines.py

The equations, with ℓ the log-probability of a step (the mean over latent elements) and r = exp(ℓ(θ) − ℓ(old)):

D3PO, step (arXiv 2311.13231, their train_d3po.py): q_k = clip(exp(ℓ_k(θ) − ℓ_k(ref)), 1 − 0.1, 1 + 0.1);
    loss = −log σ(β (log q_w − log q_l)) for the better branch w and the worse l. d log q/dℓ is 1 within the range.
DDPO and GRPO, step (ddpo-pytorch; Flow-GRPO's train_sd3.py; DanceGRPO's train_grpo_sd.py):
    loss = mean max(−A r, −A clip(r, 1 ± ε)), A clipped to ± 5; the gradients of all steps of a batch are averaged
    before one optimizer step.
Advantages: DanceGRPO (R − mean_g) / (std_g + 1e-8), std with n − 1; Flow-GRPO with global_std
    (R − mean_g) / (std + 1e-4), std of all rewards with n.
PRDP (arXiv 2402.08714): ((1/η) Σ_i Δ(ℓ_i(θ) − ℓ_i(ref)) − ΔA)², and the same with ℓ_i(θ) clipped to ℓ_i(old) ± ε; the
    larger counts.
Flow-GRPO's step (sd3_sde_with_logprob.py): s = η √(σ / (1 − σ)), with 1 − σ_1 in place of 1 − σ where σ = 1;
    mean = x (1 + s²/(2σ) dt) + v (1 + s² (1−σ)/(2σ)) dt, dt = σ' − σ; standard deviation s √(−dt).
Its KL (train_sd3.py): mean (μ − μ_ref)² / (2 s²).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

STORED = Path(__file__).with_name("baselines.json")
B, K, T = 5, 2, 3
BETA, D3PO_CLIP, DDPO_CLIP, PRDP_CLIP, PRDP_SCALE, ETA = 0.1, 0.1, 0.05, 0.04, 0.7, 0.7


def d3po(new: Any, reference: Any, reward: Any) -> tuple[float, Any]:
    """The mean loss over B pairs of one step, [B, 2] each, and its gradient by the log-probabilities."""
    loss, gradient = 0.0, np.zeros_like(new)
    for b in range(B):
        w, l = (0, 1) if reward[b, 0] > reward[b, 1] else (1, 0)  # noqa: E741
        ratio = np.exp(new[b] - reference[b])
        clipped = np.clip(ratio, 1 - D3PO_CLIP, 1 + D3PO_CLIP)
        margin = BETA * (np.log(clipped[w]) - np.log(clipped[l]))
        loss += np.log1p(np.exp(-margin)) / B
        slope = -BETA / (1 + np.exp(margin)) / B
        gradient[b, w] = slope * (clipped[w] == ratio[w])
        gradient[b, l] = -slope * (clipped[l] == ratio[l])
    return float(loss), gradient


def clipped_ratio(new: Any, old: Any, advantage: Any) -> tuple[float, Any]:
    """The mean loss over samples and accumulated steps, [B, K, T] each, and its gradient by the log-probabilities."""
    a = np.clip(advantage, -5, 5)
    ratio = np.exp(new - old)
    plain, clipped = -a * ratio, -a * np.clip(ratio, 1 - DDPO_CLIP, 1 + DDPO_CLIP)
    gradient = np.where(plain >= clipped, -a * ratio, 0.0) / new.size
    return float(np.maximum(plain, clipped).mean()), gradient


def prdp(new: Any, old: Any, reference: Any, advantage: Any) -> tuple[float, Any]:
    """The mean loss over B pairs of trajectories, and its gradient by the log-probabilities, [B, 2, T]."""
    loss, gradient = 0.0, np.zeros_like(new)
    for b in range(B):
        target = advantage[b, 0] - advantage[b, 1]
        clipped = np.clip(new[b], old[b] - PRDP_CLIP, old[b] + PRDP_CLIP)
        totals = [(x - reference[b]).sum(-1) for x in (new[b], clipped)]
        errors = [(t[0] - t[1]) / PRDP_SCALE - target for t in totals]
        passes = [np.ones_like(new[b]), (clipped == new[b]).astype(float)]
        which = int(errors[1] ** 2 > errors[0] ** 2)
        loss += errors[which] ** 2 / B
        slope = 2 * errors[which] / PRDP_SCALE / B
        gradient[b] = slope * np.array([1.0, -1.0])[:, None] * passes[which]
    return float(loss), gradient


def flow_grpo(sigmas: Any, x: Any, v: Any) -> tuple[Any, Any, Any]:
    """The mean of every step from the same x and v, its standard deviation, and s."""
    means, deviations, levels = [], [], []
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        s = ETA * np.sqrt(sigma / (1 - (sigmas[1] if sigma == 1 else sigma)))
        dt = following - sigma
        means.append(x * (1 + s**2 / (2 * sigma) * dt) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt)
        deviations.append(s * np.sqrt(-dt))
        levels.append(s)
    return np.array(means), np.array(deviations), np.array(levels)


def main() -> None:
    """Write the golden numbers."""
    random = np.random.default_rng(7)
    old = random.normal(-1, 0.3, (B, K, T))
    new = old + random.normal(0, 0.08, (B, K, T))
    reference = old + random.normal(0, 0.1, (B, K, T))
    rewards = random.normal(0, 2, (B, K))
    mean = rewards.mean(1, keepdims=True)
    dance = (rewards - mean) / (rewards.std(1, ddof=1, keepdims=True) + 1e-8)
    flow = (rewards - mean) / (rewards.std() + 1e-4)
    advantage = np.repeat(flow[:, :, None], T, 2) * 3
    # The σ of SD3's schedule at ten steps: the training timesteps 1 … 1000, shifted by 3 twice, as its scheduler does.
    shift = lambda s: 3 * s / (1 + 2 * s)  # noqa: E731
    low = shift(1 / 1000)
    sigmas = np.array([*shift(np.linspace(1, low, 10)), 0.0])
    x, v = random.normal(size=6), random.normal(size=6)
    means, deviations, levels = flow_grpo(sigmas, x, v)
    base_means, _, _ = flow_grpo(sigmas, x, v + 0.3 * random.normal(size=6))
    first = {"d3po": d3po(new[..., 0], reference[..., 0], rewards), "ddpo": clipped_ratio(new, old, advantage)}
    first["prdp"] = prdp(new, old, reference, flow)
    arrays = {"old": old, "new": new, "reference": reference, "rewards": rewards, "dance": dance, "flow": flow}
    arrays |= {"advantage": advantage, "sigmas": sigmas, "x": x, "v": v, "means": means, "deviations": deviations}
    arrays |= {"base_means": base_means, "kl": ((means - base_means) ** 2).mean(1) / (2 * levels**2)}
    record = {name: value.tolist() for name, value in arrays.items()}
    record |= {name: {"loss": loss, "gradient": gradient.tolist()} for name, (loss, gradient) in first.items()}
    STORED.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
