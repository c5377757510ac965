import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from fastbin import report
from fastbin.cli import main
from fastbin.data import load_dataset
from fastbin.result import load_result

FILES = {"config.json", "metrics.jsonl", "checkpoint.safetensors", "network.safetensors", "result.json", "curves.png"}
SMALL = ["--hidden", "32", "--epochs", "2"]


def search(folder, *flags, data="digits"):
    return main(["search", str(data), "--out", str(folder), *flags])


def names(folder):
    return {path.name for path in folder.iterdir()} - {".lock"}


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def weights_of(folder):
    return load_result(folder / "network.safetensors").net.weights()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert search(folder, *SMALL, "--seed", "3") == 0
    return folder


@pytest.fixture
def error(capfd):
    """Run a command that fails, and return its exit code and its one line of complaint."""

    def run(*args):
        capfd.readouterr()
        code = main([str(arg) for arg in args])
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("fastbin: error: ")
        return code, line

    return run


@pytest.fixture
def stop_after_first_epoch(monkeypatch):
    def stop(record, epochs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "_epoch_line", stop)
        yield patch.undo


# search


def test_search_writes_everything(finished):
    assert names(finished) == FILES
    result = result_of(finished)
    network = load_result(finished / "network.safetensors")
    assert result["widths"] == [64, 32, 10] and result["edges"] == 64 * 32 + 32 * 10
    assert result["edges_present"] == sum(int(w.count()) for w in network.net.weights())
    assert result["density"] == [w.density() for w in network.net.weights()]
    assert result["best_epoch"] == network.best_epoch and result["test_accuracy"] == network.test_accuracy
    assert result["command"].startswith("fastbin search digits --out ")
    assert all(result["versions"][name] for name in ("fastbin", "torch", "numpy", "python"))
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_search_tells_each_epoch_and_the_outcome(tmp_path, capfd):
    assert search(tmp_path / "run", *SMALL) == 0
    out, err = capfd.readouterr()
    assert err == "" and "\x1b" not in out and "\r" not in out
    epochs = [line for line in out.splitlines() if line.startswith("epoch")]
    assert len(epochs) == 2
    assert re.match(
        r"epoch 1/2  train loss \d+\.\d{4}  accuracy \d+\.\d\d %  validation loss .*  flips \d+  ", epochs[0]
    )
    assert "test accuracy" in out and "curves.png" in out
    assert out.splitlines()[-1] == f"written to {tmp_path / 'run'}"


def test_search_without_validation(tmp_path, capfd):
    assert search(tmp_path, *SMALL, "--validation", "0") == 0
    assert "validation loss" not in capfd.readouterr().out
    assert result_of(tmp_path)["validation_accuracy"] is None and result_of(tmp_path)["best_epoch"] == 2


def test_progress_bar_on_a_terminal(finished):
    console = Console(force_terminal=True, width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    history = load_result(finished / "network.safetensors").history
    with report.progress(console, 2) as on_epoch:
        for record in history:
            on_epoch(record)
    console.file.close()
    assert f"2/2 {'━' * 40} validation accuracy {100 * history[1].validation_accuracy:.2f} %" in console.export_text()


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["search", "digits", *SMALL, "--seed", "7"]) == 0
    assert names(tmp_path / "runs" / "digits-seed7") == FILES


