"""Wait policy of idle threads: they sleep instead of spinning, unless the user sets it otherwise.

PyTorch's and the engines' threads synchronise after every operator. By default the threads that finish first spin for a while in case
the next operator follows soon. Where another program needs that core, the thread that all others wait for is not scheduled, and every
operator takes a time slice of the operating system. The settings:

- `OMP_WAIT_POLICY=PASSIVE`: libgomp, which runs PyTorch's operators and, through MKL and oneDNN, its convolutions. It is read once,
  when PyTorch is imported, and inherited by child processes.
- ONNX Runtime: no spinning, and an explicit number of threads (one per core), since it pins its default threads to cores.
- OpenVINO: no pinning. It pins from the first core on, so that two single-threaded engines would share one core.

Measured on two cores shared with several other programs: an epoch of pan-lite-r18/moving-shapes on 480 videos took 154 s with libgomp's
default, 46 s with GOMP_SPINCOUNT=10000, 23 s with 1000, 21 to 23 s with sleeping threads; a clip in ONNX Runtime took 395 to 414 ms (192
to 201 ms of CPU time) with its default, 334 to 342 ms (166 ms) without spinning. `flowless bench shared-cores` compares these settings with
the libraries' defaults (`bench/results/shared-cores.json`): on an idle machine, sleeping costs PyTorch 5 to 25 % of its time, the engines
2 to 4 %.

DALI, libav and TBB have no spinning threads that a setting could change, and OpenBLAS (NumPy's), which spins too, has only small
matrix products here.

On a dedicated machine set `OMP_WAIT_POLICY=ACTIVE`: OpenMP's threads then never sleep, and the engines keep their own defaults.
`GOMP_SPINCOUNT=300000` alone restores libgomp's default.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

POLICY = "OMP_WAIT_POLICY"
#: Variables that set the wait policy of OpenMP's threads (the last: Intel's and LLVM's libraries); set by the user, they are kept.
DECIDED_BY = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def let_waiting_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OMP_WAIT_POLICY=PASSIVE for this process and its children, unless the user set one of `DECIDED_BY`.

    Call it before PyTorch is imported, and in commands and tests only: a library must not change its host's environment.
    """
    if not any(environment.get(name) for name in DECIDED_BY):
        environment[POLICY] = "PASSIVE"


def threads_stay_awake() -> bool:
    """Return whether the user chose spinning threads (`OMP_WAIT_POLICY=ACTIVE`)."""
    return os.environ.get(POLICY, "").strip().lower() == "active"


def policy() -> dict[str, str]:
    """Return those of the variables `DECIDED_BY` that are set in this process."""
    return {name: os.environ[name] for name in DECIDED_BY if os.environ.get(name)}


def described() -> str:
    """Describe the wait policy in one line."""
    variables = ", ".join(f"{name}={value}" for name, value in policy().items())
    engines = "library defaults" if threads_stay_awake() else "sleeping threads, not pinned"
    return f"{variables or 'library defaults'}; engines: {engines}"
