"""How the values of a sweep's next trial are chosen."""

from __future__ import annotations

from typing import Any

from fastbin.descent import derived_seed
from fastbin.sweep.space import Choice, Space, Span, Values
from fastbin.sweep.trials import Outcome


class Sampler:
    """The values of each trial; of a grid or a random sweep they depend on its number alone.

    Raises:
        ModuleNotFoundError: the sweep's method is tpe, and Optuna is missing.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._study = _Study(space) if space.method == "tpe" else None

    def choose(self, number: int) -> Values:
        """The values of a trial that begins now."""
        return self._space.drawn(number) if self._study is None else self._study.choose(number)

    def learn(self, outcome: Outcome) -> None:
        """Take what became of a trial into account."""
        if self._study is not None:
            self._study.learn(outcome)


class _Study:
    """Optuna's TPE. Each choice has a seed of its own, so that a resumed sweep chooses as one that was not stopped."""

    def __init__(self, space: Space) -> None:
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "method tpe needs Optuna: pip install 'fastbin-nets[cluster]', or choose method random"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space = optuna, space
        self._study = optuna.create_study(direction="maximize")
        self._distributions = {name: self._distribution(v) for name, v in space.varied.items()}

    def _distribution(self, varied: Choice | Span) -> Any:
        kinds = self._optuna.distributions
        if isinstance(varied, Choice):  # by number: values may be lists
            return kinds.CategoricalDistribution(range(len(varied.values)))
        if varied.whole:
            return kinds.IntDistribution(int(varied.low), int(varied.high), log=varied.log)
        return kinds.FloatDistribution(varied.low, varied.high, log=varied.log)

    def choose(self, number: int) -> Values:
        seed = derived_seed(self._space.seed, number) % 2**32
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        asked = self._study.ask(self._distributions).params
        return {
            name: v.values[asked[name]] if isinstance(v, Choice) else asked[name]
            for name, v in self._space.varied.items()
        }

    def learn(self, outcome: Outcome) -> None:
        params = {name: self._asked(name, value) for name, value in outcome.values.items()}
        state = self._optuna.trial.TrialState
        failed = outcome.status == "failed"
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=state.FAIL if failed else state.COMPLETE,
                params=params,
                distributions=self._distributions,
                value=None if failed else outcome.standing[0],
            )
        )

    def _asked(self, name: str, value: Any) -> Any:
        varied = self._space.varied[name]
        if isinstance(varied, Choice):
            return varied.values.index(tuple(value) if isinstance(value, list) else value)
        return value
