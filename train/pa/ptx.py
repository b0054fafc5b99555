"""The PA op's Triton kernels compiled ahead of time, on a machine with or without a GPU.

    python -m flowless.train.pa.ptx --out FOLDER

writes `KERNEL-TYPE-smARCH.ptx`, the same as `.cubin`, and `kernels.json`, which says how each is launched. PTX made for sm_80
to sm_89 runs on later GPUs too; from sm_90 on Triton emits the architecture's own instructions (`.target sm_90a`), which no
other architecture runs. Ship sm_80 for the unknown.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowless.errors import FlowlessError
from flowless.files import whole_folder, write_json

ARCHITECTURES = (80, 86, 89, 90, 120)
#: What enters the product -> Triton's names of the types of frames, weight and maps (or gradients).
TYPES = {
    "float32": ("fp32", "fp32", "fp32"),
    "tf32": ("fp32", "fp32", "fp32"),
    "float16": ("fp16", "fp16", "fp16"),
    "bfloat16": ("bf16", "bf16", "bf16"),
    "uint8": ("u8", "fp32", "fp32"),
}
Kernel = Literal["forward", "weight", "frame"]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel, ready to be launched by anything that loads PTX or a cubin.

    The parameters of `forward`, in order: inputs, integers, outputs, as TensorRT's ahead-of-time plugins launch a kernel.

    - `x_ptr`, `weight_ptr`: frames `[S, m, 3, H, W]` by strides, and the weight `[8, 3, 7, 7]` contiguous, both 16-byte aligned.
    - `pairs` = m - 1, `height`, `width`, and the frames' strides in elements, `stride_stack`, `stride_frame`, `stride_channel`,
      `stride_row`, `stride_column`: int32, each. Offsets within a stack must fit 31 bits; offsets of stacks may be larger.
    - `out_ptr`: maps `[S, m-1, H, W]` contiguous, 16-byte aligned.

    Its grid is one-dimensional: S * pairs * ceil(H / tile[0]) * ceil(W / tile[1]) blocks of 32 * warps threads. Triton gives every
    kernel two pointers more, behind the last parameter, to scratch memory that these kernels do not use; they are taken out
    here, so that a launcher which knows only the parameters above passes exactly what the kernel reads.

    `weight` takes `ratio_ptr` (float32 `[S, m-1, H, W]`) behind `weight_ptr`, and before `out_ptr` the number of `tiles`, which is
    what the forward grid would be with its tile; n programs write float32 `[n, 3, 8, 8, 32]`. `frame` takes `ratio_ptr` alike and
    writes `[S, m, 3, H, W]` with S * ceil((H // 2 + 1) * 2 / tile[0]) * ceil((W // 2 + 1) * 2 / tile[1]) programs.

    Attributes:
        kernel: `forward`, or of the backward pass `weight` or `frame`.
        arch: Compute capability, 80 for 8.0.
        dtype: One of `TYPES`.
        entry: The kernel's name in the binary.
        parameters: Name and type of each parameter, in order.
        warps: A program is one block of 32 times as many threads.
        shared_bytes: Dynamic shared memory of a block, to be given at launch.
        tile: Rows and columns that a program makes: of a map, or for `frame` of the frames' gradient.
        registers: Registers of a thread.
        stack_bytes: Local memory of a thread: more than 0 means that registers were spilt.
        ptx: The program as text, for the driver to compile.
        cubin: The program for `arch` alone.
    """

    kernel: Kernel
    arch: int
    dtype: str
    entry: str
    parameters: tuple[tuple[str, str], ...]
    warps: int
    shared_bytes: int
    tile: tuple[int, int]
    registers: int
    stack_bytes: int
    ptx: str = dataclasses.field(repr=False)
    cubin: bytes = dataclasses.field(repr=False)


