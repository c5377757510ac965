"""Null models: what they keep, and that they forget the rest."""

from __future__ import annotations

import pytest
import torch
from networks import reals

from bench.checks import matrix
from fastbin import BitMatrix
from fastbin.spectra import same_degrees, same_density


@pytest.mark.parametrize(("rows", "cols"), [(40, 33), (1, 65), (7, 1), (0, 5), (5, 0), (64, 200)])
@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
def test_null_models_keep_what_they_say(rows, cols, density):
    w = matrix((rows, cols), 5, density)
    (dealt,), (swapped,) = same_density([w], seed=1), same_degrees([w], seed=1)
    assert dealt.shape == swapped.shape == w.shape and int(dealt.count()) == int(w.count())
    BitMatrix.from_words(swapped.words, cols), BitMatrix.from_words(dealt.words, cols)  # their tail bits are 0
    for axis in (0, 1):
        assert swapped.unpack().sum(axis).equal(w.unpack().sum(axis))
    assert [same_degrees([w], seed=1)[0], same_density([w], seed=1)[0]] == [swapped, dealt]


def test_null_models_forget_the_rest():
    """Half of the rows hold the left half of the columns, the others the right one: a pattern, and degrees of no meaning."""
    pattern = torch.zeros(64, 96, dtype=torch.bool)
    pattern[:32, :48] = pattern[32:, 48:] = True
    for model, places in ((same_density, 64 * 96), (same_degrees, 64 * 96)):
        kept = [
            int((model([BitMatrix.pack(pattern)], seed)[0].unpack(torch.bool) & pattern).sum()) for seed in range(10)
        ]
        # As many as chance leaves: half of the edges; the deviation of the mean of ten is below 20.
        assert abs(sum(kept) / 10 - int(pattern.sum()) / 2) <= 80, (model, places)


def test_every_structure_of_the_degrees_is_as_likely():
    """The six 3 x 3 permutation matrices: 300 draws, chi-squared with 5 degrees of freedom."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(300):
        (w,) = same_degrees([BitMatrix.pack(torch.eye(3))], seed, sweeps=8)
        key = tuple(w.unpack().argmax(1).tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert sum((n - 50) ** 2 / 50 for n in counts.values()) < 20.5  # p = 0.001


def test_null_models_of_real_weights():
    (w,) = reals((30, 20), 0.4)
    (dealt,), (swapped,) = same_density([w], seed=1), same_degrees([w], seed=1)
    for made in (dealt, swapped):
        assert made.flatten().sort().values.equal(w.flatten().sort().values) and not made.equal(w)
    assert swapped.sort(1).values.equal(w.sort(1).values)  # each unit's own weights
    assert (swapped != 0).sum(0).equal((w != 0).sum(0))
