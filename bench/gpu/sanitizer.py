"""The part `sanitizer` of the GPU suite: the plugin's kernel in a program of its own, under compute-sanitizer and ncu."""

from __future__ import annotations

import csv
import subprocess
import time

from flowless.bench.gpu.clock import need_device
from flowless.bench.gpu.kernels import nvcc, plugin_sources
from flowless.bench.gpu.ledger import Ledger, NotHere
from flowless.bench.gpu.machine import tool

#: Small and odd sizes in both types; with an argument one large size, for the profiler.
_PROGRAM = r"""
#include "pa_kernel.h"
#include <cuda_fp16.h>
#include <cstdio>
#include <vector>
#define OK(call) do { int code = (int)(call); if (code) { std::printf("error %d in line %d\n", code, __LINE__); return 1; } } while (0)
template <typename T> int run(int half, long stacks, long frames, int height, int width) {
  std::vector<T> x(stacks * frames * 3 * height * width), kernel(8 * 147), y(stacks * (frames - 1) * height * width);
  for (size_t i = 0; i < x.size(); ++i) x[i] = T(float((i * 2654435761u >> 13) & 255));
  for (size_t i = 0; i < kernel.size(); ++i) kernel[i] = T(0.002f * (float((i * 40503u) & 255) - 127));
  void *a, *b, *c;
  OK(cudaMalloc(&a, x.size() * sizeof(T)));
  OK(cudaMalloc(&b, kernel.size() * sizeof(T)));
  OK(cudaMalloc(&c, y.size() * sizeof(T)));
  OK(cudaMemcpy(a, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
  OK(cudaMemcpy(b, kernel.data(), kernel.size() * sizeof(T), cudaMemcpyHostToDevice));
  OK(flowless_pa_launch(half, a, b, c, stacks, frames, height, width, 1e-6f, 0, nullptr));
  OK(cudaDeviceSynchronize());
  OK(cudaMemcpy(y.data(), c, y.size() * sizeof(T), cudaMemcpyDeviceToHost));
  OK(cudaFree(a));
  OK(cudaFree(b));
  OK(cudaFree(c));
  return 0;
}
int main(int count, char **) {
  if (count > 1) return run<float>(0, 64, 4, 224, 224) || run<__half>(1, 64, 4, 224, 224);
  for (int height : {1, 23, 64})
    for (int width : {1, 41, 96})
      if (run<float>(0, 2, 3, height, width) || run<__half>(1, 2, 3, height, width)) return 1;
  return 0;
}
"""
_KINDS = ("memcheck", "racecheck", "initcheck")
_METRICS = {"sm": "sm__throughput.avg.pct_of_peak_sustained_elapsed", "memory": "dram__throughput.avg.pct_of_peak_sustained_elapsed"}


def sanitizer(ledger: Ledger) -> None:
    """Compile the program, run it under each of compute-sanitizer's tools, and ask ncu how busy the card is."""
    need_device(ledger.settings)
    source, program = ledger.settings.folder / "pa_program.cu", ledger.settings.folder / "pa_program"
    kernel = plugin_sources()
    source.write_text(_PROGRAM, encoding="utf-8")
    words = ["-lineinfo", "-Xptxas", "-v", f"-I{kernel}", str(source), str(kernel / "pa_kernel.cu"), "-o", str(program)]
    ledger.fact(registers=[line.strip() for line in nvcc(words).splitlines() if "registers" in line])
    for kind in _KINDS:
        if ledger.in_time(kind):
            with ledger.trial(kind):
                _watched(ledger, kind, str(program))
    if ledger.in_time("ncu"):
        # A machine may keep its counters to its administrator.
        with ledger.trial("ncu", may_refuse=True):
            _profiled(ledger, str(program))


def _watched(ledger: Ledger, kind: str, program: str) -> None:
    checker = tool("compute-sanitizer")
    if checker is None:
        raise NotHere("compute-sanitizer is neither on the path nor in /usr/local/cuda/bin")
    started = time.monotonic()
    words = [checker, "--tool", kind, "--error-exitcode", "9", program]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1][:200]
    seconds = round(time.monotonic() - started, 1)
    ledger.check(f"plugin's kernel under {kind}", passed=done.returncode == 0, seconds=seconds, said=said)


def _profiled(ledger: Ledger, program: str) -> None:
    profiler = tool("ncu")
    if profiler is None:
        raise NotHere("ncu is neither on the path nor in /usr/local/cuda/bin")
    asked = ["--clock-control", "none", "-k", "regex:persistenceOfAppearance", "--metrics", ",".join(_METRICS.values()), "--csv"]
    words = [profiler, *asked, program, "large"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = shares_of(done.stdout)
    if not found:
        raise RuntimeError(f"ncu gives no figures: {(done.stdout + done.stderr).strip()[-300:]}")
    for kernel, shares in found.items():
        ledger.row(kernel=kernel, **shares)


def shares_of(text: str) -> dict[str, dict[str, float]]:
    """Read ncu's table: kernel -> `sm_percent` and `memory_percent`, of what the card can do at most."""
    lines = text.splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    names = {metric: f"{name}_percent" for name, metric in _METRICS.items()}
    found: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(lines[start:]):
        if row["Metric Name"] in names:
            kernel = "fp16" if "half" in row["Kernel Name"] else "fp32"
            found.setdefault(kernel, {})[names[row["Metric Name"]]] = float(row["Metric Value"])
    return found
