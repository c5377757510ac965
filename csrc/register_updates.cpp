#include "bind_cpu.h"

namespace fastbin {

void register_updates(pybind11::module_&) {}

}  // namespace fastbin
