"""The command for a GPU, dry-run on the CPU."""

import io
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import liger_stand_in
import pytest

from benchmarks import gpu, gpu_checks
from benchmarks.workloads import WORKLOADS
from lit_tidpo.models import liger
from lit_tidpo.models.packed_rows import PackedRows

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def part(tmp_path, monkeypatch):
    """Run a part in this process; gives what it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(name, limit=60.0):
        arguments = ["gpu", "--part", name, "--tiny", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{limit}\n"))
        gpu.main()
        return json.loads((tmp_path / f"gpu.{name}.json").read_text())

    return run


@pytest.fixture
def measured(monkeypatch):
    """Figures without training; a contestant's time is what stands here."""
    seconds = {"trl_best": 1.5, "plain": 1.0, "importance": 1.2, "tidpo_reuse_8": 1.7}
    calls = []

    def measure(workload, name, steps, batches, mode):
        calls.append(name)
        if seconds[name] is None:
            raise RuntimeError("out of memory")
        figures = {"wall_s": seconds[name], "memory": 1e9, "useful_tokens": 10.0}
        figures |= {"flops": 5.0} if mode == "both" else {}
        figures["losses"] = [0.44] if name == "trl_best" else [0.4] * steps + [9.0]
        rest = {"workload": {}, "device": "none", "threads": 1, "versions": {}, "peak_flops": 10}
        return {**figures, **rest}

    monkeypatch.setattr(gpu.worker, "measure", measure)
    monkeypatch.setattr(gpu, "gc", SimpleNamespace(collect=lambda: 0))  # takes its time
    return SimpleNamespace(seconds=seconds, calls=calls)


def _benchmark(limit=0.0):
    written = []
    gpu.benchmark(0, 3, written.append, limit, tiny=False)
    return written


def test_values_on_the_device_are_compared_with_those_of_the_cpu(part, monkeypatch):
    """In all ways of attention: with and without prompts in front, and with and without a mask."""
    ways = set()
    is_square = PackedRows.is_square

    def noted(self, window):
        ways.add((is_square(self, window), self.prompts is not None))
        return is_square(self, window)

    monkeypatch.setattr(PackedRows, "is_square", noted)
    found = part("correctness")
    assert found["passed"]
    assert len(found["checks"]) == 77
    assert found["checks"]["gradients, masked, shared_prompt, fp32"]["value"] < 1e-5
    assert ways == {(a, b) for a in (True, False) for b in (True, False)}


def test_a_mask_that_is_wrong_at_one_token_is_seen(monkeypatch):
    mask = PackedRows.mask

    def wrong(self, *arguments):
        right = mask(self, *arguments)
        if right is not None:
            right = right.clone()
            right[..., -1:, :5] = float("-inf")
        return right

    monkeypatch.setattr(PackedRows, "mask", wrong)
    case = dict(gpu_checks._cases())["masked"]
    expected = gpu_checks._values("cpu", case, "padded", "fp32")
    found = gpu_checks._values("cpu", case, "shared_prompt", "fp32")
    checks = gpu_checks._compare("", found, expected, "fp32")
    assert not all(check["passed"] for check in checks.values())


def test_what_is_not_a_number_passes_no_check():
    assert not gpu_checks.check(float("nan"), 1.0)["passed"]


def test_rows_are_measured_in_turns_and_written_as_they_are_done(measured):
    """Three turns of each, back and forth; a row as soon as both sides have run."""
    written = _benchmark()
    names = ["trl_best", "plain", "importance", "tidpo_reuse_8"]
    assert measured.calls == [*names, *names[::-1], *names]
    assert [len(each["rows"]) for each in written[:3]] == [0, 2, 3]
    assert [each["passed"] for each in written] == [False] * 11 + [True]
    assert [each["rows"][0]["met"] for each in written[1:]] == [False] * 8 + [True] * 3
    assert {row["runs"] for row in written[-1]["rows"]} == {3}
    assert written[-1]["rows"][0]["ratio_median"] == 1.5
    assert written[-1]["rows"][0]["utilisation"] == [0.5, None]  # 5 operations of 10 a second


def test_other_losses_than_trls_do_not_pass(measured, monkeypatch):
    """The means without the step whose operations are counted: 0.4, and 0.44 or 0.5."""
    assert _benchmark()[-1]["passed"]
    measure = gpu.worker.measure

    def other(workload, name, *rest):
        found = measure(workload, name, *rest)
        return found | {"losses": [0.5]} if name == "trl_best" else found

    monkeypatch.setattr(gpu.worker, "measure", other)
    last = _benchmark()[-1]
    (losses,) = last["losses"].values()
    assert losses["value"] == pytest.approx(0.1)
    assert not last["passed"]


def test_a_contestant_that_fails_costs_its_own_rows_alone(measured):
    measured.seconds["importance"] = None
    last = _benchmark(limit=60.0)[-1]
    assert measured.calls.count("importance") == 1
    assert [row["name"] for row in last["rows"]] == [
        "dpo_speed_vs_trl_best",
        "dpo_memory_vs_trl_best",
        "tidpo_reused_anchors_vs_trl_dpo",
    ]
    assert {row["runs"] for row in last["rows"]} == {3}
    assert "out of memory" in last["errors"]["importance"]
    assert not last["passed"]


def test_rows_are_dry_run(part):
    """Each contestant in this process, our losses beside TRL's."""
    found = part("benchmark")
    assert found["errors"] == {}
    assert found["passed"]
    assert [row["name"] for row in found["rows"]] == [
        "dpo_speed_vs_trl_best",
        "dpo_memory_vs_trl_best",
        "gradient_importance_overhead",
        "tidpo_reused_anchors_vs_trl_dpo",
    ]
    (losses,) = found["losses"].values()
    assert losses["value"] < 1e-3


