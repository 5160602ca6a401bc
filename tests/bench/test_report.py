"""Tables, verdicts and the page are made from the JSON alone."""

import json
from pathlib import Path

import pytest

from gpugrad import compiler
from gpugrad.bench import report, targets, workloads
from gpugrad.bench.peers import PEERS
from gpugrad.errors import DomainError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "bench" / "results").glob("bench-*.json"))


def timed(step, **more):
    return {
        "state": "ok", "step_s": step, "low_s": step * 0.9, "high_s": step * 1.2, "rounds": 3, "all_s": [step] * 3,
        "device_s": None, "samples_s": 128 / step, "roofline": 0.5, "first_s": 0.2, "learned_s": 0.6,
        "host_bytes": 90_000_000, "steady_bytes": 40_000_000, "device_bytes": None, "launches": None,
        "profile": None, **more,
    }  # fmt: skip


def workload(name, rows, **more):
    return {"name": name, "title": name, "kind": "train", "samples": 128, "flops": 1e6, "bytes": 1e6, "floor": 2e7,
            "tolerance": 1e-4, "reference": "numpy", "rows": rows, **more}  # fmt: skip


@pytest.fixture
def result():
    refused = {"state": "refused", "why": "refused: loss 2 differs by 3.0e-01 (1 for 2; 2e-04 is allowed)"}
    rows = {"gpugrad": timed(4e-3), "gpugrad-replay": timed(2.1e-3), "gpugrad-compiled": timed(3e-3),
            "torch": timed(2e-3), "mygrad": refused}  # fmt: skip
    jax = {"state": "missing", "why": "jax is not installed"}
    return {
        "schema": 1, "suite": "quick", "device": "cpu", "threads": 2, "date": "2026-01-01T00:00:00+00:00",
        "gpugrad": "0.1.0", "commit": "0123456789abcdef", "python": "3.11.7", "numpy": "2.4.0", "platform": "x",
        "cpu": {"model": "a processor", "cores": 2}, "blas": {}, "gpu": None, "flags": {}, "seconds": 12.0,
        "load": 0.1,
        "rates": {"copy": 2e10, "product": 1e11},
        "frameworks": {"gpugrad": {"version": "0.1.0", "import_s": 0.3, "installed_mb": 73.8},
                       "jax": {"missing": "jax is not installed"}},
        "workloads": [
            workload("mlp-sgd:128", {**rows, "jax.jit": jax}),
            workload("memory:4096", {"gpugrad": {k: v for k, v in timed(1).items() if not k.endswith("_s") or
                                                 k in ("first_s", "learned_s")}}),
            workload("busy:128", {"gpugrad": timed(4e-3, beside=1.9), "gpugrad-replay": timed(4e-3, beside=2.5)}),
            workload("deep:100k", {"gpugrad": timed(0.3)}, samples=100_000),
        ],
    }  # fmt: skip


def test_hits_and_misses_are_told_alike(result):
    found = {(t["workload"], t["peer"], t["quantity"]): (t["measured"], t["verdict"]) for t in targets.judged(result)}
    assert found["mlp-sgd:128", "gpugrad-replay", targets.RATIO] == (pytest.approx(1.05), "hit")
    assert found["mlp-sgd:128", "gpugrad-compiled", targets.RATIO] == (pytest.approx(1.5), "miss")
    assert found["mlp-sgd:128", "gpugrad", targets.COLD] == (pytest.approx(0.9), "hit")
    assert found["memory:4096", "gpugrad", targets.MEMORY] == (pytest.approx(2.0), "miss")
    assert found["memory:4096", "gpugrad-replay", targets.MEMORY] == (None, "not measured")
    assert found["busy:128", "gpugrad", targets.BESIDE] == (1.9, "hit")
    assert found["busy:128", "gpugrad-replay", targets.BESIDE] == (2.5, "miss")
    assert found["deep:100k", "gpugrad", targets.NODE_US] == (pytest.approx(3.0), "hit")
    assert found["deep:100k", "gpugrad", targets.NODE_KB] == (pytest.approx(0.4), "hit")
    text = report.verdicts(result)
    assert text.startswith(f"{sum(v == 'hit' for _, v in found.values())} hit, ")
    assert text.count("| miss |") == sum(v == "miss" for _, v in found.values())


def test_a_share_of_the_roofline_is_to_be_above(result):
    result["device"] = "cuda"
    for share, verdict in ((0.95, "hit"), (0.85, "miss")):
        rows = {"gpugrad-replay": timed(1e-3, roofline=share), "jax.jit": timed(2e-3), "torch.compile": timed(5e-4)}
        result["workloads"] = [workload("xent:8192x50257", rows)]
        found = {t["quantity"]: t for t in targets.judged(result)}
        assert found[targets.ROOFLINE]["verdict"] == verdict
        assert found[targets.RATIO]["measured"] == pytest.approx(2.0), "against the best of several"


