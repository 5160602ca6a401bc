"""`running_loss += loss`, the leak of the lectures, holds no graph here: after backward a loss is a number."""

import gc
import weakref

import gpugrad as gg

gc.disable()  # memory must be freed by reference counts alone
w = gg.tensor([1.0, -2.0], requires_grad=True)
running_loss, graphs = gg.tensor(0.0), []
for step in range(50):
    hidden = w * float(step)
    loss = (hidden * hidden).sum()
    graphs.append(weakref.ref(hidden.node))
    loss.backward()
    running_loss += loss
    w.zero_grad()
del hidden, loss
assert not running_loss.requires_grad
assert all(ref() is None for ref in graphs), "a graph is still alive"
assert running_loss.item() == 5 * sum(k * k for k in range(50))

print(
    "leak: after 50 steps",
    sum(ref() is not None for ref in graphs),
    "graphs are alive; running loss",
    running_loss.item(),
)
