"""The figures of README.md and docs/results.md, from `bench/results/`: no number there is typed. Run `python scripts/readme_figures.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowless.bench.motion.motion import fastest
from flowless.bench.systems.result_page import readme_lines
from flowless.errors import FlowlessError
from flowless.files import whole_file

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- figures: from bench/results by scripts/readme_figures.py -->\n", "<!-- end of figures -->\n"


def headline(results: Path) -> str:
    """Return the figures of the README, in Markdown: the engines, and the systems side by side."""
    return "\n".join([*_engines(results), *_evidence(results / "systems.json", readme_lines, "Accuracy over cost")])


def render(results: Path) -> str:
    """Return all measured figures, in Markdown."""
    return "\n".join(
        [
            "## Engines\n",
            *_engines(results),
            "## Decoding\n",
            *_decoding(results / "decode.json"),
            "## Embedded in C++\n",
            *_embedded(results / "embed.json"),
            "## Live streams\n",
            *_live(results / "live.json"),
            "## Timelines\n",
            *_timelines(results / "timeline.json"),
            "## Beside other programs\n",
            *_shared_cores(results / "shared-cores.json"),
            "## Systems, on Moving Shapes\n",
            *_evidence(results / "systems.json", readme_lines, "Accuracy over cost"),
            "## Systems, on real clips\n",
            *_evidence(results / "real.json", readme_lines, "What opposite actions are taken for"),
            "## Motion cues beside optical flow\n",
            *_motion(results),
            "## On a GPU\n",
            *_gpus(results),
        ]
    )


#: Page -> the function that renders its figures.
PAGES: dict[str, Callable[[Path], str]] = {"README.md": headline, "docs/results.md": render}


def _engines(results: Path) -> list[str]:
    """Return the speed of each engine on one clip, and further figures of the same benchmarks."""
    throughput, peers = (json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in ("throughput", "peers"))
    where = throughput["environment"]
    export = results / "export.json"
    minutes = json.loads(export.read_text(encoding="utf-8"))["minutes"] if export.is_file() else None
    return [
        f"PAN-Lite ResNet-50, 8 × 4 frames of 224 × 224, batch 1, on {where['cores']} cores of an {where['processor']} processor"
        f" ({', '.join(where['instruction_sets'])}), no GPU; medians of one run each.",
        "",
        *_forward(throughput, peers),
        "",
        *_sentences(throughput, peers),
        *_precisions(throughput, minutes),
        "",
    ]


def _forward(throughput: dict[str, Any], peers: dict[str, Any]) -> list[str]:
    official = {row["name"]: row for row in peers["forward"]}
    columns = ("forward", "ms", "× PyTorch eager", "× official code", "× official code, faster norm")
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|"]
    for row in throughput["engines"]:
        if "p50_ms" in row and row["p50_ms"] is not None:
            beside = official.get(row["name"], {})
            ratios = [beside.get("times_official"), beside.get("times_official_rewritten")]
            shown = ["" if ratio is None else f"{ratio:.1f}" for ratio in ratios]
            lines.append(f"| {row['name']} | {row['p50_ms']:.0f} | {row['times_eager']:.1f} | {shown[0]} | {shown[1]} |")
    return lines


def _sentences(throughput: dict[str, Any], peers: dict[str, Any]) -> list[str]:
    maps = {row["name"]: row["maps_per_s"] for row in peers["motion_maps"] if row.get("maps_per_s")}
    ours = max(value for name, value in maps.items() if not name.startswith("official"))
    theirs = maps["official, norm as-published"]
    path = max(peers["from_file"]["times_official"].values())
    shares = [row["share"] for row in throughput["end_to_end"]]
    norm = "the faster norm" if peers["from_file"]["official_norm"] == "rewritten" else "its own norm"
    return [
        "- The official code computes PA with a norm over the channels that is slow on a CPU. The last column compares with the same code"
        " where that norm is written as a square, a sum and a root.",
        f"- From the video file to the scores: {path:.1f}× as fast as the official code (all frames to JPEG, PIL, PyTorch eager, {norm}).",
        f"- PA alone: {ours:.0f} maps/s, {ours / theirs:.1f}× the official code's.",
        f"- Decoding the frames of a clip takes {100 * throughput['libav_ratio']:.0f} % of the time in which libav decodes all frames up to"
        " the last of them.",
        f"- Predicting several videos, decoding and engine at the same time: {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the"
        " throughput that the slower of the two has alone. Both run on the same cores.",
    ]


def _precisions(throughput: dict[str, Any], minutes: float | None) -> list[str]:
    """Return the figures of the lower precisions that were measured."""
    lines = []
    times = {row["name"]: row for row in throughput["engines"] if row.get("p50_ms")}
    int8, bf16 = times.get("openvino int8"), times.get("openvino bf16")
    if int8 and bf16:
        lines.append(f"- INT8 on OpenVINO: {bf16['p50_ms'] / int8['p50_ms']:.2f}× the speed of BF16.")
        if all(row.get("snr_db") for row in (int8, bf16)):
            errors = [f"{100 * 10 ** (-row['snr_db'] / 20):.2g} %" for row in (int8, bf16)]
            lines[-1] += (
                f" Its scores differ from PyTorch's by {errors[0]} of their standard deviation over clips (root mean square; BF16:"
                f" {errors[1]})."
            )
    built = [row for row in throughput.get("builds", ()) if row["target"] == "tensorrt-rtx" and row["megabytes"]]
    if built:
        sizes = ", ".join(f"{row['precision']} {row['megabytes']:.0f} MB in {row['build_s']:.1f} s" for row in built)
        lines.append(f"- TensorRT-RTX engines, built here without a GPU and not run: {sizes}.")
    if minutes is not None:
        lines.append(f"- From the checkpoint to a verified INT8 bundle, cold: {minutes:.1f} minutes.")
    return lines


def _shared_cores(path: Path) -> list[str]:
    """Return the slowdown beside other programs, if it was measured."""
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"Time beside another program on {document['environment']['cores']} cores, divided by the time that a fair share of the cores"
        " would allow: 1 is fair (`flowless bench shared-cores`). In brackets: with the libraries' defaults, whose idle threads spin"
        " instead of sleeping. Where nothing else runs, sleeping is slower, by the factor in the first column;"
        " `OMP_WAIT_POLICY=ACTIVE` chooses spinning, for a machine of your own.",
        "",
        "| work | alone: time over the defaults' | beside a busy core | beside the same work |",
        "|---|---|---|---|",
    ]
    defaults = {row["kind"]: row for row in document["rows"] if row["waiting"] != "asleep"}
    for row in document["rows"]:
        if row["waiting"] == "asleep":
            before = defaults[row["kind"]]
            ratios = [f"{row[name]:.1f} ({before[name]:.1f})" for name in ("busy_ratio", "second_ratio")]
            lines.append(f"| {row['kind']} | {row['alone_ms'] / before['alone_ms']:.2f} | {' | '.join(ratios)} |")
    return [*lines, ""]


def _decoding(path: Path) -> list[str]:
    """Return which frames each reader gives, and how fast, if it was measured."""
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    peers, ratios = document["peers"], document["ratios_of_named"]
    verdicts = [item["exact"] for item in document["files"] if item["exact"] is not None]  # None: refused, with a reason
    exact, others = verdicts.count(True), verdicts.count(False)
    return [
        f"{exact} of {len(verdicts)} files gave exactly the frames of a full decode: every codec that PyAV encodes in every container that"
        " takes it, recorded clips, and damaged or unusual files. The table compares other readers on the same files: for how many the"
        " frames were right, wrong, or not read; and how fast the frames of a clip are read, relative to PyAV's plain loop (median of the"
        f" {ratios['flowless']['files']} files that were not generated; {document['environment']['cores']} cores).",
        "",
        "| reader | right | wrong | not read | speed, × PyAV's loop |",
        "|---|---|---|---|---|",
        f"| flowless | {exact} | {others} | 0 | {ratios['flowless']['median']:.2f} |",
        f"| flowless, with an index | {exact} | {others} | 0 | {ratios['flowless, known']['median']:.2f} |",
        *(
            f"| {name} | {found['right']} | {found['others']} | {found['none']} | {ratios[name]['median']:.2f} |"
            for name, found in peers.items()
            if name in ratios
        ),
        "",
    ]


def _evidence(path: Path, lines_of: Callable[[dict[str, Any]], list[str]], about: str) -> list[str]:
    """Return a table of the systems side by side and its plot, if they were measured."""
    if not path.is_file():
        return []
    lines = [*lines_of(json.loads(path.read_text(encoding="utf-8"))), ""]
    picture = path.with_suffix(".svg")
    return [*lines, f"![{about}](bench/results/{picture.name})", ""] if picture.is_file() else lines


def _embedded(path: Path) -> list[str]:
    """Return what libflowless takes beside Python, Pillow and OpenVINO alone, if it was measured."""
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    settings, memory = document["settings"], document["memory"]
    bare, own, python = (row["p50_ms"] for row in document["clip"])
    return [
        f"A clip of {settings['model']} ({settings['size']} × {settings['size']} pixels) by OpenVINO in fp32, in turns, on"
        f" {document['environment']['cores']} cores: {own:.1f} ms by libflowless, {python:.1f} ms by Python, {bare:.1f} ms by OpenVINO"
        f" alone in C++. libflowless takes {100 * document['overhead']:+.2f} % more (median of {settings['runs']} rounds).",
        "",
        "| frame | libflowless, ms | Python, ms | Pillow's resize alone, ms | × Pillow |",
        "|---|---|---|---|---|",
        *(
            f"| {row['size']} | {row['libflowless_ms']:.2f} | {row['python_ms']:.2f} | {row['pillow_ms']:.2f} | {row['times_pillow']:.1f} |"
            for row in document["frames"]
        ),
        "",
        "- The table is the time to resize and crop a frame, on one core, with the same bytes as result.",
        f"- Memory over {memory['calls']} calls: {memory['before_mb']:.1f} MB after the first hundredth of them,"
        f" {memory['after_mb']:.1f} MB at the end.",
        "",
    ]


def _live(path: Path) -> list[str]:
    """Return the latency of streams that are watched together, if it was measured."""
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    settings, step, (state, clips) = document["settings"], document["step"], document["capacity"]
    return [
        f"{settings['streams']} streams in one batch: causal {settings['model']}, {settings['size']} × {settings['size']} pixels, by"
        f" OpenVINO in fp32, decoding included, on {document['environment']['cores']} cores. A step with the state in the graph takes"
        f" {step['step_ms']:.1f} ms, a clip of the same network {step['clip_ms']:.1f} ms. Together they score"
        f" {state['scored_per_s']:.0f} frames a second, {state['times_clips']:.1f}× as many as by whole clips"
        f" ({clips['scored_per_s']:.0f}): at 80 % of that, {state['streams_per_core']:.1f} streams of {settings['fps']} frames a second on"
        " a core.",
        "",
        "| | frames delivered, share of the capacity | scored a second | ms from a frame to its scores, p50 | p99 | dropped |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['way']} | {100 * row['load']:.0f} % | {row['scored_per_s']:.0f} | {row['latency_ms_p50']:.0f} |"
            f" {row['latency_ms_p99']:.0f} | {row['dropped']} of {row['frames']} |"
            for row in document["loads"]
        ),
        "",
    ]


def _timelines(path: Path) -> list[str]:
    """Return the mean average precision of timelines beside baselines, if it was measured."""
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    sets, methods = document["sets"], [row["method"] for row in document["sets"][0]["methods"]]
    about = "; ".join(
        f"{one['set']}: {one['actions']} actions in {one['seconds']:.0f} s of video, windows of {one['window']:g} s, {one['system']}"
        for one in sets
    )
    columns = {one["set"]: {row["method"]: row["map"] for row in one["methods"]} for one in sets}
    fast = ", ".join(f"{one['set']} {one['times_real_time']:.1f}×" for one in sets)
    return [
        f"Mean average precision, %, at a temporal IoU of {document['settings']['iou']:g} on joined videos with known borders. {about}.",
        "",
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {method} | {' | '.join(f'{100 * column[method]:.1f}' for column in columns.values())} |" for method in methods),
        "",
        "- `detections` is `flowless timeline --detections`, `segments` its default; sliding windows with non-maximum suppression, equal"
        " parts of a window's length and one label for each video are baselines.",
        f"- Decoding and scoring take this many seconds of video a second: {fast}.",
        "",
    ]


def _motion(results: Path) -> list[str]:
    """Return the speed of the motion cues beside optical flow, if it was measured."""
    path = results / "motion.json"
    if not path.is_file():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    settings, sizes = document["settings"], {method["name"]: method for method in document["methods"]}
    lines = [
        f"Motion cues and optical flow of the same {settings['frames']} frames, on {document['environment']['cores']} cores, each with its"
        " fastest engine:",
        "",
        "| method | engine | frames/s | maps/s | × TV-L1 | GMAC | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in fastest(document["rows"]).items():
        size, times = sizes[name], row.get("times_tv_l1")
        shown = [_short(row["frames_per_s"]), _short(row["maps_per_s"]), "" if times is None else _short(times)]
        shown += ["" if size["gmacs"] is None else f"{size['gmacs']:.2f}"]
        shown += ["" if size["parameters"] is None else f"{size['parameters']:,}".replace(",", " ")]
        lines.append(f"| {name} | {row['engine']} | {' | '.join(shown)} |")
    claim = document["claims"][0]
    if claim["ours"] is not None:
        lines += [
            "",
            f"PAN's paper: {claim['paper']}, {claim['paper_ratio']:.0f}×. Here PA is {_short(claim['ours'])}× as fast as TV-L1, on the"
            " same cores.",
        ]
    if (results / document["picture"]["file"]).is_file():
        lines += ["", f"![Each cue beside optical flow, on real gestures](bench/results/{document['picture']['file']})"]
    return [*lines, ""]


def _gpus(results: Path) -> list[str]:
    """Return what `flowless bench gpu` measured on each card."""
    lines: list[str] = []
    for path in sorted(results.glob("gpu-*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        parts, versions = document["parts"], document["environment"]["versions"]
        checks = [check["passed"] for part in parts.values() for check in part["checks"]]
        lines += [
            f"PAN-Lite ResNet-50 on an {document['gpu']}, PyTorch {versions['torch']}, ONNX Runtime"
            f" {versions.get('onnxruntime') or versions['onnxruntime-gpu']},"
            " 8 × 4 frames of 224 × 224, clips already in GPU memory:",
            "",
            "| how | precision | ms a clip, batch 1 | clips/s, batch 32 |",
            "|---|---|---|---|",
            *_gpu_rows(parts),
            "",
            *_gpu_maps(parts),
            f"- Of {len(checks)} comparisons with a reference, {checks.count(True)} passed and {checks.count(False)} failed; for"
            f" {checks.count(None)} no tolerance is defined: `bench/results/{path.name}`.",
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
        raise FlowlessError(f"the lines {lines} must both be there; put them where the figures belong.")
    return f"{head}{BEGIN}{figures}{END}{tail}"


def page_with_figures(name: str) -> str:
    """Return the text of a page with its figures as `bench/results/` has them."""
    figures = PAGES[name](ROOT / "bench" / "results").replace("](bench/", f"]({'../' * name.count('/')}bench/")
    return replaced((ROOT / name).read_text(encoding="utf-8"), figures)


def main() -> None:
    """Write the figures into README.md and docs/results.md."""
    for name in PAGES:
        text = page_with_figures(name)
        with whole_file(ROOT / name) as draft:
            draft.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    from flowless.cli import run_command

    sys.exit(run_command(main))
