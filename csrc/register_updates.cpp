// The fused updates for Python.
#include <stdexcept>
#include <string>

#include "bind_cpu.h"
#include "cpu/gradient.h"
#include "cpu/mask_update.h"

namespace py = pybind11;

namespace fastbin {
namespace {

using Address = std::uintptr_t;

Rule rule_named(const std::string& name) {
  if (name == "sgd") return Rule::kSgd;
  if (name == "adam") return Rule::kAdam;
  if (name == "bop") return Rule::kBop;
  throw std::invalid_argument("unknown rule '" + name + "': expected sgd, adam or bop");
}

UpdateTensors tensors_at(Address scores, Address words, Address buffer0, Address buffer1, Address hyper, Address seed,
                         Address step, Address flips) {
  return {as<float>(scores),       as<uint32_t>(words),     as<float>(buffer0), as<float>(buffer1),
          as<const double>(hyper), as<const int64_t>(seed), as<int64_t>(step),  as<int64_t>(flips)};
}

}  // namespace

void register_updates(py::module_& m) {
  m.def(
      "mask_update",
      [](const std::string& rule, Address scores, Address grad, Address words, Address buffer0, Address buffer1,
         Address hyper, Address seed, Address step, Address flips, int64_t population, int64_t rows, int64_t cols,
         bool sample, int threads) {
        mask_update(rule_named(rule), tensors_at(scores, words, buffer0, buffer1, hyper, seed, step, flips),
                    as<const float>(grad), population, rows, cols, sample, threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("rule"), py::arg("scores"), py::arg("grad"), py::arg("words"),
      py::arg("buffer0"), py::arg("buffer1"), py::arg("hyper"), py::arg("seed"), py::arg("step"), py::arg("flips"),
      py::arg("population"), py::arg("rows"), py::arg("cols"), py::arg("sample"), py::arg("threads"));
  m.def(
      "mask_grad_update_f32",
      [](const std::string& rule, Address scores, Address gy, Address x, Address words, Address buffer0,
         Address buffer1, Address hyper, Address seed, Address step, Address flips, int64_t population, int64_t batch,
         int64_t rows, int64_t cols, bool sample, bool bf16, int threads) {
        mask_grad_update_f32(rule_named(rule), tensors_at(scores, words, buffer0, buffer1, hyper, seed, step, flips),
                             as<const float>(gy), as<const float>(x), population, batch, rows, cols, sample, bf16,
                             threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("rule"), py::arg("scores"), py::arg("gy"), py::arg("x"),
      py::arg("words"), py::arg("buffer0"), py::arg("buffer1"), py::arg("hyper"), py::arg("seed"), py::arg("step"),
      py::arg("flips"), py::arg("population"), py::arg("batch"), py::arg("rows"), py::arg("cols"), py::arg("sample"),
      py::arg("bf16"), py::arg("threads"));
  m.def(
      "mask_grad_update_bits",
      [](const std::string& rule, Address scores, Address gy, Address x, Address words, Address buffer0,
         Address buffer1, Address hyper, Address seed, Address step, Address flips, int64_t population, int64_t batch,
         int64_t rows, int64_t cols, bool sample, int threads) {
        mask_grad_update_bits(rule_named(rule), tensors_at(scores, words, buffer0, buffer1, hyper, seed, step, flips),
                              as<const float>(gy), as<const uint32_t>(x), population, batch, rows, cols, sample,
                              threads);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("rule"), py::arg("scores"), py::arg("gy"), py::arg("x"),
      py::arg("words"), py::arg("buffer0"), py::arg("buffer1"), py::arg("hyper"), py::arg("seed"), py::arg("step"),
      py::arg("flips"), py::arg("population"), py::arg("batch"), py::arg("rows"), py::arg("cols"), py::arg("sample"),
      py::arg("threads"));
}

}  // namespace fastbin
