// bit_matmul by table lookup, 384 products for each byte of a vector's width over 32: faster than any popcount.
//
// A vector of byte lanes, a lane an output, holds 4 bits of each of kBytes rows of b: nibbles. For 4 bits of a row of
// a, the 16-entry table s -> popcount(bits & s) turns them into kBytes partial sums of 4 products in one byte shuffle.
// A partial sum takes 3 bits of the byte, so a table serves two rows of a: its low half byte counts for the first and
// its high half for the second, which makes it one of 256, chosen by the byte ("code") of both rows' bits.
//
// Three shuffles add up within the half bytes: 3 * 4 = 12 <= 15. Their sum s is then added to two accumulators,
// low += s and high += s >> 4 (16-bit shift), unmasked: what leaks from one half byte, or byte, into another is known
// exactly at the end and is subtracted then, modulo 256 (see unleak). A true sum must fit a byte: 63 steps of 4 are
// 252 <= 255. Eight operations (3 shuffles, 4 additions, 1 shift) do 3 * 4 * 2 = 24 products a lane: 32 lanes at four
// operations a cycle, 384 products a cycle. AND, VPOPCNTQ and ADD do 512 for 3 operations of twice the width, 341 at
// the same number of bytes a cycle; CSA trees 165.
//
// A per-instruction-set file defines `Bytes`, a vector of kBytes byte lanes with the operations used here.
#pragma once

#include "cpu/bit_matmul_kernel.h"

