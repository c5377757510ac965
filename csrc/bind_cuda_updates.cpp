// The fused updates of fastbin._cuda.
#include <stdexcept>
#include <string>

#include "bind_cuda.h"
#include "cuda/mask_update.h"

namespace py = pybind11;

namespace fastbin::cuda {
namespace {

using Address = std::uintptr_t;

Rule rule_named(const std::string& name) {
  if (name == "sgd") return Rule::kSgd;
  if (name == "adam") return Rule::kAdam;
  if (name == "bop") return Rule::kBop;
  throw std::invalid_argument("unknown rule '" + name + "': expected sgd, adam or bop");
}

}  // namespace

void bind_updates(py::module_& m) {
  m.attr("update_constants") = sizeof(UpdateConstants) / sizeof(float);
  m.def(
      "mask_grad_update",
      [](const std::string& rule, bool sample, Address scores, Address words, Address first, Address second,
         Address hyper, Address seed, Address step, Address constants, Address flips, int64_t population, int64_t rows,
         int64_t cols, Address gy, Address x, int64_t batch, Scalar type, bool bits, int device,
         std::uintptr_t stream) {
        mask_grad_update(
            {as<float>(scores), as<uint32_t>(words), as<float>(first), as<float>(second), as<const double>(hyper),
             as<const int64_t>(seed), as<int64_t>(step), as<UpdateConstants>(constants), as<int64_t>(flips), population,
             rows, cols, rule_named(rule), sample},
            {as<const void>(gy), as<const void>(x), batch, type, bits}, {device, as<CUstream_st>(stream)});
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("rule"), py::arg("sample"), py::arg("scores"), py::arg("words"),
      py::arg("first"), py::arg("second"), py::arg("hyper"), py::arg("seed"), py::arg("step"), py::arg("constants"),
      py::arg("flips"), py::arg("population"), py::arg("rows"), py::arg("cols"), py::arg("gy"), py::arg("x"),
      py::arg("batch"), py::arg("type"), py::arg("bits"), py::arg("device"), py::arg("stream"));
}

}  // namespace fastbin::cuda
