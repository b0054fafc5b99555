"""The PA op's Triton kernels, compiled ahead of time for every architecture, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from flowless.errors import FlowlessError
from flowless.train.pa.ptx import ARCHITECTURES, compile_ahead

pytest.importorskip("triton")


def compile_in_process(folder, **options):
    """Run the command in a process of its own: one that interprets kernels cannot compile them."""
    words = [word for name, values in options.items() for word in (f"--{name}", *map(str, values))]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "flowless.train.pa.ptx", "--out", str(folder), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "kernels.json").read_text())


def check(folder, row):
    ptx = (folder / f"{row['name']}.ptx").read_text()
    assert (folder / f"{row['name']}.cubin").read_bytes().startswith(b"\x7fELF")
    suffix = "a" if row["arch"] >= 90 else ""
    assert re.findall(r"^\.target (\w+)", ptx, flags=re.MULTILINE) == [f"sm_{row['arch']}{suffix}"]
    # In half precision the assembler parks two registers of the weights' kernel, so that two blocks fit a multiprocessor.
    assert row["stack_bytes"] <= (8 if row["kernel"] == "weight" else 0), "registers were spilt"
    assert ".local" not in ptx
    # What the entry takes is what is told, and no scratch pointers behind it.
    entry = ptx[ptx.index(".entry") : ptx.index("{")]
    assert entry.count(".param") == len(row["parameters"])
    kinds = ["u64" if kind.startswith("*") else "u32" for _, kind in row["parameters"]]
    assert re.findall(r"\.param \.(\w+)", entry) == kinds
    assert f".reqntid {32 * row['warps']}" in entry
    assert "triton_forward" not in ptx, "a path of this machine"
    # Full float32 has no tensor core; every other type must be on one.
    multiplied = re.findall(r"mma\S*\.(tf32\.tf32|f16\.f16|bf16\.bf16)\S*", ptx)
    wanted = {"float32": set(), "tf32": {"tf32.tf32"}, "float16": {"f16.f16"}, "bfloat16": {"bf16.bf16"}, "uint8": {"bf16.bf16"}}
    assert set(multiplied) == wanted[row["dtype"]]


def test_one_kernel(tmp_path):
    rows = compile_in_process(tmp_path / "made", arch=[80], dtype=["float32", "uint8"])
    assert [row["name"] for row in rows] == ["forward-float32-sm80", "forward-uint8-sm80"]
    for row in rows:
        check(tmp_path / "made", row)
    names = [name for name, _ in rows[1]["parameters"]]
    assert names[:2] == ["x_ptr", "weight_ptr"], "TensorRT passes inputs first"
    assert names[-1] == "out_ptr", "and outputs last"
    assert {kind for name, kind in rows[1]["parameters"] if not name.endswith("_ptr")} == {"i32"}, "it passes integers only"


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["forward", "weight", "frame"])
def test_every_architecture(tmp_path, kernel):
    types = ["float32", "tf32", "float16", "bfloat16", "uint8"]
    rows = compile_in_process(tmp_path / "made", kernel=[kernel], dtype=types)
    assert len(rows) == len(ARCHITECTURES) * (4 if kernel == "frame" else 5)
    for row in rows:
        check(tmp_path / "made", row)


def test_other_types_of_maps():
    program = (
        "from flowless.train.pa.ptx import compile_ahead\n"
        "made = compile_ahead(80, 'uint8', out='float16', eps_inside=True)\n"
        "assert dict(made.parameters)['out_ptr'] == '*fp16', made.parameters\n"
        "assert 'st.global.b16' in made.ptx\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_told():
    with pytest.raises(FlowlessError, match=r"'int8'.*uint8"):
        compile_ahead(80, "int8")
    with pytest.raises(FlowlessError, match="'float64'"):
        compile_ahead(80, "float32", out="float64")
    with pytest.raises(FlowlessError, match="frame"):
        compile_ahead(80, "uint8", kernel="frame")


def test_an_interpreting_triton_cannot_compile(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "flowless.train.pa.ptx", "--out", str(tmp_path / "made"), "--arch", "80"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "TRITON_INTERPRET" in done.stderr
    assert not (tmp_path / "made").exists()
