"""Names of workloads and columns."""

import pytest

from gpugrad.bench import targets, workloads
from gpugrad.bench.peers import PEERS, select
from gpugrad.errors import DomainError


def test_names_have_sizes():
    assert workloads.find("xent:2048x1000").bytes == 8 * 2048 * 1000
    assert workloads.find("elementwise:4M").samples == 4_000_000
    assert workloads.find("mlp-sgd").name == "mlp-sgd:128"
    assert workloads.find("loader:60k").samples == 60_000


@pytest.mark.parametrize(
    "name, said",
    [
        ("mlp", "no workload is called 'mlp'; there are overhead, deep"),
        ("xent:10", "'xent:10' has no sizes such as xent:4096x10"),
        ("xent:ax10", "has no sizes such as"),
        ("mlp-sgd:0", "has no sizes such as mlp-sgd:128"),
        ("mlp-sgd:-3", "has no sizes such as"),
    ],
)
def test_a_wrong_name_is_refused(name, said):
    with pytest.raises(DomainError, match="bench") as error:
        workloads.find(name)
    assert said in str(error.value)


def test_every_suite_and_every_target_names_workloads_that_exist():
    for names in workloads.SUITES.values():
        assert all(workloads.find(name).kind for name in names)
    for (suite, device), names in workloads.SUITES.items():
        full = {workloads.find(n).name for n in names}
        if suite == "full":
            assert {t.workload for t in targets.TARGETS if t.device == device} <= full
    for target in targets.TARGETS:
        assert target.peer in PEERS
        assert set(target.against) <= set(PEERS)


def test_columns_are_chosen_by_framework_or_by_name():
    ours = [n for n in PEERS if n.startswith("gpugrad")]
    assert select([], "quick", "cpu") == ours
    assert select(["torch"], "quick", "cpu") == [*ours, "torch"]
    assert select(["torch"], "full", "cpu") == [*ours, "torch", "torch.compile"]
    assert select(["torch.compile"], "quick", "cpu") == [*ours, "torch.compile"]
    assert select(["torch", "numpy"], "quick", "cuda") == [*ours, "torch", "torch-graph"]
    with pytest.raises(DomainError, match="nothing to compare with is called 'tensorflow'"):
        select(["tensorflow"], "quick", "cpu")


@pytest.mark.parametrize("name", ["mlp-sgd:4", "lenet:2", "gpt:1x2x16x8x2", "xent:4x3", "resnet:1x4x8x2"])
def test_flops_grow_with_the_batch(name):
    """Twice the samples, twice the work: the formulas name the batch once."""
    workload = workloads.find(name)
    family, _, sizes = name.partition(":")
    *rest, batch = sizes.split("x") if family != "xent" else reversed(sizes.split("x"))
    doubled = [*rest, str(2 * int(batch))]
    twice = workloads.find(f"{family}:{'x'.join(doubled if family != 'xent' else reversed(doubled))}")
    assert twice.flops == 2 * workload.flops
    assert twice.samples == 2 * workload.samples
    assert workload.flops or workload.bytes
