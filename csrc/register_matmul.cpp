#include "bind_cpu.h"
#include "cpu/bit_matmul.h"

namespace py = pybind11;

namespace fastbin {

void register_matmul(py::module_& m) {
  m.def(
      "bit_matmul",
      [](std::uintptr_t a, std::uintptr_t b, std::uintptr_t y, int64_t population, int64_t rows_a, int64_t rows_b,
         int64_t words, int threads) {
        bit_matmul(as<const uint32_t>(a), as<const uint32_t>(b), as<int32_t>(y), population, rows_a, rows_b, words,
                   threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("a"), py::arg("b"), py::arg("y"), py::arg("population"),
      py::arg("m"), py::arg("n"), py::arg("words"), py::arg("threads"));
}

}  // namespace fastbin
