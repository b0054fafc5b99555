"""The README's figures, rendered from `bench/results/`, so that no number there is typed by hand: `python scripts/readme_figures.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowless.bench.motion.motion_claims import quickest
from flowless.bench.systems.real_page import readme_lines as real_lines
from flowless.bench.systems.systems_page import readme_lines
from flowless.errors import FlowlessError
from flowless.files import whole_file

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- figures: from bench/results by scripts/readme_figures.py -->\n", "<!-- end of figures -->\n"


def render(results: Path) -> str:
    """Return the README's part on measured figures, in Markdown."""
    throughput, peers, reversal = (json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in _NAMES)
    where = throughput["environment"]
    export = results / "export.json"
    minutes = json.loads(export.read_text(encoding="utf-8"))["minutes"] if export.is_file() else None
    return "\n".join(
        [
            f"PAN-Lite ResNet-50, 8 × 4 frames of 224 × 224, batch 1, on {where['cores']} cores of an {where['processor']} processor"
            f" ({', '.join(where['instruction_sets'])}), no GPU; medians of one run each.",
            "",
            *_forward(throughput, peers),
            "",
            *_sentences(throughput, peers, reversal),
            *_precisions(throughput, minutes),
            "",
            *_shared_cores(results / "shared-cores.json"),
            *_evidence(results / "systems.json", readme_lines, "Accuracy over cost"),
            *_evidence(results / "real.json", real_lines, "What opposite actions are taken for"),
            *_motion(results),
            *_gpus(results),
        ]
    )


_NAMES = ("throughput", "peers", "reversal")


def _forward(throughput: dict[str, Any], peers: dict[str, Any]) -> list[str]:
    official = {row["name"]: row for row in peers["forward"]}
    columns = ("forward", "ms", "× PyTorch eager", "× official code, same run", "× official, its slow norm rewritten")
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|"]
    for row in throughput["engines"]:
        if "p50_ms" in row and row["p50_ms"] is not None:
            beside = official.get(row["name"], {})
            ratios = [beside.get("times_official"), beside.get("times_official_rewritten")]
            told = ["" if ratio is None else f"{ratio:.1f}" for ratio in ratios]
            lines.append(f"| {row['name']} | {row['p50_ms']:.0f} | {row['times_eager']:.1f} | {told[0]} | {told[1]} |")
    return lines


def _sentences(throughput: dict[str, Any], peers: dict[str, Any], reversal: dict[str, Any]) -> list[str]:
    maps = {row["name"]: row["maps_per_s"] for row in peers["motion_maps"] if row.get("maps_per_s")}
    ours = max(value for name, value in maps.items() if not name.startswith("official"))
    theirs = maps["official, norm as-published"]
    path = max(peers["from_file"]["times_official"].values())
    shares = [row["share"] for row in throughput["end_to_end"]]
    top1 = {row["model"]: row["top1"] for row in reversal["models"]}
    return [
        f"- From the video file to the scores: {path:.1f}× the official path (JPEG extraction, PIL, eager; its"
        f" norm {peers['from_file']['official_norm']}).",
        f"- PA alone: {ours:.0f} maps/s, {ours / theirs:.1f}× the official PA.",
        f"- Decoding exactly the clip's frames takes {throughput['libav_ratio']:.2f} of the time in which libav alone reaches them.",
        f"- End to end over several videos, {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the slower of decoding and engine,"
        " which share the cores.",
        f"- Real gestures played forwards and backwards, training accuracy: PAN-Lite {100 * top1['pan-lite']:.0f} %,"
        f" TSN {100 * top1['tsn']:.0f} % (half is all that it can reach).",
    ]


def _precisions(throughput: dict[str, Any], minutes: float | None) -> list[str]:
    """What is said of the lower precisions, as far as they were measured."""
    lines = []
    times = {row["name"]: row for row in throughput["engines"] if row.get("p50_ms")}
    int8, bf16 = times.get("openvino int8"), times.get("openvino bf16")
    if int8 and bf16:
        noise = [row.get("snr_db") for row in (int8, bf16)]
        told = (
            "; its differences from PyTorch lie {:.0f} dB below the scores' spread (bf16: {:.0f} dB)".format(*noise) if all(noise) else ""
        )
        lines.append(f"- INT8 on OpenVINO: {bf16['p50_ms'] / int8['p50_ms']:.2f}× the speed of BF16{told}.")
    built = [row for row in throughput.get("builds", ()) if row["target"] == "tensorrt-rtx" and row["megabytes"]]
    if built:
        sizes = ", ".join(f"{row['precision']} {row['megabytes']:.0f} MB in {row['build_s']:.1f} s" for row in built)
        lines.append(f"- TensorRT-RTX engines, built here without a GPU and not run: {sizes}.")
    if minutes is not None:
        lines.append(f"- From the checkpoint to a verified INT8 bundle, cold: {minutes:.1f} minutes.")
    return lines


def _shared_cores(path: Path) -> list[str]:
    """Return what work loses beside other programs, where that was measured."""
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"Beside another program on {document['environment']['cores']} cores, times as long as a fair share of them would allow"
        " (`flowless bench shared-cores`); in brackets by the libraries' defaults, whose threads keep their core while they wait."
        " Threads that sleep cost something where nothing else runs: the first column. `OMP_WAIT_POLICY=ACTIVE` is for a machine of your"
        " own.",
        "",
        "| work | alone, over the defaults | beside a busy core | beside a second of its kind |",
        "|---|---|---|---|",
    ]
    defaults = {row["kind"]: row for row in document["rows"] if row["waiting"] != "asleep"}
    for row in document["rows"]:
        if row["waiting"] == "asleep":
            before = defaults[row["kind"]]
            ratios = [f"{row[name]:.1f} ({before[name]:.1f})" for name in ("busy_ratio", "second_ratio")]
            lines.append(f"| {row['kind']} | {row['alone_ms'] / before['alone_ms']:.2f} | {' | '.join(ratios)} |")
    return [*lines, ""]


