"""The classifier as scikit-learn wants it: its own checks, and the ways it is used there."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import cases
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastbin import SearchConfig, load_result
from fastbin.sklearn import WeightFreeClassifier


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with cases.threads(1):  # on samples as few as these, more would wait for each other
        yield


@parametrize_with_checks([WeightFreeClassifier(hidden=(64, 64), epochs=40, batch_size=32)])
def test_checks_of_sklearn(estimator: WeightFreeClassifier, check: Any) -> None:
    """All of them, without exception; scikit-learn itself skips check_array_api_input unless SCIPY_ARRAY_API is set."""
    check(estimator)


def model(**parameters: Any) -> WeightFreeClassifier:
    return WeightFreeClassifier(
        **({"hidden": (64, 64), "epochs": 15, "batch_size": 16, "random_state": 0} | parameters)
    )


CANCER = train_test_split(*load_breast_cancer(return_X_y=True), stratify=load_breast_cancer().target, random_state=0)


def test_parameters_are_those_of_a_search() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(SearchConfig)}
    seed = fields.pop("seed")
    assert seed == 0
    assert WeightFreeClassifier().get_params() == fields | {"random_state": None, "validation": 0.0}
    copy = clone(model(tau=0.5))
    assert copy.get_params() == model(tau=0.5).get_params() and repr(copy).startswith(
        "WeightFreeClassifier(batch_size=16"
    )
    with pytest.raises(TypeError, match="unknown parameter 'seed': expected hidden, activation"):
        WeightFreeClassifier(seed=1)
    with pytest.raises(ValueError, match="activation must be one of relu, tanh, gelu, step, got 'sigmoid'"):
        model(activation="sigmoid").fit(*load_iris(return_X_y=True))


def test_labels_and_probabilities() -> None:
    x, x_test, y, y_test = CANCER
    names = np.array(["malignant", "benign"])
    found, named = model().fit(x, y), model().fit(x, names[y])
    assert found.classes_.tolist() == [0, 1] and named.classes_.tolist() == ["benign", "malignant"]
    probabilities = named.predict_proba(x_test)
    assert probabilities.shape == (len(x_test), 2) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert (named.predict(x_test) == named.classes_[probabilities.argmax(1)]).all()
    assert named.score(x_test, names[y_test]) == (named.predict(x_test) == names[y_test]).mean() > 0.9
    assert found.score(x_test, y_test) > 0.9
    assert (named.result_.predict(x_test) == named.predict(x_test)).all()
    halves = model(epochs=1).fit(x, y + 0.0)  # floats that are labels, which a network's file cannot hold
    assert halves.classes_.dtype == float and set(halves.predict(x_test)) <= {0.0, 1.0}


def test_seeds() -> None:
    x, x_test, y, _ = CANCER
    one, two, three = (
        model(epochs=1, random_state=seed).fit(x, y).predict_proba(x_test) for seed in (1, np.random.RandomState(1), 2)
    )
    assert (one == two).all() and (one != three).any()


def test_too_few_to_hold_out() -> None:
    with pytest.raises(ValueError, match="too few for 3 classes"):
        model(validation=0.1).fit(np.eye(9, 4), [0, 1, 2] * 3)
    model(epochs=1).fit(np.eye(9, 4), [0, 1, 2] * 3)


def test_pipelines_and_searches_over_parameters() -> None:
    x, _, y, _ = CANCER
    line = make_pipeline(StandardScaler(), model(epochs=5))
    scores = cross_val_score(line, x, y, cv=3)
    assert scores.shape == (3,) and scores.min() > 0.85
    grid = GridSearchCV(line, {"weightfreeclassifier__lr": [1e-9, 0.01]}, cv=3).fit(x, y)
    assert grid.best_params_ == {"weightfreeclassifier__lr": 0.01} and grid.best_score_ > 0.85


def test_pickles(tmp_path: Any) -> None:
    x, x_test, y, _ = CANCER
    found = model(epochs=2).fit(x, np.array(["malignant", "benign"])[y])
    data = pickle.dumps(found)
    again = pickle.loads(data)
    assert (again.predict_proba(x_test) == found.predict_proba(x_test)).all()
    assert again.get_params() == found.get_params() and (again.classes_ == found.classes_).all()
    assert again.n_features_in_ == 30
    state = found.__getstate__()
    (tmp_path / "network.safetensors").write_bytes(state["result_"])
    loaded = load_result(tmp_path / "network.safetensors")
    assert loaded.predict(x_test).tolist() == found.predict(x_test).tolist()
    assert b"torch" not in data  # no tensor, whose pickle could run code, is in it
    assert pickle.loads(pickle.dumps(model())).get_params() == model().get_params()  # not fitted yet
