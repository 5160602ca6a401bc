"""Attention modules: values against the definition, numeric gradients, masks, and a small GPT that learns."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn, optim
from gpugrad.errors import DomainError, ShapeError

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare.txt"


def gen(seed=0):
    return gg.random.Generator(seed)


def normal(*shape, seed=1):
    return gg.tensor(np.random.default_rng(seed).normal(size=shape))


def multihead(dim, heads, **options):
    """In double precision, with biases that are not zero."""
    layer = nn.MultiheadAttention(dim, heads, generator=gen(), dtype=gg.float64, **options)
    if layer.in_proj_bias is not None:
        layer.in_proj_bias.data[:] = np.linspace(-1, 1, 3 * dim)
        layer.out_proj.bias.data[:] = np.linspace(0, 1, dim)
    return layer


def reference(layer, q, k, v, hidden=None):
    """(output, weights averaged over heads) of (N, T, E) arrays; hidden: True where a key may not be seen."""
    n, e, h = q.shape[0], layer.embed_dim, layer.num_heads
    w, b, o = layer.in_proj_weight.numpy(), layer.in_proj_bias.numpy(), layer.out_proj

    def heads(x, i):
        x = x @ w[i * e : (i + 1) * e].T + b[i * e : (i + 1) * e]
        return x.reshape(n, -1, h, e // h).swapaxes(1, 2)

    q, k, v = heads(q, 0), heads(k, 1), heads(v, 2)
    s = q @ k.swapaxes(2, 3) / math.sqrt(e // h)
    p = np.exp(s if hidden is None else np.where(hidden, -np.inf, s))
    p = p / p.sum(-1, keepdims=True)
    out = (p @ v).swapaxes(1, 2).reshape(n, -1, e)
    return out @ o.weight.numpy().T + o.bias.numpy(), p.mean(1)


def test_multihead_attention_matches_the_definition():
    layer = multihead(6, 2)
    assert layer.label == "MultiheadAttention(6, 2 heads)"
    q, k, v = normal(3, 4, 6), normal(3, 5, 6, seed=2), normal(3, 5, 6, seed=3)
    out, weights = layer(q, k, v, need_weights=True)
    want, share = reference(layer, q.numpy(), k.numpy(), v.numpy())
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-10)
    np.testing.assert_allclose(weights.numpy(), share, rtol=1e-10)
    alone, none = layer(q)
    assert none is None
    np.testing.assert_allclose(alone.numpy(), reference(layer, *(q.numpy(),) * 3)[0], rtol=1e-10)
    np.testing.assert_allclose(layer(q[0], k[0], v[0])[0].numpy(), want[0], rtol=1e-10)


def test_masks_say_what_is_hidden():
    """As in torch: True hides; both masks hold; a float mask is added."""
    layer, x = multihead(4, 2), normal(3, 5, 4)
    hidden = np.triu(np.ones((5, 5), bool), 1)
    padding = np.zeros((3, 5), bool)
    padding[1, 3:] = True
    both = hidden | padding[:, None, None]

    def run(**masks):
        return layer(x, **{k: m if m is True else gg.tensor(m) for k, m in masks.items()})[0].numpy()

    want = reference(layer, *(x.numpy(),) * 3, both)[0]
    hides = np.where(hidden, -np.inf, 0.0)
    for attn_mask in (hidden, hides, np.broadcast_to(hidden, (6, 5, 5)), hidden[None, None]):
        np.testing.assert_allclose(run(attn_mask=attn_mask, key_padding_mask=padding), want, rtol=1e-10)
    float_padding = np.where(padding, -np.inf, 0.0)
    for attn_mask in (hidden, hides):
        np.testing.assert_allclose(run(attn_mask=attn_mask, key_padding_mask=float_padding), want, rtol=1e-10)
    np.testing.assert_allclose(run(is_causal=True, key_padding_mask=padding), want, rtol=1e-10)
    alone = layer(x[1], key_padding_mask=gg.tensor(padding[1]), is_causal=True)[0]
    np.testing.assert_allclose(alone.numpy(), want[1], rtol=1e-10)


@pytest.mark.parametrize("make", ["attention", "cross", "block", "rotary"])
def test_numeric_gradients(make):
    options = {"generator": gen(), "dtype": gg.float64}
    x, memory = normal(2, 3, 4), normal(2, 5, 4, seed=2)
    if make == "block":
        layer = nn.TransformerBlock(4, 2, 6, causal=True, rotary=nn.RotaryEmbedding(2), **options).eval()
    else:
        layer = nn.MultiheadAttention(4, 2, rotary=nn.RotaryEmbedding(2) if make == "rotary" else None, **options)
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        modules = dict(layer.named_modules())
        for path, value in zip(parameters, values):
            owner, _, name = path.rpartition(".")
            modules[owner].__dict__[name] = value
        out = layer(x, memory, memory) if make == "cross" else layer(x)
        return out[0] if isinstance(out, tuple) else out

    assert gg.gradcheck(run, [x, *(p.detach() for p in parameters.values())])


def test_names_and_start():
    layer = nn.MultiheadAttention(8, 2, generator=gen())
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "in_proj_weight": (24, 8), "in_proj_bias": (24,), "out_proj.weight": (8, 8), "out_proj.bias": (8,),
    }  # fmt: skip
    assert not layer.in_proj_bias.numpy().any()
    assert not layer.out_proj.bias.numpy().any()
    assert abs(layer.in_proj_weight.numpy()).max() <= math.sqrt(6 / 32)
    assert len(list(nn.MultiheadAttention(8, 2, bias=False).parameters())) == 2


def test_dropout_in_training_mode_alone():
    layer, x = nn.MultiheadAttention(8, 2, dropout=0.5, generator=gen(), dtype=gg.float64), normal(2, 6, 8)
    plain = nn.MultiheadAttention(8, 2, generator=gen(), dtype=gg.float64)
    assert np.abs(layer(x)[0].numpy() - plain(x)[0].numpy()).max() > 1e-3
    np.testing.assert_array_equal(layer.eval()(x)[0].numpy(), plain(x)[0].numpy())


def test_rotary_shifts_leave_attention_alone():
    turn = nn.RotaryEmbedding(6)
    assert turn.label == "RotaryEmbedding(6)"
    q, k = normal(2, 5, 6), normal(2, 5, 6, seed=2)
    near, far = ((turn(q, s) @ gg.matrix_transpose(turn(k, s))).numpy() for s in (0, 90))
    np.testing.assert_allclose(near, far, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(
        turn(q, 2)[:, :3].numpy(), turn(gg.concat([q[:, :2], q[:, :3]], axis=1))[:, 2:].numpy()
    )
    assert turn(q.to(dtype=gg.float32)).dtype == gg.float32


def test_the_future_does_not_matter():
    block = nn.TransformerBlock(8, 2, causal=True, rotary=nn.RotaryEmbedding(4), generator=gen(), dtype=gg.float64)
    assert block.label == "TransformerBlock(causal=True)"
    x = normal(2, 6, 8)
    np.testing.assert_allclose(block(x[:, :4]).numpy(), block(x)[:, :4].numpy(), rtol=1e-12)
    free = nn.TransformerBlock(8, 2, norm=nn.RMSNorm, generator=gen(), dtype=gg.float64)
    assert np.abs(free(x[:, :4]).numpy() - free(x)[:, :4].numpy()).max() > 1e-3


def test_errors():
    with pytest.raises(DomainError, match="3 heads do not divide 8"):
        nn.MultiheadAttention(8, 3)
    with pytest.raises(DomainError, match="dropout is 2"):
        nn.MultiheadAttention(8, 2, dropout=2)
    with pytest.raises(DomainError, match="even number"):
        nn.RotaryEmbedding(5)
    layer = nn.MultiheadAttention(8, 2)
    with pytest.raises(ShapeError, match=r"expected \[N, T, 8\] or \[T, 8\] as key"):
        layer(gg.ones((2, 3, 8)), gg.ones((2, 3, 7)))
    with pytest.raises(ShapeError, match="key_padding_mask"):
        layer(gg.ones((2, 3, 8)), key_padding_mask=gg.ones((3, 3)))
    with pytest.raises(ShapeError, match="attn_mask"):
        layer(gg.ones((2, 3, 8)), attn_mask=gg.ones((3, 3, 3)))
    model = nn.GPT(5, 4, 8, 1, 2)
    with pytest.raises(ShapeError, match="at most 4"):
        model(gg.zeros((1, 5), dtype=gg.int64))
    with pytest.raises(DomainError, match="temperature"):
        model.generate(gg.zeros((1, 1), dtype=gg.int64), 1, temperature=-1.0)
    with pytest.raises(ShapeError, match="T at least 1"):
        model.generate(gg.zeros((1, 0), dtype=gg.int64), 1)


# --- GPT ----------------------------------------------------------------------------------------------------------


def learn(model, batch, steps, lr=3e-3):
    """The loss of each step of next-token prediction; batch() gives token numbers (N, T + 1)."""
    optimizer, losses = optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0), []
    for _ in range(steps):
        ids = batch()
        logits = model(gg.tensor(ids[:, :-1]))
        loss = nn.functional.cross_entropy(
            gg.reshape(logits, (-1, model.vocabulary)), gg.tensor(ids[:, 1:].reshape(-1))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "learned"])
def test_a_gpt_learns_a_string_by_heart(rotary):
    text = "the quick brown fox jumps over the lazy dog. "
    letters = sorted(set(text))
    ids = np.array([letters.index(c) for c in text * 3])
    model = nn.GPT(len(letters), 32, 32, 2, 2, rotary=rotary, generator=gen())
    starts = np.random.default_rng(0)

    def batch():
        return np.stack([ids[i : i + 33] for i in starts.integers(0, 45, 4)])

    losses = learn(model, batch, 100, lr=1e-2)
    assert losses[0] == pytest.approx(math.log(len(letters)), abs=0.3)
    assert losses[-1] < 0.25
    told = model.generate(gg.tensor(ids[None, :10]), 40, temperature=0)
    assert told.shape == (1, 50)
    assert "".join(letters[i] for i in told.numpy()[0]) == (text * 2)[:50]


def test_generation_samples():
    model, start = nn.GPT(7, 8, 16, 1, 2, generator=gen()), gg.zeros((200, 1), dtype=gg.int64)
    one, other = (model.generate(start, 2, generator=gen(5)).numpy() for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert set(one[:, 1:].ravel()) == set(range(7))
    cold = model.generate(start, 1, temperature=1e-4, generator=gen(5)).numpy()
    np.testing.assert_array_equal(cold, model.generate(start, 1, temperature=0).numpy())
    assert model.training


def test_a_gpt_learns_shakespeare():
    if not SHAKESPEARE.is_file():
        pytest.skip(f"{SHAKESPEARE.name} is not there")
    text = SHAKESPEARE.read_text()
    letters = sorted(set(text))
    lookup = np.zeros(128, int)
    lookup[[ord(c) for c in letters]] = range(len(letters))
    ids = lookup[np.frombuffer(text.encode(), np.uint8)]
    model, rng = nn.GPT(len(letters), 32, 64, 2, 4, generator=gen()), np.random.default_rng(0)

    def batch():
        return np.stack([ids[i : i + 33] for i in rng.integers(0, len(ids) - 33, 16)])

    losses = learn(model, batch, 150, lr=5e-3)
    assert losses[0] == pytest.approx(math.log(len(letters)), abs=0.3)
    assert np.mean(losses[-10:]) < 2.55  # letter frequencies alone give 3.3