def _evidence(path: Path, lines_of: Callable[[dict[str, Any]], list[str]], about: str) -> list[str]:
    """A table of the systems side by side and its picture, where they have been measured."""
    if not path.is_file():
        return []
    lines = [*lines_of(json.loads(path.read_text(encoding="utf-8"))), ""]
    picture = path.with_suffix(".svg")
    return [*lines, f"![{about}](bench/results/{picture.name})", ""] if picture.is_file() else lines


def _motion(results: Path) -> list[str]:
    """What is said of motion cues beside optical flow, where that was measured."""
    path = results / "motion.json"
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    settings, sizes = document["settings"], {method["name"]: method for method in document["methods"]}
    lines = [
        f"Motion of the same {settings['frames']} frames, on {document['environment']['cores']} cores, each way's quickest engine:",
        "",
        "| motion | by | frames/s | maps/s | × TV-L1 | GMAC | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in quickest(document["rows"]).items():
        size, times = sizes[name], row.get("times_tv_l1")
        told = [_short(row["frames_per_s"]), _short(row["maps_per_s"]), "" if times is None else _short(times)]
        told += ["" if size["gmacs"] is None else f"{size['gmacs']:.2f}"]
        told += ["" if size["parameters"] is None else f"{size['parameters']:,}".replace(",", " ")]
        lines.append(f"| {name} | {row['engine']} | {' | '.join(told)} |")
    claim = document["claims"][0]
    if claim["ours"] is not None:
        lines += [
            "",
            f"PAN's paper: {claim['paper']}, {claim['paper_ratio']:.0f}×. Here PA is {_short(claim['ours'])}× TV-L1 on the same cores.",
        ]
    if (results / document["picture"]["file"]).is_file():
        lines += ["", f"![Each cue beside optical flow, on real gestures](bench/results/{document['picture']['file']})"]
    return [*lines, ""]


def _gpus(results: Path) -> list[str]:
    """What `flowless bench gpu` measured on each card."""
    lines: list[str] = []
    for path in sorted(results.glob("gpu-*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        parts, versions = document["parts"], document["environment"]["versions"]
        checks = [check["passed"] for part in parts.values() for check in part["checks"]]
        lines += [
            f"PAN-Lite ResNet-50 on an {document['gpu']}, PyTorch {versions['torch']}, ONNX Runtime {versions['onnxruntime']},"
            " 8 × 4 frames of 224 × 224, from clips in its memory:",
            "",
            "| how | precision | ms a clip, batch 1 | clips/s, batch 32 |",
            "|---|---|---|---|",
            *_gpu_rows(parts),
            "",
            *_gpu_maps(parts),
            f"- Of the {len(checks)} comparisons there, {checks.count(True)} passed, {checks.count(False)} failed, the others have no"
            f" tolerance to be judged by: `bench/results/{path.name}`.",
            "",
        ]
    return lines


def _gpu_rows(parts: dict[str, Any]) -> list[str]:
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for name in ("eager", "models", "compiled", "onnxruntime"):
        for row in parts.get(name, {}).get("rows", ()):
            how = row.get("how", row["name"])
            # The part `models` measures PAN-Lite's eager form as well.
            if row["name"] in {"pytorch eager", "torch.compile", "onnxruntime"} or (row["name"] == "pan-lite-r50" and "graph" in how):
                found.setdefault((how, row["precision"]), {})[row["batch"]] = row
    failed = {check["check"].partition(",")[0] for part in parts.values() for check in part["checks"] if check["passed"] is False}
    lines = []
    for (how, precision), rows in found.items():
        title = how.replace("CUDA graph", "PyTorch in a CUDA graph").replace("pytorch", "PyTorch").replace("onnxruntime", "ONNX Runtime")
        if f"{how} {precision}" in failed:
            continue  # the speed of wrong scores is worth nothing
        latency, rate = (_short(rows[batch][name]) if batch in rows else "" for batch, name in ((1, "latency_ms_p50"), (32, "clips_per_s")))
        lines.append(f"| {title} | {precision} | {latency} | {rate} |")
    return lines


def _gpu_maps(parts: dict[str, Any]) -> list[str]:
    rates = {row["form"]: row["maps_per_s"] for row in parts.get("pa-forms", {}).get("rows", ()) if not row.get("demanded")}
    ours, plain, plugin = (rates.get(name) for name in ("uint8, colours last", "plain by pixels, fp32", "plugin's CUDA kernel, fp32"))
    if not (ours and plain and plugin):
        return []
    return [
        f"- PA of uint8 frames by the Triton kernel: {round(ours / 1e3)} thousand maps/s, {ours / plain:.1f}× the formula in plain PyTorch;"
        f" by the TensorRT plugin's CUDA kernel, fp32: {round(plugin / 1e3)}, {plugin / plain:.1f}×."
    ]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def replaced(readme: str, figures: str) -> str:
    """Return the README with its figures replaced."""
    head, found, rest = readme.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        lines = f"{BEGIN.strip()!r} and {END.strip()!r}"
        raise FlowlessError(f"README.md: the lines {lines} must both be there; put them where the figures belong.")
    return f"{head}{BEGIN}{figures}{END}{tail}"


def main() -> None:
    """Write the figures into README.md."""
    readme = ROOT / "README.md"
    text = replaced(readme.read_text(encoding="utf-8"), render(ROOT / "bench" / "results"))
    with whole_file(readme) as draft:
        draft.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    from flowless.cli import run_command

    sys.exit(run_command(main))
