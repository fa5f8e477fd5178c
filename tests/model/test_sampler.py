"""Draws against the definition of temperature, top-k and top-p, worked out in plain Python."""

import math

import numpy as np
import pytest
import torch

from model.request import Sampling
from model.sampler import Draws, choose_tokens, plan_draws, uniform

CPU = torch.device("cpu")
LOGITS = np.array([1.0, -2.0, 3.0, 0.5, 2.5, -0.5, 2.9, 1.7])


def true_distribution(logits: np.ndarray, sampling: Sampling) -> list[float]:
    """Probability of each token: scale, keep the k likeliest, keep the fewest of those that reach p, scale to one."""
    weights = [math.exp(logit / sampling.temperature) for logit in logits]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])[: sampling.top_k or None]
    kept, reached = [], 0.0
    for token in order:
        if reached >= sampling.top_p * sum(weights[other] for other in order):
            break
        kept.append(token)
        reached += weights[token]
    return [weights[token] / reached if token in kept else 0.0 for token in range(len(weights))]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.3),
        Sampling(temperature=2.0),
        Sampling(temperature=1.0, top_k=1),
        Sampling(temperature=1.3, top_k=3),
        Sampling(temperature=1.0, top_k=100),
        Sampling(temperature=1.0, top_p=0.05),
        Sampling(temperature=0.8, top_p=0.7),
        Sampling(temperature=2.0, top_k=3, top_p=0.7),  # 0.7 of what the three have, not of all
        Sampling(temperature=1.5, top_k=4, top_p=0.999),
    ],
)
def test_the_share_of_every_token_is_its_probability(sampling):
    """All quantiles of the uniform number at once: the shares are exact to one draw, there is no chance in it."""
    count = 20_000
    draws = Draws(
        rows_S=torch.arange(count),
        temperatures_S=torch.full((count,), sampling.temperature),
        top_k_S=torch.full((count,), float(sampling.top_k or len(LOGITS))),
        top_p_S=torch.full((count,), sampling.top_p),
        uniforms_S=(torch.arange(count) + 0.5) / count,
    )
    tokens, logprobs = choose_tokens(torch.tensor(LOGITS, dtype=torch.float32).expand(count, -1), draws)
    shares = np.bincount(tokens.numpy(), minlength=len(LOGITS)) / count
    np.testing.assert_allclose(shares, true_distribution(LOGITS, sampling), atol=2 / count)
    own = LOGITS - math.log(sum(math.exp(logit) for logit in LOGITS))
    np.testing.assert_allclose(logprobs.numpy(), own[tokens.numpy()], atol=1e-6)


def test_uniform_numbers_are_spread_evenly_over_seeds_and_token_numbers():
    for numbers in (
        [uniform(7, number) for number in range(2000)],
        [uniform(seed, 0) for seed in range(2000)],
        [uniform(n, n) for n in range(2000)],
    ):
        ranked = np.sort(numbers)
        assert np.abs(ranked - (np.arange(2000) + 0.5) / 2000).max() < 0.04  # Kolmogorov-Smirnov, p about 0.003
    assert len({uniform(seed, number) for seed in range(45) for number in range(45)}) == 45 * 45


def test_greedy_and_drawn_rows_share_a_batch_and_do_not_touch_each_other():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((5, 50)).astype(np.float32))
    hot = [Sampling(temperature=1.5, seed=seed, top_k=20, top_p=0.95) for seed in range(3)]
    mixed = [(Sampling(), 0), (hot[0], 4), (Sampling(), 9), (hot[1], 4), (hot[2], 0)]
    tokens, _ = choose_tokens(logits, plan_draws(mixed, vocab_size=50, device=CPU))
    for row, what in enumerate(mixed):
        alone, _ = choose_tokens(logits[row : row + 1], plan_draws([what], vocab_size=50, device=CPU))
        assert alone.item() == tokens[row].item()
    assert tokens[0] == logits[0].argmax()
    assert tokens[2] == logits[2].argmax()
    assert plan_draws([(Sampling(), 0)], vocab_size=50, device=CPU) is None


def test_log_probabilities_of_bfloat16_logits_are_computed_in_fp32():
    logits = torch.linspace(-3, 3, 1000).bfloat16()[None]
    tokens, logprobs = choose_tokens(logits, None)
    wide = logits.double()[0]
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx((wide.max() - wide.logsumexp(0)).item(), abs=1e-5)
    assert wide[tokens.item()] == wide.max()
