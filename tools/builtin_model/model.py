"""The network: a llama-shaped transformer in plain JAX. Sizes, initial values and the forward pass only."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Shape:
    """The sizes of the network, named as in the GGUF metadata."""

    vocab: int = 1536
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    feed_forward: int = 512
    rope_base: float = 10000.0
    eps: float = 1e-5

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


def initial(shape: Shape, key: jax.Array) -> Params:
    """Random starting weights; matrices are stored (in, out)."""
    d, kv, ff = shape.width, shape.kv_heads * shape.head_width, shape.feed_forward
    keys = iter(jax.random.split(key, 1 + 7 * shape.layers))
    deep = (2 * shape.layers) ** -0.5

    def matrix(rows: int, columns: int, scale: float = 1.0) -> jax.Array:
        return jax.random.normal(next(keys), (rows, columns)) * (rows**-0.5) * scale

    params: Params = {"embed": jax.random.normal(next(keys), (shape.vocab, d)) * 0.05, "norm": jnp.ones(d)}
    for n in range(shape.layers):
        params |= {
            f"{n}.q": matrix(d, d),
            f"{n}.k": matrix(d, kv),
            f"{n}.v": matrix(d, kv),
            f"{n}.o": matrix(d, d, deep),
            f"{n}.gate": matrix(d, ff),
            f"{n}.up": matrix(d, ff),
            f"{n}.down": matrix(ff, d, deep),
            f"{n}.attn_norm": jnp.ones(d),
            f"{n}.ffn_norm": jnp.ones(d),
        }
    return params


def _norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * scale


def _rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn neighbouring pairs, the convention of the llama architecture in llama.cpp.

    (even, odd) -> (-odd, even) is a product with a constant matrix: strided slices are slow on a CPU.
    """
    width = x.shape[-1]
    turn = jnp.zeros((width, width)).at[jnp.arange(1, width, 2), jnp.arange(0, width, 2)].set(-1.0)
    turn = turn.at[jnp.arange(0, width, 2), jnp.arange(1, width, 2)].set(1.0)
    return x * cos + (x @ turn) * sin


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array) -> jax.Array:
    """Causal attention inside segments, in blocks of queries that skip the keys still to come.

    The exponentials are capped, not shifted by their maximum: twice as fast on a CPU, the same result.
    """
    length, block = q.shape[3], 128
    out = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        sees = (segment[:, start:stop, None] == segment[:, None, :stop]) & (
            jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None]
        )
        score = jnp.einsum("bkgth,bksh->bkgts", q[:, :, :, start:stop], k[:, :, :stop])
        share = jnp.exp(jnp.minimum(score, 70.0) + jnp.where(sees, 0.0, -1e9)[:, None, None])
        out.append(jnp.einsum("bkgts,bksh->bkgth", share, v[:, :, :stop]) / share.sum(-1, keepdims=True))
    return jnp.concatenate(out, 3)


def logits(params: Params, shape: Shape, ids: jax.Array, segment: jax.Array) -> jax.Array:
    """Scores of the next token; a token sees only earlier ones of its own segment."""
    rows, length = ids.shape
    hw, group = shape.head_width, shape.heads // shape.kv_heads
    angle = jnp.arange(length)[:, None] * shape.rope_base ** (-jnp.arange(0, hw, 2) / hw)[None]
    angle = jnp.repeat(angle, 2, -1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x = params["embed"][ids]
    for n in range(shape.layers):
        h = _norm(x, params[f"{n}.attn_norm"], shape.eps)
        q = (h @ params[f"{n}.q"]).reshape(rows, length, shape.kv_heads, group, hw).transpose(0, 2, 3, 1, 4)
        k = (h @ params[f"{n}.k"]).reshape(rows, length, shape.kv_heads, hw).transpose(0, 2, 1, 3)
        v = (h @ params[f"{n}.v"]).reshape(rows, length, shape.kv_heads, hw).transpose(0, 2, 1, 3)
        q, k = _rope(q, cos, sin), _rope(k, cos, sin)
        seen = (
            _attend(q * hw**-0.5, k, v, segment).transpose(0, 3, 1, 2, 4).reshape(rows, length, shape.width)
        )
        x = x + seen @ params[f"{n}.o"]
        h = _norm(x, params[f"{n}.ffn_norm"], shape.eps)
        x = x + (jax.nn.silu(h @ params[f"{n}.gate"]) * (h @ params[f"{n}.up"])) @ params[f"{n}.down"]
    return _norm(x, params["norm"], shape.eps) @ params["embed"].T


def loss(params: Params, shape: Shape, ids: jax.Array, segment: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted cross-entropy of every token given those before it."""
    scores = logits(params, shape, ids[:, :-1], segment[:, :-1])
    goal = ids[:, 1:]
    chosen = jnp.sum(jnp.where(jnp.arange(shape.vocab) == goal[..., None], scores, 0.0), -1)
    miss = jax.nn.logsumexp(scores, -1) - chosen
    w = weight[:, 1:]
    return jnp.sum(miss * w) / jnp.maximum(jnp.sum(w), 1.0)
