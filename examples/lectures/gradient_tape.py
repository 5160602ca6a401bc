"""Recording in the manner of TensorFlow's GradientTape, on the same engine as backward()."""

import gpugrad as gg

x = gg.tensor(3.0)
with gg.Tape() as tape:
    tape.watch(x)
    y = x * x
assert tape.gradient(y, x).item() == 6

# A tape gives its gradients once, unless it is persistent.
with gg.Tape(persistent=True) as tape:
    tape.watch(x)
    y = x * x
    z = y * y
assert tape.gradient(z, x).item() == 108  # 4 x^3
assert tape.gradient(y, x).item() == 6
assert tape.gradient(z, y).item() == 18  # with respect to an intermediate

# Any structure of variables.
params = {"w": gg.tensor([[1.0, 2.0]], requires_grad=True), "b": gg.tensor([0.5], requires_grad=True)}
with gg.Tape() as tape:
    loss = ((params["w"] @ gg.tensor([3.0, 4.0]) + params["b"]) ** 2).sum()
found = tape.gradient(loss, params)
assert found["w"].tolist() == [[69, 92]]
assert found["b"].tolist() == [23]

# A tape in a tape: the second derivative.
with gg.Tape() as outer:
    outer.watch(x)
    with gg.Tape() as inner:
        inner.watch(x)
        y = x**3
        first = inner.gradient(y, x)
assert first.item() == 27
assert outer.gradient(first, x).item() == 18

# Not recorded: what is computed under stop_recording, and paths that do not exist.
with gg.Tape() as tape:
    tape.watch(x)
    with tape.stop_recording():
        scale = x * 10
    y = x * scale
assert tape.gradient(y, x).item() == 30
with gg.Tape() as tape:
    tape.watch(x)
    y = x * x
unrelated = gg.tensor(1.0, requires_grad=True)
assert tape.gradient(y, unrelated) is None

print("gradient tape: d(x^2) = 6 and d2(x^3) = 18 at x = 3")
