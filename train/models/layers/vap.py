"""Heads: from one feature vector a segment to one score a class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.train.models.options import AggregationOptions


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
        expansion: Width of the small network, in multiples of N - 1 (the paper's alpha, Table IV).
    """

    def __init__(self, features: int, *, segments: int, classes: int, dropout: float, expansion: int = 4) -> None:
        super().__init__()
        self.segments = segments
        self.scales = _all_timescales(segments, what="VAP")
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


class TimescalePooling(nn.Module):
    """The strongest response at one timescale, or at several of which each is classified by itself: PAN's Table IV, VIP.

    At the timescale s features that lie s segments apart are max-pooled, as in VAP, and the s vectors are averaged. Every timescale has a
    classifier of its own; the scores are their mean.

    The paper says of VIP that the "weights of inference function for score fusion are fixed hyper-parameters" (section I) and does not
    give them; the paper of VIP (Zhang et al., ACM MM 2019) was not at hand. The rest is read from public code for tagging videos that has a
    `VIP_layer`; whether its authors are VIP's was not confirmed. It has a classifier for each timescale over the mean of its vectors, in
    training and test alike, and by default the same weight for all. It adds the scores up; here they are averaged, the same up to a factor.

    Args:
        features: D, the length of a segment's vector.
        segments: N, which every timescale must divide and lie below.
        classes: Scores to predict.
        dropout: Share of each timescale's vector that is dropped in training.
        scales: The timescales.

    Attributes:
        pred: The classifiers side by side, one matrix of `len(scales) * D` columns; their biases are one.
    """

    def __init__(self, features: int, *, segments: int, classes: int, dropout: float, scales: Sequence[int]) -> None:
        super().__init__()
        wrong = [scale for scale in scales if scale >= segments or segments % scale]
        if wrong:
            fits = [scale for scale in (1, 2, 4, 8) if scale < segments and segments % scale == 0]
            raise FlowlessError(
                f"aggregation is {wrong[0]}, and segments is {segments}; a timescale must divide the segments and be below them: "
                f"{', '.join(map(str, fits)) or 'there is none, take average'}."
            )
        self.scales = tuple(scales)
        self.dropout = nn.Dropout(dropout)
        self.pred = prediction(len(self.scales) * features, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, N, D]` to scores `[B, classes]`."""
        # Cut, not reshaped as in VAP: the exporter would join a reshape that comes first with the backbone's own, and no tensor of the
        # graph were what `flowless explain` reads, `[B, N, D]`.
        pooled = [[features[:, first::scale].amax(1) for first in range(scale)] for scale in self.scales]
        vectors = torch.cat([torch.stack(vectors).mean(0) for vectors in pooled], dim=1)
        # The classifiers are linear: the mean of their scores is the sum of those of what was divided before.
        return self.pred(self.dropout(vectors) / len(self.scales))

    def segment_scores(self, features: Tensor) -> Tensor:
        """Return the scores of clips of one segment repeated, `[B, N, D]` to `[B, N, classes]`: pooled, it is itself."""
        count = len(self.scales)
        return self.pred(features.repeat(1, 1, count) / count)


def aggregation_head(features: int, *, segments: int, classes: int, dropout: float, options: AggregationOptions) -> nn.Module:
    """Return PAN's head, `[B, N, D]` to scores `[B, classes]`, as its options ask (Table IV).

    Raises:
        FlowlessError: The segments do not divide into the timescales.
    """
    if options.aggregation == "average":
        return AverageHead(features, classes=classes, dropout=dropout)
    if options.aggregation == "vap":
        return VariousTimescaleAggregationPooling(
            features, segments=segments, classes=classes, dropout=dropout, expansion=options.vap_expansion
        )
    scales = _all_timescales(segments, what="VIP") if options.aggregation == "vip" else (int(options.aggregation),)
    return TimescalePooling(features, segments=segments, classes=classes, dropout=dropout, scales=scales)


def _all_timescales(segments: int, *, what: str) -> tuple[int, ...]:
    """Return 1, 2, 4, …, N/2."""
    if segments < 2 or segments & (segments - 1):
        raise FlowlessError(
            f"{what}: segments is {segments}; its timescales halve the clip, so it must be a power of two of at least 2, such as 8."
        )
    return tuple(2**level for level in range(segments.bit_length() - 1))


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
