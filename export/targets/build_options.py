"""Options of a build, for all targets; which target has which option says `engines/targets.py`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from flowless.engines.targets import Target, find_target, targets_with
from flowless.errors import FlowlessError

#: Compute capabilities that TensorRT-RTX builds for without that GPU: Turing, Ampere, Ada, Blackwell.
RTX_CAPABILITIES = (75, 80, 86, 89, 120, 121)
#: Option -> its name on the command line, where that is not the option's own name.
_FLAGS = {"compute_capabilities": "--compute-capability"}


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build an engine."""

    batch: tuple[int, int, int] = (1, 1, 8)
    """TensorRT and TensorRT-RTX: smallest, most common and largest batch that the engine takes."""
    compute_capabilities: tuple[int, ...] = ()
    """TensorRT-RTX: GPUs to build for, such as 86 and 89; none: every one since Ampere."""
    portable: bool = False
    """TensorRT: an engine that later versions and every GPU since Ampere can run, slower than one for this GPU alone. TensorRT-RTX
    engines run on every GPU since Ampere as they are, and on no other version: there it only forbids naming GPUs."""
    strip_weights: bool = False
    """TensorRT, and TensorRT-RTX where there is a GPU: leave the weights out; loading takes them from the graph `refit_from`."""
    refit_from: str | None = None
    """With `strip_weights`: the file that has the weights, relative to the engine's folder: the graph that the engine is built from."""
    timing_cache: Path | None = None
    """TensorRT: file with the kernel timings of earlier builds; read, added to and written back. TensorRT-RTX times nothing."""
    pa: Literal["function", "plugin"] = "function"
    """TensorRT: Persistence of Appearance as standard operators; or as the C++ plugin's one fused kernel (see export/plugin/)."""
    plugin_library: Path | None = None
    """TensorRT: library of the PA op's plugin, for a graph whose PA nodes have no body."""
    workspace: int | None = None
    """TensorRT and TensorRT-RTX: MiB of GPU memory that a layer may use while it runs; None: all there is."""
    optimization_level: int | None = None
    """TensorRT and TensorRT-RTX: 0 builds fastest, 5 searches longest; None: the library's default."""
    force: bool = False
    """Build again what is there already."""
    threads: int | None = None
    """CPU threads for the comparison with PyTorch; None lets the library choose."""

    def __post_init__(self) -> None:
        """Raise `FlowlessError` for values that no target can build."""
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
        if self.portable and self.compute_capabilities:
            raise FlowlessError(
                f"--portable means every GPU since Ampere, and --compute-capability {' '.join(map(str, self.compute_capabilities))} "
                "for these alone. Leave one of them out."
            )
        if self.workspace is not None and self.workspace < 1:
            raise FlowlessError(f"workspace is {self.workspace}; it is in MiB and must be at least 1.")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise FlowlessError(f"optimization level is {self.optimization_level}; it must be from 0 to 5.")
        if self.threads is not None and self.threads < 1:
            raise FlowlessError(f"threads is {self.threads}; it must be at least 1.")

    def check(self, target: Target) -> None:
        """Raise `FlowlessError`, naming the targets that have it, for an option that is set and that a target does not have."""
        for name in self._foreign(target):
            flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
            having = targets_with(name)
            raise FlowlessError(
                f"{flag}: {target} has no such option; --target {' and --target '.join(having)} "
                f"{'has' if len(having) == 1 else 'have'} it. Leave it out, or build that target."
            )

    def for_target(self, target: Target) -> BuildOptions:
        """Return the options without those that a target does not have, for building several targets at once."""
        foreign = self._foreign(target)
        return replace(self, **foreign)

    def _foreign(self, target: Target) -> dict[str, Any]:
        """Return the options that are set and that the target does not have, with their default values."""
        own = find_target(target).options
        specific = [item for item in fields(self) if item.name not in own and targets_with(item.name)]
        return {item.name: item.default for item in specific if getattr(self, item.name) != item.default}
