"""The trainer is a plain loop plus stations; it waits for the device once a log line and resumes in the same bits."""

import gc
import hashlib
import weakref

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import data, nn, optim
from gpugrad.train import Callback, EarlyStopping, Meters, Trainer, evaluate, load_state, save_state
from gpugrad.train.metrics import cut_log

F = nn.functional


def problem(samples=90, seed=0):
    """Four-class blobs of 6 features as (x, y) tensors."""
    x, y = data.blobs(samples, classes=4, features=6, spread=4.0, seed=seed)
    return gg.tensor(x), gg.tensor(y)


def fresh(seed=0, dropout=0.0, batch_size=16, **options):
    """(trainer, loader) of a small network on the blobs, everything from one seed."""
    gg.random.seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.BatchNorm1d(16), nn.Linear(16, 4))
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    loader = data.ArrayLoader(*problem(), batch_size=batch_size, seed=seed)
    schedule = optim.Schedule(optimizer, optim.schedules.Cosine(4 * len(loader)))
    return Trainer(model, optimizer, schedule=schedule, **options), loader


def fingerprint(trainer, path):
    """Hash of the trainer's whole state as a checkpoint."""
    save_state(path / "state.safetensors", trainer.state_dict())
    return hashlib.sha256((path / "state.safetensors").read_bytes()).hexdigest()


def comparable(records):
    """Log records without what a clock decides."""
    return [{k: v for k, v in r.items() if k not in ("seconds", "samples_per_s")} for r in records]


FIT = """
x, y, x_test, y_test = data.load_idx(folder)
gg.random.seed(0)
model = train.mlp((28, 28), 10)
loader = data.ArrayLoader(x / np.float32(255), y, batch_size=64)
trainer = train.Trainer(model, optim.Adam(model.parameters(), lr=1e-3))
trainer.fit(loader, epochs=2)
accuracy = train.evaluate(model, gg.tensor(x_test / np.float32(255)), gg.tensor(y_test)).accuracy
"""
LOOP = """
x, y, x_test, y_test = data.load_idx(folder)
gg.random.seed(0)
model = train.mlp((28, 28), 10)
optimizer = optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(2):
    if epoch == 0: loader = data.ArrayLoader(x / np.float32(255), y, batch_size=64)
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
accuracy = (model(gg.tensor(x_test / np.float32(255))).argmax(axis=-1) == gg.tensor(y_test)).mean().item()
"""


def test_mnist_in_twelve_lines_both_ways_with_the_same_numbers(mnist_5k):
    from gpugrad import train

    results = []
    for text in (FIT, LOOP):
        assert len(text.strip().splitlines()) <= 12 - 1  # and one line of imports
        names = {"gg": gg, "np": np, "data": data, "nn": nn, "optim": optim, "train": train, "folder": mnist_5k}
        exec(text, names)
        results.append(names)
    fit, loop = results
    for p, q in zip(fit["model"].parameters(), loop["model"].parameters()):
        assert p.numpy().tobytes() == q.numpy().tobytes()
    assert fit["accuracy"] == pytest.approx(loop["accuracy"], abs=1e-6)
    assert fit["accuracy"] > 0.85


def test_the_numbers_of_the_log_are_those_of_the_batches():
    trainer, loader = fresh(log_every=4)
    seen = []
    loss = trainer.loss

    def spy(logits, labels):
        value = loss(logits, labels)
        if trainer.model.training:
            seen.append((len(labels), value.item(), int((logits.numpy().argmax(1) == labels.numpy()).sum())))
        return value

    trainer.loss = spy
    records = trainer.fit(loader, 2, test=problem(40, seed=1))
    intervals = [r for r in records if r["event"] == "interval"]
    assert [r["step"] for r in intervals] == [4, 6, 8, 12]
    assert [r["epoch"] for r in intervals] == pytest.approx([4 / 6, 1, 8 / 6, 2])
    for r, rows in zip(intervals, (seen[:4], seen[4:6], seen[6:8], seen[8:])):
        n = sum(row[0] for row in rows)
        assert r["train_loss"] == pytest.approx(sum(row[0] * row[1] for row in rows) / n, rel=1e-5)
        assert r["train_accuracy"] == sum(row[2] for row in rows) / n
        assert r["samples_per_s"] > 0
    first, second = (r for r in records if r["event"] == "epoch")
    assert first["train_accuracy"] == sum(row[2] for row in seen[:6]) / 90
    assert second["train_loss"] == pytest.approx(sum(row[0] * row[1] for row in seen[6:]) / 90, rel=1e-5)
    assert (first["epoch"], second["epoch"]) == (1, 2)
    scores = evaluate(trainer.model, *problem(40, seed=1))
    assert (second["test_loss"], second["test_accuracy"]) == (scores.loss, scores.accuracy)


