"""Fixed encodings of raw inputs: nothing in them is learned."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Encoding = Literal["none", "upright"]
_AT_ONCE = 4096  # images; bounds memory, changes no result


def encode(encoding: Encoding, x: Tensor) -> Tensor:
    """Raw inputs ``[n, d]`` as a network takes them before they are standardised; same shape.

    Raises:
        ValueError: `upright` gets what cannot be a square image: d is no square number, or a value is negative.
    """
    if encoding == "none":
        return x
    side = math.isqrt(x.shape[1])
    if side * side != x.shape[1]:
        raise ValueError(f"encoding upright needs square images, but {x.shape[1]} features are no square number")
    if bool((x < 0).any()):
        raise ValueError(f"encoding upright needs pixels of at least 0, got {float(x.min())}")
    return torch.cat([upright(images) for images in x.split(_AT_ONCE)])


def upright(x: Tensor) -> Tensor:
    """Images ``[B, side²]`` moved to the centre of their mass and sheared until strokes stand upright; same shape.

    With a pixel at u along and v down from the centre of mass, the shear u ← u + v·mean(u·v)/mean(v²) makes mean(u·v) zero.
    """
    side = math.isqrt(x.shape[1])
    image = x.view(-1, 1, side, side)
    along = (2 * torch.arange(side, device=x.device) + 1) / side - 1  # pixel centres; the image is [-1, 1]²
    mass = image.sum((2, 3)).clamp_min(1e-6).squeeze(1)
    u0 = (image.sum(2).squeeze(1) * along).sum(1) / mass
    v0 = (image.sum(3).squeeze(1) * along).sum(1) / mass
    u, v = along - u0[:, None], along - v0[:, None]
    weights = image.squeeze(1)
    uv = (weights * v[:, :, None] * u[:, None, :]).sum((1, 2))
    vv = (weights * v.square()[:, :, None]).sum((1, 2)).clamp_min(1e-6)
    one, zero = torch.ones_like(mass), torch.zeros_like(mass)
    transform = torch.stack([torch.stack([one, uv / vv, u0], 1), torch.stack([zero, one, v0], 1)], 1)
    grid = F.affine_grid(transform, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, align_corners=False).flatten(1)
