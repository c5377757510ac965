"""Weight-agnostic networks (Gaier and Ha 2019, arXiv 1906.04358): graphs are evolved that work with any shared weight.

A generation evaluates the whole population together under six shared weights, ranks it by mean performance and complexity,
keeps the best and fills up with mutated copies of the winners of tournaments. Not as there: populations and generations are
far fewer, performance is accuracy and not the loss, and parents are ranked in whole fronts by their mean performance.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from fastbin.baselines.graph import ACTIVATIONS, LINEAR, Graph, GraphNet, Population, prepared
from fastbin.baselines.nets import SHARED_WEIGHTS
from fastbin.baselines.task import Task, Trained
from fastbin.descent import derived_seed
from fastbin.result import EpochRecord

POPULATION = 64
GENERATIONS = 1000  # at most: the budget may end before. Of MNIST, about two minutes on a core
SAMPLES = 400  # of the training part, drawn for each generation
CONNECTED = 0.05  # share of the connections from inputs to outputs that a first graph has
MUTATIONS = {"insert_node": 0.2, "add_connection": 0.6, "change_activation": 0.2}  # and how often each is done
ELITE, CULLED = 0.2, 0.2  # shares of the population that go on unchanged, and that have no children
TOURNAMENT = 4  # members that compete to be a parent
BY_COMPLEXITY = 0.8  # probability of ranking by complexity; otherwise by the best of the six weights
_EVOLUTION = 14  # what random numbers are for


def weight_agnostic(task: Task, images: bool = False) -> Trained:
    """Evolve a graph; its shared weight is then the best one by validation.

    Args:
        task: the problem. Hidden units are at most those of its widths.
        images: work on 28 × 28 pixels as the original does: deskewed, 16 × 16, from 0 to 1.
    """
    rng = np.random.default_rng(derived_seed(task.config.seed, _EVOLUTION))
    scale = task.standardizer
    pixels = (float(scale.mean[0]), float(scale.scale[0])) if images else None
    device, units = task.config.device, sum(task.config.hidden)
    train, validation = prepared(task.train.x, pixels), prepared(task.validation.x, pixels)
    graphs = [first_graph(train.shape[1], task.dataset.classes, rng) for _ in range(POPULATION)]
    history: list[EpochRecord] = []
    best: tuple[float, Graph] | None = None
    best_epoch, operations, started = 0, 0, time.perf_counter()
    for generation in range(1, GENERATIONS + 1):
        at = torch.from_numpy(rng.permutation(len(train))[:SAMPLES]).to(device)
        cost = sum(graph.connections for graph in graphs) * len(SHARED_WEIGHTS) * len(at)
        if operations + cost > task.budget:
            break
        operations += cost
        scores = Scores.of(Population(graphs, device)(train[at], SHARED_WEIGHTS), task.train.y[at])
        progress = max(operations / task.budget, generation / GENERATIONS)
        if progress * task.config.epochs >= len(history) + 1 or not history:
            leader = int(scores.mean.argmax())
            held_out = Scores.of(Population([graphs[leader]], device)(validation, SHARED_WEIGHTS), task.validation.y)
            record = _record(len(history) + 1, graphs[leader], scores, leader, held_out, time.perf_counter() - started)
            history.append(record)
            started = time.perf_counter()
            if best is None or held_out.accuracy[0].mean() > best[0]:
                best, best_epoch = (float(held_out.accuracy[0].mean()), graphs[leader]), len(history)
        graphs = next_generation(graphs, scores, units, rng)
    if best is None:
        raise ValueError(f"the budget of {task.budget} operations is less than one generation takes")
    net = GraphNet(best[1], SHARED_WEIGHTS[0], pixels, device)
    by_weight = Scores.of(Population([best[1]], device)(validation, SHARED_WEIGHTS), task.validation.y).accuracy[0]
    return Trained(net.share(SHARED_WEIGHTS[int(by_weight.argmax())]), operations, history, best_epoch)


@dataclass(frozen=True, eq=False)
class Scores:
    """How well the members of a population do.

    Attributes:
        loss: cross-entropy ``[P, W]`` with each shared weight.
        accuracy: ``[P, W]``.
    """

    loss: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    @classmethod
    def of(cls, outputs: Tensor, y: Tensor) -> Scores:
        """Of the outputs ``[P, W, B, classes]`` of `Population` for class indices ``[B]``."""
        members, weights, _, classes = outputs.shape
        targets = y.expand(members, weights, -1)
        loss = F.cross_entropy(outputs.reshape(-1, classes), targets.reshape(-1), reduction="none").view(targets.shape)
        right = outputs.max(-1).indices == targets  # five times as fast as argmax, which takes strides badly
        return cls(loss.double().mean(-1).cpu().numpy(), right.double().mean(-1).cpu().numpy())

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Performance ``[P]``: the mean accuracy over the weights."""
        mean: npt.NDArray[np.float64] = self.accuracy.mean(1)
        return mean