def test_logged_rate_and_gradient_norm():
    trainer, loader = fresh(log_every=1)
    norms = []

    class Spy(Callback):
        def on_step(self, trainer):
            grads = [p.grad.numpy() for p in trainer.model.parameters()]
            norms.append(np.sqrt(sum((g.astype(float) ** 2).sum() for g in grads)))

    trainer.callbacks.append(Spy())
    records = [r for r in trainer.fit(loader, 1) if r["event"] == "interval"]
    assert [r["grad_norm"] for r in records] == pytest.approx(norms, rel=1e-5)
    cosine = [0.5e-2 * (1 + np.cos(np.pi * i / (4 * 6))) for i in range(6)]
    assert [r["lr"] for r in records] == pytest.approx(cosine)


READS = ("item", "numpy", "tolist", "__float__", "__int__", "__bool__", "__index__", "__array__")


@pytest.mark.parametrize("log_every, reads", [(1, 12), (3, 4), (4, 4), (100, 2)])
def test_one_read_of_the_device_per_log_line(monkeypatch, log_every, reads):
    count = []
    for name in READS:
        original = getattr(gg.Tensor, name)

        def counted(self, *args, _original=original, **kwargs):
            count.append(_original.__name__)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(gg.Tensor, name, counted)
    trainer, loader = fresh(log_every=log_every)
    count.clear()
    trainer.fit(loader, 2)
    assert len(count) == reads, count


def test_meters_hold_no_graph():
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    meters = Meters()
    y = (x * x).sum()
    node = weakref.ref(y.node)
    meters.add(loss=y)
    meters.add(loss=y)
    del y
    gc.collect()
    assert node() is None
    assert meters.read() == {"loss": 10.0}
    assert meters.read() == {}


def test_evaluate_restores_the_mode_of_every_layer():
    trainer, loader = fresh(dropout=0.5)
    model = trainer.model
    trainer.fit(loader, 1)
    layers = list(model.modules())
    model.train()
    layers[-2].eval()
    modes = [layer.training for layer in layers]
    assert len(set(modes)) == 2
    seen = []

    def loss(logits, labels):
        seen.extend(layer.training for layer in layers)
        return F.cross_entropy(logits, labels)

    first, second = (evaluate(model, *problem(), loss=loss, batch_size=7) for _ in range(2))
    assert not any(seen)
    assert [layer.training for layer in layers] == modes
    assert first.loss == second.loss  # no dropout noise
    before = [b.copy() for b in map(np.asarray, (v.numpy() for v in model.state_dict().values()))]
    with pytest.raises(ZeroDivisionError):
        evaluate(model, *problem(), loss=lambda *_: 1 / 0)
    assert [layer.training for layer in layers] == modes
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.state_dict().values()))


def test_evaluate_scores():
    model = nn.Sequential(nn.Linear(6, 4))
    x, y = problem(50)
    logits = model(x).numpy().astype(float)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    labels = y.numpy()
    for batch_size in (7, 50, 1000):
        scores = evaluate(model, x, y, batch_size=batch_size)
        assert scores.loss == pytest.approx(-np.log(p[np.arange(50), labels]).mean(), rel=1e-5)
        assert scores.accuracy == (p.argmax(1) == labels).mean()
        assert np.array_equal(scores.predicted, p.argmax(1))
        assert scores.confidence == pytest.approx(p.max(1), rel=1e-5)


class StopAt(Callback):
    def __init__(self, step):
        self.at = step

    def on_step(self, trainer):
        if trainer.step == self.at:
            trainer.stop("enough")


