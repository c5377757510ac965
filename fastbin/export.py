"""A found network for elsewhere: as one C file that needs nothing else, and as an ONNX graph."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from fastbin.checkpoint import replacing
from fastbin.nn import LAYER_NORM_EPS, WeightFreeNet
from fastbin.result import SearchResult

Input = Literal["float32", "uint8", "int32"]


def export(result: SearchResult, path: str | os.PathLike[str], input: Input = "float32") -> None:
    """Write a network, with its standardisation and labels, to a file of the format that its ending names.

    ``.c``: C99 that needs nothing but the standard library (with its libm). The weights are constants, 32 to a word.
    ``void fastbin_logits(const T *x, float *logits)`` and ``int fastbin_predict(const T *x)``, the index of the class, take
    one raw sample of T ``float``, ``uint8_t`` or ``int32_t``; ``fastbin_labels`` are the names of the classes.

    ``.onnx``: from raw samples ``x [n, features]`` to ``logits [n, classes]`` and ``label [n]`` (strings or int64), weights
    unpacked to a byte each, operators of opset 20. It takes the package onnx: ``pip install 'fastbin-nets[onnx]'``.

    Outputs are those of the network but for the rounding of sums, which may flip a unit of ``step`` on its threshold.

    >>> import fastbin
    >>> result = fastbin.run_search("digits", fastbin.SearchConfig(hidden=(16,), epochs=1))
    >>> export(result, "digits.c", input="uint8")
    >>> Path("digits.c").read_text().splitlines()[0]
    '// A weight-free network of widths 64, 16, 10, written by fastbin.'

    Args:
        result: what a search found, or `fastbin.load_result` read.
        path: where to write.
        input: the type of the samples.

    Raises:
        ValueError: another ending or type of input, or a network whose inputs are encoded.
        ModuleNotFoundError: onnx is missing.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if input not in get_args(Input):
        raise ValueError(f"input must be one of {', '.join(get_args(Input))}, got {input!r}")
    writers = {".c": lambda: _c_source(result, input).encode(), ".onnx": lambda: _onnx_model(result, input)}
    if result.config.encoding != "none":
        raise ValueError(f"encoding {result.config.encoding!r} of the inputs cannot be exported: expected 'none'")
    if path.suffix not in writers:
        raise ValueError(f"{path} must end in {' or '.join(writers)}, to say the format")
    data = writers[path.suffix]()
    with replacing(path) as file:
        file.write(data)


# -------------------------------------------------------------------------------------------------------------------- C

_C_HEAD = """\
// A weight-free network of widths {widths}, written by fastbin.
//
//   void fastbin_logits(const {type} *x, float *logits): outputs [{classes}] of one raw sample [{features}]
//   int fastbin_predict(const {type} *x): the index of its class in fastbin_labels
//
// Weights are 0 or 1: bit c % 32 of word c / 32 of a row is the weight of input c.
#include <math.h>
#include <stdint.h>

const char *const fastbin_labels[{classes}] = {{{labels}}};

static const float mean[{features}] = {{{mean}}};
static const float scale[{features}] = {{{scale}}};
"""

_C_LINEAR = """
static void linear(const float *x, const uint32_t *w, int rows, int words, float *y) {
  for (int r = 0; r < rows; ++r) {
    float sum = 0;
    for (int i = 0; i < words; ++i) {
      const float *value = x + 32 * i;
      for (uint32_t bits = *w++; bits; bits >>= 1, ++value) {
        if (bits & 1) sum += *value;
      }
    }
    y[r] = sum;
  }
}
"""

_C_NORM = {
    "layer": f"""
static void layer_norm(float *a, int n) {{
  double sum = 0, squares = 0;
  for (int i = 0; i < n; ++i) sum += a[i];
  for (int i = 0; i < n; ++i) squares += (a[i] - sum / n) * (a[i] - sum / n);
  for (int i = 0; i < n; ++i) a[i] = (float)((a[i] - sum / n) / sqrt(squares / n + {LAYER_NORM_EPS}));
}}
""",
    "none": """
static void divide_by_root(float *a, int n, int inputs) {
  for (int i = 0; i < n; ++i) a[i] = (float)(a[i] / sqrt(inputs));
}
""",
}

_C_ACTIVATE = {
    "relu": "z > 0 ? z : 0",
    "tanh": "tanhf(z)",
    "gelu": "0.5f * z * (1 + erff(z * 0.70710678f))",
    "step": "z > 0",
}