def compile_ahead(
    arch: int, dtype: str, *, kernel: Kernel = "forward", eps: float = 1e-12, eps_inside: bool = False, out: str | None = None
) -> Compiled:
    """Compile one kernel for one architecture; no GPU, no driver.

    How it is launched: `Compiled`.

    Args:
        arch: 80, 86, 89, 90, 120 or another that Triton knows.
        dtype: What enters the product, one of `TYPES`. `uint8` takes uint8 frames and a float32 weight, `tf32` float32 both.
        kernel: Which of the three.
        eps: As in `persistence`; compiled in, because TensorRT passes integers only.
        eps_inside: As in `persistence`.
        out: Type of the maps if not that of `TYPES`: `float32`, `float16` or `bfloat16`.

    Raises FlowlessError for an unknown type, and where Triton is missing or set to interpret.
    """
    _check(kernel, dtype, out)
    triton = _triton()
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function, constants, warps, tile = _recipe(kernel, dtype, eps, eps_inside=eps_inside)
    types = _types(function.arg_names, constants, dtype, out or dtype)
    aligned: Any = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(types.values()) if kind.startswith("*")}
    source = ASTSource(fn=function, signature=types, constexprs=constants, attrs=aligned)
    with knobs.compilation.scope():
        # The places of lines in this machine's files are nobody else's business.
        knobs.compilation.disable_line_info = True
        made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "num_stages": 1})
    ptx = _without_scratch(made)
    cubin, registers, stack = _assemble(ptx, arch)
    return Compiled(
        kernel=kernel,
        arch=arch,
        dtype=dtype,
        entry=made.metadata.name,
        parameters=tuple((name, kind) for name, kind in types.items() if kind != "constexpr"),
        warps=warps,
        shared_bytes=made.metadata.shared,
        tile=tile,
        registers=registers,
        stack_bytes=stack,
        ptx=ptx,
        cubin=cubin,
    )


def _check(kernel: str, dtype: str, out: str | None) -> None:
    if dtype not in TYPES or (out is not None and out not in {"float32", "float16", "bfloat16"}):
        raise FlowlessError(
            f"compile_ahead: the type is {dtype!r} and out is {out!r}; the type must be one of {', '.join(TYPES)}, "
            "and out float32, float16 or bfloat16."
        )
    if kernel == "frame" and dtype == "uint8":
        raise FlowlessError("compile_ahead: kernel 'frame' is the gradient of frames, and uint8 frames have none; take a floating type.")


def _triton() -> Any:
    try:
        import triton
        from triton import knobs
    except ModuleNotFoundError:
        raise FlowlessError("compiling the PA kernels: Triton is not installed; PyTorch for Linux brings it: pip install torch.") from None
    if knobs.runtime.interpret:
        raise FlowlessError("compiling the PA kernels: TRITON_INTERPRET is set, and an interpreting Triton cannot compile; unset it.")
    return triton


def _recipe(kernel: Kernel, dtype: str, eps: float, *, eps_inside: bool) -> tuple[Any, dict[str, Any], int, tuple[int, int]]:
    """Return the kernel's function, its constants, its warps and its tile: those that the launchers use."""
    from flowless.train.pa import triton_backward as backward
    from flowless.train.pa import triton_forward as forward

    constants: dict[str, Any] = {"PRECISION": "tf32" if dtype == "tf32" else "ieee"}
    if kernel == "forward":
        function, block, warps = forward.forward_kernel, forward.FORWARD_BLOCK, forward.FORWARD_WARPS
        constants |= {"eps": eps, "EPS_INSIDE": eps_inside}
    else:
        constants["shift"] = eps if eps_inside else 0.0
        if kernel == "weight":
            function, block, warps = backward.weight_kernel, backward.WEIGHT_BLOCK, backward.WEIGHT_WARPS
        else:
            function, block, warps = backward.frame_kernel, backward.FRAME_BLOCK, backward.FRAME_WARPS
    side = 2 * (block.get("SIDE", 0) - 3)
    tile = (side, side) if kernel == "frame" else (2 * block["ROWS"], 2 * block["COLUMNS"])
    return function, constants | block, warps, tile