def first_graph(inputs: int, outputs: int, rng: np.random.Generator) -> Graph:
    """A graph without hidden units and with a few random connections."""
    connected = rng.random((outputs, inputs + 1)) < CONNECTED
    return Graph(outputs, connected, np.zeros((outputs, outputs), dtype=bool), np.full(outputs, LINEAR))


def next_generation(graphs: list[Graph], scores: Scores, units: int, rng: np.random.Generator) -> list[Graph]:
    """The elite, and mutated copies of tournaments' winners; with at most so many hidden units."""
    connections = np.array([graph.connections for graph in graphs], dtype=float)
    second = -connections if rng.random() < BY_COMPLEXITY else scores.accuracy.max(1)
    order = ranked(scores.mean, second)
    parents = order[: round((1 - CULLED) * len(order))]
    children = [graphs[i] for i in order[: round(ELITE * len(order))]]
    while len(children) < len(graphs):
        winner = parents[rng.integers(len(parents), size=TOURNAMENT).min()]
        children.append(mutated(graphs[winner], units, rng))
    return children


def ranked(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Members from best to worst: front after front of those that none is better than in both, each by the first score."""
    at_least = (first[:, None] >= first) & (second[:, None] >= second)
    dominates = at_least & ~at_least.T
    order: list[int] = []
    left = np.ones(len(first), dtype=bool)
    while left.any():
        front = np.flatnonzero(left & ~dominates[left].any(0))
        order += front[np.argsort(-first[front], kind="stable")].tolist()
        left[front] = False
    return np.array(order)


def mutated(graph: Graph, units: int, rng: np.random.Generator) -> Graph:
    """A copy with one random change; a change that the graph has no place for is replaced by another one."""
    for name in rng.choice(list(MUTATIONS), size=len(MUTATIONS), replace=False, p=list(MUTATIONS.values())):
        if name == "insert_node" and graph.hidden < units and graph.connections:
            return insert_node(graph, rng)
        if name == "add_connection" and (free := free_connections(graph)).any():
            return add_connection(graph, free, rng)
        if name == "change_activation" and graph.hidden:
            return change_activation(graph, rng)
    return graph


def insert_node(graph: Graph, rng: np.random.Generator) -> Graph:
    """A connection is cut in two by a new unit with a random activation."""
    n, edges = graph.inputs.shape[1], np.argwhere(np.hstack([graph.inputs, graph.units]))
    target, source = edges[rng.integers(len(edges))]
    new = len(graph.units)
    inputs = np.vstack([graph.inputs, np.zeros((1, n), dtype=bool)])
    units = np.pad(graph.units, ((0, 1), (0, 1)))
    for matrix, column in ((inputs, source),) if source < n else ((units, source - n),):
        matrix[target, column], matrix[new, column] = False, True
    units[target, new] = True
    activation = np.append(graph.activation, rng.integers(len(ACTIVATIONS)))
    return dataclasses.replace(graph, inputs=inputs, units=units, activation=activation)


def free_connections(graph: Graph) -> npt.NDArray[np.bool_]:
    """Connections ``[U, n + 1 + U]``, from inputs and units, that are not there and would close no cycle.

    Those that go from a lower level to a higher one are considered.
    """
    level = graph.levels()
    upward = level[:, None] > level
    upward[:, : graph.outputs] = False
    return np.hstack([~graph.inputs, upward & ~graph.units])


def add_connection(graph: Graph, free: npt.NDArray[np.bool_], rng: np.random.Generator) -> Graph:
    """One of the free connections is made."""
    places = np.argwhere(free)
    target, source = places[rng.integers(len(places))]
    inputs, units, n = graph.inputs.copy(), graph.units.copy(), graph.inputs.shape[1]
    if source < n:
        inputs[target, source] = True
    else:
        units[target, source - n] = True
    return dataclasses.replace(graph, inputs=inputs, units=units)


def change_activation(graph: Graph, rng: np.random.Generator) -> Graph:
    """A hidden unit gets another activation."""
    activation = graph.activation.copy()
    unit = rng.integers(graph.outputs, len(activation))
    activation[unit] = (activation[unit] + rng.integers(1, len(ACTIVATIONS))) % len(ACTIVATIONS)
    return dataclasses.replace(graph, activation=activation)


def _record(epoch: int, graph: Graph, scores: Scores, leader: int, held_out: Scores, seconds: float) -> EpochRecord:
    """Of the generation's best member, means over the shared weights."""
    return EpochRecord(
        epoch=epoch,
        train_loss=float(scores.loss[leader].mean()),
        train_accuracy=float(scores.accuracy[leader].mean()),
        validation_loss=float(held_out.loss.mean()),
        validation_accuracy=float(held_out.accuracy.mean()),
        flips=[],
        density=[graph.connections / graph.edges],
        lr=0.0,
        tau=1.0,
        seconds=seconds,
    )
