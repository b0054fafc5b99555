"""The layers of a built engine and their precisions, as one record for all targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

#: Kinds of layers that hold nearly all arithmetic; only their precision is checked.
ARITHMETIC = ("convolution", "matrix product")
#: Kind or precision of a layer that an inspector does not report.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Layer:
    """One layer, as a target's inspector reports it."""

    name: str
    """The ONNX node that it comes from; of a fused layer all of them, joined by ` + `; in a function's body after the calling
    node's name and a slash."""
    kind: str
    """`convolution`, `matrix product`, `residual add`, or the library's name for it in lower case."""
    precision: str
    """Type of its inputs: `fp32`, `bf16`, `fp16`, `int8`, or `unknown`; with a note where only one of two inputs is quantised."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The ONNX nodes that it comes from."""
        return tuple(self.name.split(" + "))


@dataclass(frozen=True)
class Inspection:
    """The layers of an engine, or of the network that it is built from."""

    layers: tuple[Layer, ...]
    """All layers."""
    wrong: tuple[str, ...] = ()
    """One sentence for each layer that does not run in the graph's precision."""
    summary: dict[str, int] = field(default_factory=dict)
    """Number of layers by kind and precision, `{"convolution int8": 21}`, of convolutions, matrix products and residual adds."""


def inspection(layers: Iterable[Layer], wrong: Iterable[str] = ()) -> Inspection:
    """Return layers with their summary."""
    found = tuple(layers)
    counts = Counter(f"{layer.kind} {layer.precision}" for layer in found if layer.kind in (*ARITHMETIC, "residual add"))
    return Inspection(found, tuple(wrong), dict(sorted(counts.items())))


def is_kept(layer: Layer, kept: Iterable[str]) -> bool:
    """Whether a layer comes from a node that stays exact, or from the function's body of such a node."""
    names = tuple(kept)
    return any(node in names or node.partition("/")[0] in names for node in layer.nodes)


def wrong_layers(layers: Iterable[Layer], precision: str, *, kept: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a sentence for each convolution or matrix product that does not run in a precision.

    Args:
        layers: The layers of an engine or network.
        precision: The graph's precision.
        kept: Names of ONNX nodes that stay exact in this graph: PA, normalisation, VAP, the classifier.

    Returns:
        Nothing where all layers are right. A layer of unknown precision is not checked. In an int8 graph residual adds are checked too:
        one without a quantised input is computed, and its inputs are stored, in floating point.
    """
    checked = (*ARITHMETIC, "residual add") if precision == "int8" else ARITHMETIC
    return tuple(
        f"{layer.kind} {layer.name} runs in {layer.precision}, not {precision}"
        for layer in layers
        if layer.kind in checked and layer.precision not in {precision, UNKNOWN} and not is_kept(layer, kept)
    )


def differing_layers(wanted: Iterable[Layer], found: Iterable[Layer]) -> tuple[str, ...]:
    """Return a sentence for each layer that an engine computes in another precision than its network.

    Args:
        wanted: Layers of the network, one node each.
        found: Layers of the engine, possibly fused.

    Returns:
        Nothing where all agree. A node that no layer of the engine names, or whose precision the engine does not report, is not checked.
    """
    runs = {node: layer.precision for layer in found for node in layer.nodes if layer.kind in ARITHMETIC}
    return tuple(
        f"{layer.kind} {layer.name} runs in {runs[layer.name]}, and in the graph in {layer.precision}"
        for layer in wanted
        if layer.kind in ARITHMETIC and runs.get(layer.name, UNKNOWN) not in {UNKNOWN, layer.precision}
    )
