"""Training by replayed steps: the parameters, state and log of eager ones, bit for bit."""

from __future__ import annotations

import warnings

import pytest

import gpugrad as gg
from gpugrad import data, nn, optim
from gpugrad.errors import GpugradWarning
from gpugrad.testing import fake_cupy
from gpugrad.testing.emulator import compiler
from gpugrad.train import Callback, Trainer, job, load_state, save_state

from ..cuda.conftest import double  # noqa: F401  (a fixture)
from .conftest import invoke
from .test_run import log
from .test_trainer import StopAt, comparable, fingerprint, problem


class Clipped(Trainer):
    def update(self, x, y):
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = self.loss(logits, y)
        loss.backward()
        optim.clip_grad_norm(self.model.parameters(), 0.5)
        self.optimizer.step()
        return self.scores(loss, logits, y)


class InParts(Trainer):
    """Gradients of the parts of a batch add up."""

    def update(self, x, y):
        self.optimizer.zero_grad()
        total, hits = gg.zeros((), device=x.device), gg.zeros((), dtype=gg.int64, device=x.device)
        for start in range(0, len(y), 6):
            part = slice(start, start + 6)
            logits = self.model(x[part])
            loss = self.loss(logits, y[part]) * len(y[part])
            (loss / len(y)).backward()
            scores = self.scores(loss / len(y[part]), logits, y[part])
            total, hits = total + scores[0], hits + scores[1]
        self.optimizer.step()
        return total, hits


class Scaled(Trainer):
    """As with half precision: an overflow at first, which skips the update on the device."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.scaler = optim.GradScaler(2.0**127, growth_interval=3)

    def update(self, x, y):
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = self.loss(logits, y)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scores(loss, logits, y)


class EveryOther(Trainer):
    """Accumulates over two steps, and asks the step's number: no two steps are alike, so this cannot be replayed."""

    def update(self, x, y):
        if self.step % 2:
            self.optimizer.zero_grad()
        logits = self.model(x)
        loss = self.loss(logits, y)
        loss.backward()
        if self.step % 2 == 0:
            self.optimizer.step()
        return self.scores(loss, logits, y)


class Looks(Trainer):
    """Reads its loss at every step."""

    def update(self, x, y):
        loss, hits = super().update(x, y)
        return loss * (1 if float(loss) > 0 else -1), hits


class Average(Callback):
    """Reads and averages what a step left."""

    def __init__(self, model):
        self.average = optim.ExponentialMovingAverage(model.parameters(), 0.5)

    def on_step(self, trainer):
        self.average.update()

    def state_dict(self):
        return self.average.state_dict()

    def load_state_dict(self, saved):
        self.average.load_state_dict(saved)


def fresh(kind=Trainer, *, device="cpu", seed=0, optimizer=optim.Adam, shape=optim.schedules.Cosine, **options):
    """(trainer, loader) with dropout, batch norm, a smaller last batch, a schedule and averages of the parameters."""
    gg.random.seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.BatchNorm1d(16), nn.Linear(16, 4))
    model.to(device=device)
    opt = optimizer(model.parameters(), lr=1e-2)
    loader = data.ArrayLoader(*problem(), batch_size=16, seed=seed, device=device)
    schedule = optim.Schedule(opt, shape(3 * len(loader)))
    callbacks = [*options.pop("callbacks", ()), Average(model)]
    return kind(model, opt, schedule=schedule, log_every=4, callbacks=callbacks, **options), loader


def trained(tmp_path, *args, epochs=3, **options):
    trainer, loader = fresh(*args, **options)
    x, y = (t.to(device=options.get("device", "cpu")) for t in problem(40, seed=1))
    trainer.fit(loader, epochs, test=(x, y))
    return fingerprint(trainer, tmp_path), list(map(repr, comparable(trainer.records))), trainer  # nan is not nan


KINDS = [(Trainer, {}), (Clipped, {}), (InParts, {}), (Scaled, {}), (Trainer, {"optimizer": optim.SGD}),
         (Trainer, {"optimizer": optim.RMSprop, "shape": optim.schedules.Polynomial})]  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("kind, options", KINDS, ids=["plain", "clipped", "in parts", "scaled", "sgd", "polynomial"])