def _c_source(result: SearchResult, input: Input) -> str:
    net = result.net
    kind = {"float32": "float", "uint8": "uint8_t", "int32": "int32_t"}[input]
    numbers = result.standardizer
    source = _C_HEAD.format(
        widths=", ".join(map(str, net.widths)),
        type=kind,
        features=net.widths[0],
        classes=net.widths[-1],
        labels=", ".join(_c_string(str(label)) for label in result.labels),
        mean=_c_floats(numbers.mean.tolist()),
        scale=_c_floats(numbers.scale.tolist()),
    )
    weights = net.weights()
    for i, w in enumerate(weights):
        words = (f"0x{word & 0xFFFFFFFF:08x}" for word in w.words.flatten().tolist())
        source += f"static const uint32_t weights{i}[] = {{{_lines(words, 10)}}};\n"
    norms = [net.norm_of(i) for i in range(len(weights))]
    source += _C_LINEAR + "".join(text for norm, text in _C_NORM.items() if norm in norms)
    if len(weights) > 1:
        source += f"\nstatic float activate(float z) {{ return {_C_ACTIVATE[net.activation]}; }}\n"
    # The first layer reads h and writes a, and so on; what a row's last word has past its end is 0 and reads nothing.
    source += f"\nvoid fastbin_logits(const {kind} *x, float *logits) {{\n"
    source += f"  float h[{max(net.widths[:-1])}], a[{max(net.widths[1:])}];\n"
    source += f"  for (int i = 0; i < {net.widths[0]}; ++i) h[i] = ((float)x[i] - mean[i]) / scale[i];\n"
    for i, w in enumerate(weights):
        source += f"  linear(h, weights{i}, {w.rows}, {w.words.shape[1]}, a);\n"
        norm = f"layer_norm(a, {w.rows})" if norms[i] == "layer" else f"divide_by_root(a, {w.rows}, {w.cols})"
        source += f"  {norm};\n"
        if i < len(weights) - 1:
            source += f"  for (int i = 0; i < {w.rows}; ++i) h[i] = activate(a[i]);\n"
    return source + _C_END.format(classes=net.widths[-1], logit_scale=_c_floats([net.logit_scale]), type=kind)


_C_END = """\
  for (int i = 0; i < {classes}; ++i) logits[i] = a[i] * {logit_scale};
}}

int fastbin_predict(const {type} *x) {{
  float logits[{classes}];
  int best = 0;
  fastbin_logits(x, logits);
  for (int i = 1; i < {classes}; ++i) {{
    if (logits[i] > logits[best]) best = i;
  }}
  return best;
}}
"""


def _c_floats(values: Iterable[float]) -> str:
    """Literals in base 16, which are exact."""
    return _lines((f"{float(np.float32(value)).hex()}f" for value in values), 6)


def _c_string(text: str) -> str:
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'


def _lines(items: Iterable[str], n: int) -> str:
    every = list(items)
    return ",\n  ".join(", ".join(every[i : i + n]) for i in range(0, len(every), n))


# ----------------------------------------------------------------------------------------------------------------- ONNX


def _onnx_model(result: SearchResult, input: Input) -> bytes:
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"an ONNX file needs the package onnx ({error}): pip install 'fastbin-nets[onnx]'"
        ) from error

    net: WeightFreeNet = result.net
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{op.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def activate(z: str) -> str:
        if net.activation == "step":
            return node("Cast", node("Greater", z, constant(f"zero_{len(nodes)}", np.float32(0))), to=TensorProto.FLOAT)
        return node({"relu": "Relu", "tanh": "Tanh", "gelu": "Gelu"}[net.activation], z)

    h = node("Cast", "x", to=TensorProto.FLOAT)
    h = node("Sub", h, constant("mean", result.standardizer.mean.numpy()))
    h = node("Div", h, constant("scale", result.standardizer.scale.numpy()))
    for i, w in enumerate(net.weights()):
        h = activate(h) if i else h
        bits = constant(f"weights_{i}", w.to("cpu").unpack().T.numpy().astype(np.uint8))
        a = node("MatMul", h, node("Cast", bits, to=TensorProto.FLOAT))
        if net.norm_of(i) == "layer":
            ones = constant(f"ones_{i}", np.ones(w.rows, np.float32))
            h = node("LayerNormalization", a, ones, axis=-1, epsilon=LAYER_NORM_EPS)
        else:
            h = node("Div", a, constant(f"root_{i}", np.float32(np.sqrt(w.cols))))
    node("Mul", h, constant("logit_scale", np.float32(net.logit_scale)), output="logits")
    text = isinstance(result.labels[0], str)
    names = constant("labels", np.array(result.labels, dtype=object if text else np.int64))
    node("Gather", names, node("ArgMax", "logits", axis=1, keepdims=0), output="label")
    kinds = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32}
    graph = helper.make_graph(
        nodes,
        "weight_free_network",
        [helper.make_tensor_value_info("x", kinds[input], ["n", net.widths[0]])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", net.widths[-1]]),
            helper.make_tensor_value_info("label", TensorProto.STRING if text else TensorProto.INT64, ["n"]),
        ],
        constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,  # that of opset 20
        producer_name="fastbin",
        producer_version=version("fastbin-nets"),
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data