def test_narrow_terminal(finished, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert search(finished, "--resume") == 0
    assert max(len(line) for line in capfd.readouterr().out.splitlines()[:-1]) <= 30


def test_own_data_with_names_for_labels(tmp_path, capfd):
    rng = np.random.default_rng(0)
    y = np.array(["[red]cat", "dog", "élan"])[np.arange(90) % 3]
    x = rng.normal(size=(90, 5)) + 4 * (np.arange(90) % 3)[:, None]
    np.savez(tmp_path / "pets.npz", x=x, y=y)
    assert search(tmp_path / "run", *SMALL, data=tmp_path / "pets.npz") == 0
    capfd.readouterr()
    assert main(["eval", str(tmp_path / "run" / "network.safetensors"), str(tmp_path / "pets.npz")]) == 0
    out = capfd.readouterr().out
    assert "[red]cat" in out and "élan" in out and "18 samples" in out


# a folder that holds a run


def test_second_run_is_refused(finished, error):
    before = result_of(finished)
    code, line = error("search", "digits", "--out", finished, *SMALL)
    assert code == 1 and str(finished) in line and "resume" in line
    assert result_of(finished) == before


def test_resume_of_a_finished_run(finished):
    before, weights = result_of(finished), weights_of(finished)
    assert search(finished, "--resume") == 0
    after = result_of(finished)
    assert {**after, "command": ""} == {**before, "command": ""}
    assert weights_of(finished) == weights


def test_resume_with_another_value(finished, error):
    code, line = error("search", "digits", "--out", finished, "--resume", "--epochs", "5")
    assert code == 1 and "epochs=2" in line and "5" in line
    code, line = error(
        "search", "digits", "--out", finished, "--resume", "--seed", "0"
    )  # the default, but not the run's
    assert code == 1 and "seed=3" in line


def test_resume_from_nothing(tmp_path, capfd):
    assert search(tmp_path / "new", *SMALL, "--resume") == 0
    assert capfd.readouterr().out.startswith(f"no checkpoint in {tmp_path / 'new'} yet: starting from the beginning\n")


@pytest.mark.parametrize("text", ["{", "[]", '{"epochs": -1}', '{"epoch": 1}', '{"hidden": 3}', "\xff"])
def test_damaged_configuration(tmp_path, error, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    code, line = error("search", "digits", "--out", tmp_path, "--resume")
    assert code == 1 and "config.json is damaged" in line


def test_interrupted_run_goes_on(tmp_path, finished, stop_after_first_epoch, capfd):
    assert search(tmp_path, *SMALL, "--seed", "3") == 130
    (line,) = capfd.readouterr().err.splitlines()
    command = f"fastbin search digits --out {tmp_path} --hidden 32 --epochs 2 --seed 3 --resume"
    assert line == f"fastbin: stopped; resume with: {command}"
    stop_after_first_epoch()
    assert main(command.split()[1:]) == 0
    assert weights_of(tmp_path) == weights_of(finished)
    assert result_of(tmp_path)["test_accuracy"] == result_of(finished)["test_accuracy"]


def test_full_disk_leaves_the_last_checkpoint(tmp_path, stop_after_first_epoch, error):
    search(tmp_path, *SMALL)
    stop_after_first_epoch()
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # room for the configuration alone
    try:
        code, line = error("search", "digits", "--out", tmp_path, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1 and line == f"fastbin: error: {tmp_path / 'checkpoint.safetensors'}: File too large"
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert len(load_result(tmp_path / "checkpoint.safetensors").history) == 1
    assert search(tmp_path, "--resume") == 0


def test_ctrl_c(tmp_path):
    command = ["search", "digits", "--hidden", "32", "--epochs", "100000", "--out", str(tmp_path)]
    # Started in the background by a script, the tests ignore SIGINT, and so would their children.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    assert process.stdout.readline().startswith("epoch")  # lines come as they are made
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    (line,) = err.splitlines()
    assert line == f"fastbin: stopped; resume with: fastbin {' '.join(command)} --resume"
    assert load_result(tmp_path / "checkpoint.safetensors").history


# errors


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--epochs", "-3"], ["epochs", "-3"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["--rule", "foo"], ["--rule", "foo"]),
        (["--lr", "nan"], ["lr", "nan"]),
        (["--betas", "0.9", "2"], ["betas", "2.0"]),
        (["--rule", "bop", "--estimator", "soft"], ["bop", "soft"]),
        (["--hiden", "3"], ["--hiden", "--hidden"]),
        (["--device", "banana"], ["device", "banana"]),
        (["--seed"], ["--seed"]),
    ],
)
def test_bad_value(tmp_path, error, flags, told):
    code, line = error("search", "digits", "--out", tmp_path / "run", *flags)
    assert code == 2 and all(part in line for part in told)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["search", "digts"], "did you mean digits"),
        (["search"], "DATASET"),
        (["serch"], "serch"),
        ([], "{search, sweep, eval, compare, spectra, export, doctor}"),
    ],
)
def test_bad_command(error, args, told):
    code, line = error(*args)
    assert code == 2 and told in line


def test_folder_that_cannot_be_made(tmp_path, error):
    (tmp_path / "file").touch()
    code, line = error("search", "digits", *SMALL, "--out", tmp_path / "file" / "run")
    assert code == 1 and "Not a directory" in line and str(tmp_path / "file") in line


def test_damaged_data(tmp_path, error):
    (tmp_path / "x.npz").write_bytes(b"nothing")
    code, line = error("search", tmp_path / "x.npz", "--out", tmp_path / "run")
    assert code == 1 and "x.npz" in line


@pytest.mark.parametrize("command", ["eval", "search"])
def test_damaged_checkpoint(tmp_path, finished, error, command):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes((finished / path.name).read_bytes()[:-100])
    args = ["eval", path, "digits"] if command == "eval" else ["search", "digits", "--out", tmp_path, "--resume"]
    code, line = error(*args)
    assert code == 1 and str(path) in line


def test_traceback_on_request(monkeypatch, capfd):
    monkeypatch.setenv("FASTBIN_DEBUG", "1")
    assert main(["search", "digts"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("Traceback") and "fastbin: error: unknown data set" in err.splitlines()[-1]


# eval


@pytest.mark.parametrize("name", ["network.safetensors", "checkpoint.safetensors"])
def test_eval_agrees_with_the_search(finished, capfd, name):
    assert main(["eval", str(finished / name), "digits", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["accuracy"] == result_of(finished)["test_accuracy"]
    assert found["samples"] == 360 and found["split_seed"] == 3
    right = sum(row["accuracy"] * row["samples"] for row in found["per_class"])
    assert right / 360 == pytest.approx(found["accuracy"])
    truth = load_dataset("digits", seed=3).y_test.bincount().tolist()
    assert [(row["label"], row["samples"]) for row in found["per_class"]] == list(enumerate(truth))


def test_eval_table(finished, capfd):
    assert main(["eval", str(finished / "network.safetensors"), "digits"]) == 0
    out = capfd.readouterr().out
    assert f"accuracy {100 * result_of(finished)['test_accuracy']:.2f} %" in out and "split seed 3" in out


def test_eval_on_other_data(finished, error):
    code, line = error("eval", finished / "network.safetensors", "breast_cancer")
    assert code == 2 and "30 features" in line
    code, line = error("eval", finished / "nothing", "digits")
    assert code == 1 and str(finished / "nothing") in line


# the process


def start(args, **streams):
    return subprocess.Popen([sys.executable, "-m", "fastbin.cli", *args], **streams)


@pytest.mark.parametrize("args", [["--help"], ["doctor"]])
def test_reader_that_goes_away(args):
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = start(args, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err == ""


def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        process = start(["--version"], stdout=full, stderr=subprocess.PIPE, text=True)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err == "fastbin: error: output: No space left on device\n"


def test_version_and_help(capfd):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"fastbin \d+\.\d+\.\d+\n", capfd.readouterr().out)
    with pytest.raises(SystemExit) as stop:
        main(["search", "--help"])
    assert stop.value.code == 0
    out = capfd.readouterr().out
    assert "--batch-size" in out and "samples a step" in out and "runs/<dataset>-seed<seed>" in out
