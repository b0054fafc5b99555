"""The key of an engine: an engine with the same key need not be built again."""

from __future__ import annotations

from typing import Any

from flowless import cuda_driver
from flowless.engines.bundle.compatibility import this_platform
from flowless.engines.bundle.manifest import Manifest
from flowless.engines.targets import TARGETS, Target
from flowless.export.precision.calibration import Calibration
from flowless.export.targets.build_options import BuildOptions
from flowless.files import sha256_of

#: Increase it whenever this code builds another engine from the same graph.
_BUILDER_VERSION = 1
#: Options that decide an engine of TensorRT or TensorRT-RTX. The other targets have none.
_DECISIVE = ("batch", "compute_capabilities", "portable", "strip_weights", "workspace", "optimization_level", "pa")


def engine_key(manifest: Manifest, target: Target, precision: str, options: BuildOptions, calibration: Calibration | None) -> str:
    """Return the SHA-256 over everything that decides an engine: graph, precision, calibration, target, options, versions.

    A TensorRT engine also depends on the kind of GPU and the platform, unless it is portable, and on the bytes of its plugin.
    """
    from flowless.export.precision.graph_cache import digest, graph_key

    settings: dict[str, Any] = {name: getattr(options, name) for name in _DECISIVE} if TARGETS[target].options else {}
    if target == "tensorrt":
        settings["plugin"] = _plugin_digest(options)
        if not options.portable:
            settings["gpu"] = [cuda_driver.gpu_name(), cuda_driver.compute_capability(), this_platform()]
    return digest([_BUILDER_VERSION, graph_key(manifest, precision, calibration), target, settings, TARGETS[target].versions()])


def _plugin_digest(options: BuildOptions) -> str | None:
    """Return the SHA-256 of the plugin library that a TensorRT engine is built with; None without a plugin or without its library."""
    from flowless.export.plugin.plugin_library import find_library

    library = options.plugin_library or (find_library() if options.pa == "plugin" else None)
    return sha256_of(library) if library is not None and library.is_file() else None
