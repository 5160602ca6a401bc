"""Attention as modules: several heads, rotary positions, and the block that transformers stack."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.errors import DomainError, ShapeError, fail
from gpugrad.nn import functional as F
from gpugrad.nn import init
from gpugrad.nn.activations import GELU
from gpugrad.nn.layers import Dropout, LayerNorm, Linear, expect, mode_of, positive, settings
from gpugrad.nn.module import Module, Sequential


class RotaryEmbedding(Module):
    """Turns pairs of features of queries and keys by angles that grow with the position. Su et al., 2021.

    Pair i of `dim` features turns by base^(-2 i / dim) a position; see `functional.rotary`. Nothing is learned.
    Raises DomainError for an odd dim.
    """

    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False) -> None:
        positive("RotaryEmbedding", dim=dim)
        if dim % 2:
            raise fail(DomainError, "RotaryEmbedding", f"dim is {dim}, expected an even number of features")
        self.dim, self.base, self.interleaved = dim, base, interleaved
        self.tables: dict[tuple[str, str], tuple[gg.Tensor, gg.Tensor]] = {}

    def forward(self, x: gg.Tensor, start: int = 0) -> gg.Tensor:
        """x (..., T, dim) with row t turned as position start + t."""
        expect(self, x, x.ndim >= 2 and x.shape[-1] == self.dim, f"[..., T, {self.dim}]")
        cos, sin = (table[start : start + x.shape[-2]] for table in self.angles(start + x.shape[-2], x))
        return F.rotary(x, cos, sin, self.interleaved)

    def angles(self, length: int, like: gg.Tensor) -> tuple[gg.Tensor, gg.Tensor]:
        """Cosines and sines (at least `length`, dim / 2) of the dtype and on the device of `like`, kept for later."""
        key = (like.device, like.dtype.name)
        if key not in self.tables or self.tables[key][0].shape[0] < length:
            rows = 1 << max(0, length - 1).bit_length()
            angle = np.arange(rows)[:, None] * self.base ** (-np.arange(0, self.dim, 2) / self.dim)
            cos, sin = (gg.tensor(f(angle), dtype=like.dtype, device=like.device) for f in (np.cos, np.sin))
            self.tables[key] = (cos, sin)
        return self.tables[key]

    def extra_repr(self) -> str:
        """Features and what is not the default."""
        return f"{self.dim}" + settings(base=(self.base, 10000.0), interleaved=(self.interleaved, False))


class MultiheadAttention(Module):
    """Attention of `num_heads` heads between projections of queries, keys and values. Vaswani et al., 2017.

    All are (N, T, embed_dim) or (T, embed_dim): the batch comes first. Parameters have the names and layout of `torch`.
    dropout: share of the attention weights that is dropped in training mode. rotary: turns queries and keys of the
    heads by their positions. Raises DomainError unless the heads divide embed_dim evenly.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, *,
        rotary: RotaryEmbedding | None = None, generator: Any = None, dtype: Any = None, device: str | None = None,
    ) -> None:  # fmt: skip
        positive("MultiheadAttention", embed_dim=embed_dim, num_heads=num_heads)
        if embed_dim % num_heads:
            raise fail(DomainError, "MultiheadAttention", f"{num_heads} heads do not divide {embed_dim} features")
        if not 0 <= dropout <= 1:
            raise fail(DomainError, "MultiheadAttention", f"dropout is {dropout!r}, expected a probability in [0, 1]")
        self.embed_dim, self.num_heads, self.dropout, self.generator = embed_dim, num_heads, dropout, generator
        made: dict[str, Any] = {"dtype": dtype, "device": device}
        shape = (3 * embed_dim, embed_dim)
        self.in_proj_weight = init.glorot_uniform(shape, generator=generator, **made).requires_grad_()
        self.in_proj_bias = init.zeros(shape[:1], **made).requires_grad_() if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, generator=generator, **made)
        if self.out_proj.bias is not None:
            self.out_proj.bias = init.zeros((embed_dim,), **made).requires_grad_()
        self.rotary = rotary

    def forward(
        self, query: gg.Tensor, key: gg.Tensor | None = None, value: gg.Tensor | None = None,
        key_padding_mask: gg.Tensor | None = None, need_weights: bool = False, attn_mask: gg.Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[gg.Tensor, gg.Tensor | None]:  # fmt: skip
        """(output (N, Tq, embed_dim), weights (N, Tq, Tk) averaged over the heads, or None unless need_weights).

        key: the query if None, value: the key if None. key_padding_mask: (N, Tk); attn_mask: (Tq, Tk), (N num_heads,
        Tq, Tk) or four axes that broadcast. As in `torch`, a bool mask here says True where a key is hidden, the
        opposite of `scaled_dot_product_attention`; a float mask is added to the scores. is_causal: query i sees keys 0
        to i. Raises ShapeError.
        """
        key = query if key is None else key
        value = key if value is None else value
        for x, which in ((query, "query"), (key, "key"), (value, "value")):
            fits = x.ndim in (2, 3) and x.ndim == query.ndim and x.shape[-1] == self.embed_dim
            expect(self, x, fits, f"[N, T, {self.embed_dim}] or [T, {self.embed_dim}] as {which}")
        if query.ndim == 2:
            padding = None if key_padding_mask is None else key_padding_mask[None]
            out, weights = self.forward(
                query[None], key[None], value[None], padding, need_weights, attn_mask, is_causal
            )
            return out[0], None if weights is None else weights[0]
        q, k, v = self.projected(query, key, value)
        mask = self.seen(attn_mask, key_padding_mask, q.shape[0], q.shape[2], k.shape[2])
        drop = self.dropout if self.dropout and mode_of(self) else 0.0
        out = F.scaled_dot_product_attention(q, k, v, mask, drop, is_causal, generator=self.generator)
        out = self.out_proj(gg.reshape(gg.swapaxes(out, 1, 2), query.shape))
        if not need_weights:
            return out, None
        one = gg.eye(k.shape[2], dtype=k.dtype, device=k.device)  # the values that leave the weights themselves
        return out, F.scaled_dot_product_attention(q, k, one, mask, is_causal=is_causal).mean(axis=1)

    def projected(self, *inputs: gg.Tensor) -> list[gg.Tensor]:
        """Query, key and value heads (N, num_heads, T, embed_dim / num_heads), queries and keys turned."""
        n, width = self.embed_dim, self.embed_dim // self.num_heads
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if inputs[0] is inputs[1] is inputs[2]:
            parts = gg.split(F.linear(inputs[0], weight, bias), 3, axis=-1)
        else:
            rows = [slice(i * n, (i + 1) * n) for i in range(3)]
            parts = [F.linear(x, weight[r], None if bias is None else bias[r]) for x, r in zip(inputs, rows)]
        heads = [gg.swapaxes(gg.reshape(p, (*p.shape[:2], self.num_heads, width)), 1, 2) for p in parts]
        return heads if self.rotary is None else [*map(self.rotary, heads[:2]), heads[2]]

    def seen(self, mask: Any, padding: Any, n: int, queries: int, keys: int) -> Any:
        """Both masks as one, in the sense of `scaled_dot_product_attention`."""
        parts = []
        if mask is not None:
            mask = gg.asarray(mask)
            if mask.ndim == 3:
                expect(self, mask, mask.shape[0] == n * self.num_heads, f"[{n * self.num_heads}, ...] as attn_mask")
                mask = gg.reshape(mask, (n, self.num_heads, *mask.shape[1:]))
            parts.append(mask)
        if padding is not None:
            padding = gg.asarray(padding)
            expect(self, padding, padding.shape == (n, keys), f"[{n}, {keys}] as key_padding_mask")
            parts.append(gg.reshape(padding, (n, 1, 1, keys)))
        parts = [gg.logical_not(p) if p.dtype == bool else p for p in parts]
        if len(parts) < 2:
            return parts[0] if parts else None
        one, other = parts if parts[1].dtype == bool else parts[::-1]
        if other.dtype != bool:
            return one + other
        return gg.logical_and(one, other) if one.dtype == bool else gg.where(other, one, -math.inf)

    def extra_repr(self) -> str:
        """Width, heads and what is not the default."""
        return f"{self.embed_dim}, {self.num_heads} heads" + settings(
            dropout=(self.dropout, 0.0), bias=(self.in_proj_bias is not None, True)
        )


class TransformerBlock(Module):
    """x + attention(norm(x)), then that plus mlp(norm(of it)): the normalisation comes first. Xiong et al., 2020.

    The mlp has `hidden` units (4 embed_dim if None) with GELU. dropout: of the attention weights and of both branches.
    causal: positions see themselves and earlier ones. norm: makes a normalisation from a width. rotary: as for
    `MultiheadAttention`.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, hidden: int | None = None, dropout: float = 0.0, causal: bool = False, *,
        norm: Any = LayerNorm, bias: bool = True, rotary: RotaryEmbedding | None = None, generator: Any = None,
        dtype: Any = None, device: str | None = None,
    ) -> None:  # fmt: skip
        hidden, self.causal = 4 * embed_dim if hidden is None else hidden, causal
        made: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": device}
        self.norm1 = norm(embed_dim, dtype=dtype, device=device)
        self.attention = MultiheadAttention(embed_dim, num_heads, dropout, bias, rotary=rotary, **made)
        self.norm2 = norm(embed_dim, dtype=dtype, device=device)
        self.mlp = Sequential(Linear(embed_dim, hidden, bias, **made), GELU(), Linear(hidden, embed_dim, bias, **made))
        self.drop = Dropout(dropout, generator=generator)

    def forward(self, x: gg.Tensor, attn_mask: gg.Tensor | None = None) -> gg.Tensor:
        """(N, T, embed_dim) or (T, embed_dim) to the same; attn_mask as for `MultiheadAttention`."""
        x = x + self.drop(self.attention(self.norm1(x), attn_mask=attn_mask, is_causal=self.causal)[0])
        return x + self.drop(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Whether it is causal."""
        return settings(causal=(self.causal, False))[2:]


class GPT(Module):
    """A decoder-only transformer: token numbers to the logits of each next token. Radford et al., 2019.

    vocabulary: number of tokens; context: the longest sequence; width, depth, heads: of the blocks. rotary: positions
    by turning queries and keys; else they are learned and added. The output layer shares the token embedding.
    """

    def __init__(
        self, vocabulary: int, context: int, width: int = 128, depth: int = 4, heads: int = 4, dropout: float = 0.0, *,
        rotary: bool = True, generator: Any = None, dtype: Any = None, device: str | None = None,
    ) -> None:  # fmt: skip
        positive("GPT", vocabulary=vocabulary, context=context, width=width, depth=depth, heads=heads)
        self.vocabulary, self.context, self.depth = vocabulary, context, depth
        made: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": device}
        self.tokens = init.normal((vocabulary, width), std=0.02, **made).requires_grad_()
        self.positions = None if rotary else init.normal((context, width), std=0.02, **made).requires_grad_()
        turn = RotaryEmbedding(width // heads) if rotary else None
        self.drop = Dropout(dropout, generator=generator)
        self.blocks = Sequential(
            *(TransformerBlock(width, heads, dropout=dropout, causal=True, rotary=turn, **made) for _ in range(depth))
        )
        self.norm = LayerNorm(width, dtype=dtype, device=device)

    def forward(self, ids: gg.Tensor) -> gg.Tensor:
        """Token numbers (N, T), T at most `context`, to logits (N, T, vocabulary)."""
        expect(self, ids, ids.ndim == 2 and ids.shape[1] <= self.context, f"[N, at most {self.context}]")
        x = F.embedding(ids, self.tokens)
        if self.positions is not None:
            x = x + self.positions[: ids.shape[1]]
        return F.linear(self.norm(self.blocks(self.drop(x))), self.tokens)

    def generate(self, ids: gg.Tensor, count: int, temperature: float = 1.0, generator: Any = None) -> gg.Tensor:
        """Token numbers (N, T) continued by `count` sampled ones: (N, T + count).

        temperature: divides the logits; 0 takes the likeliest token. Each token is seen by at most `context` others.
        Raises ShapeError for an empty beginning, DomainError for a negative temperature.
        """
        if not temperature >= 0:
            raise fail(DomainError, "GPT", f"temperature is {temperature!r}, expected at least 0")
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise fail(ShapeError, "GPT", f"got shape {list(ids.shape)}, expected [N, T] with T at least 1")
        source = gg.random.default if generator is None else generator
        with gg.no_grad(), self.evaluating():
            for _ in range(count):
                logits = self(ids[:, -self.context :])[:, -1]
                if temperature:  # the largest of logits plus Gumbel noise is a sample of their softmax
                    u = source.uniform(logits.shape).to(device=logits.device)
                    logits = logits / temperature - gg.log(-gg.log(gg.maximum(u, float(np.finfo("float32").tiny))))
                ids = gg.concat([ids, gg.argmax(logits, axis=-1)[:, None].to(dtype=ids.dtype)], axis=1)
        return ids

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.vocabulary} tokens, context {self.context}"
