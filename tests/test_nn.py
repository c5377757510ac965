"""Networks of bits against the same networks on dense weights.

Stated tolerances: values and derivatives of float32 networks lie within 1e-4 (of the size of the values, all near 1) of the
dense network in float64. Networks of `step` are exact: their inputs here are whole numbers, so that no sum is rounded.
"""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from fastbin import BitMatrix
from fastbin.backprop import backprop
from fastbin.nn import BitLinear, WeightFreeNet

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
SMOOTH = ("relu", "tanh", "gelu")
NORMS = ("layer", "none")
FORMS = [("layer", None), ("none", None), ("layer", "none"), ("none", "layer")]  # norm and output_norm


class Step(torch.autograd.Function):
    """1[z > 0] with the documented straight-through derivative 1[|z| ≤ 1]."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return torch.where((z >= -1) & (z <= 1), g, 0)


ACTIVATE = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu, "step": Step.apply}


def dense_trace(net, x, dtype):
    """Logits and the outputs of each layer, on dense weights."""
    outputs = []
    h = x.to(dtype)
    for i, layer in enumerate(net.layers):
        w = layer.weight.unpack(dtype)
        a = F.linear(h, w)
        if not a.requires_grad:
            a.requires_grad_()
        outputs.append(a)
        norm = net.norm if i < len(net.layers) - 1 else net.output_norm
        z = F.layer_norm(a, a.shape[-1:]) if norm == "layer" else a / math.sqrt(w.shape[1])
        h = ACTIVATE[net.activation](z)
    return net.logit_scale * z, outputs


def make(widths, seed=0, **kwargs):
    torch.manual_seed(seed)
    return WeightFreeNet(widths, **kwargs)


def whole_numbers(*shape, seed=0):
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


WIDTHS = [(7, 3), (33, 65, 4), (40, 64, 31, 10), (1, 1, 1)]


@pytest.mark.parametrize(("norm", "output_norm"), FORMS)
@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("batch", [1, 9])
def test_values_and_derivatives_of_the_dense_network(widths, activation, norm, output_norm, batch):
    net = make(widths, activation=activation, norm=norm, output_norm=output_norm, logit_scale=1.7)
    x = torch.randn(batch, widths[0])
    y = torch.randint(0, widths[-1], (batch,))
    done = backprop(net, net.weights(), x, y)
    truth, dense_outputs = dense_trace(net, x, torch.float64)
    torch.testing.assert_close(done.logits.double(), truth, **TOLERANCE)
    torch.testing.assert_close(done.loss.double(), F.cross_entropy(truth, y), **TOLERANCE)
    assert torch.equal(net(x), done.logits)
    assert done.inputs[0] is x and [tuple(h.shape) for h in done.inputs] == [(batch, n) for n in widths[:-1]]
    truths = torch.autograd.grad(F.cross_entropy(truth, y), dense_outputs)
    for g, t in zip(done.grads, truths, strict=True):
        torch.testing.assert_close(g.double(), t, rtol=1e-4, atol=1e-4 * max(float(t.abs().max()), 1e-3))


@pytest.mark.parametrize(("norm", "output_norm"), FORMS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_step_is_the_dense_network_on_packed_layers(widths, norm, output_norm):
    net = make(widths, activation="step", norm=norm, output_norm=output_norm)
    x = whole_numbers(9, widths[0])
    y = torch.randint(0, widths[-1], (9,))
    done = backprop(net, net.weights(), x, y)
    truth, dense_outputs = dense_trace(net, x, torch.float32)
    assert torch.equal(done.logits, truth) and torch.equal(net(x), truth)
    assert done.inputs[0] is x and all(isinstance(h, BitMatrix) for h in done.inputs[1:])
    for h, a, n_in in zip(done.inputs[1:], dense_outputs, widths[:-1], strict=False):
        z = F.layer_norm(a, a.shape[-1:]) if norm == "layer" else a / math.sqrt(n_in)
        assert torch.equal(h.unpack(torch.bool), z > 0)
    truths = torch.autograd.grad(F.cross_entropy(truth, y), dense_outputs)
    for g, t in zip(done.grads, truths, strict=True):
        torch.testing.assert_close(g, t, rtol=1e-4, atol=1e-6)


def test_two_classes_keep_their_distance():
    x, y = torch.randn(64, 6), torch.arange(64) % 2
    net = make((6, 32, 2))
    assert (net.norm, net.output_norm) == ("layer", "none")
    ordered = WeightFreeNet((6, 32, 2), output_norm="layer", weights=net.weights())
    assert float((net(x)[:, 0] - net(x)[:, 1]).abs().std()) > 0.1
    # By the order alone the logits are 2 and -2, and only LayerNorm's epsilon lets a derivative through.
    assert bool((ordered(x).abs() > 1.9).float().mean() > 0.9)
    assert (
        backprop(net, net.weights(), x, y).grads[-1].abs().median()
        > 100 * backprop(ordered, ordered.weights(), x, y).grads[-1].abs().median()
    )


def test_step_counts_zero_as_off_and_lets_derivatives_through_up_to_one():
    # Without norm and with one input of 1, the hidden z is x itself.
    on = BitMatrix.pack(torch.ones(1, 1))
    two = BitMatrix.pack(torch.tensor([[1], [0]]))
    net = WeightFreeNet([1, 1, 2], activation="step", norm="none", logit_scale=1.0, weights=[on, two])
    x = torch.tensor([[-1.5], [-1.0], [-0.5], [0.0], [0.5], [1.0], [1.5]], requires_grad=True)
    logits = net(x)
    assert logits[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert torch.autograd.grad(logits.sum(), x)[0].flatten().tolist() == [0, 1, 1, 1, 1, 1, 0]
    through = backprop(net, net.weights(), x.detach(), torch.zeros(7, dtype=torch.int64)).grads[0]
    assert (through != 0).flatten().tolist() == [False, True, True, True, True, True, False]


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@pytest.mark.parametrize("norm", NORMS)
def test_derivative_in_the_inputs(activation, norm):
    net = make((6, 9, 4), activation=activation, norm=norm)
    x = torch.randn(3, 6, requires_grad=True)
    direction = torch.randn(3, 4)
    (g,) = torch.autograd.grad((net(x) * direction).sum(), x)
    wide = x.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad((dense_trace(net, wide, torch.float64)[0] * direction).sum(), wide)
    torch.testing.assert_close(g.double(), truth, rtol=1e-4, atol=1e-4)
    # Central differences of the float32 network itself, so that its values and derivatives belong together.
    eps, v = 1e-2, torch.randn(3, 6)
    with torch.no_grad():
        difference = ((net(x + eps * v) - net(x - eps * v)) * direction).sum() / (2 * eps)
    torch.testing.assert_close((g * v).sum(), difference, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision(dtype, tolerance):
    net = make((20, 40, 5))
    x = torch.randn(6, 20).to(dtype)
    logits = net(x)
    assert logits.dtype == dtype
    truth = dense_trace(net, x, torch.float64)[0]
    torch.testing.assert_close(logits.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activation", ["relu", "step"])
def test_without_gradients(activation):
    net = make((20, 40, 5), activation=activation).eval()
    x = whole_numbers(6, 20)
    eager = net(x)
    assert not eager.requires_grad  # there is nothing to derive in
    assert net(x.clone().requires_grad_()).requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = net(x)
        assert not y.requires_grad
        assert torch.equal(y, eager)


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")  # torch's own doing
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("activation", ["relu", "step"])
def test_compiles_whole(activation, gradients):
    net = make((20, 40, 33, 5), activation=activation)
    x = whole_numbers(6, 20)
    with torch.set_grad_enabled(gradients):
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-6, atol=1e-6)
        net.layers[0].words.copy_(BitMatrix.pack(torch.ones(40, 20)).words)  # nothing of the bits is baked in
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-6, atol=1e-6)


def test_compiled_derivatives():
    net = make((20, 40, 5), activation="gelu")
    x = torch.randn(6, 20, requires_grad=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    (eager,) = torch.autograd.grad(net(x).square().sum(), x)
    (ours,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(ours, eager)


# Modules among modules


def test_state_dict_and_copies():
    net, other = make((40, 50, 3)), make((40, 50, 3), seed=1)
    x = torch.randn(4, 40)
    assert not torch.equal(net(x), other(x))
    assert list(net.state_dict()) == ["layers.0.words", "layers.1.words"]
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        make((40, 51, 3)).load_state_dict(net.state_dict())
    twin = copy.deepcopy(net)
    before = net(x)
    twin.layers[0].words.zero_()
    assert torch.equal(net(x), before) and not torch.equal(twin(x), before)


def test_moves_leave_the_bits_alone():
    net = make((40, 50, 3))
    bits = [w.clone() for w in net.weights()]
    assert net.to("cpu", torch.float16).half().double().weights() == bits
    assert net.to("meta").layers[0].words.device.type == "meta"
    assert not list(net.parameters())


def test_weights_are_shared():
    bits = [BitMatrix.zeros(n_out, n_in) for n_in, n_out in pairwise((5, 4, 3))]
    net = WeightFreeNet([5, 4, 3], norm="none", weights=bits)
    assert net(torch.ones(1, 5)).tolist() == [[0, 0, 0]]
    for w in bits:
        w.words.copy_(BitMatrix.pack(torch.ones(w.shape)).words)
    expected = 2 * (5 / math.sqrt(5)) * 4 / math.sqrt(4)
    torch.testing.assert_close(net(torch.ones(1, 5)), torch.full((1, 3), expected))


def test_linear_takes_reals_and_bits():
    torch.manual_seed(0)
    layer = BitLinear(37, 5)
    assert 0.3 < layer.weight.density() < 0.7
    x = (torch.rand(4, 37) < 0.5).float()
    truth = x @ layer.weight.unpack().T
    assert torch.equal(layer(x), truth)
    assert torch.equal(layer(BitMatrix.pack(x)), truth) and layer(BitMatrix.pack(x)).dtype == torch.float32
    assert "in_features=37, out_features=5" in repr(layer)
    assert "activation='relu', norm='layer', logit_scale=2.0, output_norm='none'" in repr(WeightFreeNet([2, 2]))


# What cannot be


@pytest.mark.parametrize(
    ("widths", "kwargs", "message"),
    [
        ([], {}, r"got \[\]"),
        ([5], {}, r"got \[5\]"),
        ([5, 0], {}, "got 5 and 0"),
        ([5, -1, 2], {}, "got 5 and -1"),
        ([0, 2], {}, "got 0 and 2"),
        ([5, 2.5], {}, "2.5"),
        ([5, 2], {"activation": "swish"}, "'swish'"),
        ([5, 2], {"norm": "batch"}, "'batch'"),
        ([5, 2], {"logit_scale": 0.0}, "got 0.0"),
        ([5, 2], {"logit_scale": math.inf}, "got inf"),
        ([5, 2], {"logit_scale": math.nan}, "got nan"),
        ([5, 2], {"weights": []}, "need 1 weights, got 0"),
        ([5, 2], {"weights": [BitMatrix.zeros(2, 6)]}, r"\[2, 5\], got \[2, 6\]"),
        ([5, 2], {"weights": [BitMatrix.zeros(5, 2)]}, r"\[2, 5\], got \[5, 2\]"),
        ([5, 2], {"weights": [BitMatrix.zeros(1, 2, 5)]}, r"\[2, 5\], got \[1, 2, 5\]"),
    ],
)
def test_refused_networks(widths, kwargs, message):
    with pytest.raises(ValueError, match=message):
        WeightFreeNet(widths, **kwargs)


@pytest.mark.parametrize("activation", ["relu", "step"])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 6), ValueError, r"\[\.\., 5\].*\[3, 6\]"),
        (torch.zeros(3, 5, dtype=torch.float64), TypeError, "float64"),
        (torch.zeros(3, 5, dtype=torch.int64), TypeError, "int64"),
        (torch.zeros(3, 5, dtype=torch.int8), TypeError, "int8"),
        (torch.zeros(5), ValueError, r"\[5\]"),
        (torch.zeros(2, 3, 5), ValueError, r"\[2, 3, 5\]"),
        (torch.zeros(3, 5, device="meta"), ValueError, "meta"),
        ([[0.0] * 5], TypeError, "list"),
    ],
)
def test_refused_inputs(activation, x, error, message):
    net = WeightFreeNet([5, 4, 2], activation=activation)
    with pytest.raises(error, match=message):
        net(x)
    with torch.no_grad(), pytest.raises(error, match=message):
        net(x)
