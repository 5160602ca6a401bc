"""A network small enough to differentiate on paper: two layers, ReLU on both, squared loss."""

import gpugrad as gg

x = gg.tensor(3.0, requires_grad=True)
W1 = gg.tensor([4.0, -2.0], requires_grad=True)
W2 = gg.tensor([1.0, 0.0], requires_grad=True)

hidden = gg.relu(W1 * x)
output = gg.relu(gg.vecdot(W2, hidden))
loss = (output - 10.0) ** 2
loss.backward()
assert hidden.tolist() == [12, 0]
assert output.item() == 12
assert loss.item() == 4
assert W2.grad.tolist() == [48, 0]
assert W1.grad.tolist() == [12, 0]
assert x.grad.item() == 16  # 4 * W2[0] * W1[0]: the second hidden unit is off

# With biases: what reaches a bias is what reaches its unit.
for t in (x, W1, W2):
    t.zero_grad()
b1 = gg.tensor([-2.0, 7.0], requires_grad=True)
b2 = gg.tensor(-3.0, requires_grad=True)
hidden = gg.relu(W1 * x + b1)
output = gg.relu(gg.vecdot(W2, hidden) + b2)
assert hidden.tolist() == [10, 1]
assert output.item() == 7
((output - 10.0) ** 2).backward()
assert b2.grad.item() == -6
assert W2.grad.tolist() == [-60, -6]
assert b1.grad.tolist() == [-6, 0]
assert W1.grad.tolist() == [-18, 0]
assert x.grad.item() == -24

# A regression head alone: output 10 against 7.
b2 = gg.tensor(0.0, requires_grad=True)
loss = (gg.tensor(10.0) + b2 - 7.0) ** 2
loss.backward()
assert (loss.item(), b2.grad.item()) == (9, 6)

print("network: output 12, dW2 = [48, 0], dW1 = [12, 0], dx = 16")
