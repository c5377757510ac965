"""Dense layers as packed ones: the same outputs, and a reason for each that is left; copies and states of every module."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from bench.checks import generator
from fastbin import BitMatrix, SearchConfig, convert
from fastbin.nn import BitLinear, SignLinear, TernaryLinear, WeightFreeNet
from fastbin.result import make_net

X = torch.randint(-8, 9, (7, 40), generator=generator(1)).float()  # whole numbers: the sums are exact


def dense(values: list[float], scale: Tensor | float = 1.0, bias: bool = True, rows: int = 5) -> nn.Linear:
    """A layer with weights out of `values`, each of them in its first row, times a scale."""
    layer = nn.Linear(40, rows, bias=bias)
    picks = torch.randint(0, len(values), (rows, 40), generator=generator(len(values)))
    picks[0, : len(values)] = torch.arange(len(values))
    layer.weight.data = torch.tensor(values)[picks] * scale
    return layer


ROWS = torch.tensor([[0.5], [2.0], [1.0], [0.25], [4.0]])
CASES = {
    "bits": (dense([0, 1]), BitLinear, None),
    "bits, scaled": (dense([0, 0.25]), BitLinear, []),
    "bits, negative": (dense([0, -2.0]), BitLinear, []),
    "bits, a scale a row": (dense([0, 1], ROWS), BitLinear, [5]),
    "bits, a sign a row": (dense([0, 1], torch.tensor([[1.0], [-1], [1], [-1], [1]])), BitLinear, [5]),
    "all 0": (dense([0]), BitLinear, None),
    "all alike": (dense([3.0]), BitLinear, []),
    "signs": (dense([-1, 1]), SignLinear, None),
    "signs, scaled": (dense([-0.5, 0.5], bias=False), SignLinear, []),
    "ternary": (dense([-1, 0, 1]), TernaryLinear, None),
    "ternary, a scale a row": (dense([-1, 0, 1], ROWS), TernaryLinear, [5]),
}


@pytest.mark.parametrize("case", CASES)
def test_layers(case: str) -> None:
    layer, kind, shape = CASES[case]
    before = copy.deepcopy(layer)
    result = convert(layer)
    packed = result.module
    assert type(packed) is kind and result.converted == {"": kind.__name__} and not result.left
    assert (packed.scale is None) if shape is None else (list(packed.scale.shape) == shape)
    assert (packed.in_features, packed.out_features) == (40, 5)
    torch.testing.assert_close(packed(X), layer(X), rtol=1e-6, atol=1e-6)
    assert torch.equal(layer.weight, before.weight)  # what is given is not changed
    if layer.bias is not None:
        packed.bias.data += 1
        assert torch.equal(layer.bias, before.bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(dtype: torch.dtype) -> None:
    layer = dense([-1, 0, 1], 0.5).to(dtype)
    packed = convert(layer).module
    y = packed(X.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y, layer(X.to(dtype)), rtol=2.0**-7, atol=1e-2)


def test_pruned_layers() -> None:
    layer = nn.Linear(40, 5)
    nn.init.constant_(layer.weight, 0.125)
    prune.random_unstructured(layer, "weight", amount=0.6)
    prune.random_unstructured(layer, "bias", amount=2)
    with torch.no_grad():
        layer.weight_orig.mul_(2)  # what the mask is applied to at the next call
    packed = convert(layer).module
    assert isinstance(packed, BitLinear) and float(packed.scale) == 0.25
    assert int(packed.weight.count()) == 80 and int((packed.bias != 0).sum()) == 3
    torch.testing.assert_close(packed(X), layer(X), rtol=1e-6, atol=1e-6)


class Odd(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_what_is_left_alone() -> None:
    hooked, infinite = dense([0, 1]), dense([0, 1])
    hooked.register_forward_hook(lambda *_: None)
    infinite.weight.data[2, 3] = torch.inf
    two = dense([0, 1])
    two.weight.data[1, 4] = 0.5
    net = nn.ModuleDict({
        "fits": nn.Sequential(dense([0, 1]), nn.ReLU()),
        "two": two,
        "infinite": infinite,
        "hooked": hooked,
        "subclass": Odd(40, 5),
        "normed": parametrizations.weight_norm(dense([0, 1])),
        "float64": dense([0, 1]).double(),
        "meta": nn.Linear(40, 5, device="meta"),
        "encoder": nn.TransformerEncoderLayer(40, 2, 40),
        "conv": nn.Conv1d(1, 1, 1),
    })  # fmt: skip
    nn.init.zeros_(net["encoder"].linear1.weight)
    result = convert(net)
    assert result.converted == {"fits.0": "BitLinear"}
    assert result.left == {
        "two": "weight[1, 4] is 0.5, in a row whose largest size is 1",
        "infinite": "weight[2, 3] is inf, in a row whose largest size is inf",
        "hooked": "it has hooks",
        "subclass": "it is a Odd, which may do more than its weight and bias say",
        "normed": "it is a ParametrizedLinear, which may do more than its weight and bias say",
        "float64": "its weight is torch.float64 on cpu",
        "meta": "its weight is torch.float32 on meta",
        "encoder.self_attn.out_proj": "it is a NonDynamicallyQuantizableLinear, which may do more than its weight and "
        "bias say",
        "encoder.linear1": "its parent, a TransformerEncoderLayer, reads its weight",
        "encoder.linear2": "its parent, a TransformerEncoderLayer, reads its weight",
    }
    assert type(result.module["subclass"]) is Odd and type(net["fits"][0]) is nn.Linear
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got int"):
        convert(3)  # type: ignore[arg-type]


def test_a_whole_model() -> None:
    shared = dense([-1, 0, 1], 0.5, rows=40)
    net = nn.Sequential(dense([0, 1], rows=40), nn.ReLU(), shared, nn.LayerNorm(40), shared, nn.Linear(40, 3)).eval()
    result = convert(net)
    assert result.converted == {"0": "BitLinear", "2": "TernaryLinear"} and list(result.left) == ["5"]
    assert result.module[2] is result.module[4] and not any(m.training for m in result.module.modules())
    torch.testing.assert_close(result.module(X), net(X), rtol=1e-4, atol=1e-4)
    sizes = [sum(len(t.untyped_storage()) for t in m.state_dict().values()) for m in (result.module[0], net[0])]
    assert sizes == [40 * 2 * 4 + 40 * 4, 40 * 40 * 4 + 40 * 4]


def test_biases_are_learned_and_what_comes_before() -> None:
    net = nn.Sequential(nn.Linear(40, 40), dense([-1, 0, 1], 0.5))
    packed = convert(net).module
    for module in (net, packed):
        module(X).square().sum().backward()
    torch.testing.assert_close(packed[0].weight.grad, net[0].weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(packed[1].bias.grad, net[1].bias.grad, rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------------------------------------------------- modules

MODULES = {
    **{name: convert(layer).module for name, (layer, _, _) in CASES.items()},
    "plain": BitLinear(40, 5),
    **{f"net, {act}": WeightFreeNet([40, 33, 5], activation=act) for act in ("relu", "tanh", "gelu", "step")},
    "net of a configuration": make_net(SearchConfig(hidden=(9,)), (40, 9, 5), [
        BitMatrix.pack(torch.eye(9, 40)), BitMatrix.pack(torch.ones(5, 9)),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_copies_and_states(name: str) -> None:
    module = MODULES[name]
    wanted = module(X)
    twin = copy.deepcopy(module)
    for t in twin.state_dict().values():
        t.zero_()
    assert torch.equal(module(X), wanted)  # the copy's memory is its own
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    assert twin.load_state_dict(torch.load(file, weights_only=True)).missing_keys == []
    assert torch.equal(twin(X), wanted)


def test_modules_refuse() -> None:
    w, other = BitMatrix.pack(torch.ones(5, 40)), BitMatrix.pack(torch.ones(5, 41))
    for message, call in (
        (r"scale must have shape \[\] or \[5\], got \[2\]", lambda: BitLinear(40, 5, scale=torch.ones(2))),
        (r"bias must have shape \[5\], got \[4\]", lambda: SignLinear(w, bias=torch.ones(4))),
        (r"two matrices of one shape, got BitMatrix\(shape=\(5, 40\)", lambda: TernaryLinear(w, other)),
        ("weight must be one matrix", lambda: SignLinear(BitMatrix.pack(torch.ones(2, 5, 40)))),
        ("SignLinear needs at least 1 feature in and out, got 40 and 0", lambda: SignLinear(BitMatrix.zeros(0, 40))),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_bits_in() -> None:
    bits = X > 0
    layer = BitLinear(40, 5, weight=BitMatrix.pack(torch.ones(5, 40)), scale=0.5, bias=torch.arange(5.0))
    assert torch.equal(layer(BitMatrix.pack(bits)), layer(bits.float()))
