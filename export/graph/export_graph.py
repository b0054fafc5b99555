"""Export a PyTorch model to an ONNX graph that every target accepts."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from flowless.errors import FlowlessError
from flowless.export.graph.graph_forms import Form, names_of
from flowless.export.graph.graph_outputs import find_outputs, scopes_of
from flowless.export.graph.pa_function import DOMAIN, OP, OP_VERSION, OPSET, pa_function, pa_nodes
from flowless.files import whole_file
from flowless.pipeline.clip.spec import ClipSpec

if TYPE_CHECKING:
    import torch

#: Attributes of modules (`exact = True`) whose nodes are listed in the metadata; `precision/low_precision_nodes.py` reads the lists.
_MARKS = ("exact", "unquantised", "matrix_backbone")


def export_onnx(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    spec: ClipSpec,
    labels: Sequence[str],
    name: str,
    versions: dict[str, str],
    form: Form = "clip",
) -> onnx.ModelProto:
    """Export a model and write its graph, whole or not at all.

    The graph's input is `clip`, uint8 `[B, N, m, H, W, 3]` with B free; normalisation is inside; its output is `scores`,
    float32 `[B, classes]`. (Other forms: see `graph_forms.py`.) The PA op is one node with a model-local function;
    ClipSpec, labels, model and versions are in the metadata under `flowless.clip`, `flowless.labels`, `flowless.model` and
    `flowless.versions`; `flowless.exact` lists the nodes that stay float32 in every precision, `flowless.unquantised` those that are
    not quantised to INT8, `flowless.matrix_backbone` a transformer's blocks; `flowless.outputs` the tensors that `flowless explain` reads.

    Args:
        model: Maps a clip to scores, or is what `in_form` returned; on the CPU, in evaluation mode.
        path: The `.onnx` file.
        spec: What a clip is.
        labels: Class names in the order of the scores.
        name: The model's name.
        versions: Versions of the libraries that export it.
        form: The model's form.

    Returns:
        The graph that was written.

    Raises:
        FlowlessError: PyTorch cannot export the model, or the file cannot be written.
    """
    proto = _translate(model, spec, form)
    apart = {mark: _nodes_inside(model, proto, mark) for mark in _MARKS}
    outputs = find_outputs(model, proto)
    _forget_sources(proto)
    _attach_function(proto)
    about: dict[str, Any] = {"clip": spec.to_dict(), "labels": list(labels), "model": name, "versions": versions, **apart}
    if outputs is not None:
        about["outputs"] = asdict(outputs)
    for key, value in about.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        proto.metadata_props.add(key=f"flowless.{key}", value=text)
    proto.producer_name, proto.producer_version = "flowless", versions.get("flowless", "")
    onnx.checker.check_model(proto, full_check=True)
    with whole_file(path) as draft:
        draft.write_bytes(proto.SerializeToString())
    return proto


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its functions inlined, for targets that do not support ONNX functions."""
    import onnx.inliner

    flat = onnx.inliner.inline_local_functions(proto)
    kept = [item for item in flat.opset_import if item.domain != DOMAIN]
    del flat.opset_import[:]
    flat.opset_import.extend(kept)
    return flat