namespace fastbin {
namespace FASTBIN_ISA_NAMESPACE {

constexpr int kBytes = Bytes::kBytes;
// 4 vectors: 8 accumulators, 3 tables and 3 temporaries in 16 registers. 63 steps of a panel are 8 KiB for AVX2 and
// 16 KiB for AVX-512: in L1 while all pairs of rows go over them.
constexpr int kMaxVectors = 4;
constexpr int kPanel = kMaxVectors * kBytes;
constexpr int kBlockSteps = 63;
// 16-bit sums take 260 blocks: 260 * 252 = 65520 <= 65535.
constexpr int64_t kSumSteps = 260 * kBlockSteps;

struct Tables {
  alignas(64) uint8_t row[256][16];
};

constexpr int bit_count4(int v) { return (v & 1) + (v >> 1 & 1) + (v >> 2 & 1) + (v >> 3 & 1); }

constexpr Tables make_tables() {
  Tables t{};
  for (int code = 0; code < 256; ++code) {
    for (int s = 0; s < 16; ++s) {
      t.row[code][s] = static_cast<uint8_t>(bit_count4(code & s) + 16 * bit_count4((code >> 4) & s));
    }
  }
  return t;
}

static constexpr Tables kTables = make_tables();

static void pack_pairs(const uint32_t* a, int64_t m, int64_t words, uint8_t* codes) {
  const int64_t steps = lookup_steps(words);
  for (int64_t i = 0; i < m; i += 2) {
    const uint32_t* first = a + i * words;
    for (int64_t k = 0; k < words; ++k) {
      const uint32_t low = first[k], high = i + 1 < m ? first[words + k] : 0;
      // Every second nibble of each word, the second row's into the high half bytes.
      const uint32_t even = (low & 0x0f0f0f0f) | (high & 0x0f0f0f0f) << 4;
      const uint32_t odd = (low >> 4 & 0x0f0f0f0f) | (high & 0xf0f0f0f0);
      for (int q = 0; q < 4; ++q) {
        codes[8 * k + 2 * q] = static_cast<uint8_t>(even >> (8 * q));
        codes[8 * k + 2 * q + 1] = static_cast<uint8_t>(odd >> (8 * q));
      }
    }
    for (int64_t q = 8 * words; q < steps; ++q) codes[q] = 0;
    codes += steps;
  }
}

static int panel_vectors(int64_t n) { return static_cast<int>((n + kBytes - 1) / kBytes); }

// The even lanes take the first half of a vector's rows and the odd ones the second, so that the 16-bit sums of even
// and of odd lanes are runs of outputs.
static void pack_panel(const uint32_t* b, int64_t n, int64_t words, uint8_t* nibbles) {
  const int64_t width = panel_vectors(n) * kBytes;
  for (int64_t k = 0; k < words; ++k) {
    for (int64_t j = 0; j < width; j += kBytes) {
      uint32_t lanes[kBytes];
      for (int i = 0; i < kBytes / 2; ++i) {
        const int64_t even = j + i, odd = even + kBytes / 2;
        lanes[2 * i] = even < n ? b[even * words + k] : 0;
        lanes[2 * i + 1] = odd < n ? b[odd * words + k] : 0;
      }
      for (int q = 0; q < 8; ++q) {
        uint8_t* to = nibbles + (8 * k + q) * width + j;
        for (int i = 0; i < kBytes; ++i) to[i] = static_cast<uint8_t>(lanes[i] >> (4 * q) & 15);
      }
    }
  }
  // Steps past the last word meet the codes' zeros.
  std::memset(nibbles + 8 * words * width, 0, static_cast<size_t>((lookup_steps(words) - 8 * words) * width));
}

// Adds a vector's sums of one block to the 16-bit sums of both rows. In 16-bit lanes, with even and odd byte lanes e
// and o and the true sums of the first and the second row F and S, all below 256:
//   low  = (F_e + 16 S_e) mod 256  in the low byte,  (F_o + 16 S_o) mod 256 in the high one
//   high = (S_e + 16 F_o) mod 256  in the low byte,   S_o                   in the high one
static FASTBIN_INLINE void unleak(Bytes low, Bytes high, uint16_t* first, uint16_t* second) {
  const Bytes byte = Bytes::set16(255);
  const Bytes s_odd = high.right8();
  const Bytes f_odd = sub16(low.right8(), s_odd.left4()) & byte;
  const Bytes s_even = sub16(high, f_odd.left4()) & byte;
  const Bytes f_even = sub16(low, s_even.left4()) & byte;
  add16(Bytes::load(first), f_even).store(first);
  add16(Bytes::load(first + kBytes / 2), f_odd).store(first + kBytes / 2);
  add16(Bytes::load(second), s_even).store(second);
  add16(Bytes::load(second + kBytes / 2), s_odd).store(second + kBytes / 2);
}

// One block of steps for one pair of rows and kVectors vectors of outputs.
template <int kVectors>
static FASTBIN_INLINE void lookup_block(const uint8_t* codes, const uint8_t* nibbles, int64_t steps, uint16_t* sums) {
  Bytes low[kVectors], high[kVectors];
  for (int v = 0; v < kVectors; ++v) low[v] = high[v] = Bytes::set16(0);
  for (int64_t q = 0; q < steps; q += 3) {
    const Bytes t0 = Bytes::table(kTables.row[codes[q]]);
    const Bytes t1 = Bytes::table(kTables.row[codes[q + 1]]);
    const Bytes t2 = Bytes::table(kTables.row[codes[q + 2]]);
    const uint8_t* at = nibbles + q * kVectors * kBytes;
    for (int v = 0; v < kVectors; ++v) {
      const Bytes s =
          add8(add8(t0.lookup(Bytes::load(at + v * kBytes)), t1.lookup(Bytes::load(at + (kVectors + v) * kBytes))),
               t2.lookup(Bytes::load(at + (2 * kVectors + v) * kBytes)));
      low[v] = add8(low[v], s);
      high[v] = add8(high[v], s.right4());
      // Vector by vector: with the shuffles of all four under way at once the compiler runs out of registers.
      keep_order(low[v], high[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) unleak(low[v], high[v], sums + v * kBytes, sums + (kVectors + v) * kBytes);
}

template <int kVectors>
static void lookup_tile_of(const uint8_t* codes, int64_t m, const uint8_t* nibbles, int64_t n, int64_t words,
                           int32_t* y, int64_t y_stride) {
  constexpr int kWidth = kVectors * kBytes;
  alignas(64) uint16_t sums[kLookupRows][kWidth];
  const int64_t steps = lookup_steps(words), pairs = (m + 1) / 2;
  for (int64_t start = 0; start < steps; start += kSumSteps) {
    const int64_t stop = steps < start + kSumSteps ? steps : start + kSumSteps;
    std::memset(sums, 0, static_cast<size_t>(2 * pairs) * sizeof(sums[0]));
    for (int64_t q = start; q < stop; q += kBlockSteps) {
      const int64_t block = stop - q < kBlockSteps ? stop - q : kBlockSteps;
      for (int64_t i = 0; i < pairs; ++i) {
        lookup_block<kVectors>(codes + i * steps + q, nibbles + q * kWidth, block, sums[2 * i]);
      }
    }
    for (int64_t i = 0; i < m; ++i) {
      int32_t* row = y + i * y_stride;
      if (start == 0) {
        for (int64_t j = 0; j < n; ++j) row[j] = sums[i][j];
      } else {
        for (int64_t j = 0; j < n; ++j) row[j] += sums[i][j];
      }
    }
  }
}

static void lookup_tile(const uint8_t* codes, int64_t m, const uint8_t* nibbles, int64_t n, int64_t words, int32_t* y,
                        int64_t y_stride) {
  switch (panel_vectors(n)) {
    case 1:
      return lookup_tile_of<1>(codes, m, nibbles, n, words, y, y_stride);
    case 2:
      return lookup_tile_of<2>(codes, m, nibbles, n, words, y, y_stride);
    case 3:
      return lookup_tile_of<3>(codes, m, nibbles, n, words, y, y_stride);
    default:
      return lookup_tile_of<4>(codes, m, nibbles, n, words, y, y_stride);
  }
}

static constexpr BitLookupKernel kLookup = {kPanel, pack_pairs, pack_panel, lookup_tile};

}  // namespace FASTBIN_ISA_NAMESPACE
}  // namespace fastbin
