"""Weight-agnostic networks: graphs, their evaluation together, mutations, ranking, evolution."""

import dataclasses

import numpy as np
import pytest
import torch

from fastbin import SearchConfig
from fastbin.baselines import KINDS, SHARED_WEIGHTS, Graph, GraphNet, Task, evolution
from fastbin.baselines.files import load_network, save_network
from fastbin.baselines.graph import ACTIVATIONS, Population, deskew
from fastbin.baselines.nets import Size
from fastbin.data import load_dataset, without_test
from fastbin.result import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


def grown(seed, mutations, inputs=6, outputs=3, units=40):
    """A graph after so many random mutations."""
    rng = np.random.default_rng(seed)
    graph = evolution.first_graph(inputs, outputs, rng)
    graph.inputs[0, 0] = True
    for _ in range(mutations):
        graph = evolution.mutated(graph, units, rng)
    return graph


def order_of(graph):
    """A topological order of the units, by removing those without sources; fails on a cycle."""
    units, order = graph.units.copy(), []
    left = set(range(len(units)))
    while left:
        free = [u for u in left if not units[u].any()]
        assert free, "a cycle"
        for u in free:
            units[:, u] = False
            left.remove(u)
        order += free
    return order


def by_hand(graph, x, weight):
    """Outputs of one sample, unit after unit in float64."""
    value = np.zeros(len(graph.units))
    for u in order_of(graph):
        a = weight * (np.append(x, 1.0) @ graph.inputs[u] + value @ graph.units[u])
        value[u] = float(ACTIVATIONS[graph.activation[u]][1](torch.tensor([a], dtype=torch.float64)))
    return value[: graph.outputs]


@pytest.mark.parametrize("seed", range(5))
def test_mutations_keep_graphs_acyclic(seed):
    rng = np.random.default_rng(seed)
    graph = evolution.first_graph(6, 3, rng)
    graph.inputs[0, 0] = True
    for _ in range(220):
        before, graph = graph, evolution.mutated(graph, 25, rng)
        assert len(order_of(graph)) == len(graph.units) == 3 + graph.hidden
        assert not graph.units[:, :3].any() and graph.hidden <= 25
        assert (graph.activation[:3] == 0).all()
        grew = (graph.hidden - before.hidden, graph.connections - before.connections)
        changed = int((graph.activation[: len(before.activation)] != before.activation).sum())
        assert (*grew, changed) in {(1, 1, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)}
        assert graph.connections <= graph.edges
    assert graph.hidden == 25


def test_each_mutation_does_what_it_says():
    rng = np.random.default_rng(0)
    graph = grown(3, 30)
    new = evolution.insert_node(graph, rng)
    lost = np.argwhere(graph.inputs & ~new.inputs[: len(graph.inputs)]).tolist()
    lost += np.argwhere(graph.units & ~new.units[: len(graph.units), : len(graph.units)]).tolist()
    ((target, _),) = lost
    unit = len(graph.units)
    assert new.units[target, unit] and new.inputs[unit].sum() + new.units[unit].sum() == 1
    free = evolution.free_connections(graph)
    assert free.any() and not (free & np.hstack([graph.inputs, graph.units])).any()
    for at in np.argwhere(free):  # every one of them
        closed = dataclasses.replace(graph, inputs=graph.inputs.copy(), units=graph.units.copy())
        if at[1] < 7:
            closed.inputs[tuple(at)] = True
        else:
            closed.units[at[0], at[1] - 7] = True
        order_of(closed)
        closed.levels()


def test_cycles_are_found():
    units = np.zeros((4, 4), dtype=bool)
    units[2, 3] = units[3, 2] = True
    graph = Graph(2, np.zeros((4, 3), dtype=bool), units, np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match="cycle"):
        graph.levels()
    units[:] = False
    units[3, 0] = True
    with pytest.raises(ValueError, match="output"):
        graph.levels()


def test_populations_compute_what_each_graph_does():
    graphs = [grown(seed, mutations) for seed, mutations in enumerate((0, 5, 40, 150))]
    x = np.random.default_rng(1).normal(size=(7, 6))
    got = Population(graphs)(torch.tensor(x, dtype=torch.float32), SHARED_WEIGHTS)
    assert got.shape == (4, 6, 7, 3)
    for m, graph in enumerate(graphs):
        for i, weight in enumerate(SHARED_WEIGHTS):
            for b in range(7):
                expected = by_hand(graph, x[b], weight)
                # A step may take another side after float32 roundings; with these seeds none does. Values pass through
                # some ten units with slopes up to 2π.
                assert np.allclose(got[m, i, b].numpy(), expected, rtol=1e-3, atol=1e-3)


def test_ranking():
    mean = np.array([3.0, 1.0, 2.0, 3.0, 0.5])
    simple = np.array([1.0, 3.0, 2.0, 0.5, 3.0])
    # 0, 1 and 2: none is worse than another in both. 3 is as good as 0 and larger; 4 as simple as 1 and worse.
    assert evolution.ranked(mean, simple).tolist() == [0, 2, 1, 3, 4]


