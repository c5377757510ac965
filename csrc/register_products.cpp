#include "bind_cpu.h"
#include "cpu/bit_linear.h"

namespace py = pybind11;

namespace fastbin {
namespace {

template <typename X, typename Y>
using BitLinear = void (*)(const X*, const uint32_t*, Y*, int64_t, int64_t, int64_t, int64_t, int);

template <typename X, typename Y>
void def_bit_linear(py::module_& m, const char* name, BitLinear<X, Y> function) {
  m.def(
      name,
      [function](std::uintptr_t x, std::uintptr_t w, std::uintptr_t y, int64_t population, int64_t batch, int64_t rows,
                 int64_t cols, int threads) {
        function(as<const X>(x), as<const uint32_t>(w), as<Y>(y), population, batch, rows, cols, threads);
      },
      py::arg("x"), py::arg("w"), py::arg("y"), py::arg("population"), py::arg("batch"), py::arg("rows"),
      py::arg("cols"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void register_products(py::module_& m) {
  def_bit_linear(m, "bit_linear_f32", bit_linear_f32);
  def_bit_linear(m, "bit_linear_i8", bit_linear_i8);
  def_bit_linear(m, "bit_linear_t_f32", bit_linear_t_f32);
  def_bit_linear(m, "bit_linear_t_i8", bit_linear_t_i8);
}

}  // namespace fastbin
