"""Noise on subjects: what is drawn, by which seed, and in which measure."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ftrace.causal import Corruption, NoiseSettings
from ftrace.causal.settings import NoiseKind

KINDS = get_args(NoiseKind)
NOISE = [kind for kind in KINDS if kind != "tokens"]
SUBJECTS = [(3, 4), (3,), (5, 6, 7), (8, 9), (10, 11), (12, 3)]
MANY = 40_000
PINNED = [-0.15894971653591217, 0.7891420671703494, -0.045812983504928864, -1.1973730012925647]


def embedding(dtype: torch.dtype = torch.float64) -> nn.Embedding:
    """Its numbers have neither the same mean nor the same spread."""
    torch.manual_seed(0)
    table = torch.randn(20, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + torch.arange(4) / 2
    return nn.Embedding.from_pretrained(table.to(dtype))


def corruption(dtype: torch.dtype = torch.float64, **settings: Any) -> Corruption:
    return Corruption(NoiseSettings(**settings), embedding(dtype), SUBJECTS, SUBJECTS)


def noise(name: str = "one", subject: tuple[int, ...] = (3, 4), **settings: Any) -> Tensor:
    """``[N, S, D]``, without the embeddings that it is added to."""
    return corruption(**settings).draw(name, subject) - embedding()(torch.tensor(subject))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_seed_and_name_alone(kind: NoiseKind) -> None:
    settings = {"kind": kind, "samples": 3}
    one = corruption(**settings)
    drawn = one.draw("one", (3, 4))
    other = one.draw("other", (3, 4))
    assert drawn.shape == (3, 2, 4)
    assert torch.equal(one.draw("one", (3, 4)), drawn)  # whatever was drawn in between
    assert torch.equal(corruption(**settings).draw("one", (3, 4)), drawn)
    assert not torch.equal(other, drawn)
    seeds = [corruption(**settings, seed=seed).draw("one", (3, 4)) for seed in range(4)]
    assert torch.equal(seeds[0], drawn)
    assert any(not torch.equal(one, drawn) for one in seeds[1:])
    samples = drawn if kind != "tokens" else corruption(**settings).draw("one", (3, 4))
    assert len({tuple(sample.flatten().tolist()) for sample in samples}) == 3


def test_draws_are_the_same_in_every_process_and_release() -> None:
    """They hang on no hash that Python salts; and traces of a folder are resumed by later versions."""
    found = noise("n\u00e9v", (3,), sigma=1.0, scale=1.0, samples=1, seed=5)
    torch.testing.assert_close(found.flatten(), torch.tensor(PINNED, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("draws", ["prompt", "published"])
def test_global_generators_are_left_alone(draws: Any) -> None:
    np.random.seed(5)
    expected, state = np.random.RandomState(5).rand(), torch.get_rng_state()
    corruption(draws=draws).draw("one", (3, 4))
    assert np.random.rand() == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_more_samples_begin_as_fewer_do() -> None:
    for kind in ("gaussian", "uniform"):
        assert torch.equal(noise(kind=kind, samples=7)[:3], noise(kind=kind, samples=3))


def test_sigma_is_the_deviation_of_all_entries_of_all_subjects() -> None:
    """One occurrence is one observation: token 3 counts three times."""
    table = embedding().weight
    together = torch.cat([table[list(subject)] for subject in SUBJECTS])
    assert corruption().sigma == pytest.approx(float(together.std()), rel=1e-12)
    assert corruption().sigma == pytest.approx(together.numpy().std(ddof=1), rel=1e-12)
    assert corruption(sigma=0.25).sigma == 0.25
    assert corruption(torch.float32).sigma == pytest.approx(float(together.std()), rel=1e-5)


def test_scaled_embeddings_are_measured_as_the_model_reads_them() -> None:
    """Gemma multiplies them within the module."""

    class Scaled(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return 5 * super().forward(ids)

    torch.manual_seed(0)
    scaled = Scaled(20, 4)
    plain = Corruption(NoiseSettings(), nn.Embedding.from_pretrained(scaled.weight), SUBJECTS)
    assert Corruption(NoiseSettings(), scaled, SUBJECTS).sigma == pytest.approx(5 * plain.sigma, rel=1e-6)


def test_gaussian_noise() -> None:
    drawn = noise(samples=MANY, scale=2.0, sigma=0.5)
    assert drawn.mean((0, 1)).abs().max() < 0.02  # some five standard errors
    assert (drawn.std((0, 1)) - 1).abs().max() < 0.015
    flat = drawn.flatten(1)
    assert (torch.corrcoef(flat.T) - torch.eye(8)).abs().max() < 0.025
    share = (drawn.abs() < 1.959964).double().mean()
    assert abs(float(share) - 0.95) < 0.002


def test_uniform_noise() -> None:
    drawn = noise(kind="uniform", samples=MANY, scale=2.0, sigma=0.5)
    assert drawn.abs().max() <= 1
    assert drawn.max() > 0.9999 > -0.9999 > drawn.min()
    assert (drawn.std((0, 1)) - 3**-0.5).abs().max() < 0.01
    assert abs(float((drawn < 0.5).double().mean()) - 0.75) < 0.005


def test_noise_with_the_covariance_of_the_subjects() -> None:
    drawn = noise(kind="full_covariance", samples=5 * MANY, scale=2.0)
    tokens = [token for subject in SUBJECTS for token in subject]
    expected = 4 * np.cov(embedding().weight[tokens].numpy().T)
    largest = np.abs(expected).max()
    for place in range(2):
        np.testing.assert_allclose(np.cov(drawn[:, place].numpy().T), expected, atol=0.02 * largest)
    assert drawn.mean((0, 1)).abs().max() < 0.01 * largest**0.5 * 2
    between = (drawn[:, 0].T @ drawn[:, 1]) / len(drawn)
    assert between.abs().max() < 0.02 * largest  # tokens of a subject are independent


def test_heavy_tails() -> None:
    """Quantiles of Student's t with 3 degrees; the scale is a token's own, so that its entries are large together."""
    drawn = noise(kind="student_t", samples=5 * MANY, scale=2.0, sigma=0.5)
    for share, quantile in [(0.5, 0.0), (0.75, 0.76489), (0.95, 2.35336), (0.99, 4.54070), (0.999, 10.2145)]:
        below = (drawn < quantile).double().mean()
        assert abs(float(below) - share) < 5 * (share * (1 - share) / drawn[:, :, 0].numel()) ** 0.5
    large = drawn.abs() > 4.5407
    assert large[:, 0, 1][large[:, 0, 0]].double().mean() > 0.2  # .02 if they were independent
    assert large[:, 1, 0][large[:, 0, 0]].double().mean() < 0.05


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
@pytest.mark.parametrize("seed", [1, 7])
def test_draws_as_published(kind: NoiseKind, seed: int) -> None:
    settings = {"kind": kind, "draws": "published", "seed": seed, "scale": 3.0, "samples": 5}
    generator = np.random.RandomState(seed)
    unit = generator.randn(5, 2, 4) if kind == "gaussian" else generator.uniform(-1, 1, size=(5, 2, 4))
    tokens = [token for subject in SUBJECTS for token in subject]
    expected = 3 * embedding().weight[tokens].numpy().std(ddof=1) * unit
    for name in ("one", "other"):  # begun anew for each prompt
        np.testing.assert_allclose(noise(name, **settings).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_noise_is_added_before_it_is_rounded(dtype: torch.dtype) -> None:
    found = corruption(dtype, samples=4, sigma=1.0, scale=0.1).draw("one", (3, 4))
    assert found.dtype == dtype
    exact = embedding(dtype)(torch.tensor((3, 4))).double() + noise(samples=4, sigma=1.0, scale=0.1)
    torch.testing.assert_close(found, exact.to(dtype))


def test_scale_is_what_noise_is_multiplied_with() -> None:
    for kind in NOISE:
        torch.testing.assert_close(noise(kind=kind, scale=6.0), 2 * noise(kind=kind, scale=3.0))
    torch.testing.assert_close(noise(sigma=1.0, scale=0.1), noise(sigma=0.1, scale=1.0))


def test_other_subjects_in_its_place() -> None:
    table = embedding()
    allowed = {subject: table(torch.tensor(subject)) for subject in [(8, 9), (10, 11), (12, 3)]}
    seen: set[tuple[int, ...]] = set()
    for name in map(str, range(20)):
        drawn = corruption(kind="tokens", samples=2).draw(name, (3, 4))
        found = [next(one for one, own in allowed.items() if torch.equal(own, sample)) for sample in drawn]
        assert len(set(found)) == 2  # never itself, and none twice while there are others
        seen.update(found)
    assert seen == allowed.keys()
    more = corruption(kind="tokens", samples=30).draw("one", (3, 4))
    assert {tuple(one.flatten().tolist()) for one in more} == {
        tuple(one.flatten().tolist()) for one in allowed.values()
    }
    alone = Corruption(NoiseSettings("tokens", samples=2), table, [], [(3, 4), (5, 6), (3, 4)])
    assert torch.equal(alone.draw("one", (3, 4)), table(torch.tensor([[5, 6]] * 2)))


def test_no_other_subject_is_as_long() -> None:
    with pytest.raises(
        ValueError, match=r"no other subject has 3 tokens and another answer, to replace this one by. Trace it"
    ):
        corruption(kind="tokens").draw("one", (5, 6, 7))
    with pytest.raises(ValueError, match="no other subject has 5 tokens"):
        corruption(kind="tokens").draw("one", (1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples: expected at least 1, found 0"),
        ({"scale": 0.0}, "scale: expected a number above 0, found 0.0"),
        ({"scale": -3.0}, "scale: expected a number above 0"),
        ({"scale": float("inf")}, "scale: expected a number above 0, found inf"),
        ({"sigma": float("nan")}, "sigma: expected a number above 0, found nan"),
        ({"sigma": 0.0}, "sigma: expected a number above 0"),
        ({"kind": "tokens", "draws": "published"}, "draws: expected .prompt. for noise of the kind 'tokens'"),
        ({"kind": "student_t", "draws": "published"}, "for noise of the kind 'student_t', found .published."),
    ],
)
def test_bad_options(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSettings(**settings)


@pytest.mark.parametrize("subjects", [[], [(3,)], [()]])
def test_too_few_subjects_to_measure_noise_by(subjects: list[tuple[int, ...]]) -> None:
    for settings in ({}, {"kind": "uniform"}, {"kind": "full_covariance", "sigma": 1.0}):
        with pytest.raises(ValueError, match=r"expected subjects of at least two tokens in all to measure"):
            Corruption(NoiseSettings(**settings), embedding(), subjects)  # type: ignore[arg-type]
    Corruption(NoiseSettings(sigma=1.0), embedding(), subjects)
    Corruption(NoiseSettings("tokens"), embedding(), subjects)
