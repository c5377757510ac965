#include "bind_cpu.h"

namespace fastbin {

void register_bits(pybind11::module_&) {}

}  // namespace fastbin
