"""`python -m bench gpu` and `tune` as far as they go without a GPU: on CPU kernels, with a timer that is no clock."""

import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from stand_in_graph import Frozen, StandIn

from bench import gpu, gpu_cases, gpu_checks, gpu_steps, gpu_timing, gpu_tune
from fastbin import choices, library, steps

ROOT = Path(__file__).parent.parent


class Script:
    """A timer whose answers are given beforehand; it makes each call once."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def seconds(self, call, *, cold):
        call(0)
        self.asked.append("cold" if cold else "warm")
        return self.answers.pop(0)

    def steps(self, call):
        call(0)
        self.asked.append("steps")
        return self.answers.pop(0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["bench.gpu"], ["bench", "gpu"], ["bench", "tune"]])
def test_without_a_gpu_there_is_one_error(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "needs a CUDA device" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_the_entry_without_extras_needs_neither_tyro_nor_rich():
    code = "import sys; sys.modules['tyro'] = sys.modules['rich'] = None; import bench.gpu"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_kernel_of_a_device_passes_the_checks(capsys):
    found = gpu_checks.kernels("cpu")
    assert {kernel.op for kernel in found} == set(gpu_checks.backends.OPS)
    assert gpu_checks.run(found, small=True) == []
    assert "mask_grad_update_ cpp: 208 checks, 0 failures" in capsys.readouterr().out


@pytest.mark.parametrize("op", gpu_checks.backends.OPS)
def test_a_wrong_kernel_fails_the_checks(op):
    (kernel,) = [k for k in gpu_checks.kernels("cpu") if k.op == op]

    def wrong(*args):
        result = kernel.function(*args)
        return ~result if result.dtype == torch.bool else result + 1

    failures = gpu_checks.run([gpu_checks.Kernel(op, "wrong", wrong, "cpu")], small=True)
    assert len(failures) >= 8 and all(f"{op} wrong, " in line for line in failures)


def test_kernels_are_checked_in_processes_of_their_own(capfd):
    found = [k for k in gpu_checks.kernels("cpu") if k.op in ("popcount", "transpose")]
    assert gpu_checks.run_beside(found) == []
    told = capfd.readouterr().out
    assert told.count("popcount cpp: 10 checks, 0 failures") == told.count("transpose cpp: 10 checks") == 2


def test_a_kernel_that_raises_fails_the_checks():
    def broken(*args):
        raise RuntimeError("launch failed")

    failures = gpu_checks.run([gpu_checks.Kernel("popcount", "broken", broken, "cpu")], small=True)
    assert all("launch failed" in line for line in failures) and len(failures) == 8


def test_failures_mean_no_timings(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "require_gpu", lambda: "a card")
    monkeypatch.setattr(gpu_checks, "kernels", lambda device: [])
    monkeypatch.setattr(gpu_checks, "run_beside", lambda found: ["bit_linear triton, 1 x 1 x 1: differs"])
    monkeypatch.setattr(gpu, "run_huge", lambda found: [])
    monkeypatch.setattr(gpu, "EventTimer", None)
    assert gpu.check_and_time(None, False) == 1
    assert "bit_linear triton, 1 x 1 x 1: differs" in capsys.readouterr().out


def test_the_captured_step_is_checked(monkeypatch):
    monkeypatch.setattr(steps, "Graph", StandIn)
    assert gpu_checks.run_captured("cpu") == []
    monkeypatch.setattr(steps, "Graph", Frozen)
    assert len(gpu_checks.run_captured("cpu")) == 4  # all but bop, whose constants stay


@pytest.mark.parametrize(
    ("capability", "batch", "dtype", "served"),
    [((9, 0), 16, torch.float16, True), ((9, 0), 1, torch.float32, False), ((9, 0), 16, torch.int8, True),
     ((12, 0), 1, torch.bfloat16, True), ((9, 0), 17, torch.bfloat16, True), ((8, 0), 17, torch.bfloat16, False)],
)  # fmt: skip
def test_kernels_are_checked_on_what_they_serve(capability, batch, dtype, served, monkeypatch):
    choices.serving.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    x = torch.empty(batch, 64, dtype=dtype, device="meta")
    assert gpu_checks.serves(gpu_checks.Kernel("bit_linear", "cpp", torch.add, "cuda"), x) is served
    assert gpu_checks.serves(gpu_checks.Kernel("bit_linear", "triton", torch.add, "cuda"), x)
    choices.serving.cache_clear()


def test_search_steps_run_in_both_dtypes():
    for activations in ("float32", "bfloat16"):
        call = gpu_steps.search_steps("cpu", (64, 32, 10), 8, activations, False)
        for i in range(4):
            call(i)


SMALL_CASES = {
    "bit_linear": lambda kernels: gpu_cases.product(kernels, 1, 64, torch.bfloat16, 12.0, goal_share=0.75),
    "bit_linear int8": lambda kernels: gpu_cases.product(kernels, 32, 64, torch.int8, 1.6),
    "bit_matmul": lambda kernels: gpu_cases.bit_matmul(kernels, 64, 6e15),
    "update": lambda kernels: gpu_cases.update(kernels, 64),
    "population": lambda kernels: gpu_cases.population("cpu", 3, (64, 32, 10), 8),
}


@pytest.mark.parametrize("name", SMALL_CASES)
def test_cases_run_and_give_rows(name):
    case = SMALL_CASES[name](gpu_checks.kernels("cpu"))
    calls = len(case.ours) + len(case.peers)
    timer = Script(*[2.0] * 2 * calls)
    rows = gpu.time_case(case, timer, gpu_timing.Limits(1e12, 1e15))
    assert len(rows) == len(case.peers) * (1 if case.steps else 2)
    assert all(row["ratio"] == 1.0 and row["ours_us"] == 2e6 for row in rows)
    assert timer.asked == (["steps"] * calls if case.steps else ["warm"] * calls + ["cold"] * calls)


def test_the_peers_of_a_product_multiply_the_same_numbers():
    case = gpu_cases.product(gpu_checks.kernels("cpu"), 32, 64, torch.int8, 1.6)
    ours = case.ours["cpp"](1)
    assert torch.equal(ours, case.peers["torch._int_mm"](1))
    torch.testing.assert_close(ours.float(), case.peers["cuBLAS bf16"](1).float(), rtol=1e-2, atol=8.0)


def test_rows_by_hand():
    case = gpu_cases.Case(
        "op", "1 x 1", {"triton": lambda i: i, "cpp": lambda i: i}, {"first": lambda i: i, "second": lambda i: i},
        goals={"first": 4.0, "second": 2.5}, bytes=3e6, operations=1e9, goal_share=0.75, goal_rate=1e15,
    )  # fmt: skip
    limits = gpu_timing.Limits(bandwidth=3e12, bf16_rate=1e15)
    rows = gpu.time_case(case, Script(8e-6, 4e-6, 2e-6, 1e-6, 9e-6, 4e-6, 4e-6, 2e-6), limits)
    assert [row["ratio"] for row in rows] == pytest.approx([4, 2, 8, 4, 2.25, 1, 4.5, 2])
    assert [row["roofline"] for row in rows[::2]] == pytest.approx([0.5, 1.0, 0.25, 0.5])
    assert [row["goal"] for row in rows] == [4.0, 2.5] * 4
    assert gpu.missed(rows) == [
        "op 1 x 1: roofline 0.5, to reach 0.75",
        "op 1 x 1: rate 5e+14, to reach 1e+15",
        "op 1 x 1: times second 2, to reach 2.5",
    ]
    lines = gpu.table(rows).splitlines()
    assert len(lines) == 10 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| op | 1 x 1 | triton | warm | 2 | first | 8 | 4 | 4 | 0.5 |")


def test_csv(tmp_path, monkeypatch):
    row = dict.fromkeys(gpu.COLUMNS, 1.0) | {"cache": "cold"}
    monkeypatch.setattr(gpu, "require_gpu", lambda: "a card")
    monkeypatch.setattr(gpu_checks, "kernels", lambda device: [])
    monkeypatch.setattr(gpu, "run_huge", lambda found: [])
    monkeypatch.setattr(gpu, "sanitize", lambda found: ([], ["compute-sanitizer: not installed"]))
    monkeypatch.setattr(gpu, "EventTimer", Script)
    monkeypatch.setattr(gpu, "measure_limits", lambda timer, device: gpu_timing.Limits(1.0, 1.0))
    monkeypatch.setattr(gpu, "cases", lambda found: [None])
    monkeypatch.setattr(gpu, "time_case", lambda *_: [row])
    assert gpu.check_and_time(tmp_path / "out.csv", False) == 0
    (read,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert read["ratio"] == "1.0" and read["cache"] == "cold"


@pytest.mark.parametrize(("status", "failures"), [(0, 0), (9, 2)])
def test_every_kernel_runs_under_each_sanitizer(status, failures, tmp_path, monkeypatch, capsys):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/seen\necho $2 says so\nexit {status}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found, unfinished = gpu.sanitize([gpu_checks.Kernel("popcount", "triton", torch.add, "cuda")])
    assert unfinished == []
    assert len(found) == failures and all("popcount:triton" in line for line in found)
    seen = sorted((tmp_path / "seen").read_text().splitlines())
    assert [line.split()[1] for line in seen] == ["memcheck", "racecheck"]
    assert all(line.endswith("-m bench.gpu --small-checks popcount:triton") for line in seen)
    assert capsys.readouterr().out.count("says so") == 2


def test_what_a_sanitizer_did_not_finish_is_told(tmp_path, monkeypatch):
    kernels = [gpu_checks.Kernel("popcount", "triton", torch.add, "cuda")]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.sanitize(kernels) == ([], ["compute-sanitizer: not installed"])
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu, "SANITIZER_SECONDS", 0.1)
    found, unfinished = gpu.sanitize(kernels)
    assert found == []
    assert unfinished == [
        f"compute-sanitizer {check}, popcount:triton: not finished within 0.1 s" for check in ("memcheck", "racecheck")
    ]


def test_limits():
    limits = gpu_timing.measure_limits(Script(0.5, 0.25), "cpu", copy_bytes=1024, n=8)
    assert (limits.bandwidth, limits.bf16_rate) == (4096, 4096)


def test_choices_are_recorded_by_time(tmp_path):
    path = tmp_path / "choices.json"
    path.write_text(json.dumps({"note": "", "devices": {"default": {}}}))
    gpu.record_choice(path, "card", "bit_matmul", "large", "64 x 64", {"triton": 3e-6, "cpp": 2e-6})
    found = json.loads(path.read_text())["devices"]
    assert found["card"]["bit_matmul"]["large"]["order"] == ["cpp", "triton"]
    assert found["card"]["bit_matmul"]["large"]["basis"] == "measured" and found["default"] == {}


def test_a_population_takes_the_steps_of_its_members():
    torch.manual_seed(0)
    together = gpu_steps.PopulationSteps("cpu", 2, (64, 40, 10), 8)
    alone = [gpu_steps.PopulationSteps("cpu", None, (64, 40, 10), 8) for _ in range(2)]
    for member, search in enumerate(alone):
        search.scores = [s[member].clone() for s in together.scores]
        search.words = [library.pack(s, 0.0) for s in search.scores]
        search.batches = [(x[member], y[member]) for x, y in together.batches]
    before = [w.clone() for w in together.words]
    losses = [together.call(0), sum(search.call(0) for search in alone)]
    torch.testing.assert_close(*losses)
    for layer, words in enumerate(together.words):
        mine = torch.stack([search.words[layer] for search in alone])
        assert not torch.equal(words, before[layer])
        assert (library.unpack(words ^ mine, 32 * mine.shape[-1], torch.float32)).mean() < 1e-3


def test_the_dense_steps_lower_the_loss():
    torch.manual_seed(0)
    dense = gpu_steps.DenseSteps("cpu", (64, 96, 10), 32)
    losses = [float(dense.call(0)) for _ in range(60)]
    assert sum(losses[-5:]) < sum(losses[:5])


# --------------------------------------------------------------------------------------------------------------- tuning


def test_the_fastest_right_candidate_wins():
    shipped = {"block_k": 32, "num_warps": 4}
    options = [
        shipped,
        {"block_k": 64, "num_warps": 4},
        {"block_k": 128, "num_warps": 4},
        {"block_k": 16, "num_warps": 4},
    ]

    def call(config):
        return torch.tensor([2.0 if config["block_k"] == 128 else 1.0])  # 128 gives another result

    timer = Script(4.0, 3.0, 5.0)
    assert gpu_tune.best(call, options, timer) == (options[1], 3.0)
    assert not timer.answers
    assert gpu_tune.best(call, options[:1], Script(4.0)) == (shipped, 4.0)


def test_candidates_begin_with_what_is_shipped():
    pytest.importorskip("triton")
    from fastbin.kernels import configs

    for kernel, dtypes in configs.table()["sm_90"].items():
        for classes in dtypes.values() if kernel != "origin" else ():
            for shipped in classes.values():
                options = gpu_tune.candidates(kernel, shipped)
                assert options[0] == shipped and 4 < len(options) <= 1 + gpu_tune.CANDIDATES
                assert len({tuple(option.items()) for option in options}) == len(options)
                assert all(option.keys() == shipped.keys() for option in options)


def test_tuning_rewrites_the_entry_of_the_card(tmp_path, monkeypatch, capsys):
    """On kernels that are none: a larger block_k is faster by the clock, four stages cannot be compiled."""
    pytest.importorskip("triton")
    from triton.runtime.errors import OutOfResources

    from fastbin.kernels import configs

    class Timer:
        def seconds(self, call, *, cold):
            return 1.0 / float(call(0)[1])

    def calls(kernel, dtype, batch, device):
        def call():
            config = configs.find(kernel, dtype, batch, device)
            if config.get("num_stages") == 4:
                raise OutOfResources(300000, 200000, "shared memory")
            return torch.tensor([1e6, config.get("block_k", 1)])  # the same but for what the clock sees

        return call

    # Threads, so that they have these stand-ins too; one, since a call's configuration is the process's.
    monkeypatch.setattr(gpu_tune, "ProcessPoolExecutor", lambda mp_context: ThreadPoolExecutor(1))
    monkeypatch.setattr(gpu_tune, "_calls", calls)
    monkeypatch.setattr(gpu_tune, "EventTimer", Timer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some Card")
    configs.device_name.cache_clear()
    gpu_tune.tune_all(60.0, tmp_path / "configs.json")
    configs.device_name.cache_clear()

    written, shipped = json.loads((tmp_path / "configs.json").read_text()), configs.table()
    assert written.keys() == shipped.keys() and written["sm_90"]["origin"] == "Some Card"
    assert {name: entry for name, entry in written.items() if name != "sm_90"} == {
        name: entry for name, entry in shipped.items() if name != "sm_90"
    }
    product = written["sm_90"]["bit_linear"]
    assert product["bfloat16"]["any"]["block_k"] == 256 and product["float16"] == product["bfloat16"]
    assert "candidates compiled" in capsys.readouterr().out
