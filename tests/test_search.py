"""The search: each step against a dense computation of its own, and what run_search promises.

Stated tolerance: after three steps scores lie within 1/100 of their layer's largest move of the dense float64 ones, and bits
are equal wherever the dense score is further from 0 than that; losses lie within 1e-4 of their size. (Where activations
saturate, Adam divides what float32 leaves of a derivative by its own size: it is tested with norm.)
"""

import dataclasses
import math
import random
import statistics

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastbin import BitMatrix, SearchConfig, SearchError, library, reference, run_search
from fastbin.data import Standardizer, load_dataset, split_validation, without_test
from fastbin.descent import Search, derived_seed
from fastbin.result import EpochRecord, evaluate
from fastbin.run import _better

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden": (12, 10), "epochs": 2, "batch_size": 16, "validation": 0.2}
ACTIVATE = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu}


def blobs(samples=60, features=8, classes=3, seed=0):
    """Whole-numbered inputs around one centre a class; labels 0, 1, ..."""
    rng = np.random.default_rng(seed)
    y = np.arange(samples) % classes
    return np.round(rng.normal(0, 40, (classes, features))[y] + rng.normal(100, 15, (samples, features))), y


def config(**values):
    return SearchConfig(**{**SMALL, **values})


# One step


def dense_logits(weights, x, c):
    h = x.double()
    for i, w in enumerate(weights):
        a = F.linear(h, w)
        norm = c.norm if i < len(weights) - 1 else c.output_norm or c.norm
        z = F.layer_norm(a, a.shape[-1:]) if norm == "layer" else a / math.sqrt(w.shape[1])
        h = ACTIVATE[c.activation](z)
    return c.logit_scale * z


def optimizer_of(c, scores):
    if c.rule == "adam":
        return torch.optim.Adam(scores, lr=c.lr, betas=c.betas, eps=1e-8)
    return torch.optim.SGD(scores, lr=c.lr, momentum=c.momentum)


@pytest.mark.parametrize(
    ("rule", "activation", "norm", "output_norm"),
    [("adam", a, "layer", None) for a in ACTIVATE]
    + [("sgd", a, n, None) for a in ACTIVATE for n in ("layer", "none")]
    + [("sgd", "relu", "layer", "none"), ("sgd", "relu", "none", "layer")],
)
@pytest.mark.parametrize("estimator", ["hard", "sample", "soft"])
def test_steps_equal_a_dense_computation(estimator, rule, activation, norm, output_norm):
    c = config(
        estimator=estimator,
        rule=rule,
        activation=activation,
        norm=norm,
        output_norm=output_norm,
        tau=0.5,
        init_std=0.1,  # far from where a gradient is so small that Adam makes a step of its rounding
        momentum=0.8,
        logit_scale=0.25,
        lr=0.01 if rule == "adam" else 4.0,
    )
    widths = [8, 12, 10, 3]
    search = Search(c, widths)
    dense = [s.double().clone().requires_grad_() for s in search.scores]
    start = [s.clone() for s in search.scores]
    optimizer = optimizer_of(c, dense)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(16, 8, generator=generator)
        y = torch.randint(0, 3, (16,), generator=generator)
        before = [w.unpack(torch.float64) for w in search.net.weights()]
        soft = [torch.sigmoid(s / c.tau) for s in dense]
        weights = soft if estimator == "soft" else [w.requires_grad_() for w in before]
        logits = dense_logits(weights, x, c)
        truth = F.cross_entropy(logits, y)
        if estimator == "soft":
            grads = torch.autograd.grad(truth, dense)
        else:
            by_bit = torch.autograd.grad(truth, weights)
            grads = [g * s.detach() * (1 - s.detach()) / c.tau for g, s in zip(by_bit, soft, strict=True)]
        for s, g in zip(dense, grads, strict=True):
            s.grad = g
        optimizer.step()
        loss, correct, flips = search.step(x, y, c.rule_at(0.0))
        torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-4, atol=0)
        first, second = logits.detach().topk(2).values.unbind(1)
        ties = int((first - second < 1e-4).sum())
        assert abs(int(correct) - int((logits.argmax(1) == y).sum())) <= ties < len(y)
        changed = [(w.unpack(torch.float64) != b).sum() for w, b in zip(search.net.weights(), before, strict=True)]
        assert flips.tolist() == [int(n) for n in changed]
    for i, (s, d) in enumerate(zip(search.scores, dense, strict=True)):
        moved = float((s - start[i]).abs().max())
        assert moved > 1e-4 and float((s - d.detach()).abs().max()) < moved / 100
        bits = search.net.weights()[i].unpack(torch.bool)
        if estimator == "sample":
            seed = search.states[i].seed
            assert torch.equal(search.net.weights()[i].words, reference.sample_bits(s, c.tau, seed, 3))
        else:
            assert bool(((bits == (d > 0)) | (d.abs() < moved / 100)).all())
        assert search.found()[i] == BitMatrix.pack(s, threshold=0.0)
        assert search.states[i].step.item() == 3


