"""How threads that have nothing to do wait: asleep, unless the user says otherwise.

PyTorch's and the engines' threads meet after every operator. By default those that are done first keep a core busy for a while, in case
the next operator comes soon. Where another program wants that core, the thread that all wait for does not get it, and every operator
lasts a turn of the operating system's scheduler. What each setting is for:

- `OMP_WAIT_POLICY=PASSIVE`: libgomp, which runs PyTorch's operators and, through MKL and oneDNN, its convolutions. It is read once,
  when PyTorch is imported, and inherited by every process that a command starts.
- ONNX Runtime: no spinning, and as many threads as there are cores, since it pins the threads of its own choice each to a core.
- OpenVINO: no pinning. It pins from the first core on, whatever runs there: two engines of one thread share one core and leave the rest.

Seen on two cores while several other programs used them: an epoch of pan-lite-r18/moving-shapes on 480 videos took 154 s by libgomp's
default, 46 s with GOMP_SPINCOUNT=10000, 23 s with 1000, 21 to 23 s asleep; ONNX Runtime 395 to 414 ms a clip and 192 to 201 ms of
processor time by its default, 334 to 342 ms and 166 ms so. `flowless bench shared-cores` measures all beside the libraries' defaults
(`bench/results/shared-cores.json`): alone, sleeping costs PyTorch a twentieth to a quarter of its time, the engines 2 to 4 %.

The others are left alone: no setting of DALI, libav or TBB that makes their threads wait awake was found, and OpenBLAS (NumPy's), which
spins too, has only small products to multiply here.

A user who owns the whole machine sets `OMP_WAIT_POLICY=ACTIVE`: OpenMP's threads then never sleep, and the engines do as they do by
default. `GOMP_SPINCOUNT=300000` alone brings back libgomp's default.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

POLICY = "OMP_WAIT_POLICY"
#: Where the user has set one of these, how OpenMP's threads wait is decided already (the last is of Intel's and LLVM's libraries).
DECIDED_BY = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def let_waiting_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what OpenMP's libraries read when they are loaded, for a command's own process and those that it starts.

    What the user has set stays. For commands and tests alone: a library leaves the environment of its host as it is.
    """
    if not any(environment.get(name) for name in DECIDED_BY):
        environment[POLICY] = "PASSIVE"


def threads_stay_awake() -> bool:
    """Return whether the user asks for threads that keep their core while they wait (`OMP_WAIT_POLICY=ACTIVE`)."""
    return os.environ.get(POLICY, "").strip().lower() == "active"


def policy() -> dict[str, str]:
    """Return the variables that decide how OpenMP's threads wait in this process, as far as they are set."""
    return {name: os.environ[name] for name in DECIDED_BY if os.environ.get(name)}


def described() -> str:
    """Say in a line how threads wait here, for people."""
    own = ", ".join(f"{name}={value}" for name, value in policy().items())
    return f"{own or 'as the libraries have it'}; engines: {'as the libraries have it' if threads_stay_awake() else 'asleep, not pinned'}"
