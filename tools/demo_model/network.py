# mypy: disable-error-code="import-not-found"
"""The llama architecture as one function over named weights.

The names are those of the GGUF file, so that the trained weights are written without a map
between the two. Pre-norm with RMSNorm, rotary positions on neighbouring pairs, SwiGLU, and
one matrix for embedding and output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Shape", "Weights", "forward", "initial_weights"]

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the network; the widths are multiples of 32, a block of Q8_0."""

    vocabulary: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 352
    context: int = 512
    norm_epsilon: float = 1e-5
    rope_base: float = 10_000.0

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.width // self.heads


def initial_weights(shape: Shape, generator: torch.Generator) -> Weights:
    """Draw the weights a training begins with; norms are one."""
    width, hidden = shape.width, shape.hidden
    sizes: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocabulary, width)}
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        sizes[block + "attn_norm.weight"] = (width,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            sizes[f"{block}{name}.weight"] = (width, width)
        sizes[block + "ffn_norm.weight"] = (width,)
        sizes[block + "ffn_gate.weight"] = (hidden, width)
        sizes[block + "ffn_up.weight"] = (hidden, width)
        sizes[block + "ffn_down.weight"] = (width, hidden)
    sizes["output_norm.weight"] = (width,)
    weights: Weights = {}
    for name, size in sizes.items():
        if len(size) == 1:
            weights[name] = torch.ones(size)
        else:
            weights[name] = torch.normal(0.0, 0.05, size, generator=generator)
        weights[name].requires_grad_()
    return weights


def forward(weights: Weights, shape: Shape, tokens: Tensor, dropout: float = 0.0) -> Tensor:
    """Give the logits of the next token at every position.

    Args:
        weights: As `initial_weights` names them.
        shape: The shape they have.
        tokens: Token numbers, `(batch, length)`.
        dropout: The share of each block's output that is zeroed, in training.

    Returns:
        Logits, `(batch, length, vocabulary)`.
    """
    rotations = _rotations(shape, tokens.shape[1])
    embedding = weights["token_embd.weight"]
    x = functional.embedding(tokens, embedding)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        h = _norm(x, weights[block + "attn_norm.weight"], shape)
        h = _attention(weights, block, shape, h, rotations)
        x = x + functional.dropout(h, dropout, training=dropout > 0)
        h = _norm(x, weights[block + "ffn_norm.weight"], shape)
        gate = functional.silu(h @ weights[block + "ffn_gate.weight"].T)
        h = (gate * (h @ weights[block + "ffn_up.weight"].T)) @ weights[block + "ffn_down.weight"].T
        x = x + functional.dropout(h, dropout, training=dropout > 0)
    return _norm(x, weights["output_norm.weight"], shape) @ embedding.T


def _norm(x: Tensor, scale: Tensor, shape: Shape) -> Tensor:
    return functional.rms_norm(x, (shape.width,), scale, shape.norm_epsilon)


def _attention(
    weights: Weights, block: str, shape: Shape, x: Tensor, rotations: tuple[Tensor, Tensor]
) -> Tensor:
    batch, length, _ = x.shape

    def project(name: str) -> Tensor:
        y = x @ weights[f"{block}{name}.weight"].T
        return y.view(batch, length, shape.heads, shape.head_width).transpose(1, 2)

    mixed = functional.scaled_dot_product_attention(
        _rotate(project("attn_q"), *rotations),
        _rotate(project("attn_k"), *rotations),
        project("attn_v"),
        is_causal=True,
    )
    joined = mixed.transpose(1, 2).reshape(batch, length, shape.width)
    return joined @ weights[block + "attn_output.weight"].T


def _rotations(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, shape.head_width, 2) / shape.head_width
    angles = torch.outer(torch.arange(length).float(), shape.rope_base**-exponents)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