def test_the_table_says_what_is_refused_and_what_is_missing(result):
    text = report.markdown(result)
    assert "| mlp-sgd:128 | 4 (2.00) | 2.1 (1.05) | 3 (1.50) | 2 (1.00) | refused |" in text
    assert "- mlp-sgd:128, mygrad: refused: loss 2 differs by" in text
    assert "| jax |  |  |  | jax is not installed |" in text
    assert "jax.jit" not in report.times(result), "a framework that is nowhere has no column"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {}
    for line in rows:
        widths.setdefault(line.count("|"), []).append(line)
    assert all(len(lines) >= 3 for lines in widths.values()), "every row is as wide as its head"


def test_a_busy_machine_is_told(result):
    assert "load" not in report.conditions(result)
    result["load"] = 1.7
    assert "The machine was busy (load 1.7 at the start): take no figure for a fact." in report.conditions(result)


def test_what_is_written_is_read_again_and_gives_the_same_page(result, tmp_path):
    files = report.write(result, tmp_path / "new")
    assert [f.name for f in files][:2] == ["bench-cpu.json", "bench-cpu.md"]
    again = report.read(files[0])
    assert again == json.loads(json.dumps(result))
    assert files[1].read_text() == report.markdown(again)
    page = report.page([files[0], files[0]], tmp_path / "docs" / "page.md")
    assert page.count("# Time a step") == 2
    assert page.count("(../new/bench-cpu.svg)") == 2 * (len(files) == 3)
    assert report.markdown(again, 2).strip() in page


def test_the_picture(result, tmp_path):
    pytest.importorskip("matplotlib")
    files = report.write(result, tmp_path)
    svg = files[2].read_text()
    assert files[2].suffix == ".svg"
    assert "<svg" in svg
    report.write(result, tmp_path)
    assert files[2].read_text() == svg


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 7}', "[1]"])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DomainError, match="no result of `gpugrad bench`"):
        report.read(path)


def test_the_page_in_the_repository_is_what_the_command_writes():
    """Nobody writes a figure by hand."""
    page = ROOT / "docs" / "performance.md"
    assert page.exists() == bool(RESULTS)
    if RESULTS:
        assert page.read_text() == report.page(RESULTS, page)


def test_the_profile_explains(result):
    assert "spends its time" not in report.markdown(result)
    rows = [{"op": "affine", "phase": "forward", "calls": 3, "share": 0.5},
            {"op": "relu", "phase": "backward", "calls": 2, "share": 0.25},
            {"op": "sum", "phase": "forward", "calls": 1, "share": 0.001}]  # fmt: skip
    result["workloads"][0]["rows"]["gpugrad"]["profile"] = rows
    text = report.markdown(result)
    assert "# Where an eager step of gpugrad spends its time\n\n- mlp-sgd:128: affine 50%, relu backward 25%\n" in text
    assert text.count("spends its time") == 1


def test_replays_are_explained_beside_eager_steps(result):
    def row(op, phase, share, seconds, moved, flops):
        return {
            "op": op,
            "phase": phase,
            "calls": 1,
            "share": share,
            "seconds": seconds,
            "bytes": moved,
            "flops": flops,
        }

    rows = [row("matmul", "replayed", 0.31, 1e-3, 2e6, 64e6), row("add+relu", "compiled", 0.2, 1e-3, 18e6, 0),
            row("reshape", "replayed", 0.03, 1e-4, 0, 0), row("exp", "replayed", 0.019, 1e-4, 8, 0),
            {"op": "outside the ops", "phase": "", "calls": 1, "share": 0.04}]  # fmt: skip
    told = "mlp-sgd:128: matmul 31% (64% of roofline), add+relu compiled 20% (90% of roofline), reshape 3%, outside the"
    result["workloads"][0]["rows"]["gpugrad-compiled"]["profile"] = rows
    assert f"# Where a compiled replay spends its time\n\n- {told} ops 4%\n" in report.markdown(result)
    result["workloads"][0]["rows"]["gpugrad-replay"]["profile"] = rows
    assert f"# Where a replayed step spends its time\n\n- {told} ops 4%\n" in report.markdown(result)
    result["rates"] = {"copy": None, "product": None}
    assert "roofline)" not in report.markdown(result)


@pytest.mark.parametrize("column", report.STEPS)
def test_every_column_of_ours_says_where_its_time_goes(column):
    if column == "gpugrad-compiled" and not compiler.enabled():
        pytest.skip("no C++ compiler")
    peer = PEERS[column].load()("cpu", "float32", 1)
    small = workloads.find("mlp-adam:8")
    step = peer.step(small, *small.arrays("float32"))
    for _ in range(3):
        step()
    rows = peer.profile(step)
    assert sum(r["share"] for r in rows) == pytest.approx(1, abs=0.2)  # the smallest are not kept
    assert rows[-1]["op"] == "outside the ops"
    products = [r for r in rows if r["op"] in ("matmul", "affine") and r["phase"] != "backward"]
    assert sum(r["calls"] for r in products) == 8  # forward three, backward five
    assert sum(r["flops"] for r in products) == small.flops
    assert all(r["phase"] in ("forward", "backward", "") for r in rows) == (column == "gpugrad")
    result = {
        "rates": {"copy": 1e10, "product": 1e11},
        "workloads": [{"name": "x", "rows": {column: {"profile": rows}}}],
    }
    assert report.profiles(result, column).startswith("- x: ")