def test_techniques_are_dry_run(part):
    found = part("techniques")
    assert found["passed"], found["errors"]
    rows = [row["name"] for row in found["rows"]]
    assert rows == ["technique/varlen_attention", "technique/compiled_layers"]


@pytest.mark.slow
def test_ligers_kernels_are_dry_run(part, monkeypatch):
    """By a stand-in, with the CPU as a GPU."""
    called = liger_stand_in.install(monkeypatch)
    monkeypatch.setattr(liger, "on_gpu", lambda device: True)
    found = part("liger")
    assert found["passed"], found["errors"]
    rows = [row["name"] for row in found["rows"]]
    assert rows == ["technique/liger", "technique/liger_memory"]
    assert set(called) == {"rms_norm", "rope"}
    checks = gpu_checks._liger("cpu")
    assert len(checks) == 24
    assert all(check["passed"] for check in checks.values())


def test_no_step_of_the_large_rows_has_a_loss_of_zero():
    """Rates far above DPO's fit the pairs of one epoch so well that gradients vanish."""
    assert WORKLOADS["gpu_1b"].rate <= 1e-6


def test_a_step_is_profiled(part):
    found = part("profile_tidpo")
    assert found["passed"]
    assert found["step_s"] > 0
    assert 0 <= found["idle_share"] < 1
    assert found["kernel_count"] >= sum(count for _, count in found["kernels_ms"].values())


def test_a_profile_counts_each_kernel_once():
    """By hand: kernels at 0-10, 5-12 and 20-30 µs are busy for 22 of 30; the CPU's is none."""

    def event(name, device, start, end, annotation=False):
        span = SimpleNamespace(start=start, end=end)
        kind = SimpleNamespace(name=device)
        return SimpleNamespace(
            name=name, device_type=kind, time_range=span, is_user_annotation=annotation
        )

    found = gpu.summary(
        [
            event("gemm", "CUDA", 0, 10),
            event("add", "CUDA", 5, 12),
            event("gemm", "CUDA", 20, 30),
            event("step", "CUDA", 0, 90, annotation=True),
            event("aten::mm", "CPU", 0, 50),
            event("cudaStreamSynchronize", "CPU", 12, 16),
        ],
        "CUDA",
    )
    assert found["device_busy_ms"] == pytest.approx(0.022)
    assert found["idle_share"] == pytest.approx(8 / 30)
    assert found["kernels_ms"] == {"gemm": [0.02, 2], "add": [0.007, 1]}
    assert found["waits_ms"] == {"cudaStreamSynchronize": [0.004, 1]}
    assert gpu.summary([], "CUDA")["idle_share"] is None


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Parts whose process runs other code than theirs; gives ``run(code by part)``."""

    popen = subprocess.Popen

    def run(**codes):

        def instead(command, **options):
            code = f"import sys, time, pathlib; file = pathlib.Path({str(tmp_path)!r})\n"
            code += f"file /= 'gpu.{command[6]}.json'; sys.stdin.readline()\n"
            return popen([sys.executable, "-c", code + codes[command[6]]], **options)

        monkeypatch.setattr(subprocess, "Popen", instead)
        passed = gpu.run_parts(codes, tmp_path / "gpu.json", tiny=True)
        return passed, json.loads((tmp_path / "gpu.json").read_text())

    return run


GOOD = "file.write_text('{\"passed\": true}')"


def test_parts_that_crash_or_hang_are_told_and_no_other_is_lost(stand_in, monkeypatch, capsys):
    monkeypatch.setitem(gpu.LIMITS, "profile_plain", 0.5)
    passed, found = stand_in(
        environment=GOOD,
        correctness="raise ValueError('x' * 5000 + 'the reason')",
        profile_plain=f"{GOOD}; time.sleep(60)",
        benchmark="file.write_text('{\"passed\": false}')",
        profile_tidpo="",
        techniques="import os; os.abort()",
    )
    assert not passed
    assert {name: each["passed"] for name, each in found.items()} == {
        "environment": True,
        "correctness": False,
        "profile_plain": False,
        "benchmark": False,
        "profile_tidpo": False,
        "techniques": False,
    }
    assert found["correctness"]["error"].strip().endswith("the reason")
    assert len(found["correctness"]["error"]) < 2100
    assert found["profile_plain"]["error"] == "not done within 0.5 s"
    assert found["techniques"]["error"].startswith("status -6")
    assert "profile_plain: FAILED" in capsys.readouterr().out


def test_parts_share_the_time_and_single_ones_keep_the_results_of_others(stand_in, monkeypatch):
    assert stand_in(environment=GOOD)[0]
    monkeypatch.setattr(gpu, "SECONDS", 1.0)
    started = time.monotonic()
    passed, found = stand_in(correctness="time.sleep(60)", profile_plain="time.sleep(60)")
    assert time.monotonic() - started < 10
    assert not passed
    assert found["environment"]["passed"]
    assert found["profile_plain"]["error"] == "not done within 1 s"


def test_what_a_part_has_started_ends_with_it(stand_in, tmp_path):
    """Else it would hold the device's memory while the next part runs."""
    late = tmp_path / "late"
    code = f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(late)!r}).touch()"
    child = f"import subprocess; subprocess.Popen([sys.executable, '-c', {code!r}])"
    passed, _ = stand_in(environment=f"{child}; {GOOD}")
    assert passed
    time.sleep(2.5)
    assert not late.exists()
