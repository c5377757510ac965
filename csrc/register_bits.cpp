#include "bind_cpu.h"
#include "cpu/bits.h"

namespace py = pybind11;

namespace fastbin {

using Address = std::uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

void register_bits(py::module_& m) {
  m.def(
      "pack_threshold_f32",
      [](Address x, float threshold, Address words, int64_t rows, int64_t cols, int threads) {
        return pack_threshold_f32(as<const float>(x), threshold, as<uint32_t>(words), rows, cols, threads);
      },
      Release(), py::arg("x"), py::arg("threshold"), py::arg("words"), py::arg("rows"), py::arg("cols"),
      py::arg("threads"));
  m.def(
      "pack_f32",
      [](Address x, Address words, int64_t rows, int64_t cols, int threads) {
        return pack_f32(as<const float>(x), as<uint32_t>(words), rows, cols, threads);
      },
      Release(), py::arg("x"), py::arg("words"), py::arg("rows"), py::arg("cols"), py::arg("threads"));
  m.def(
      "pack_u8",
      [](Address x, Address words, int64_t rows, int64_t cols, int threads) {
        return pack_u8(as<const uint8_t>(x), as<uint32_t>(words), rows, cols, threads);
      },
      Release(), py::arg("x"), py::arg("words"), py::arg("rows"), py::arg("cols"), py::arg("threads"));
  m.def(
      "unpack_f32",
      [](Address words, Address y, int64_t rows, int64_t cols, int threads) {
        unpack_f32(as<const uint32_t>(words), as<float>(y), rows, cols, threads);
      },
      Release(), py::arg("words"), py::arg("y"), py::arg("rows"), py::arg("cols"), py::arg("threads"));
  m.def(
      "unpack_u8",
      [](Address words, Address y, int64_t rows, int64_t cols, int threads) {
        unpack_u8(as<const uint32_t>(words), as<uint8_t>(y), rows, cols, threads);
      },
      Release(), py::arg("words"), py::arg("y"), py::arg("rows"), py::arg("cols"), py::arg("threads"));
  m.def(
      "transpose_bits",
      [](Address w, int64_t population, int64_t rows, int64_t cols, Address out, int threads) {
        transpose_bits(as<const uint32_t>(w), population, rows, cols, as<uint32_t>(out), threads);
      },
      Release(), py::arg("w"), py::arg("population"), py::arg("rows"), py::arg("cols"), py::arg("out"),
      py::arg("threads"));
  m.def(
      "popcount", [](Address words, int64_t n, int threads) { return popcount(as<const uint32_t>(words), n, threads); },
      Release(), py::arg("words"), py::arg("n"), py::arg("threads"));
}

}  // namespace fastbin
