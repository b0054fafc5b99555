"""Engines leave the cores to others while they wait, and take the core that is free; the host process stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: Loads an engine, runs it, and says how its library was set, which cores its threads may use, whether the environment is as before.
PROGRAM = """
import json, os, sys
import numpy as np
import flowless
before = dict(os.environ)
bundle, target, threads = sys.argv[1:]
engine = flowless.load(bundle, target=target, threads=int(threads) or None)
engine(np.zeros((1, *engine.spec.shape), np.uint8))
graph = engine._backend._graph
if target == "openvino":
    said = {"pinned": graph._request.get_compiled_model().get_property("ENABLE_CPU_PINNING")}
else:
    options = graph._session.get_session_options()
    entries = {}
    for pool in ("intra_op", "inter_op"):
        try:
            entries[pool] = options.get_session_config_entry(f"session.{pool}.allow_spinning")
        except RuntimeError:  # not set
            entries[pool] = None
    said = {"threads": options.intra_op_num_threads, **entries}
cores = sorted({tuple(sorted(os.sched_getaffinity(int(thread)))) for thread in os.listdir("/proc/self/task")})
print(json.dumps({**said, "cores": cores, "same_environment": dict(os.environ) == before}))
"""
PLAIN = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
needs_threads_that_show = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not show a process's threads")


def opened(bundle: Path, target: str, *, threads: int = 0, **variables: str) -> dict[str, Any]:
    arguments = [sys.executable, "-c", PROGRAM, str(bundle), target, str(threads)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env={**PLAIN, **variables})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_threads_that_show
@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_no_thread_holds_on_to_a_core(bundle: Path, target: str, threads: int) -> None:
    from flowless.machine import usable_physical_cores

    found = opened(bundle, target, threads=threads)
    assert found["same_environment"]
    assert found["cores"] == [sorted(os.sched_getaffinity(0))]
    if target == "openvino":
        assert found["pinned"] is False
    else:
        assert (found["intra_op"], found["inter_op"], found["threads"]) == ("0", "0", threads or usable_physical_cores())


@needs_threads_that_show
def test_a_user_who_wants_them_awake_gets_the_libraries_own_way(bundle: Path) -> None:
    assert opened(bundle, "openvino", OMP_WAIT_POLICY="ACTIVE")["pinned"] is True
    found = opened(bundle, "onnxruntime", OMP_WAIT_POLICY="active", threads=2)
    assert (found["intra_op"], found["inter_op"], found["threads"]) == (None, None, 2)


def test_cores_are_counted_once() -> None:
    from flowless.machine import usable_cores, usable_physical_cores

    assert 1 <= usable_physical_cores() <= usable_cores()
