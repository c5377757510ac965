"""The configuration and the data of a search: what they may be, and the rules that follow."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbin import DataError, SearchConfig, run_search
from fastbin.config import schedule
from fastbin.rules import SGD, Adam, Bop

SCHEDULES = ("constant", "linear", "cosine", "geometric")


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("start", "end"), [(0.5, 0.01), (0.01, 0.5), (0.3, 0.3)])
def test_schedules_go_from_one_end_to_the_other(kind, start, end):
    end = start if kind == "constant" else end
    assert schedule(kind, start, end, 0.0) == start
    assert schedule(kind, start, end, 1.0) == pytest.approx(end, rel=1e-12)
    values = [schedule(kind, start, end, i / 50) for i in range(51)]
    assert values in (sorted(values), sorted(values, reverse=True))


def test_schedules_half_way():
    assert schedule("constant", 1.0, 0.01, 0.5) == 1.0
    assert schedule("linear", 1.0, 0.0, 0.25) == 0.75
    assert schedule("cosine", 1.0, 0.0, 0.5) == pytest.approx(0.5)
    assert schedule("cosine", 1.0, 0.0, 0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert schedule("geometric", 1.0, 0.01, 0.5) == pytest.approx(0.1)


def test_rules_follow_from_the_configuration():
    config = SearchConfig(lr=0.2, lr_end=0.1, lr_schedule="linear", tau=2.0, tau_end=1.0, tau_schedule="linear")
    assert config.rule_at(0.5) == Adam(lr=0.2 + (0.1 - 0.2) * 0.5, tau=1.5, clip=math.inf, sample=False)
    config = SearchConfig(rule="sgd", estimator="sample", momentum=0.5, clip=3.0, lr_schedule="constant")
    assert config.rule_at(0.9) == SGD(lr=1.0, tau=0.03, clip=3.0, sample=True, momentum=0.5)
    assert SearchConfig(rule="bop", gamma=0.1, threshold=0.2).rule_at(0.3) == Bop(gamma=0.1, threshold=0.2)
    assert SearchConfig(betas=(0.5, 0.6)).rule_at(0.0) == Adam(lr=0.02, betas=(0.5, 0.6))
    soft = SearchConfig(estimator="soft")
    assert soft.rule_at(0.0).sample is False and soft.rule_at(0.0).tau == 0.1
    assert soft.rule_at(0.5).tau == pytest.approx((0.1 * 0.02) ** 0.5)
    assert SearchConfig(estimator="soft", tau=0.3).rule_at(0.5).tau == 0.3


def test_step_sizes_stay_positive_to_the_last_step():
    config = SearchConfig(epochs=10_000)  # to lr_end = 0
    assert 0 < config.rule_at((9_999 + 9_999 / 10_000) / 10_000).lr < 1e-12


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"hidden": [], "patience": 3, "clip": 2.5, "lr": 0.5},
        {"hidden": [3, 4], "rule": "bop", "activation": "step", "betas": [0.1, 0.2]},
        {"estimator": "soft", "tau_end": 0.01, "tau_schedule": "geometric", "validation": 0, "seed": 2**63 - 1},
    ],
)
def test_survives_json(values):
    config = SearchConfig(**values)
    again = SearchConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config and hash(again) == hash(config)


@given(
    st.builds(
        SearchConfig,
        hidden=st.lists(st.integers(1, 10**6), max_size=4),
        activation=st.sampled_from(["relu", "tanh", "gelu"]),
        estimator=st.sampled_from(["hard", "sample", "soft"]),
        rule=st.sampled_from(["sgd", "adam"]),
        lr=st.none() | st.floats(1e-9, 1e3),
        lr_end=st.floats(1e-9, 1e3),
        lr_schedule=st.sampled_from(SCHEDULES),
        tau=st.floats(1e-6, 1e6),
        tau_end=st.floats(1e-6, 1e6),
        tau_schedule=st.sampled_from(SCHEDULES),
        clip=st.none() | st.floats(1e-6, 1e6),
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_every_allowed_configuration_has_rules_and_survives_json(config, progress):
    rule = config.rule_at(progress)
    assert rule.lr > 0 and rule.tau > 0
    assert SearchConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


BAD = [
    ("hidden", [0]), ("hidden", [3, -1]), ("hidden", [2.0]), ("hidden", ["8"]), ("hidden", [True]),
    ("activation", "swish"), ("norm", "batch"), ("output_norm", "batch"), ("estimator", "exact"), ("rule", "lion"),
    ("lr_schedule", "step"), ("tau_schedule", "step"), ("encoding", "deskewed"),
    ("logit_scale", 0.0), ("logit_scale", math.nan), ("logit_scale", math.inf), ("logit_scale", "2"),
    ("lr", 0.0), ("lr", -1.0), ("lr", math.nan), ("lr", math.inf), ("lr", "0.1"),
    ("lr_end", -0.1), ("lr_end", math.nan),
    ("tau", 0.0), ("tau", -1.0), ("tau_end", 0.0), ("tau_end", math.inf),
    ("clip", 0.0), ("clip", -1.0), ("clip", math.nan),
    ("betas", [0.9]), ("betas", [0.9, 1.0]), ("betas", [-0.1, 0.9]), ("betas", [0.9, 0.99, 0.999]),
    ("init_std", 0.0), ("init_std", math.nan),
    ("input_dropout", -0.1), ("input_dropout", 1.0), ("input_dropout", math.nan), ("input_dropout", "0.1"),
    ("epochs", 0), ("epochs", 1.5), ("epochs", True), ("batch_size", 0), ("batch_size", "64"),
    ("validation", -0.1), ("validation", 1.0), ("validation", math.nan),
    ("patience", 0), ("patience", 1.5), ("patience", "3"),
    ("seed", -1), ("seed", 2**63), ("seed", 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{n}={v}" for n, v in BAD])
def test_refused_values_are_named(name, value):
    shown = value[-1] if name == "hidden" else value
    with pytest.raises(ValueError, match=name) as caught:
        SearchConfig(**{name: value})
    if name != "betas":
        assert str(shown) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "sgd", "momentum": 1.0}, r"momentum.*1\.0"),
        ({"rule": "bop", "gamma": 0.0}, r"gamma.*0\.0"),
        ({"rule": "bop", "threshold": -1.0}, r"threshold.*-1\.0"),
        ({"rule": "bop", "estimator": "sample"}, "bop.*hard.*'sample'"),
        ({"rule": "bop", "estimator": "soft"}, "bop.*hard.*'soft'"),
        ({"activation": "step", "estimator": "soft"}, "soft.*step"),
        ({"activations": "bfloat16", "estimator": "soft"}, "soft.*float32"),
        ({"lr_schedule": "geometric", "lr_end": 0.0}, "lr_end.*geometric"),
    ],
)
def test_refused_combinations(values, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**values)


def test_unknown_field():
    with pytest.raises(ValueError, match="'depth'"):
        SearchConfig.from_json({"depth": 3})


# In a search

SMALL = {"hidden": (12,), "epochs": 2, "batch_size": 16, "validation": 0.2}
BLOBS = (np.random.default_rng(0).normal(0, 1, (60, 8)), np.arange(60) % 3)


def test_schedules_reach_the_steps():
    c = SearchConfig(
        **{**SMALL, "epochs": 5},
        lr=0.1,
        lr_end=0.01,
        lr_schedule="linear",
        tau=2.0,
        tau_end=0.5,
        tau_schedule="geometric",
    )
    history = run_search(BLOBS, c).history
    batches = math.ceil(48 / 16)
    last = [(epoch + (batches - 1) / batches) / 5 for epoch in range(5)]
    assert [r.lr for r in history] == pytest.approx([0.1 - 0.09 * p for p in last])
    assert [r.tau for r in history] == pytest.approx([2.0 * 0.25**p for p in last])
    assert run_search(BLOBS, SearchConfig(**SMALL, rule="bop")).history[0].lr == 0.0


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("digit", ValueError, "did you mean digits"),
        ("none.npz", DataError, "none.npz"),
        (([[1.0], [2.0]], [0]), ValueError, "1 labels for 2"),
        (([[1.0], [2.0]], [0, 0]), ValueError, "at least 2 classes"),
        (([[1.0], [math.nan]], [0, 1]), ValueError, r"x\[1, 0\]"),
        ((np.zeros((0, 3)), []), ValueError, r"\[0, 3\]"),
        (([[1.0], [2.0]], [0, 1]), ValueError, "1 sample"),  # too few to hold any out
        ([[[1.0], [2.0]], [0, 1]], TypeError, "list"),
        (3, TypeError, "int"),
    ],
)
def test_refused_data(data, error, message):
    with pytest.raises(error, match=message):
        run_search(data, SearchConfig(**SMALL))
