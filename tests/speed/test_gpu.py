"""The command for a GPU, dry-run on the CPU."""

import json
import sys

import pytest

from benchmarks import gpu


@pytest.fixture
def part(tmp_path, monkeypatch):
    """Run parts in this process; gives what they wrote."""
    monkeypatch.chdir(tmp_path)

    def run(name):
        arguments = ["gpu", "--part", name, "--tiny", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", arguments)
        gpu.main()
        return json.loads((tmp_path / f"gpu.{name}.json").read_text())

    return run


@pytest.mark.filterwarnings("ignore")
def test_results_on_the_device_are_compared_with_those_of_the_cpu(part):
    found = part("correctness")
    assert found["passed"]
    assert len(found["checks"]) == 23
    assert found["checks"]["gradients, shared_prompt, fp32"]["value"] < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_part_that_fails_or_hangs_is_told_and_no_other_is_lost(tmp_path, monkeypatch):
    target = tmp_path / "gpu.json"
    gpu.run_part("environment", target, tiny=True)
    monkeypatch.setitem(gpu.LIMITS, "correctness", 0.5)
    gpu.run_part("correctness", target, tiny=True)
    found = json.loads(target.read_text())
    assert found["environment"]["error"] is None
    assert found["environment"]["versions"]["torch"]
    assert found["correctness"]["error"] == "not done within 0.5 s"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_step_is_profiled(part):
    found = part("profile_tidpo")
    assert found["step_s"] > 0
    assert found["waits_for_the_device"]["aten::_local_scalar_dense"] > 0


def test_rows_are_written_as_they_are_done(tmp_path, monkeypatch):
    """Two rounds of each contestant; a row as soon as both sides have run."""
    seen = []

    def run(workload, name, steps, batches, mode):
        seen.append((name, mode))
        figures = {"wall_s": len(seen), "memory": 1e9, "useful_tokens": 10.0}
        figures |= {"flops": 5.0} if mode == "both" else {}
        rest = {"workload": {}, "device": "none", "threads": 1, "versions": {}, "peak_flops": 10}
        return {**figures, **rest}

    monkeypatch.setattr(gpu.suite, "run", run)
    written = []
    result = gpu.benchmark(tiny=True, write=lambda found: written.append(len(found["rows"])))
    assert written[:5] == [0, 2, 3, 4, 5]
    assert seen[0] == ("trl_best", "time")
    assert seen[1] == ("plain", "both")
    assert {row["runs"] for row in result["rows"]} == {2}
    assert result["rows"][0]["flops_ratio"] is None
