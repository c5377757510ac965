"""Fixed encodings of inputs."""

import math

import numpy as np
import pytest
import torch

from fastbin import SearchConfig, load_result, run_search
from fastbin.data import Dataset, Standardizer
from fastbin.encodings import encode, upright

SIDE = 28
ALONG = (2 * torch.arange(SIDE) + 1) / SIDE - 1


def strokes(slant, u0=0.0, v0=0.0):
    """Images of one soft stroke each, leaning by `slant`, its middle at (u0, v0) of [-1, 1]²."""
    slant, u0, v0 = (torch.as_tensor(t, dtype=torch.float64).view(-1, 1, 1) for t in (slant, u0, v0))
    u, v = ALONG.view(1, 1, -1) - u0, ALONG.view(1, -1, 1) - v0
    return (255 * torch.exp(-((u - slant * v) ** 2) / 0.02 - v**4 / 0.1)).float().flatten(1)


def moments(x):
    """Centre of mass, and mean of u·v about it over the mean of v²."""
    image = x.double().view(-1, SIDE, SIDE)
    image = image / image.sum((1, 2), keepdim=True)
    u0, v0 = (image.sum(1) * ALONG).sum(1), (image.sum(2) * ALONG).sum(1)
    u, v = ALONG - u0[:, None], ALONG - v0[:, None]
    return u0, v0, torch.einsum("byx,by,bx->b", image, v, u) / torch.einsum("byx,by->b", image, v**2)


def test_strokes_stand_upright_in_the_middle():
    slant = torch.linspace(-0.6, 0.6, 13)
    x = strokes(slant, 0.2 * slant, -0.1)
    torch.testing.assert_close(moments(x)[2], slant.double(), atol=0.02, rtol=0)
    y = upright(x)
    assert y.shape == x.shape
    for moment in moments(y):  # bilinear interpolation on pixels of 2/28 leaves a part of a hundredth of one
        assert moment.abs().max() < 0.01
    # Linear interpolation errs by h²/8 of a second derivative at most: 100 along u, 100·0.6² + 20 along v, with h = 2/28.
    torch.testing.assert_close(y, strokes(0.0).expand_as(y), atol=0.1 * 255, rtol=0)


def test_an_upright_image_stays_and_a_blank_one_too():
    x = torch.cat([strokes(0.0), torch.zeros(1, SIDE**2)])
    torch.testing.assert_close(upright(x), x, atol=0.01 * 255, rtol=0)


def test_many_images_at_once():
    x = torch.rand(4100, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encode("upright", x), upright(x)) and encode("none", x) is x


def test_what_is_no_image():
    with pytest.raises(ValueError, match="15 features"):
        encode("upright", torch.ones(2, 15))
    with pytest.raises(ValueError, match=r"-0\.5"):
        encode("upright", torch.tensor([[1.0, 2.0, -0.5, 0.0]]))
    with pytest.raises(ValueError, match="30 features"):
        run_search("breast_cancer", SearchConfig(hidden=(8,), epochs=1, encoding="upright"))


def test_a_search_and_its_file_take_raw_images(tmp_path):
    rng = np.random.default_rng(0)
    y = torch.from_numpy(np.arange(240) % 2)  # strokes and pairs of strokes, all leaning at random
    slant, apart = torch.from_numpy(rng.uniform(-0.6, 0.6, 240)), 0.5 * y
    x = strokes(slant, -apart / 2) + strokes(slant, apart / 2)
    data = Dataset("strokes", x[:160], y[:160], x[160:], y[160:], (0, 1), pixels=True)
    result = run_search(data, SearchConfig(hidden=(16,), epochs=3, batch_size=16, encoding="upright"), out=tmp_path)
    again = load_result(tmp_path / "network.safetensors")
    assert again.standardizer.encoding == "upright"
    assert torch.equal(again.logits(x[160:]), result.logits(x[160:]))
    assert result.score(x[160:], y[160:]) == result.test_accuracy > 0.9
    # The network sees what it would see of images that were made upright before.
    standardizer = Standardizer(result.standardizer.mean, result.standardizer.scale)
    with torch.no_grad():
        assert torch.equal(result.net(standardizer.transform(upright(x))), result.logits(x))
    assert math.isclose(float(result.standardizer.transform(x[:160]).mean()), 0.0, abs_tol=0.05)