def _types(names: Sequence[str], constants: dict[str, Any], dtype: str, out: str) -> dict[str, str]:
    frames, weight, _ = TYPES[dtype]
    pointers = {"x_ptr": frames, "weight_ptr": weight, "ratio_ptr": "fp32", "out_ptr": TYPES[out][2]}
    if "tiles" in names:
        pointers["out_ptr"] = "fp32"
    return {name: "constexpr" if name in constants else f"*{pointers[name]}" if name in pointers else "i32" for name in names}


def _without_scratch(made: Any) -> str:
    """Take the two pointers to scratch memory out of the entry's parameters."""
    ptx, name = made.asm["ptx"], made.metadata.name
    if made.metadata.global_scratch_size or made.metadata.profile_scratch_size:
        raise FlowlessError(f"compiling {name}: this Triton makes it use scratch memory, which a plain launch cannot give.")
    numbers = [int(number) for number in re.findall(rf"\.param [^\n]*\b{name}_param_(\d+)", ptx)]
    for number in sorted(numbers)[-2:]:
        ptx = re.sub(rf",\s*\.param \.u64 [^\n,]*\b{name}_param_{number}\b", "", ptx)
        if f"{name}_param_{number}" in ptx:
            raise FlowlessError(f"compiling {name}: parameter {number} is read, so it is not the scratch pointer that Triton used to add.")
    return ptx


def _assemble(ptx: str, arch: int) -> tuple[bytes, int, int]:
    """Return the cubin, the registers and the bytes of stack of a thread, from the assembler that comes with Triton."""
    from triton.backends.nvidia.compiler import get_ptxas

    (target,) = re.findall(r"^\.target (\w+)", ptx, flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        # The level is the one that Triton compiles with.
        command = [get_ptxas(arch).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={target}", str(source), "-o", str(binary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FlowlessError(f"ptxas refuses the PA kernel for {target}: {done.stderr.strip()}")
        (registers,) = re.findall(r"Used (\d+) registers", done.stderr)
        (stack,) = re.findall(r"(\d+) bytes stack frame", done.stderr)
        return binary.read_bytes(), int(registers), int(stack)


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """Compile the PA op's Triton kernels to PTX and cubin files; needs no GPU."""

    #: Folder to write; replaced if it is there.
    out: Path
    arch: tuple[int, ...] = ARCHITECTURES
    dtype: tuple[Literal["float32", "tf32", "float16", "bfloat16", "uint8"], ...] = ("float32", "float16", "uint8")
    kernel: tuple[Kernel, ...] = ("forward",)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command."""
    import tyro  # not needed to compile, and a GPU host may lack it

    ask = tyro.cli(Ahead, args=list(sys.argv[1:] if words is None else words), description=inspect.getdoc(Ahead))
    made = [
        compile_ahead(arch, dtype, kernel=kernel)
        for kernel in ask.kernel
        for arch in ask.arch
        for dtype in ask.dtype
        if not (kernel == "frame" and dtype == "uint8")
    ]
    with whole_folder(ask.out) as folder:
        rows = []
        for one in made:
            name = f"{one.kernel}-{one.dtype}-sm{one.arch}"
            (folder / f"{name}.ptx").write_text(one.ptx, encoding="utf-8")
            (folder / f"{name}.cubin").write_bytes(one.cubin)
            row = {key: value for key, value in vars(one).items() if key not in {"ptx", "cubin"}}
            rows.append({"name": name, **row})
        write_json(folder / "kernels.json", rows)
    for row in rows:
        print(f"{row['name']}: {row['registers']} registers, {row['stack_bytes']} bytes spilt, {row['shared_bytes']} bytes shared")
    return 0


if __name__ == "__main__":
    from flowless.cli import run_command

    sys.exit(run_command(main))
