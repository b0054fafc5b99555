"""What a library keeps for the whole process: one owner with a lock, and engines in several threads that do not disturb each other."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import flowless
from flowless.engines.backends.tensorrt_backend import create_context
from flowless.engines.backends.tensorrt_process import TensorRtProcess, tensorrt_process

_FIRST_USE = """
import json, sys, threading
from flowless.engines.backends.openvino_core import openvino_core
from flowless.engines.backends.tensorrt_process import tensorrt_process
first_use = {"openvino": openvino_core, "tensorrt-rtx": lambda: tensorrt_process("tensorrt-rtx").logger}[sys.argv[1]]
barrier, found = threading.Barrier(8), []
def use():
    barrier.wait()
    found.append(first_use())
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(len({id(item) for item in found})))
"""


@pytest.mark.parametrize(("target", "module"), [("openvino", "openvino"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_threads_that_use_a_library_first_at_once_share_its_state(target: str, module: str) -> None:
    """OpenVINO has one core: of two, the second to be destroyed frees Python's signal stack. TensorRT keeps the first logger's pointer."""
    pytest.importorskip(module)
    done = subprocess.run([sys.executable, "-c", _FIRST_USE, target], check=True, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) == 1


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_an_engine_is_closed_while_another_one_runs(target: str, built: Path) -> None:
    """Two threads open an engine each; one is closed and opened again and again while the other one runs."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: flowless.load(built, target, threads=1), range(2))
    clip = np.random.default_rng(0).integers(0, 256, (2, *first.spec.shape), dtype=np.uint8)
    expected = first(clip)
    np.testing.assert_array_equal(second(clip), expected)
    closed, failures = threading.Event(), []

    def run() -> None:
        runs = 0
        while not closed.is_set() or runs < 20:
            runs += 1
            if not np.array_equal(first(clip), expected):
                failures.append(runs)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(5):
            del second
            gc.collect()
            second = flowless.load(built, target, threads=1)
            np.testing.assert_array_equal(second(clip), expected)
    finally:
        closed.set()
        thread.join()
    assert not failures


@pytest.fixture
def rtx() -> TensorRtProcess:
    pytest.importorskip("tensorrt_rtx")
    return tensorrt_process("tensorrt-rtx")


def test_an_error_belongs_to_the_thread_that_caused_it(rtx: TensorRtProcess) -> None:
    """One engine is refused in one thread while another thread opens an engine, or reads why its own was refused."""
    entered, refused = threading.Event(), threading.Event()

    def refuse() -> list[str]:
        with rtx.errors() as errors:
            entered.wait(20)
            assert rtx.trt.Runtime(rtx.logger).deserialize_cuda_engine(b"no engine at all" * 100) is None
            refused.set()
            return list(errors.texts)

    with ThreadPoolExecutor(1) as pool, rtx.errors() as mine:
        theirs = pool.submit(refuse)
        entered.set()
        assert refused.wait(20)
        assert theirs.result()
        assert mine.texts == []
        assert str(mine) == "it gives no reason"
    before = len(mine.texts)
    refuse()
    assert len(mine.texts) == before, "the block has ended"


def test_an_error_of_the_librarys_own_thread_reaches_every_open_block(rtx: TensorRtProcess) -> None:
    with rtx.errors() as one, rtx.errors() as other:
        with ThreadPoolExecutor(1) as pool:  # a thread without a block, as the builder's own threads are
            pool.submit(rtx.logger.log, rtx.trt.ILogger.ERROR, "out of\n memory").result()
            pool.submit(rtx.logger.log, rtx.trt.ILogger.WARNING, "slow").result()
        assert one.texts == other.texts == ["out of memory"]


@pytest.mark.parametrize("wanted", [False, True])
def test_cuda_graphs_are_a_setting_of_the_context(rtx: TensorRtProcess, wanted: bool) -> None:
    """No engine can be opened without a GPU; the names that are set exist in the library."""
    given: list[Any] = []

    class OpenedEngine:
        create_execution_context = staticmethod(lambda *config: given.extend(config) or "context")
        create_runtime_config = staticmethod(lambda: SimpleNamespace(cuda_graph_strategy=rtx.trt.CudaGraphStrategy.DISABLED))

    assert hasattr(rtx.trt.ICudaEngine, "create_runtime_config")
    assert isinstance(rtx.trt.IRuntimeConfig.cuda_graph_strategy, property)
    assert create_context(rtx, OpenedEngine, cuda_graph=wanted) == "context"
    assert [config.cuda_graph_strategy for config in given] == [rtx.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE] * wanted


#: A driver that keeps a stack of contexts per thread, as CUDA does, and counts what is retained and allocated.
_DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
static __thread void *stack[8]; static __thread int depth = 0; static int retained = 0, memory = 0, streams = 0;
int cuInit(unsigned f) { return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = 8; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)0x10; retained++; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { retained--; return 0; }
int cuCtxPushCurrent_v2(void *c) { stack[depth++] = c; return 0; }
int cuCtxPopCurrent_v2(void **c) { if (!depth) return 201; *c = stack[--depth]; return 0; }
static int here(void) { return depth && stack[depth - 1] == (void *)0x10 ? 0 : 201; }
int cuStreamCreate(void **s, unsigned f) { *s = (void *)0x20; streams++; return here(); }
int cuStreamDestroy_v2(void *s) { streams--; return here(); }
int cuMemAlloc_v2(unsigned long long *p, size_t n) { *p = 64; memory++; return here(); }
int cuMemFree_v2(unsigned long long p) { memory--; return here(); }
int cuGetErrorString(int e, const char **t) { *t = "invalid device context"; return 0; }
void *test_current(void) { return depth ? stack[depth - 1] : 0; }
int test_left(void) { return 100 * retained + 10 * memory + streams; }
"""
_HOST_WITH_A_CONTEXT = """
import ctypes, json, threading
from flowless import cuda_driver
driver = ctypes.CDLL("libcuda.so.1")
driver.test_current.restype = ctypes.c_void_p
driver.cuCtxPushCurrent_v2(ctypes.c_void_p(0x99))  # the host program's own
seen = []
def use():
    gpu = cuda_driver.Gpu()
    seen.append(driver.test_current())
    with gpu.entered():
        gpu.buffer("clip", 10)
    seen.append(driver.test_current())
use()  # the GPU is freed here
seen.append(driver.test_current())
thread = threading.Thread(target=use)
thread.start(); thread.join()
print(json.dumps([seen, driver.test_left()]))
"""


@pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="needs gcc on Linux")
def test_a_threads_cuda_context_is_restored_and_nothing_is_left(tmp_path: Path) -> None:
    """A program that embeds an engine may have a context of its own current; the engine's is current within its calls alone."""
    (tmp_path / "driver.c").write_text(_DRIVER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _HOST_WITH_A_CONTEXT], env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [[0x99, 0x99, 0x99, None, None], 0]
