"""Kinds of network: each learns digits, keeps to its budget and its restriction."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from fastbin import SearchConfig, checkpoint
from fastbin.baselines import KINDS, ONLY_ON, SHARED_WEIGHTS, RealNet, Task
from fastbin.baselines.files import load_network, save_network
from fastbin.baselines.nets import Size, dense_weights, share_weight
from fastbin.data import load_dataset
from fastbin.nn import WeightFreeNet
from fastbin.result import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

DENSITY = (0.4, 0.5, 0.6)


@pytest.fixture(scope="module")
def task():
    made = Task.of(load_dataset("digits"), SearchConfig(hidden=(48, 48), epochs=8, batch_size=32))
    return dataclasses.replace(made, density=DENSITY)


@pytest.fixture(scope="module")
def trained(task):
    """Each kind, trained when first asked for."""
    known = {}

    def get(kind):
        if kind not in known:
            known[kind] = KINDS[kind](task)
        return known[kind]

    return get


def accuracy(task, net):
    return evaluate(net, task.validation.x, task.validation.y)[1]


LEARNED = {
    "weight_free_hard": 0.9,
    "weight_free_sample": 0.85,
    "weight_free_soft": 0.85,
    "pruned": 0.9,
    "pruned_10": 0.5,
    "snip": 0.9,
    "snip_10": 0.6,
    "dense": 0.92,
    "edge_popup": 0.9,
    "edge_popup_signed": 0.85,
    "binary_connect": 0.9,
    "clipped_latent": 0.9,
}


@pytest.mark.parametrize("kind", LEARNED)
def test_learns_digits(task, trained, kind):
    found = trained(kind)
    best = max(record.validation_accuracy for record in found.history)
    assert LEARNED[kind] <= accuracy(task, found.net)
    if not kind.startswith("pruned"):  # those are of the last round, not of a denser one
        assert accuracy(task, found.net) == pytest.approx(best, abs=1e-9)
    assert found.history[found.best_epoch - 1].validation_accuracy == pytest.approx(accuracy(task, found.net), abs=1e-9)


@pytest.mark.parametrize("kind", ["random", "random_half"])
def test_random_structures_stay_near_chance(task, trained, kind):
    found = trained(kind)
    each = [accuracy(task, net) for net in found.draws]
    assert len(each) == 10 and max(each) == accuracy(task, found.net)
    assert 0.02 < sum(each) / 10 < 0.2 and max(each) < 0.4
    assert len({tuple(net.weights()[0].words.flatten().tolist()) for net in found.draws}) == 10
    expected = (0.5,) * 3 if kind == "random_half" else DENSITY
    for w, share in zip(found.net.weights(), expected, strict=True):
        n = w.shape.numel()
        assert abs(w.density() - share) < 4 * (share * (1 - share) / n) ** 0.5  # four standard deviations


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ONLY_ON])
def test_budgets_are_fair(task, trained, kind):
    found = trained(kind)
    assert 0 < found.operations <= task.budget
    if (
        found.history and kind != "weight_agnostic"
    ):  # every kind that is trained takes all of it, and the same number of epochs
        assert found.operations == task.budget == 3 * (64 * 48 + 48 * 48 + 48 * 10) * len(task.train.y) * 8
        assert [record.epoch for record in found.history] == list(range(1, 9))


def values(net):
    return [set(w.unique().tolist()) for w in dense_weights(net)]


def test_weights_are_what_a_kind_allows(trained):
    for kind in ("weight_free_hard", "weight_free_sample", "weight_free_soft", "random", "clipped_latent"):
        assert isinstance(trained(kind).net, WeightFreeNet)
    assert values(trained("binary_connect").net) == [{-1.0, 1.0}] * 3
    for kind, count in (("edge_popup", 2), ("edge_popup_signed", 3)):
        for w in dense_weights(trained(kind).net):
            assert len(w.unique()) == count and len(w.abs().unique()) == 2
            assert int((w != 0).sum()) == w.numel() // 2
    assert all(bool((w != 0).all()) for w in dense_weights(trained("dense").net))


@pytest.mark.parametrize(("kind", "density"), [("pruned_10", 0.1), ("pruned_1", 0.01), ("snip_10", 0.1)])
def test_pruned_to_a_density(trained, kind, density):
    weights = dense_weights(trained(kind).net)
    assert sum(int((w != 0).sum()) for w in weights) == round(density * sum(w.numel() for w in weights))


def test_pruned_to_the_searched_density(task, trained):
    edges = [64 * 48, 48 * 48, 48 * 10]
    expected = sum(share * n for share, n in zip(DENSITY, edges, strict=True))
    for kind in ("pruned", "snip"):
        there = sum(int((w != 0).sum()) for w in dense_weights(trained(kind).net))
        assert abs(there - expected) <= 1
    with pytest.raises(ValueError, match="searched network"):
        KINDS["pruned"](dataclasses.replace(task, density=None))


def test_magnitude_pruning_keeps_the_greatest_and_rewinds(task, monkeypatch):
    """Seen from outside: what each round starts with and ends with."""
    from fastbin.baselines import pruned

    rounds, train = [], pruned.fit

    def watched(task, net, *args, after_epoch, **kwargs):
        before = net.weights()
        early = []

        def at(epoch):
            if epoch == 1:
                early.extend(net.weights())
            after_epoch(epoch)

        found = train(task, net, *args, after_epoch=at, **kwargs)
        rounds.append((before, early, net.weights()))
        return found

    monkeypatch.setattr(pruned, "fit", watched)
    pruned.magnitude_pruned(task, 0.2)
    assert len(rounds) == pruned.ROUNDS
    early = rounds[0][1]
    for (_, _, after), (before, _, _) in pairwise(rounds):
        kept = torch.cat([w.abs()[b != 0] for w, b in zip(after, before, strict=True)])
        gone = torch.cat([w.abs()[b == 0] for w, b in zip(after, before, strict=True)])
        assert kept.min() >= gone.max()
        for b, e in zip(before, early, strict=True):
            assert torch.equal(b, torch.where(b != 0, e, 0.0))
    counts = [sum(int((w != 0).sum()) for w in before) for before, _, _ in rounds]
    edges = counts[0]
    assert counts == [edges, round(0.2**0.5 * edges), round(0.2 * edges)]


def test_same_seed_same_network(task, trained):
    for kind in ("dense", "snip_10", "clipped_latent", "random"):
        again = KINDS[kind](task)
        for a, b in zip(dense_weights(again.net), dense_weights(trained(kind).net), strict=True):
            assert torch.equal(a, b)


def test_real_net_computes_what_weight_free_nets_do(task, trained):
    net = trained("weight_free_hard").net
    real = RealNet(net.widths, net.activation, net.norm, net.logit_scale, dense_weights(net))
    expected = net(task.validation.x)
    # Sums of up to 64 terms of order 1 in float32, scaled by a norm of order 1: 1e-4 is a hundred roundings.
    assert torch.allclose(real(task.validation.x), expected, atol=1e-4)
    assert torch.equal(real(task.validation.x), share_weight(net, 1.0)(task.validation.x))


def test_sharing_a_weight_scales_a_net_without_norm(task):
    w = [torch.tensor([[0.5, 0.0], [3.0, -2.0]])]
    net = RealNet((2, 2), "relu", "none", 1.0, w)
    x = torch.tensor([[1.0, 2.0]])
    for weight in SHARED_WEIGHTS:
        expected = weight * torch.tensor([[1.0, 3.0]]) / 2**0.5
        assert torch.allclose(share_weight(net, weight)(x), expected)


def test_sizes_in_bits():
    def size(*weights):
        return Size.of(RealNet((2, 3), "relu", "none", 1.0, [torch.tensor(w) for w in weights])).bits

    assert size([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]) == 6 * 32
    assert size([[1.0, 0.0], [3.0, 4.0], [0.0, 6.0]]) == 6 + 4 * 32
    assert size([[1.0, -1.0], [1.0, 1.0], [1.0, 1.0]]) == 6
    assert size([[1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]]) == 6 + 5
    assert size([[0.5, 0.0], [0.5, 0.5], [0.5, 0.5]]) == 6


@pytest.mark.parametrize("kind", ["weight_free_hard", "pruned_10", "binary_connect"])
def test_files_hold_the_network(tmp_path, task, trained, kind):
    net = trained(kind).net
    save_network(tmp_path / "net.safetensors", net, {"kind": kind})
    again = load_network(tmp_path / "net.safetensors")
    assert type(again) is type(net)
    assert torch.equal(again(task.validation.x), net(task.validation.x))
    assert checkpoint.load(tmp_path / "net.safetensors")[1]["kind"] == kind


def test_files_of_something_else_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    good = {
        "form": "real",
        "widths": [2, 1],
        "activation": "relu",
        "norm": "layer",
        "output_norm": "none",
        "logit_scale": 1.0,
    }
    weight = {"layers.0.weight": torch.ones(1, 2)}
    checkpoint.save(path, weight, good)
    assert load_network(path).widths == (2, 1)
    for wrong in ({"form": "other"}, {"widths": [3, 1]}, {"activation": "sine"}, {"logit_scale": 0.0}, {"widths": [2]}):
        checkpoint.save(path, weight, {**good, **wrong})
        with pytest.raises(checkpoint.CheckpointError, match=r"net\.safetensors"):
            load_network(path)


@pytest.mark.parametrize(
    ("config", "named"), [({"validation": 0.0}, "validation"), ({"activation": "step"}, "step, which|not step")]
)
def test_tasks_that_cannot_be_compared(config, named):
    with pytest.raises(ValueError, match=named):
        Task.of(load_dataset("digits"), SearchConfig(**config))


def test_a_task_has_no_test_part(task):
    assert len(task.dataset.x_test) == len(task.dataset.y_test) == 0


def test_a_loss_that_is_not_finite_is_an_error(task):
    from fastbin.baselines.training import TrainingError, fit

    net = task.real_net([torch.zeros(shape) for shape in task.shapes])
    with torch.no_grad():
        net.linear()[0].weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="nan in epoch 1"):
        fit(task, net, 0.01, 2)
