"""Heads: from one feature vector per segment to one score per class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.train.models.options import AggregationOptions


class AverageHead(nn.Module):
    """TSN's consensus: the mean of the segments' scores."""

    def __init__(self, features: int, *, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pred = prediction(features, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, N, D]` to scores `[B, classes]`."""
        return self.pred(self.dropout(features)).mean(1)


class VariousTimescaleAggregationPooling(nn.Module):
    """VAP (PAN, Eq. 11 to 15): max-pooling over time at several timescales, with weights that depend on the input.

    For the timescales s = 1, 2, 4, … N/2, features that lie s segments apart are max-pooled: s vectors each, N - 1 in
    all (N = 8: 7). A small network maps the vectors' means to weights that sum to 1, and the weighted sum is classified.

    Args:
        features: D, the length of a segment's vector.
        segments: N, a power of two of at least 2.
        classes: Number of scores.
        dropout: Dropout probability of the weighted sum.
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
        """Return the weight of each vector of `pooled`: `[B, N-1]`, positive, summing to 1."""
        return self._weights(self.pooled(features))

    def _weights(self, pooled: Tensor) -> Tensor:
        return self.TES(pooled.mean(2)).softmax(1)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, N, D]` to scores `[B, classes]`."""
        pooled = self.pooled(features)
        aggregate = (self._weights(pooled)[:, :, None] * pooled).sum(1)
        return self.pred(self.dropout(aggregate))


class TimescalePooling(nn.Module):
    """Max-pooling at one timescale, or at several with a classifier each: the single timescales and VIP of PAN's Table IV.

    At the timescale s, features that lie s segments apart are max-pooled, as in VAP, and the s vectors are averaged. Every timescale has
    a separate classifier; the score is the mean of theirs.

    PAN says of VIP that the "weights of inference function for score fusion are fixed hyper-parameters" (section I) and does not
    give them; the paper of VIP (Zhang et al., ACM MM 2019) was not available. The rest follows public code for tagging videos with a
    `VIP_layer`, whose authors are not confirmed to be VIP's. It has one classifier per timescale over the mean of its vectors, in
    training and test alike, and by default equal weights. It adds the scores; here they are averaged, which differs by a constant factor.

    Args:
        features: D, the length of a segment's vector.
        segments: N; every timescale must divide it and be smaller.
        classes: Number of scores.
        dropout: Dropout probability of each timescale's vector.
        scales: The timescales.

    Attributes:
        pred: All classifiers as one layer with `len(scales) * D` inputs; they share one bias.
    """

    def __init__(self, features: int, *, segments: int, classes: int, dropout: float, scales: Sequence[int]) -> None:
        super().__init__()
        wrong = [scale for scale in scales if scale >= segments or segments % scale]
        if wrong:
            fits = [scale for scale in (1, 2, 4, 8) if scale < segments and segments % scale == 0]
            raise FlowlessError(
                f"aggregation is {wrong[0]}, and segments is {segments}; a timescale must divide the segments and be below them: "
                f"{', '.join(map(str, fits)) or 'there is no such timescale, take average'}."
            )
        self.scales = tuple(scales)
        self.dropout = nn.Dropout(dropout)
        self.pred = prediction(len(self.scales) * features, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, N, D]` to scores `[B, classes]`."""
        # Sliced, not reshaped as in VAP: the exporter would merge a first reshape with the backbone's, and the graph would have no tensor
        # `[B, N, D]` for `flowless explain` to read.
        pooled = [[features[:, first::scale].amax(1) for first in range(scale)] for scale in self.scales]
        vectors = torch.cat([torch.stack(vectors).mean(0) for vectors in pooled], dim=1)
        # The classifiers are linear: dividing their inputs gives the mean of their scores.
        return self.pred(self.dropout(vectors) / len(self.scales))

    def segment_scores(self, features: Tensor) -> Tensor:
        """Return each segment's scores alone, `[B, N, D]` to `[B, N, classes]`: those of a clip with that segment in all places."""
        count = len(self.scales)
        return self.pred(features.repeat(1, 1, count) / count)


def aggregation_head(features: int, *, segments: int, classes: int, dropout: float, options: AggregationOptions) -> nn.Module:
    """Return the head of a PAN model that its options describe, `[B, N, D]` to scores `[B, classes]` (Table IV).

    Raises:
        FlowlessError: The number of segments does not fit the timescales.
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


def init_heads(heads: Iterable[nn.Module], *, std: float) -> None:
    """Initialise heads as the official PAN code does: weights from N(0, std), VAP's small network included; biases 0.

    VAP then starts with nearly equal weights for all timescales. With PyTorch's default initialisation the weights differ at random from
    the start, more so the larger the features are.
    """
    for layer in (module for head in heads for module in head.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def prediction(features: int, classes: int) -> nn.Linear:
    """Return the last layer, with biases of zero."""
    layer = nn.Linear(features, classes)
    nn.init.zeros_(layer.bias)
    return layer
