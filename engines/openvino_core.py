"""OpenVINO's core: one, for as long as the process lives."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def openvino_core() -> Any:
    """Return the process's `openvino.Core`.

    Its processor plugin sets an alternate signal stack when it is made and frees it when it goes. Of two whose lives overlap, the second
    to go puts the first one's freed stack back (2026.4), and the next signal that Python handles, such as Ctrl-C, ends the process.
    A core that never goes frees nothing.
    """
    import openvino

    return openvino.Core()
