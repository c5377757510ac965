// What the files of fastbin._cpu share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fastbin {

void register_bits(pybind11::module_& m);
void register_matmul(pybind11::module_& m);
void register_products(pybind11::module_& m);
void register_updates(pybind11::module_& m);

// A tensor's data_ptr() as a pointer.
template <typename T>
T* as(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace fastbin
