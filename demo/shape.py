"""The sizes of the demo model's network, without torch: the tests read them too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The network's sizes. Rows must be multiples of 32, the block of Q8_0 and Q4_0."""

    vocabulary: int
    width: int = 96
    layers: int = 3
    heads: int = 3
    kv_heads: int = 1
    feed_forward: int = 192
    context: int = 2048
    rope_base: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        """Dimensions of one attention head."""
        return self.width // self.heads
