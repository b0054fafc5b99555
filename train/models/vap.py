"""Heads: from one feature vector a segment to one score a class."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError


class AverageHead(nn.Module):
    """TSN's consensus: each segment votes, the votes are averaged."""

    def __init__(self, features: int, *, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pred = prediction(features, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, N, D]` to scores `[B, classes]`."""
        return self.pred(self.dropout(features)).mean(1)


class VariousTimescaleAggregationPooling(nn.Module):
    """VAP (paper, Eq. 11 to 15): the strongest response at each of several timescales, weighed by what is seen.

    For the timescales s = 1, 2, 4, … N/2, features that lie s segments apart are max-pooled: s vectors each, N - 1 in
    all (N = 8: 7). A small network turns the vectors' means into weights that sum to 1, and the weighted sum is classified.

    Args:
        features: D, the length of a segment's vector.
        segments: N, a power of two of at least 2.
        classes: Scores to predict.
        dropout: Share of the aggregate that is dropped in training.
        expansion: Width of the small network, in multiples of N - 1 (the paper's alpha).
    """

    def __init__(self, features: int, *, segments: int, classes: int, dropout: float, expansion: int = 4) -> None:
        super().__init__()
        if segments < 2 or segments & (segments - 1):
            raise FlowlessError(
                f"VAP: segments is {segments}; its timescales halve the clip, so it must be a power of two of at least 2, such as 8."
            )
        self.segments = segments
        self.scales = tuple(2**level for level in range(segments.bit_length() - 1))
        vectors = segments - 1
        self.TES = nn.Sequential(
            nn.Linear(vectors, expansion * vectors, bias=False),
            nn.ReLU(),
            nn.Linear(expansion * vectors, vectors, bias=False),
        )
        self.dropout = nn.Dropout(dropout)
        self.pred = prediction(features, classes)

    def pooled(self, features: Tensor) -> Tensor:
        """Max-pool `[B, N, D]` at every timescale: `[B, N-1, D]`, the timescales in the order 1, 2, 4, …, N/2."""
        # Row q*s + j of the clip is element (q, j): the maximum over q joins the features that lie s apart.
        return torch.cat([features.unflatten(1, (self.segments // s, s)).amax(1) for s in self.scales], dim=1)

    def timescale_weights(self, features: Tensor) -> Tensor:
        """Return how much each vector of `pooled` counts: `[B, N-1]`, positive, summing to 1."""
        return self._weights(self.pooled(features))

    def _weights(self, pooled: Tensor) -> Tensor:
        return self.TES(pooled.mean(2)).softmax(1)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, N, D]` to scores `[B, classes]`."""
        pooled = self.pooled(features)
        aggregate = (self._weights(pooled)[:, :, None] * pooled).sum(1)
        return self.pred(self.dropout(aggregate))


def start_heads(heads: Iterable[nn.Module], *, std: float) -> None:
    """Draw the first weights of heads as the official PAN code does: N(0, std), VAP's small network included; biases are 0.

    VAP then begins with the same weight for every timescale. With PyTorch's own start its scores already differ by the features' scale,
    and which timescale wins is chance.
    """
    for layer in (module for head in heads for module in head.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def prediction(features: int, classes: int) -> nn.Linear:
    """Return the last layer, its biases at zero."""
    layer = nn.Linear(features, classes)
    nn.init.zeros_(layer.bias)
    return layer
