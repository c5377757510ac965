// fastbin._cpu: the CPU kernels for Python. Pointers and sizes in, no logic: shapes, dtypes and devices have been
// checked by fastbin/ops.py. Every call releases the GIL.
#include "bind_cpu.h"

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace py = pybind11;

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of fastbin; private, called through fastbin.ops";
  m.def("isa", [] { return fastbin::isa_name(fastbin::current_isa()); });
  m.def("isas", [] {
    py::list names;
    for (auto isa : {fastbin::Isa::kScalar, fastbin::Isa::kAvx2, fastbin::Isa::kAvx512}) {
      if (fastbin::isa_supported(isa)) names.append(fastbin::isa_name(isa));
    }
    return names;
  });
  m.def("has_bf16", &fastbin::isa_has_bf16);
  m.def("use_openmp", &fastbin::use_openmp, py::arg("gomp_parallel"));
  m.def("parallel_runtime", &fastbin::parallel_runtime);
  fastbin::register_bits(m);
  fastbin::register_matmul(m);
  fastbin::register_products(m);
  fastbin::register_updates(m);
}
