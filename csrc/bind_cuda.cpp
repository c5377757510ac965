// fastbin._cuda: the CUDA kernels for Python. Addresses, sizes, a device's index and a stream's handle in, no logic:
// shapes, dtypes and devices have been checked by fastbin/ops.py and fastbin/cuda.py. Every call releases the GIL.
#include "bind_cuda.h"

#include "cuda/bit_linear.h"
#include "cuda/bit_linear_wgmma.h"
#include "cuda/bit_matmul.h"

namespace py = pybind11;

using namespace fastbin::cuda;

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of fastbin; private, called through fastbin.ops";
  m.def("architectures", [] { return FASTBIN_CUDA_ARCHITECTURES; });
  py::enum_<Scalar>(m, "Scalar")
      .value("float32", Scalar::kFloat32)
      .value("bfloat16", Scalar::kBFloat16)
      .value("float16", Scalar::kFloat16)
      .value("int8", Scalar::kInt8);
  m.def(
      "bit_matmul",
      [](std::uintptr_t a, std::uintptr_t b, std::uintptr_t y, std::uintptr_t thresholds, int64_t population,
         int64_t rows_a, int64_t rows_b, int64_t words, int64_t member_stride, int64_t row_stride,
         int64_t column_stride, int device, std::uintptr_t stream) {
        bit_matmul({as<const uint32_t>(a), as<const uint32_t>(b), as<int32_t>(y), as<const int32_t>(thresholds),
                    population, rows_a, rows_b, words, member_stride, row_stride, column_stride},
                   {device, as<CUstream_st>(stream)});
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("a"), py::arg("b"), py::arg("y"), py::arg("thresholds"),
      py::arg("population"), py::arg("rows_a"), py::arg("rows_b"), py::arg("words"), py::arg("member_stride"),
      py::arg("row_stride"), py::arg("column_stride"), py::arg("device"), py::arg("stream"));
  m.def(
      "bit_linear_vector",
      [](std::uintptr_t x, std::uintptr_t w, std::uintptr_t y, int64_t population, int64_t batch, int64_t rows,
         int64_t inputs, Scalar type, int device, std::uintptr_t stream) {
        bit_linear_vector(
            {as<const void>(x), as<const uint32_t>(w), as<void>(y), population, batch, rows, inputs, type},
            {device, as<CUstream_st>(stream)});
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("w"), py::arg("y"), py::arg("population"),
      py::arg("batch"), py::arg("rows"), py::arg("inputs"), py::arg("type"), py::arg("device"), py::arg("stream"));
  m.def(
      "bit_linear_wgmma",
      [](std::uintptr_t x, std::uintptr_t w, std::uintptr_t y, int64_t population, int64_t batch, int64_t inner,
         int64_t outputs, Scalar type, bool transposed, int device, std::uintptr_t stream) {
        bit_linear_wgmma({as<const void>(x), as<const uint32_t>(w), as<void>(y), population, batch, inner, outputs,
                          type, transposed},
                         {device, as<CUstream_st>(stream)});
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("w"), py::arg("y"), py::arg("population"),
      py::arg("batch"), py::arg("inner"), py::arg("outputs"), py::arg("type"), py::arg("transposed"), py::arg("device"),
      py::arg("stream"));
  bind_updates(m);
}
