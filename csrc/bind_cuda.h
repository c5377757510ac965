// What the files of fastbin._cuda's bindings share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fastbin::cuda {

template <typename T>
T* as(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_updates(pybind11::module_& m);

}  // namespace fastbin::cuda
