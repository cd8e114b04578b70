"""The demo model's network: a small decoder as llama.cpp's architecture ``llama`` computes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.shape import Shape


def rotations(shape: Shape, length: int) -> Tensor:
    """Unit complex numbers, position x pair of dimensions, by which RoPE turns queries and keys (Su et al. 2021)."""
    speeds = shape.rope_base ** (-torch.arange(0, shape.head, 2) / shape.head)
    angles = torch.outer(torch.arange(length), speeds)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(vectors: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring dimensions as pairs: the order that llama.cpp expects of this architecture, so nothing is permuted."""
    pairs = torch.view_as_complex(vectors.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2)


class Block(nn.Module):
    """Attention with grouped queries, then SwiGLU; each reads a normalised copy and adds what it found."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def attend(self, hidden: Tensor, turns: Tensor) -> Tensor:
        """Let each position read those before it; ``hidden`` is batch x position x width."""
        read = self.attn_norm(hidden)
        q, k, v = (part(read).unflatten(-1, (-1, self.shape.head)).transpose(1, 2) for part in (self.attn_q, self.attn_k, self.attn_v))
        # Padding stands at the right, where causal attention never looks.
        mixed = functional.scaled_dot_product_attention(rotate(q, turns), rotate(k, turns), v, is_causal=True, enable_gqa=True)
        return hidden + self.attn_output(mixed.transpose(1, 2).flatten(2))

    def feed(self, hidden: Tensor) -> Tensor:
        """What each position does by itself; the last dimension of ``hidden`` is the width."""
        read = self.ffn_norm(hidden)
        return hidden + self.ffn_down(functional.silu(self.ffn_gate(read)) * self.ffn_up(read))


class Network(nn.Module):
    """Embedding, blocks, norm; the embedding is the output matrix too. Parameters carry GGUF's names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        for name, weights in self.named_parameters():
            if weights.dim() == 2:
                # What is added to the hidden state starts smaller the more layers add to it (GPT-2).
                deep = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weights, std=0.05 / (2 * shape.layers) ** 0.5 if deep else 0.05)

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Logits of the next token at the positions where ``wanted`` (batch x position, bool) is set."""
        hidden = self.token_embd(tokens)
        turns = rotations(self.shape, tokens.shape[1])
        for block in self.blk[:-1]:
            hidden = block.feed(block.attend(hidden, turns))
        # Nobody reads the last layer at the other positions: this saves a fifth of the training.
        hidden = self.blk[-1].feed(self.blk[-1].attend(hidden, turns)[wanted])
        return functional.linear(self.output_norm(hidden), self.token_embd.weight)