@pytest.mark.parametrize("k", [1, 5, 6, 7, 11, 12, 23, 24])
def test_killed_at_step_k_and_resumed_is_bit_equal(tmp_path, k):
    """6 steps an epoch, 4 epochs: in the middle, at and next to the end of an epoch, with dropout and BatchNorm."""
    whole, loader = fresh(dropout=0.3, log_every=4)
    whole.fit(loader, 4, test=problem(40, seed=1))
    part, loader = fresh(dropout=0.3, log_every=4, callbacks=[StopAt(k)])
    part.fit(loader, 4, test=problem(40, seed=1))
    assert part.step == k
    assert (part.stopped, part.epoch) == ("enough", k // 6)
    save_state(tmp_path / "killed.safetensors", part.state_dict())
    gg.random.seed(99)  # what another process would find
    gone_on, loader = fresh(seed=99, dropout=0.3, log_every=4)
    gone_on.load_state_dict(load_state(tmp_path / "killed.safetensors"), loader)
    gone_on.fit(loader, 4, test=problem(40, seed=1))
    assert gone_on.stopped is None
    assert fingerprint(gone_on, tmp_path) == fingerprint(whole, tmp_path)
    assert comparable(part.records + gone_on.records) == comparable(whole.records)


def test_the_order_of_events():
    events = []

    class Spy(Callback):
        def __getattribute__(self, name):
            if name.startswith("on_"):
                events.append(name)
            return super().__getattribute__(name)

    trainer, loader = fresh(batch_size=45, log_every=100, callbacks=[Spy()])
    trainer.fit(loader, 1)
    assert events == ["on_begin", "on_step", "on_log", "on_step", "on_epoch", "on_finish", "on_close"]


def test_callbacks_are_closed_after_an_error():
    closed = []

    class Fails(Callback):
        def on_step(self, trainer):
            raise RuntimeError("disk full")

        def on_finish(self, trainer):
            closed.append("finish")

        def on_close(self):
            closed.append("close")

    trainer, loader = fresh(callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="disk full"):
        trainer.fit(loader, 1)
    assert closed == ["close"]


@pytest.mark.parametrize(
    "values, patience, epochs, best",
    [
        ([3, 2, 1, 1, 1, 1], 2, 5, 1),
        ([3, 4, 2, 3, 3, 3], 3, 6, 2),
        ([5, 4, 3, 2, 1, 0], 1, 6, 0),
        ([float("nan"), 2, float("nan"), 1], 2, 4, 1),
        ([float("nan")] * 4, 2, 2, None),
    ],
)
def test_early_stopping(values, patience, epochs, best):
    stopping = EarlyStopping(patience)
    trainer, _ = fresh()
    seen = 0
    for value in values:
        stopping.on_epoch(trainer, {"valid_loss": value})
        seen += 1
        if trainer.stopped:
            break
    assert (seen, stopping.best) == (epochs, best)
    again = EarlyStopping(patience)
    again.load_state_dict(stopping.state_dict())
    assert (again.best, again.waited, again.improved) == (stopping.best, stopping.waited, stopping.improved)


def test_a_run_that_stopped_early_stays_stopped():
    trainer, loader = fresh(callbacks=[EarlyStopping(1)])
    trainer.callbacks[0].load_state_dict({"best": -1.0, "waited": 0})  # cannot be beaten
    trainer.fit(loader, 4, valid=problem(20))
    assert trainer.epoch == 1
    trainer.fit(loader, 4, valid=problem(20))
    assert trainer.epoch == 1


def test_a_log_is_cut_back_to_the_checkpoint(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 2}\n{"step": 3}\n{"ste')
    assert [r["step"] for r in cut_log(log, 2)] == [1, 2, 2]
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2}\n'
    assert cut_log(tmp_path / "new.jsonl", 2) == []


def test_a_parameter_that_the_loss_does_not_reach_is_named():
    class Cut(nn.Module):
        def __init__(self):
            self.used, self.forgotten = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            return self.used(x)

    model = Cut()
    loader = data.ArrayLoader(*problem(), batch_size=16)
    with pytest.raises(gg.errors.GraphError, match=r"forgotten\.weight, forgotten\.bias"):
        Trainer(model, optim.SGD(model.parameters(), lr=0.1)).fit(loader, 1)
    model.forgotten.freeze()
    Trainer(model, optim.SGD(model.used.parameters(), lr=0.1)).fit(loader, 1)
