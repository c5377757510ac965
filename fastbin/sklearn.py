"""The search as a scikit-learn classifier."""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from fastbin.config import SearchConfig
from fastbin.result import SearchResult, load_result
from fastbin.search import run_search

Array = npt.NDArray[Any]

# Every field of SearchConfig is a parameter, the seed under scikit-learn's name for it. Nothing is held out unasked: users
# of scikit-learn validate by its own means.
_DEFAULTS: dict[str, Any] = {
    "random_state" if field.name == "seed" else field.name: None if field.name == "seed" else field.default
    for field in dataclasses.fields(SearchConfig)
} | {"validation": 0.0}


class WeightFreeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A weight-free network that `fastbin.run_search` finds.

    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> x, y = load_breast_cancer(return_X_y=True)
    >>> line = make_pipeline(StandardScaler(), WeightFreeClassifier(hidden=(64,), epochs=5, random_state=0))
    >>> grid = GridSearchCV(line, {"weightfreeclassifier__lr": [1e-9, 0.01]}, cv=3).fit(x, y)
    >>> grid.best_params_
    {'weightfreeclassifier__lr': 0.01}
    >>> bool(grid.best_score_ > 0.85)
    True

    Args:
        **parameters: the fields of `fastbin.SearchConfig` by their names and with their defaults, but for two:
            ``validation`` is 0, and the seed is ``random_state``: a number, a numpy RandomState, or None for another network
            each time.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_: features seen in `fit`.
        feature_names_in_: their names, if they had any.
        result_: the `fastbin.SearchResult`, to save or to export. In a pickle it is stored as its safetensors file.
    """

    def __init__(self, **parameters: Any) -> None:
        unknown = sorted(set(parameters) - set(_DEFAULTS))
        if unknown:
            raise TypeError(f"unknown parameter {unknown[0]!r}: expected {', '.join(_DEFAULTS)}")
        for name, default in _DEFAULTS.items():
            setattr(self, name, parameters.get(name, default))

    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # where scikit-learn finds the parameters
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=d) for name, d in _DEFAULTS.items()),
        ]
    )

    def fit(self, X: Any, y: Any) -> WeightFreeClassifier:
        """Search on samples ``[n, d]`` of finite numbers and labels ``[n]`` of at least two classes.

        Raises:
            ValueError, TypeError: they do not fit, a parameter is out of its range, or a class has too few samples for
                a validation part (which ``validation=0`` does without).
        """
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least 2 classes, got one class: {self.classes_[0]!r}")
        parameters = {name: getattr(self, name) for name in _DEFAULTS}
        state = check_random_state(parameters.pop("random_state"))
        result = run_search((X, targets), SearchConfig(seed=int(state.randint(2**31)), **parameters))
        labels = self.classes_.tolist()
        if all(isinstance(label, int | str) for label in labels):  # what a network's file can hold
            result = dataclasses.replace(result, labels=tuple(labels))
        self.result_: SearchResult = result
        return self

    def predict_proba(self, X: Any) -> Array:
        """Probabilities ``[n, classes]``, the softmax of the network's outputs, in the order of ``classes_``."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        probabilities: Array = self.result_.logits(X).softmax(1).cpu().numpy()
        return probabilities

    def predict(self, X: Any) -> Array:
        """Labels ``[n]``, those of the greatest probability."""
        probabilities = self.predict_proba(X)
        labels: Array = self.classes_[probabilities.argmax(1)]
        return labels

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "result_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "network.safetensors"
                self.result_.save(path)
                state["result_"] = path.read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "result_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "network.safetensors"
                path.write_bytes(state["result_"])
                state["result_"] = load_result(path)
        super().__setstate__(state)