def test_bop_steps_equal_a_dense_computation():
    c = config(rule="bop", gamma=0.3, threshold=1e-3)
    search = Search(c, [8, 12, 10, 3])
    means = [torch.zeros(w.shape, dtype=torch.float64) for w in search.net.weights()]
    x, y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
    flipped = 0
    for _ in range(4):
        bits = [w.unpack(torch.float64).requires_grad_() for w in search.net.weights()]
        grads = torch.autograd.grad(F.cross_entropy(dense_logits(bits, x, c), y), bits)
        means = [0.7 * m + 0.3 * g for m, g in zip(means, grads, strict=True)]
        flipped += int(search.step(x, y, c.rule_at(0.0))[2].sum())
        for m, b, state, w in zip(means, bits, search.states, search.net.weights(), strict=True):
            torch.testing.assert_close(state.buffers[0].double(), m, rtol=1e-4, atol=1e-6)
            now = w.unpack(torch.float64)
            expected = torch.where(b.detach() == 1, ~(m > 1e-3), m < -1e-3).double()
            assert bool(((now == expected) | ((m.abs() - 1e-3).abs() < 1e-6)).all())
    assert flipped > 0 and search.scores == [None] * 3
    found = search.found()
    assert found == search.net.weights() and found[0].words is not search.net.weights()[0].words