def test_replayed_training_is_eager_training(tmp_path, kind, options):
    *eager, _ = trained(tmp_path, kind, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GpugradWarning)
        *replayed, trainer = trained(tmp_path, kind, replay=True, **options)
    assert replayed == eager
    assert trainer._update.replays == 18 - 1 - 2 * 2  # the first is eager; both sizes are traced and proved
    assert trainer._update.refused == ""


@pytest.mark.parametrize("k", [1, 6, 8, 17])
@pytest.mark.parametrize("before, after", [(True, True), (True, False), (False, True)])
def test_a_resumed_run_may_replay_or_not(tmp_path, k, before, after):
    whole = trained(tmp_path)[:2]
    _, first, part = trained(tmp_path, replay=before, callbacks=[StopAt(k)])
    assert part.step == k
    save_state(tmp_path / "killed.safetensors", part.state_dict())
    rest, loader = fresh(seed=99, replay=after)
    rest.load_state_dict(load_state(tmp_path / "killed.safetensors"), loader)
    rest.fit(loader, 3, test=problem(40, seed=1))
    assert (fingerprint(rest, tmp_path), first + list(map(repr, comparable(rest.records)))) == whole


def test_loading_a_state_between_replayed_steps(tmp_path):
    """Back to an earlier state in the same process: the program goes on with it."""
    trainer, loader = fresh(replay=True)
    trainer.fit(loader, 1)
    save_state(tmp_path / "one.safetensors", trainer.state_dict())
    trainer.fit(loader, 2)
    two, programs = fingerprint(trainer, tmp_path), len(trainer._update.records)
    trainer.load_state_dict(load_state(tmp_path / "one.safetensors"), loader)
    trainer.fit(loader, 2)
    assert fingerprint(trainer, tmp_path) == two
    assert len(trainer._update.records) == programs == 2


@pytest.mark.parametrize("kind, reason", [(EveryOther, "traced 8 times"), (Looks, "reads a value on the host")])
def test_what_cannot_be_replayed_says_so_once_and_trains_all_the_same(tmp_path, kind, reason):
    *eager, _ = trained(tmp_path, kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        *replayed, trainer = trained(tmp_path, kind, replay=True)
    assert replayed == eager
    assert reason in trainer._update.refused
    assert [str(w.message).count(reason) for w in caught] == [1]


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("kind", [Trainer, Clipped, Scaled])
def test_on_a_gpu_nothing_but_the_graph_is_launched(tmp_path, kind, double):  # noqa: F811
    *eager, _ = trained(tmp_path, kind, device="cuda")
    launches = []

    class Counts(Callback):
        def on_step(self, trainer):
            launches.append((list(fake_cupy.launched), list(fake_cupy.waited)))
            fake_cupy.launched.clear()
            fake_cupy.waited.clear()

    *replayed, trainer = trained(tmp_path, kind, device="cuda", replay=True, callbacks=[Counts()])
    assert replayed == eager
    assert all(r.runner.reason == "" for r in trainer._update.records)
    assert trainer._update.replays == 13
    kernels, waits = launches[-4]  # the last but three: no line of the log, no evaluation
    assert waits == []
    assert [name.partition("<")[0] for name in kernels] == ["update", "gather", "gather"]  # averages, the next batch


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "finish", lambda *_: None)  # pictures, which take longer than the training
    flags = ("--epochs", 3, "--seed", 3, "--quiet", "--batch-size", 200)
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, flag in ((a, "--replay"), (b, "--no-replay")):
        with warnings.catch_warnings():
            warnings.simplefilter("error", GpugradWarning)
            assert invoke("train", *flags, flag, "--out", folder).exit_code == 0
    assert_same_run(a, b, [True, False])
    assert invoke("train", "--resume", a, "--epochs", 4, "--no-replay", "--quiet").exit_code == 0
    assert invoke("train", "--resume", b, "--epochs", 4, "--replay", "--quiet").exit_code == 0
    assert_same_run(a, b, [False, True])


def assert_same_run(a, b, flags):
    assert log(a) == log(b)
    states = [load_state(folder / "last.safetensors") for folder in (a, b)]
    assert [s["config"].pop("replay") for s in states] == flags
    for folder, state in zip((a, b), states):
        save_state(folder / "state.safetensors", state)
    assert (a / "state.safetensors").read_bytes() == (b / "state.safetensors").read_bytes()
