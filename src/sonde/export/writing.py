"""A graph as ONNX.

as_onnx     Graph -> the bytes of an ONNX file
in_int8     the same with weights of 8 bits
check_size  whether one file can hold it
"""

import ast
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sonde.errors import ArgumentError, BackboneError, need
from sonde.export.graph import Graph, inputs_of

OPSET = 20
"""Of 2023: the newest that onnxruntime of 2024 runs, and the first with GELU as one operation."""
MOST_BYTES = 2**31 - 2**24
"""A protobuf message, which an ONNX file is, ends at 2 GiB; some of that is not weights."""
_EXAMPLE = (3, 11)
"""Rows and tokens of the batch that is traced; primes that no layer is wide, so that no size is taken for another."""
_HEAD = "head"
"""The learner: few products, and of features that are standardised, not of like sizes."""
_ATTENTION = "_attn_implementation"
_LEFT_BY_QUANTISER = "onnx.infer"
_NOISY = ("", "torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")


def check_size(graph: Graph) -> int:
    """Bytes of the weights; `ArgumentError` if one file cannot hold them."""
    weights = [*graph.parameters(), *graph.buffers()]
    size = sum(one.numel() * one.element_size() for one in weights)
    if size > MOST_BYTES:
        raise ArgumentError(
            f"The layers that this model reads hold {size / 1e9:.1f} GB of weights in float32, and one ONNX file holds "
            "2.1 GB. Train a recipe that stops at an early layer (--recipe stc --layers K), or take a smaller backbone."
        )
    return size


def as_onnx(graph: Graph, metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Trace a graph and write it down.

    Returns
    -------
    (bytes, names)
        The file, and the names of the operations that int8 leaves as they are.

    Raises
    ------
    BackboneError
        If the backbone does something that ONNX has no operation for.
    """
    need("onnxscript", "onnx")
    inputs = inputs_of(len(graph.readings))
    example = [torch.ones(_EXAMPLE, dtype=torch.int64) for _ in range(2 * len(inputs))]
    row = torch.export.Dim("row")
    tokens = [torch.export.Dim("token" if place == 0 else f"token_{place + 1}") for place in range(len(inputs))]
    with _hushed(), _plain_attention(graph):
        try:
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                input_names=[name for pair in inputs for name in pair],
                output_names=["probabilities"],
                dynamic_shapes=([{0: row, 1: token} for token in tokens for _ in range(2)],),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises of every kind; all mean that this graph is beyond it
            raise BackboneError(f"This backbone cannot be written as ONNX: {_root(error)}") from error
    assert program is not None, "with dynamo=True and no path, the program is returned"
    return _serialised(program.model, metadata)


def _serialised(model: Any, metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Without what the exporter noted of this machine: the lines of code, with their paths, behind each operation."""
    import onnx_ir

    exact = [node.name for node in model.graph if _stays_exact(node.metadata_props)]
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    for name, value in metadata.items():
        model.metadata_props[name] = value
    model.producer_name, model.producer_version = "sonde", metadata["sonde_version"]
    content: bytes = onnx_ir.serde.serialize_model(model).SerializeToString()
    return content, exact


def _stays_exact(noted: Mapping[str, str]) -> bool:
    """Whether an operation belongs to the learner."""
    scopes: list[str] = ast.literal_eval(noted.get("pkg.torch.onnx.name_scopes", "[]"))
    return any(scope.split(".")[0] == _HEAD for scope in scopes)


def _root(error: BaseException) -> str:
    """The first line of what was wrong at first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def in_int8(content: bytes, left_out: list[str]) -> bytes:
    """Weights of 8 bits with a scale for each column; what they are multiplied with becomes 8 bits on the way.

    Operations named in `left_out` keep float32.
    """
    onnx, quantization = need("onnx", "onnx"), need("onnxruntime.quantization", "onnx")
    model = onnx.load_from_string(content)
    del model.graph.value_info[:]  # inferred anew: what the exporter wrote contradicts itself in rows 14 and 15
    left_out = [*left_out, *(f"{name}_MatMul" for name in left_out)]  # what the quantiser makes of a Gemm
    with TemporaryDirectory() as folder, _hushed():
        small = Path(folder) / "small.onnx"
        quantization.quantize_dynamic(
            model, small, per_channel=True, weight_type=quantization.QuantType.QInt8, nodes_to_exclude=left_out
        )
        found = onnx.load(small)
    ours = [one for one in found.metadata_props if one.key != _LEFT_BY_QUANTISER]
    del found.metadata_props[:]
    found.metadata_props.extend(ours)
    found.producer_name, found.producer_version = model.producer_name, model.producer_version
    quantised: bytes = found.SerializeToString()
    return quantised


@contextmanager
def _plain_attention(graph: Graph) -> Iterator[None]:
    """Attention as products and a softmax: torch's fused kernel becomes these too, and guards against rows of which
    nothing may be attended to, which there are none; the guards take a tenth of the time under onnxruntime.
    """
    configs = {id(one): one for module in graph.modules() if (one := getattr(module, "config", None)) is not None}
    kept = {key: getattr(one, _ATTENTION, None) for key, one in configs.items()}
    switched = [key for key, kind in kept.items() if isinstance(kind, str)]  # torch's, or sonde's own
    try:
        for key in switched:
            setattr(configs[key], _ATTENTION, "eager")
        yield
    finally:
        for key in switched:
            setattr(configs[key], _ATTENTION, kept[key])


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what exporter and quantiser tell their developers; errors are still raised."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
