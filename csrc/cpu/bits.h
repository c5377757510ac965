// Moving bits about: pack, unpack, transpose, count. The layout is that of fastbin.BitMatrix: element (r, c) of a
// rows x cols matrix is bit c % 32 (least significant first) of word [r, c / 32]; bits past cols are 0.
#pragma once

#include <cstdint>

namespace fastbin {

constexpr int kWordBits = 32;

constexpr int64_t words_for(int64_t cols) { return (cols + kWordBits - 1) / kWordBits; }

}  // namespace fastbin