def test_elite_goes_on_and_the_culled_have_no_children(monkeypatch):
    graphs = [grown(seed, 3) for seed in range(20)]
    loss = np.linspace(1, 2, 20)[:, None] * np.ones(6)
    scores = evolution.Scores(loss, 1 - loss / 3)
    monkeypatch.setattr(evolution, "BY_COMPLEXITY", 0.0)  # by mean and best accuracy: the order is that of the graphs
    parents = []
    monkeypatch.setattr(evolution, "mutated", lambda graph, units, rng: parents.append(graph) or graph)
    rng = np.random.default_rng(0)
    for _ in range(50):
        children = evolution.next_generation(graphs, scores, 40, rng)
        assert len(children) == 20 and children[:4] == graphs[:4]
    place = [graphs.index(graph) for graph in parents]
    assert max(place) < 16 and set(place[:200]) > set(range(8))
    # The first of 16 wins a tournament of 4 with probability 1 - (15/16)^4.
    assert abs(place.count(0) / len(place) - (1 - (15 / 16) ** 4)) < 0.06  # four deviations of 800 tournaments


def test_scores():
    outputs = torch.tensor(
        [[[[2.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]]]
    )  # one member, two weights, two samples
    scores = evolution.Scores.of(outputs, torch.tensor([0, 1]))
    assert scores.accuracy.tolist() == [[0.5, 0.5]]
    expected = [(np.log(1 + np.exp(-2)) + np.log(2)) / 2, (np.log(1 + np.e) + np.log(1 + np.exp(-3))) / 2]
    assert np.allclose(scores.loss[0], expected, atol=1e-6)
    assert scores.mean.tolist() == [0.5]


@pytest.fixture(scope="module")
def task():
    return Task.of(load_dataset("digits"), SearchConfig(hidden=(64, 64), epochs=10))


@pytest.fixture(scope="module")
def found(task):
    return KINDS["weight_agnostic"](task)


def test_learns_digits_within_the_budget(task, found):
    assert found.operations <= task.budget and len(found.history) <= 10
    by_weight = [evaluate(found.net.share(w), task.validation.x, task.validation.y)[1] for w in SHARED_WEIGHTS]
    assert max(by_weight) == evaluate(found.net, task.validation.x, task.validation.y)[1] > 0.25  # chance is 0.1
    best = found.history[found.best_epoch - 1]
    assert best.validation_accuracy == pytest.approx(np.mean(by_weight), abs=1e-9)
    assert best.validation_accuracy == max(r.validation_accuracy for r in found.history)


def test_a_budget_too_small_is_an_error(task):
    small = dataclasses.replace(task, config=dataclasses.replace(task.config, hidden=(1,), epochs=1, batch_size=8))
    with pytest.raises(ValueError, match="budget"):
        KINDS["weight_agnostic"](small)


def test_files_hold_the_graph(tmp_path, task, found):
    path = tmp_path / "net.safetensors"
    save_network(path, found.net, {})
    again = load_network(path)
    assert isinstance(again, GraphNet) and again.weight == found.net.weight
    assert torch.equal(again(task.validation.x), found.net(task.validation.x))


def test_size_of_a_graph():
    graph = grown(3, 30)
    size = Size.of(GraphNet(graph, 1.0))
    possible = 7 * (3 + graph.hidden) + 3 * graph.hidden + graph.hidden * (graph.hidden - 1) // 2
    assert size.edges == possible and size.connections == graph.inputs.sum() + graph.units.sum()
    assert size.bits == size.connections * int(np.ceil(np.log2(possible))) + 4 * graph.hidden


def test_deskewed_images_stand_upright_and_in_the_middle():
    side = torch.arange(28.0)
    v, u = torch.meshgrid(side, side, indexing="ij")
    # A slanted stroke off the centre.
    image = torch.exp(-((u - 12 - 0.5 * (v - 15)) ** 2) / 4 - (v - 15) ** 2 / 30)
    upright = deskew(image.view(1, -1)).view(16, 16)
    middle = torch.arange(16.0) - 7.5
    mass = upright.sum()
    u0, v0 = (upright.sum(0) * middle).sum() / mass, (upright.sum(1) * middle).sum() / mass
    uv = (upright * (middle[:, None] - v0) * (middle[None] - u0)).sum() / mass
    vv = (upright * (middle[:, None] - v0) ** 2).sum() / mass
    assert abs(u0) < 0.05 and abs(v0) < 0.05 and abs(uv / vv) < 0.02  # it was 0.5


def test_the_original_task(monkeypatch):
    """On 28 × 28 pixels: the graph sees 256 inputs from 0 to 1."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = np.zeros((200, 28, 28), dtype=np.uint8)
    x[y == 0, 6:22, 12:15] = 255  # a bar and a ring
    x[y == 1, 6:22, 6:22] = 255
    x[y == 1, 9:19, 9:19] = 0
    x = np.roll(x, rng.integers(-3, 4), axis=1)
    task = Task.of(without_test(x, y), SearchConfig(hidden=(64, 64), epochs=4, validation=0.2))
    monkeypatch.setattr(evolution, "GENERATIONS", 8)
    found = KINDS["weight_agnostic_16"](task)
    assert found.net.graph.inputs.shape[1] == 257
    assert evaluate(found.net, task.validation.x, task.validation.y)[1] > 0.8