class NoDense(TorchDispatchMode):
    """Fails when an op makes a tensor as large as the matrices of bits, of the shape of one."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = {tuple(s) for s in shapes} | {tuple(reversed(s)) for s in shapes}
        self.ops = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.ops.add(func.name())
        for t in out if isinstance(out, (tuple, list)) else (out,):
            assert not (isinstance(t, torch.Tensor) and tuple(t.shape) in self.shapes), f"{func} made {t.shape}"
        return out


@pytest.mark.parametrize("activation", ["relu", "step"])
@pytest.mark.parametrize("estimator", ["hard", "sample"])
def test_steps_on_bits_make_no_dense_matrix(estimator, activation, monkeypatch):
    def refuse(*args):
        raise AssertionError("bits were unpacked")

    c = config(estimator=estimator, activation=activation)
    search = Search(c, [70, 50, 40, 3])
    x, y = torch.randn(16, 70), torch.arange(16) % 3
    monkeypatch.setattr(BitMatrix, "unpack", refuse)
    monkeypatch.setattr(library, "unpack", refuse)
    monkeypatch.setattr(reference, "unpack", refuse)
    with NoDense([w.shape for w in search.net.weights()]) as seen:
        search.step(x, y, c.rule_at(0.0))
    assert {"fastbin::bit_linear", "fastbin::mask_grad_update_"} <= seen.ops
    assert ("fastbin::bit_matmul" in seen.ops) is (activation == "step")


# Whole searches


def test_digits_reach_their_number():
    accuracies = []
    for seed in range(5):
        c = SearchConfig(seed=seed)
        assert sum(c.hidden) <= 784 and c.estimator == "hard"
        accuracies.append(run_search("digits", c).test_accuracy)
    assert statistics.mean(accuracies) >= 0.975, accuracies


COMBINATIONS = [
    (estimator, rule, activation, norm)
    for estimator in ("hard", "sample", "soft")
    for rule in ("adam", "sgd", "bop")
    for activation in ("relu", "tanh", "gelu", "step")
    for norm in ("layer", "none")
    if (rule != "bop" or estimator == "hard") and (activation != "step" or estimator != "soft")
]


@pytest.mark.parametrize(("estimator", "rule", "activation", "norm"), COMBINATIONS)
def test_every_allowed_combination_runs(estimator, rule, activation, norm):
    c = config(estimator=estimator, rule=rule, activation=activation, norm=norm)
    result = run_search(blobs(), c)
    assert [record.epoch for record in result.history] == [1, 2]
    for record in result.history:
        assert all(math.isfinite(v) and v >= 0 for v in (record.train_loss, record.validation_loss, *record.density))
        assert 0 <= record.train_accuracy <= 1 and len(record.flips) == len(record.density) == 3
    assert result.net.widths == (8, 12, 10, 3) and result.test_accuracy is None
    assert len(result.predict(blobs()[0])) == 60


@pytest.mark.parametrize(
    "values",
    [
        {}, {"estimator": "sample", "tau": 0.3}, {"estimator": "soft"}, {"rule": "sgd"}, {"activation": "step"},
        {"activation": "tanh"}, {"activation": "gelu"}, {"rule": "bop", "gamma": 0.1, "threshold": 1e-3},
    ],
    ids=str,
)  # fmt: skip
def test_the_loss_goes_down(values):
    result = run_search(blobs(120), config(epochs=15, hidden=(48, 48), lr=0.1, **values))
    losses = [record.train_loss for record in result.history]
    assert statistics.mean(losses[-3:]) < 0.7 * losses[0], losses
    assert result.score(*blobs(120)) > 0.8


def test_seeds():
    data = blobs()
    for estimator in ("hard", "sample"):
        first, again, other = (run_search(data, config(estimator=estimator, seed=seed)) for seed in (3, 3, 4))
        assert first.net.weights() == again.net.weights()
        assert [r.train_loss for r in first.history] == [r.train_loss for r in again.history]
        assert first.net.weights() != other.net.weights()
    starts = [Search(config(seed=seed, estimator="sample"), [8, 12, 10, 3]) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(starts[0].scores, starts[1].scores, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(starts[0].scores, starts[2].scores, strict=True))
    assert starts[0].net.weights()[0] != starts[0].found()[0]  # sampled from the start


def test_no_other_random_state_is_touched():
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    run_search(blobs(), config(estimator="sample", input_dropout=0.2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()  # noqa: NPY002
    here = run_search(blobs(), config()).net.weights()
    torch.manual_seed(7)
    assert here == run_search(blobs(), config()).net.weights()


@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
def test_input_dropout(monkeypatch, activations):
    x = np.random.default_rng(0).normal(0, 1, (400, 50))
    y = np.arange(400) % 3
    seen, step = [], Search.step

    def watched(self, x, y, rule, hyper=None):
        seen.append(x.clone())
        return step(self, x, y, rule, hyper)

    monkeypatch.setattr(Search, "step", watched)
    c = config(validation=0, batch_size=400, activations=activations, logit_scale=0.5)
    whole = run_search((x, y), c)
    dropped = run_search((x, y), config(**{**dataclasses.asdict(c), "input_dropout": 0.3}))
    assert whole.history != dropped.history and torch.equal(whole.standardizer.mean, dropped.standardizer.mean)
    for epoch in range(2):
        before, after = seen[epoch], seen[2 + epoch]  # in the same order
        assert after.dtype == getattr(torch, activations) and bool((before != 0).all())
        zeros = after == 0
        assert 0.28 < zeros.double().mean() < 0.32  # 0.3 of 20,000, of deviation 0.0033
        assert zeros.double().mean(0).min() > 0.1 and zeros.double().mean(1).min() > 0.05
        torch.testing.assert_close(
            after[~zeros], before[~zeros] / 0.7, rtol=1e-6 if c.activations == "float32" else 1e-2, atol=0
        )
    orders = [torch.randperm(400, generator=torch.Generator().manual_seed(derived_seed(c.seed, 2, e))) for e in (1, 2)]
    first, second = (
        torch.empty_like(t).index_copy_(0, order, t) == 0 for t, order in zip(seen[2:], orders, strict=True)
    )
    assert 0.08 < (first & second).double().mean() < 0.10  # drawn anew each epoch


def test_validation_chooses_the_network():
    dataset = load_dataset("digits")
    c = SearchConfig(hidden=(16,), epochs=8, lr=0.05, lr_schedule="constant", seed=1)
    result = run_search(dataset, c)
    train, held_out = split_validation(dataset.y_train, c.validation, c.seed)
    standardizer = Standardizer.fit(dataset.x_train[train], dataset.pixels)
    assert torch.equal(result.standardizer.mean, standardizer.mean)
    assert torch.equal(result.standardizer.scale, standardizer.scale)
    loss, accuracy = evaluate(result.net, standardizer.transform(dataset.x_train[held_out]), dataset.y_train[held_out])
    accuracies = [record.validation_accuracy for record in result.history]
    assert accuracy == max(accuracies) == accuracies[result.best_epoch - 1]
    assert result.best_epoch < c.epochs  # else this test would not tell the best from the last
    tied = [record.validation_loss for record in result.history if record.validation_accuracy == accuracy]
    assert loss == min(tied) == result.history[result.best_epoch - 1].validation_loss
    truth = (result.net(standardizer.transform(dataset.x_test)).argmax(1) == dataset.y_test).double().mean()
    assert result.test_accuracy == pytest.approx(float(truth))
    assert result.score(dataset.x_test, dataset.y_test) == pytest.approx(float(truth))


def test_equal_accuracies_are_told_apart_by_loss_and_then_the_earlier_stays():
    def record(accuracy, loss):
        return EpochRecord(1, 1.0, 0.5, loss, accuracy, [], [], 0.1, 1.0, 0.0)

    best = record(0.75, 0.5)
    assert [_better(other, best) for other in (record(0.75, 0.4), record(0.75, 0.5), record(0.75, 0.6))] == [
        True,
        False,
        False,
    ]
    assert _better(record(0.8, 9.0), best) and not _better(record(0.7, 0.1), best) and _better(best, None)


def test_without_validation_the_last_network_is_returned():
    records = []
    c = config(validation=0, epochs=5)
    result = run_search(blobs(), c, on_epoch=records.append)
    assert result.best_epoch == 5 and records == result.history
    assert all(r.validation_loss is None and r.validation_accuracy is None for r in records)
    assert [w.density() for w in result.net.weights()] == records[-1].density
    assert torch.equal(result.standardizer.mean, Standardizer.fit(blobs()[0], pixels=False).mean)


def test_patience_stops():
    # With so small a step no bit ever flips, so the first epoch stays the best.
    result = run_search(blobs(), config(lr=1e-12, epochs=20, patience=3))
    assert len(result.history) == 4 and result.best_epoch == 1
    assert all(record.flips == [0, 0, 0] for record in result.history)


def test_each_sample_once_an_epoch(monkeypatch):
    seen = []
    step = Search.step
    monkeypatch.setattr(Search, "step", lambda self, x, *rest: seen.append(x) or step(self, x, *rest))
    result = run_search(blobs(), config(batch_size=7, validation=0))
    x = result.standardizer.transform(blobs()[0])
    epochs = [torch.cat(seen[:9]), torch.cat(seen[9:])]
    assert [len(batch) for batch in seen] == [7] * 8 + [4] + [7] * 8 + [4]
    assert not torch.equal(*epochs)  # in another order
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(x.tolist())


def test_losses_that_are_not_finite_end_the_search():
    with pytest.raises(SearchError, match=r"loss is (inf|nan) in epoch 1"):
        run_search(blobs(), config(norm="none", logit_scale=1e38))


# Raw inputs


@pytest.fixture(scope="module")
def found():
    x, y = blobs()
    return run_search((x, np.array(["ant", "bee", "cat"])[y]), config(epochs=10, lr=0.1))


def test_predictions_on_all_kinds_of_arrays(found):
    x, y = blobs(30)
    labels = [("ant", "bee", "cat")[i] for i in y]
    first = found.predict(x)
    assert first.shape == (30,) and set(first) <= {"ant", "bee", "cat"}
    wide = np.zeros((30, 16))
    wide[:, ::2] = x
    kinds = [x.tolist(), torch.from_numpy(x), torch.from_numpy(x).float(), x.astype(np.int64), wide[:, ::2],
             torch.from_numpy(wide)[:, ::2], np.asfortranarray(x), x.reshape(30, 2, 4)]  # fmt: skip
    for kind in kinds:
        assert (found.predict(kind) == first).all()
    truth = float((first == np.array(labels)).mean())
    for y_kind in (labels, np.array(labels), np.array(labels, dtype=object)):
        assert found.score(x, y_kind) == pytest.approx(truth)
    assert found.logits(x).shape == (30, 3)
    assert (found.predict(np.tile(x, (300, 1))) == np.tile(first, 300)).all()  # several parts of the evaluation


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite(found, bad):
    x = blobs()[0]
    x[4, 2] = bad
    for ask in (found.predict, found.logits, lambda x: found.score(x, ["ant"] * 60)):
        with pytest.raises(ValueError, match=r"x\[4, 2\]"):
            ask(x)


@pytest.mark.parametrize("shape", [(0, 8), (4, 7), (4, 9), (8,), (4, 0), (4, 2, 3)])
def test_inputs_of_other_shapes(found, shape):
    with pytest.raises(ValueError, match=r"\[" + ", ".join(map(str, shape))):
        found.predict(np.zeros(shape))


def test_labels_that_do_not_fit(found):
    x = blobs()[0]
    with pytest.raises(ValueError, match="'dog'"):
        found.score(x, ["ant"] * 59 + ["dog"])
    with pytest.raises(ValueError, match="59 labels for 60"):
        found.score(x, ["ant"] * 59)
    with pytest.raises(ValueError, match="0"):
        found.score(x, [0] * 60)


# Data of all kinds


def test_kinds_of_training_data():
    x, y = blobs()
    x = x.clip(0, 255)
    truth = run_search((x, y), config()).net.weights()
    wide = np.zeros((60, 16))
    wide[:, ::2] = x
    for kind in (x.astype(np.uint8), torch.from_numpy(x), wide[:, ::2], torch.from_numpy(x).float().T.contiguous().T):
        assert run_search((kind, torch.from_numpy(y)), config()).net.weights() == truth
    assert run_search((x.tolist(), y.tolist()), config()).net.weights() == truth
    assert run_search(without_test(x, y), config()).net.weights() == truth
    assert run_search((x.reshape(60, 2, 4), y), config()).net.weights() == truth


@pytest.mark.parametrize("values", [{}, {"hidden": ()}, {"hidden": (1, 1)}, {"batch_size": 10**30}, {"batch_size": 1}])
def test_small_sizes(values):
    x, y = blobs(30, features=1, classes=2)
    result = run_search((x, y), config(**values))
    assert result.net.widths == (1, *values.get("hidden", (12, 10)), 2)
    assert set(result.predict(x)) <= {0, 1} and all(math.isfinite(r.train_loss) for r in result.history)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_cannot_be_used(device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
        run_search(blobs(), config(device=device))


def test_data_from_files_and_data_sets(tmp_path):
    x, y = blobs()
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    result = run_search(tmp_path / "own.npz", config())
    assert result.data_name == "own" and 0 <= result.test_accuracy <= 1
    assert run_search("breast_cancer", config()).labels == (0, 1)
