"""The module tree: what registers, what is saved and loaded, modes, hooks, text."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.errors import DomainError, DTypeError, GraphError, ShapeError


class Net(nn.Module):
    """Two linear layers, a scale and a running count."""

    def __init__(self, seed=0):
        g = gg.random.Generator(seed)
        self.first = nn.Linear(3, 4, generator=g)
        self.scale = nn.Parameter([1.0, 2.0])
        self.second = nn.Linear(4, 2, generator=g)
        self.register_buffer("calls", gg.zeros((), dtype=gg.int64))
        self.constant = gg.ones(2)

    def forward(self, x):
        return self.second(gg.tanh(self.first(x))) * self.scale


def bits(tensors):
    return {name: t.numpy().tobytes() for name, t in tensors.items()}


def test_names_come_in_order_of_registration():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "scale", "first.weight", "first.bias", "second.weight", "second.bias",
    ]  # fmt: skip
    assert [n for n, _ in net.named_buffers()] == ["calls"]
    assert [n for n, _ in net.named_modules()] == ["", "first", "second"]
    assert [n for n, _ in net.named_children()] == ["first", "second"]
    assert net.num_parameters() == 2 + 12 + 4 + 8 + 2
    assert list(net.state_dict()) == ["scale", "calls", "first.weight", "first.bias", "second.weight", "second.bias"]
    assert list(Net().state_dict()) == list(net.state_dict())


def test_the_constructor_of_the_base_class_need_not_be_called():
    assert Net().training is True


def test_a_parameter_is_an_independent_leaf():
    value = np.array([1.0, 2.0])
    p = nn.Parameter(value)
    value[0] = 5.0
    assert p.requires_grad
    assert p.is_leaf
    assert p.tolist() == [1.0, 2.0]
    assert nn.Parameter([1.0]).dtype == gg.float32
    with pytest.raises(DTypeError, match="floating"):
        nn.Parameter([1, 2])


def test_assignment_registers_replaces_and_forgets():
    net = Net()
    net.scale = None
    assert "scale" not in dict(net.named_parameters())
    net.scale = nn.Parameter([3.0])
    assert "scale" in dict(net.named_parameters())
    net.calls = gg.ones((), dtype=gg.int64)
    assert dict(net.named_buffers())["calls"].item() == 1
    net.first = "no layer"
    assert [n for n, _ in net.named_children()] == ["second"]
    del net.second
    assert list(net.children()) == []
    with pytest.raises(AttributeError):
        _ = net.second
    net.output = nn.Parameter([1.0]) * 2  # computed: an ordinary attribute
    assert list(dict(net.named_parameters())) == ["scale"]


def test_wrong_registrations_are_refused():
    net = Net()
    with pytest.raises(GraphError, match="parameter scale cannot become a computed tensor"):
        net.scale = nn.Parameter([1.0]) * 2
    with pytest.raises(DomainError, match="is a method of the class"):
        net.train = nn.Linear(1, 1)
    with pytest.raises(DomainError, match="contains a dot"):
        nn.ModuleDict({"a.b": nn.Linear(1, 1)})
    with pytest.raises(NotImplementedError, match="no forward"):
        nn.Module()(1)


def test_tied_weights_come_once_and_stay_tied():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    net[2].weight = net[0].weight
    assert list(net.state_dict()) == ["0.weight"]
    assert net.num_parameters() == 9
    x = gg.ones((2, 3))
    net(x).sum().backward()
    w = nn.Parameter(net[0].weight)
    (gg.tanh(x @ w.T) @ w.T).sum().backward()
    np.testing.assert_array_equal(net[0].weight.grad.numpy(), w.grad.numpy())
    for clone in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.to(dtype=gg.float64)):
        assert clone[0].weight is clone[2].weight
    other = np.eye(3)
    net.load_state_dict({"2.weight": other})  # any of its names
    np.testing.assert_array_equal(net[0].weight.numpy(), other)
    shared = nn.Sequential(net[0], net[0])
    assert len(list(shared.modules())) == 2
    assert len(list(shared.parameters())) == 1


def test_state_goes_round_and_is_a_snapshot():
    net, other = Net(0), Net(1)
    saved = net.state_dict()
    before = bits(saved)
    assert bits(other.state_dict()) != before
    addresses = [p.data.ctypes.data for p in other.parameters()]
    assert other.load_state_dict(saved) == ([], [])
    assert bits(other.state_dict()) == before
    assert addresses == [p.data.ctypes.data for p in other.parameters()]
    with gg.no_grad():
        net.scale[...] = 7.0
    assert bits(saved) == before
    assert all(not t.requires_grad for t in saved.values())
    other.load_state_dict({name: t.numpy().astype(np.float64) for name, t in saved.items()})
    assert other.scale.dtype == gg.float32


def test_a_state_that_does_not_fit_is_listed_and_nothing_is_written():
    net = Net()
    before = bits(net.state_dict())
    state = Net(1).state_dict()
    state["first.weigth"] = state.pop("first.weight")
    state["extra"] = gg.zeros(3)
    state["second.bias"] = gg.zeros(5)
    with pytest.raises(nn.StateError) as caught:
        net.load_state_dict(state)
    assert str(caught.value).splitlines()[:5] == [
        "[Net.load_state_dict] the state does not fit",
        "    missing      first.weight: float32[4, 3]",
        "    unexpected   first.weigth: float32[4, 3] (is it first.weight?)",
        "    unexpected   extra: float32[3]",
        "    wrong shape  second.bias: float32[5], expected float32[2]",
    ]
    assert __file__ in str(caught.value)
    with pytest.raises(nn.StateError, match="wrong shape"):
        net.load_state_dict(state, strict=False)
    assert bits(net.state_dict()) == before
    del state["second.bias"]
    assert net.load_state_dict(state, strict=False) == (["first.weight", "second.bias"], ["first.weigth", "extra"])
    assert net.scale.numpy().tobytes() == state["scale"].numpy().tobytes()


def test_frozen_parameters_stay_parameters_and_get_no_gradient():
    net = Net()
    net.first.freeze()
    assert len(list(net.parameters())) == 5
    assert net.num_parameters(trainable=True) == 12
    net(gg.ones((1, 3))).sum().backward()
    assert net.first.weight.grad is None
    assert net.second.weight.grad is not None
    assert "first.weight" in net.state_dict()
    assert dict(copy.deepcopy(net).named_parameters()).keys() == dict(net.named_parameters()).keys()
    assert net.unfreeze().num_parameters(trainable=True) == 28
    net(gg.ones((1, 3))).sum().backward()
    assert net.first.weight.grad is not None
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_to_casts_floats_in_place_and_keeps_gradients_and_integers():
    net = Net()
    weight = net.first.weight
    net(gg.ones((1, 3))).sum().backward()
    old = weight.grad.numpy(copy=True)
    assert net.to("float64") is net
    assert net.first.weight is weight
    assert {p.dtype for p in net.parameters()} == {np.dtype("float64")}
    assert net.calls.dtype == gg.int64
    np.testing.assert_array_equal(weight.grad.numpy(), old)
    net.zero_grad()
    net(gg.ones((1, 3), dtype=gg.float64)).sum().backward()
    assert weight.grad.dtype == gg.float64
    net.freeze().to(device="cpu", dtype=gg.float32)
    assert weight.dtype == gg.float32
    assert not weight.requires_grad


def test_modes_and_the_context_that_restores_them():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5)))
    net[1].eval()
    with net.evaluating() as same:
        assert same is net
        assert not any(m.training for m in net.modules())
    assert [m.training for m in net.modules()] == [True, True, False, False]
    with pytest.raises(ShapeError), net.evaluating():
        net(gg.ones((1, 3)))
    assert [m.training for m in net.modules()] == [True, True, False, False]
    assert net.train() is net
    assert all(m.training for m in net.modules())
    assert not any(m.training for m in net.eval().modules())


def test_apply_visits_children_before_their_parent():
    net, seen = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU())), []
    assert net.apply(seen.append) is net
    assert seen[-1] is net
    assert seen.index(net[1][0]) < seen.index(net[1])
    assert len(seen) == 4


def test_hooks_see_and_may_replace_and_can_be_removed():
    net, seen = nn.Linear(2, 2), []
    x = gg.ones((1, 2))
    plain = net(x).numpy()
    handles = [
        net.register_forward_pre_hook(lambda m, args: seen.append(("before", m, args))),
        net.register_forward_pre_hook(lambda m, args: args[0] * 0),
        net.register_forward_hook(lambda m, args, out: seen.append(("after", m, args[0].tolist()))),
        net.register_forward_hook(lambda m, args, out: out + 1),
    ]
    np.testing.assert_allclose(net(x).numpy()[0], net.bias.numpy() + 1)
    assert [s[0] for s in seen] == ["before", "after"]
    assert seen[0][2] == (x,)
    assert seen[1][2] == [[0.0, 0.0]]
    for handle in handles:
        handle.remove()
        handle.remove()
    np.testing.assert_array_equal(net(x).numpy(), plain)


def test_repr_shows_the_tree_and_the_mode():
    net = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(16)), nn.Linear(16, 2, bias=False)
    )
    assert repr(net) == (
        "Sequential(  # train, 176 parameters\n"
        "  (0): Linear(6 -> 16)\n"
        "  (1): ReLU()\n"
        "  (2): Sequential(\n"
        "    (0): Dropout(p=0.2)\n"
        "    (1): BatchNorm1d(16)\n"
        "  )\n"
        "  (3): Linear(16 -> 2, bias=False)\n"
        ")"
    )
    net[0].freeze()
    net[2].eval()
    assert repr(net).splitlines()[0] == "Sequential(  # train, 176 parameters, 112 frozen"
    assert repr(net).splitlines()[3:5] == ["  (2): Sequential(  # eval", "    (0): Dropout(p=0.2)"]
    assert repr(nn.Linear(3, 1).eval()) == "Linear(3 -> 1)  # eval, 4 parameters"
    assert repr(Net()).splitlines()[0] == "Net(  # train, 28 parameters"


def test_sequential_and_list():
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    net = nn.Sequential(a, b).append(c)
    assert len(net) == 3
    assert list(net) == [a, b, c]
    assert net[-1] is c
    assert isinstance(net[:2], nn.Sequential)
    assert list(net[:2]) == [a, b]
    x = gg.ones((4, 2))
    np.testing.assert_array_equal(net(x).numpy(), c(gg.relu(a(x))).numpy())
    net[1] = nn.Tanh()
    del net[0]
    assert list(net.state_dict()) == ["1.weight", "1.bias"]
    with pytest.raises(DTypeError, match=r"\[Sequential\] entry 1 is function, expected a Module"):
        nn.Sequential(a, gg.relu)
    with pytest.raises(IndexError):
        net[5]
    layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(12)).extend([a])
    assert isinstance(layers[3:5], nn.ModuleList)
    assert [n for n, _ in layers.named_children()] == [str(i) for i in range(13)]
    with pytest.raises(DTypeError):
        layers[0] = None
    assert len(layers) == 13


def test_dict():
    a, b = nn.Linear(2, 3), nn.ReLU()
    table = nn.ModuleDict({"a": a})
    table["b"] = b
    assert (len(table), list(table), table.keys()) == (2, ["a", "b"], ["a", "b"])
    assert table["a"] is a
    assert table.values() == [a, b]
    assert table.items() == [("a", a), ("b", b)]
    assert "a" in table
    assert "weight" not in table
    del table["a"]
    assert "a" not in table
    with pytest.raises(KeyError):
        table["a"]
    with pytest.raises(DTypeError, match="c is 3"):
        table["c"] = 3
    with pytest.raises(DomainError, match="method"):
        table["train"] = a


def test_a_child_that_knows_its_parent_does_not_loop():
    net = nn.Sequential(nn.Linear(1, 1))
    net[0].parent = net
    assert len(list(net.modules())) == 2
    assert len(list(net.named_parameters())) == 2


def test_modules_are_freed_without_the_collector():
    gc.disable()
    try:
        net = Net()
        gone = [weakref.ref(net), weakref.ref(net.first)]
        loss = net(gg.ones((2, 3))).sum()
        loss.backward()
        del net, loss
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()
