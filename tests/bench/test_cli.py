"""`gpugrad bench` on the command line."""

import json

import pytest

pytest.importorskip("click")
pytest.importorskip("threadpoolctl")

import gpugrad as gg
from gpugrad.bench import peers
from tests.train.conftest import invoke


def refusal(*args):
    result = invoke("bench", *args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def test_a_run_leaves_its_files_and_a_page_can_be_made_of_them(tmp_path, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "mygrad", peers.Entry("nowhere:Nobody", "no_such_framework", "mygrad"))
    out = tmp_path / "out"
    result = invoke(
        "bench", "--workloads", "xent:8x3", "--against", "numpy,mygrad", "--rounds", 2, "--limit", 60, "--threads", 1,
        "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "| xent:8x3 |" in result.stdout
    assert "no_such_framework is not installed" in result.stdout
    found = json.loads((out / "bench-cpu.json").read_text())
    assert found["workloads"][0]["rows"]["numpy"]["rounds"] == 2
    assert found["threads"] == 1
    assert "command" not in found, "paths of this machine stay out"
    page = tmp_path / "page.md"
    assert invoke("bench", "--page", page, "--results", out / "bench-cpu.json").exit_code == 0
    assert "| xent:8x3 |" in page.read_text()


@pytest.mark.parametrize(
    "args, said",
    [
        (["--workloads", "nothing"], "no workload is called 'nothing'"),
        (["--against", "tensorflow"], "nothing to compare with is called 'tensorflow'"),
        (["--page", "x.md"], "--page and --results belong together"),
        (["--results", "nowhere.json", "--page", "x.md"], "nowhere.json"),
        (["--rounds", "0"], "--rounds"),
        (["--device", "tpu"], "--device"),
        pytest.param(
            ["--device", "cuda"], "error: ", marks=pytest.mark.skipif(gg.is_available("cuda"), reason="a GPU")
        ),
    ],
)
def test_an_impossible_flag(tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(*args)
    assert not list(tmp_path.iterdir())
