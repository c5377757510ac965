"""Trials on a cluster, by Ray Tune. Not imported before it is asked for.

Tune hands out trials, watches workers and nodes, retries what died and stops what is not worth going on with (ASHA). What a
trial has done lies in its own folder, which all nodes must see: a retry goes on from the checkpoint there.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths mean in a trial what they mean here
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose silence is not silent
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends a sweep here as it does elsewhere

try:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import Searcher
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"a cluster needs Ray Tune ({error}): pip install 'fastbin-nets[cluster]', or leave out --cluster to run here"
    ) from error

from fastbin.result import EpochRecord
from fastbin.runs import CHECKPOINT
from fastbin.sweep import Cluster, Progress, Tell, write_outcomes
from fastbin.sweep.samplers import Sampler
from fastbin.sweep.space import Space
from fastbin.sweep.trials import Outcome, fail, prepare, read_outcome, run_trial, stop, trial_folder

ATTEMPTS = 20  # of a trial whose worker or node died


def run_on(cluster: Cluster, space: Space, sampler: Sampler, out: Path, data_dir: Path | None, tell: Tell) -> None:
    """Run all trials of a space that have not come to an end; arguments as of `fastbin.sweep.sweep`.

    Raises:
        ConnectionError: there is no such cluster.
    """
    ours = not ray.is_initialized()
    options: dict[str, Any] = {} if cluster.address == "local" else {"address": cluster.address}
    if cluster.address == "local":
        options = {"num_cpus": os.cpu_count(), "include_dashboard": False}
    if ours:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    try:
        trials = _Trials(space, sampler, out.resolve(), tell)
        if not trials.todo:
            return
        folder = None if data_dir is None else data_dir.resolve()
        trainable = tune.with_parameters(_trial, sweep=out.resolve(), data_dir=folder, threads=cluster.cpus)
        scheduler = None
        if space.halving is not None:
            scheduler = ASHAScheduler(
                time_attr="epoch",
                max_t=2**31,  # a trial ends by itself
                grace_period=space.halving.grace,
                reduction_factor=space.halving.factor,
            )
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": cluster.cpus, "gpu": cluster.gpus}),
            tune_config=tune.TuneConfig(
                metric="accuracy",
                mode="max",
                search_alg=trials,
                scheduler=scheduler,
                num_samples=len(trials.todo),
                reuse_actors=True,  # importing torch takes longer than many a trial
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(out.resolve() / "ray"),
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS),
                verbose=0,
            ),
        ).fit()
    finally:
        if ours:
            ray.shutdown()


def _trial(config: dict[str, Any], sweep: Path, data_dir: Path | None, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)

    def on_epoch(record: EpochRecord) -> None:
        tune.report(
            {"epoch": record.epoch, "accuracy": record.validation_accuracy, "record": json.dumps(record.to_json())}
        )

    run_trial(trial_folder(sweep, config["number"]), data_dir, on_epoch)


class _Trials(Searcher):  # type: ignore[misc]
    """The sweep's trials as Tune asks for them, and what becomes of them."""

    def __init__(self, space: Space, sampler: Sampler, out: Path, tell: Tell) -> None:
        super().__init__(metric="accuracy", mode="max")
        self._space, self._sampler, self._out, self._tell = space, sampler, out, tell
        self.todo: list[int] = []
        self._ended: list[Outcome] = []
        for number in range(space.trials):
            outcome = read_outcome(trial_folder(out, number))
            if outcome is None:
                self.todo.append(number)
            else:
                self._end(outcome)
        self._left = iter(self.todo)
        self._numbers: dict[str, int] = {}
        self._values: dict[int, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps copies of its own to restore, which a sweep does not use; a terminal cannot be copied.
        return {name: value for name, value in vars(self).items() if name not in ("_tell", "_sampler", "_left")}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        number = next(self._left, None)
        if number is None:
            finished: str = Searcher.FINISHED
            return finished
        self._numbers[trial_id] = number
        self._values[number] = prepare(self._out, self._space, number, self._sampler.choose)
        self._tell(Progress(number, self._values[number]))
        return {"number": number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        number = self._numbers[trial_id]
        if "record" in result:
            self._tell(Progress(number, self._values[number], EpochRecord(**json.loads(result["record"]))))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        folder = trial_folder(self._out, self._numbers[trial_id])
        outcome = read_outcome(folder)
        if outcome is None and (error or not (folder / CHECKPOINT).exists()):
            outcome = fail(folder, f"it could not be run in {ATTEMPTS + 1} attempts: see {self._out / 'ray'}")
        self._end(outcome or stop(folder))

    def _end(self, outcome: Outcome) -> None:
        self._sampler.learn(outcome)
        self._ended.append(outcome)
        write_outcomes(self._out, self._ended)
        self._tell(Progress(outcome.number, outcome.values, outcome=outcome))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is resumed from its trials' folders."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""
