"""What a sweep varies: the file SPACE.toml, and the values of each trial."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from fastbin.config import SearchConfig, is_number, is_whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Method = Literal["grid", "random", "tpe"]
Values = dict[str, Any]

_FIELDS = {field.name for field in dataclasses.fields(SearchConfig)}
_KEYS = ("data", "method", "trials", "seed", "config", "space", "halving")


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Span:
    """A number from `low` to `high`, both included; whole if both are, even in its logarithm if `log`."""

    low: float
    high: float
    log: bool

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return is_whole(self.low) and is_whole(self.high)

    def at(self, share: float) -> float:
        """The number at `share` in [0, 1) of the way."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.whole:  # each whole number has an interval of its own
            low, high = (math.log(self.low), math.log(self.high + 1)) if self.log else (self.low, self.high + 1)
        value = low + share * (high - low)
        value = math.exp(value) if self.log else value
        return min(int(value), int(self.high)) if self.whole else min(value, self.high)


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving (ASHA; Li et al. 2020, arXiv 1810.05934).

    Attributes:
        grace: epochs that every trial gets.
        factor: at `grace`, ``grace * factor``, .. epochs, the best of so many go on.
    """

    grace: int = 1
    factor: int = 3

    def rungs(self, epochs: int) -> list[int]:
        """The epochs after which trials of `epochs` may be stopped."""
        found, rung = [], self.grace
        while rung < epochs:
            found.append(rung)
            rung *= self.factor
        return found


@dataclass(frozen=True)
class Space:
    """What a SPACE.toml says.

    Attributes:
        data: a named data set, or the path of an .npz file.
        method: how values are chosen: grid (all combinations), random, or tpe (Bergstra et al. 2011, by Optuna).
        trials: number of trials.
        seed: of random and tpe.
        fixed: values of the configuration that all trials have.
        varied: fields of the configuration that differ.
        halving: when trials are stopped early; None: never.
    """

    data: str
    method: Method
    trials: int
    seed: int
    fixed: Values
    varied: dict[str, Choice | Span]
    halving: Halving | None

    def config(self, values: Mapping[str, Any]) -> SearchConfig:
        """The configuration of a trial; raises ValueError if a search refuses it."""
        return SearchConfig.from_json({**self.fixed, **values})

    def rungs(self, values: Mapping[str, Any]) -> list[int]:
        """The epochs after which a trial may be stopped."""
        try:
            return [] if self.halving is None else self.halving.rungs(self.config(values).epochs)
        except ValueError:  # the trial will say so
            return []

    def drawn(self, number: int) -> Values:
        """The values of a trial of a grid, or of a random sweep: they depend on nothing but its number."""
        if self.method == "grid":
            choices = [v.values for v in self.varied.values() if isinstance(v, Choice)]
            combination = next(itertools.islice(itertools.product(*choices), number, None))
            return dict(zip(self.varied, combination, strict=True))
        generator = np.random.default_rng([self.seed, number])
        shares = generator.random(len(self.varied))
        return {
            name: v.at(float(share)) if isinstance(v, Span) else v.values[int(share * len(v.values))]
            for (name, v), share in zip(self.varied.items(), shares, strict=True)
        }


def read_space(path: Path) -> Space:
    """Read a SPACE.toml.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no TOML, or says what no sweep can be; the message names the key.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
        return _space(said)
    except (ValueError, TypeError, RecursionError) as error:  # also of the TOML reader, and of SearchConfig
        raise ValueError(f"{path}: {error}") from error


def _space(said: dict[str, Any]) -> Space:
    for key in said:
        _expect(f"key {key!r}", key in _KEYS, f"one of {', '.join(_KEYS)}")
    data, method, seed = said.get("data"), said.get("method", "random"), said.get("seed", 0)
    fixed, space, halving = said.get("config", {}), said.get("space", {}), said.get("halving")
    _expect("data", isinstance(data, str) and data, "the name of a data set or the path of an .npz file", data)
    _expect("method", method in get_args(Method), f"one of {', '.join(get_args(Method))}", method)
    _expect("seed", is_whole(seed) and 0 <= seed < 2**63, "a whole number in [0, 2^63)", seed)
    _expect("config", isinstance(fixed, dict), "a table", fixed)
    _expect("space", isinstance(space, dict) and space, "a table of what varies", space)
    varied = {name: _varied(name, value) for name, value in space.items()}
    for name in (*fixed, *varied):
        _expect(f"field {name!r}", name in _FIELDS, "a field of the configuration, as in `fastbin search --help`")
    for name in varied:
        _expect(f"space.{name}", name not in fixed, "left out of [config], where it has a value too")
    if method == "grid":
        for name, value in varied.items():
            _expect(f"space.{name}", isinstance(value, Choice), "a list of values for method grid", space[name])
        combinations = math.prod(len(v.values) for v in varied.values() if isinstance(v, Choice))
        _expect(
            "trials", said.get("trials", combinations) == combinations, f"left out, or {combinations} for this grid"
        )
        said = {**said, "trials": combinations}
    trials = said.get("trials")
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 1:
        raise ValueError(f"trials must be a whole number, at least 1, got {trials!r}")
    made = Space(str(data), method, trials, seed, fixed, varied, _halving(halving))
    base = SearchConfig.from_json(fixed)
    for name, value in varied.items():  # each value by itself; what does not go together is a trial that fails
        for one in value.values if isinstance(value, Choice) else (value.low, value.high):
            try:
                dataclasses.replace(base, **{name: one})
            except (ValueError, TypeError) as error:  # noqa: PERF203
                raise ValueError(f"space.{name}: {error}") from error
    _expect("config.validation", base.validation > 0, "above 0: trials are judged by the validation part", 0)
    return made


def _varied(name: str, value: object) -> Choice | Span:
    if isinstance(value, list):
        _expect(f"space.{name}", value, "at least one value", value)
        return Choice(tuple(tuple(v) if isinstance(v, list) else v for v in value))
    wanted = "a list of values, or {min, max} and optionally log"
    if not isinstance(value, dict) or not {"min", "max"} <= set(value) <= {"min", "max", "log"}:
        raise ValueError(f"space.{name} must be {wanted}, got {value!r}")
    low, high, log = value["min"], value["max"], value.get("log", False)
    _expect(
        f"space.{name}", is_number(low) and is_number(high) and low < high < math.inf, "min below max, numbers", value
    )
    _expect(f"space.{name}.log", isinstance(log, bool), "true or false", log)
    _expect(f"space.{name}.min", not log or low > 0, "above 0 for a logarithmic span", low)
    return Span(low, high, log)


def _halving(said: object) -> Halving | None:
    if said is None:
        return None
    if not isinstance(said, dict) or not set(said) <= {"grace", "factor"}:
        raise ValueError(f"halving must be a table of grace and factor, got {said!r}")
    made = Halving(**said)
    _expect("halving.grace", is_whole(made.grace) and made.grace >= 1, "a whole number, at least 1", made.grace)
    _expect("halving.factor", is_whole(made.factor) and made.factor >= 2, "a whole number, at least 2", made.factor)
    return made


_MISSING = object()


def _expect(what: str, holds: object, expected: str, got: object = _MISSING) -> None:
    if not holds:
        raise ValueError(f"{what} must be {expected}" + ("" if got is _MISSING else f", got {got!r}"))
