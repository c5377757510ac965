"""The steps of an epoch: the same with and without a CUDA graph, and free of anything that would wait for a GPU."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from stand_in_graph import Frozen, StandIn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastbin import SearchConfig, backends, library, search, steps
from fastbin.descent import Search
from fastbin.steps import Part, Steps

WIDTHS = [70, 50, 40, 3]


def after_two_epochs(config, capture):
    searching = Search(config, WIDTHS)
    x = torch.randn(70, WIDTHS[0], generator=torch.Generator().manual_seed(1))
    running = Steps(searching.step, 3, Part(x, torch.arange(70) % 3), 16, capture)
    for epoch in range(2):
        rules = [config.rule_at((5 * epoch + i) / 10) for i in range(5)]
        batches = torch.randperm(70, generator=torch.Generator().manual_seed(epoch)).split(16)
        running.run(batches, rules, torch.tensor([[rule.constants()] for rule in rules], dtype=torch.float64))
    return [*searching.tensors().values(), running.loss, running.correct, running.flips]


@pytest.mark.parametrize("options", [{}, {"estimator": "sample"}, {"rule": "bop", "activation": "step"}])
def test_captured_steps_do_what_the_others_do(options, monkeypatch):
    monkeypatch.setattr(steps, "Graph", StandIn)
    config = SearchConfig(hidden=WIDTHS[1:-1], **options)
    plain = after_two_epochs(config, False)
    made = StandIn.made
    captured = after_two_epochs(config, True)
    assert StandIn.made == made + 1  # for both epochs, whose last batches are short
    assert all(map(torch.equal, captured, plain))


def test_constants_that_a_capture_froze_would_show(monkeypatch):
    monkeypatch.setattr(steps, "Graph", Frozen)
    config = SearchConfig(hidden=WIDTHS[1:-1])
    assert not all(map(torch.equal, after_two_epochs(config, True), after_two_epochs(config, False)))


def test_a_whole_search_is_the_same_captured(monkeypatch):
    data = torch.randn(60, 8), torch.arange(60) % 3
    config = SearchConfig(hidden=(12, 10), epochs=3, batch_size=16, estimator="sample", input_dropout=0.2)
    plain = search.run_search(data, config)
    monkeypatch.setattr(steps, "Graph", StandIn)
    monkeypatch.setattr(search, "capturable", lambda config: True)
    captured = search.run_search(data, config)
    for mine, other in zip(captured.history, plain.history, strict=True):
        assert dataclasses.replace(mine, seconds=0.0) == dataclasses.replace(other, seconds=0.0)
    assert captured.net.weights() == plain.net.weights()


def test_what_is_captured():
    assert not search.capturable(SearchConfig())
    assert search.capturable(SearchConfig(device="cuda:1")) and search.capturable(
        SearchConfig(device="cuda", estimator="sample")
    )
    assert not search.capturable(SearchConfig(device="cuda", estimator="soft"))
    with backends.override("reference"):
        assert not search.capturable(SearchConfig(device="cuda"))


class NoWaiting(TorchDispatchMode):
    """Fails when an op brings numbers from the host to the GPU, for which meta tensors stand, or back."""

    def __init__(self):
        super().__init__()
        self.ops = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.add(func.name())
        assert func.name() not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh"), func
        out = func(*args, **(kwargs or {}))
        flat = torch.utils._pytree.tree_leaves((args, kwargs, out))
        devices = {t.device.type for t in flat if isinstance(t, torch.Tensor)}
        assert devices <= {"meta"}, f"{func} is on {devices}"
        return out


class NoHostNumbers(TorchFunctionMode):
    """Fails when a tensor is made of Python's numbers, whose copy to a GPU no dispatch mode sees."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor, torch.from_numpy), f"{func} brings numbers from the host"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_waiting():
    with NoHostNumbers(), NoWaiting() as seen:
        yield seen


@pytest.fixture
def launched(monkeypatch):
    """Triton's kernels as they are called on a GPU, but for the launches, whose kernels this names."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    names = []
    monkeypatch.setattr(
        triton.runtime.jit.JITFunction, "run", lambda self, *args, **kwargs: names.append(self.fn.__name__)
    )
    monkeypatch.setattr(torch.cuda, "device_of", lambda t: contextlib.nullcontext())

    def call(self, *args):
        on_cpu = any(t.is_cpu for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor))
        return backends._load(self.name, *(("cpu", "auto") if on_cpu else ("cuda", "triton")))(*args)

    monkeypatch.setattr(library.Op, "__call__", call)
    return names


def searching_on_a_gpu(config):
    found = Search(config, WIDTHS)
    found.net.to("meta")
    found.scores = [None if s is None else s.to("meta") for s in found.scores]
    found.states = [
        dataclasses.replace(
            s, buffers=tuple(b.to("meta") for b in s.buffers), step=s.step.to("meta"), seed=s.seed.to("meta")
        )
        for s in found.states
    ]
    x = torch.empty(64, WIDTHS[0], dtype=getattr(torch, config.activations), device="meta")
    return found, Steps(found.step, 3, Part(x, torch.empty(64, dtype=torch.int64, device="meta")), 16, False)


@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "step"},
        {"activation": "tanh", "norm": "none", "rule": "sgd"},
        {"activation": "gelu", "estimator": "sample"},
        {"activation": "step", "rule": "bop"},
    ],
)
def test_a_step_waits_for_nothing(options, activations, launched):
    config = SearchConfig(hidden=WIDTHS[1:-1], activations=activations, **options)
    _, running = searching_on_a_gpu(config)
    rule = config.rule_at(0.0)
    batch, hyper = torch.empty(16, dtype=torch.int64, device="meta"), rule.hyper(1, torch.device("meta"))
    with no_waiting() as seen:
        running.step(batch, rule, hyper)
    assert "aten::nll_loss_backward" in seen.ops
    assert {"_begin_step"} < set(launched)
    assert ("_pack" in launched) is (config.activation == "step")


def test_what_would_wait_is_seen(launched):
    config = SearchConfig(hidden=WIDTHS[1:-1])
    found, running = searching_on_a_gpu(config)
    x, y = running.train.x[:16], running.train.y[:16]
    with no_waiting(), pytest.raises(AssertionError, match="from the host"):
        found.step(x, y, config.rule_at(0.0))  # its constants come from the host
    with no_waiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        library.pack(x, 0.0)  # looks for NaN


def test_bfloat16_activations_change_little():
    torch.manual_seed(0)
    x, y = torch.randn(64, 70), torch.arange(64) % 3
    config = SearchConfig(hidden=WIDTHS[1:-1], activation="tanh")
    rule = config.rule_at(0.0)
    runs = [Search(config, WIDTHS), Search(config, WIDTHS)]
    losses = [s.step(x.to(dtype), y, rule)[0] for s, dtype in zip(runs, (torch.float32, torch.bfloat16), strict=True)]
    assert all(loss.dtype == torch.float32 for loss in losses) and not torch.equal(*losses)
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
    for mine, other in zip(runs[1].states, runs[0].states, strict=True):
        error = (mine.buffers[0] - other.buffers[0]).norm() / other.buffers[0].norm()
        assert error < 0.05


def test_a_search_in_bfloat16_learns():
    result = search.run_search("digits", SearchConfig(epochs=5, activations="bfloat16"))
    assert result.test_accuracy > 0.93
    assert next(iter(result.net(torch.zeros(1, 64)))).dtype == torch.float32
