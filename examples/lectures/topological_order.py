"""Why backward goes in reversed topological order: the graph on which breadth-first search from the loss fails.

    a = 2 x        b = 3 a        c = 5 b        loss = a + c

`a` is one step from the loss on one path and three on the other. Breadth-first, `a` is handled when only the direct
path has reported; the gradient through b and c comes too late.
"""

from collections import deque

import gpugrad as gg

parents = {"loss": {"a": 1, "c": 1}, "c": {"b": 5}, "b": {"a": 3}, "a": {"x": 2}, "x": {}}  # local derivatives


def pull_back(order):
    grads = {"loss": 1}
    for node in order:
        for parent, slope in parents[node].items():
            grads[parent] = grads.get(parent, 0) + grads[node] * slope
    return grads["x"]


breadth_first, queue = [], deque(["loss"])
while queue:
    node = queue.popleft()
    if node not in breadth_first:
        breadth_first.append(node)
        queue.extend(parents[node])

assert breadth_first == ["loss", "a", "c", "x", "b"]
assert pull_back(breadth_first) == 2  # wrong: 2 of 32
assert pull_back(["loss", "c", "b", "a", "x"]) == 32

x = gg.tensor(1.0, requires_grad=True)
a = 2 * x
b = 3 * a
c = 5 * b
loss = a + c
loss.backward()
assert x.grad.item() == 32

print("topological order: breadth-first gives", pull_back(breadth_first), "- the tape gives", x.grad.item())