def read_graph(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file; raise FlowlessError if it cannot be parsed."""
    source = Path(path)
    try:
        return onnx.load(source)
    except Exception as error:  # protobuf's own exception type depends on its implementation
        raise FlowlessError(f"{source}: not a readable ONNX file ({type(error).__name__}). Export the model again.") from error


def _translate(model: torch.nn.Module, spec: ClipSpec, form: Form) -> onnx.ModelProto:
    import torch
    from onnxscript import values

    import flowless.train.pa.persistence  # noqa: F401  registers the op

    op = values.Op(values.Opset(DOMAIN, OP_VERSION), OP, _schema())

    def translate(x: Any, weight: Any, eps: float, eps_inside: bool = False) -> Any:
        return op(x, weight, eps=float(eps), eps_inside=int(eps_inside), plugin_version="1", plugin_namespace=DOMAIN)

    names = names_of(model, spec, form)
    free = {0: torch.export.Dim("B", min=1, max=4096)}
    # The streaming form takes its state as *state, one argument.
    shapes = (free, (free,) * (len(names.inputs) - 1)) if form == "streaming" else (free,) * len(names.inputs)
    try:
        with _silenced(), torch.no_grad():
            program = torch.onnx.export(
                model,
                # Two clips: torch.export specialises a batch of one to a constant.
                tuple(torch.zeros((2, *shape), dtype=getattr(torch, kind)) for shape, kind in names.inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names.inputs),
                output_names=list(names.outputs),
                dynamic_shapes=shapes,
                custom_translation_table={torch.ops.flowless.persistence.default: translate},
                optimize=True,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = (str(error.__cause__ or error).strip().splitlines() or ["unknown"])[0]
        raise FlowlessError(f"PyTorch cannot export this model to ONNX: {cause}.") from error
    if program is None:
        raise FlowlessError("PyTorch cannot export this model to ONNX: its exporter returned nothing.")
    return program.model_proto


def _nodes_inside(model: torch.nn.Module, proto: onnx.ModelProto, mark: str) -> list[str]:
    """Return the names of the nodes that come from modules with an attribute, one of `_MARKS`.

    `exact` includes the recogniser's own arithmetic between its submodules: normalisation, fusion, warping.
    """
    marked = {path for path, module in model.named_modules() if getattr(module, mark, False)}
    names = []
    for node in proto.graph.node:
        modules = scopes_of(node)
        if modules is None:
            continue  # inserted by the exporter, from no module
        if node.op_type == "Conv":
            # A convolution with a folded batch norm has the batch norm's scope; its weight still names the convolution.
            modules.add(node.input[1].rpartition(".")[0])
        if modules & marked or (mark == "exact" and not modules):
            names.append(node.name)
    return names


def _schema() -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    kind = onnx.AttributeProto
    attributes = {
        "eps": schema.Attribute("eps", schema.AttrType.FLOAT, required=True),
        "eps_inside": schema.Attribute("eps_inside", onnx.helper.make_attribute("eps_inside", 0)),
        "plugin_version": schema.Attribute("plugin_version", onnx.helper.make_attribute("plugin_version", "1", attr_type=kind.STRING)),
        "plugin_namespace": schema.Attribute("plugin_namespace", onnx.helper.make_attribute("plugin_namespace", DOMAIN)),
    }
    return schema(
        OP,
        DOMAIN,
        OP_VERSION,
        inputs=[schema.FormalParameter("clip", "T"), schema.FormalParameter("weight", "T")],
        outputs=[schema.FormalParameter("motion", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "one floating type")],
        attributes=list(attributes.values()),
    )


def _forget_sources(proto: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces, which contain paths of the machine that exported."""
    for item in (
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.initializer,
        *proto.graph.input,
        *proto.graph.output,
        proto.graph,
    ):
        del item.metadata_props[:]
        item.doc_string = ""


def _attach_function(proto: onnx.ModelProto) -> None:
    """Add the function that the model's PA nodes call; a model without PA nodes is unchanged."""
    nodes = pa_nodes(proto)
    if not nodes:
        return
    shapes = {item.name: tuple(item.dims) for item in proto.graph.initializer}
    wanted = set()
    for node in nodes:
        weight = shapes.get(node.input[1])
        if weight is None:
            raise FlowlessError("A PA node's weight is computed in the graph; it must be a constant. Export the model in evaluation mode.")
        inside = next((item.i for item in node.attribute if item.name == "eps_inside"), 0)
        wanted.add((weight[0], weight[-1], bool(inside)))
    if len(wanted) > 1:
        raise FlowlessError(f"The model's PA nodes differ in filters, kernel or eps_inside ({sorted(wanted)}); they must agree.")
    filters, kernel, eps_inside = wanted.pop()
    proto.functions.append(pa_function(filters=filters, kernel=kernel, eps_inside=eps_inside))
    if not any(item.domain == DOMAIN for item in proto.opset_import):
        proto.opset_import.add(domain=DOMAIN, version=OP_VERSION)


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress the exporter's progress and warnings: standard output is for results."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
