"""How to build an engine, whatever its target."""

from __future__ import annotations

from dataclasses import dataclass

from flowless.errors import FlowlessError

#: What TensorRT-RTX can build for without that GPU: Turing, Ampere, Ada, Blackwell.
RTX_CAPABILITIES = (75, 80, 86, 89, 120, 121)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build an engine."""

    batch: tuple[int, int, int] = (1, 1, 8)
    """TensorRT and TensorRT-RTX: smallest, commonest and largest batch that the engine takes."""
    compute_capabilities: tuple[int, ...] = ()
    """TensorRT-RTX: GPUs to build for, such as 86 and 89; none: the one here, or, without one, any."""
    force: bool = False
    """Build again what is there already."""
    threads: int | None = None
    """CPU threads for the comparison with PyTorch; None lets the library choose."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        least, best, most = self.batch
        if not 1 <= least <= best <= most:
            raise FlowlessError(f"batch is {least} {best} {most}; it must be MIN OPT MAX with 1 <= MIN <= OPT <= MAX, such as 1 1 8.")
        unknown = [item for item in self.compute_capabilities if item not in RTX_CAPABILITIES]
        if unknown:
            allowed = ", ".join(map(str, RTX_CAPABILITIES))
            raise FlowlessError(
                f"compute capability {', '.join(map(str, unknown))}: TensorRT-RTX builds for {allowed}. "
                "For a data-centre GPU such as 90 or 100, build --target tensorrt on that GPU."
            )
