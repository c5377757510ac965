// Runs kernels on operands that come on standard input and hands all operands back, as the kernel left them.
//
// A call is a line "<op> <sizes> ; <bytes of each operand>" and then the operands themselves; see test_aarch64.py.
#include <cstdint>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/bit_linear.h"
#include "cpu/bit_matmul.h"
#include "cpu/bits.h"
#include "cpu/gradient.h"
#include "cpu/mask_update.h"

using namespace fastbin;

namespace {

struct Call {
  std::vector<int64_t> n;
  std::vector<std::vector<char>> operands;

  template <typename T>
  T* at(size_t i) {
    return operands[i].empty() ? nullptr : reinterpret_cast<T*>(operands[i].data());
  }
  UpdateTensors tensors(size_t i) {
    return {at<float>(i),      at<uint32_t>(i + 1), at<float>(i + 2),   at<float>(i + 3),
            at<double>(i + 4), at<int64_t>(i + 5),  at<int64_t>(i + 6), at<int64_t>(i + 7)};
  }
};

constexpr int kThreads = 2;

const std::map<std::string, std::function<void(Call&)>> kOps = {
    {"pack_threshold",
     [](Call& c) { pack_threshold_f32(c.at<float>(0), 0.0f, c.at<uint32_t>(1), c.n[0], c.n[1], kThreads); }},
    {"pack_u8", [](Call& c) { pack_u8(c.at<uint8_t>(0), c.at<uint32_t>(1), c.n[0], c.n[1], kThreads); }},
    {"unpack", [](Call& c) { unpack_f32(c.at<uint32_t>(0), c.at<float>(1), c.n[0], c.n[1], kThreads); }},
    {"transpose", [](Call& c) { transpose_bits(c.at<uint32_t>(0), 1, c.n[0], c.n[1], c.at<uint32_t>(1), kThreads); }},
    {"popcount", [](Call& c) { *c.at<int64_t>(1) = popcount(c.at<uint32_t>(0), c.n[0], kThreads); }},
    {"bit_linear_f32",
     [](Call& c) {
       bit_linear_f32(c.at<float>(0), c.at<uint32_t>(1), c.at<float>(2), c.n[0], c.n[1], c.n[2], c.n[3], kThreads);
     }},
    {"bit_linear_i8",
     [](Call& c) {
       bit_linear_i8(c.at<int8_t>(0), c.at<uint32_t>(1), c.at<int32_t>(2), c.n[0], c.n[1], c.n[2], c.n[3], kThreads);
     }},
    {"bit_linear_t_f32",
     [](Call& c) {
       bit_linear_t_f32(c.at<float>(0), c.at<uint32_t>(1), c.at<float>(2), c.n[0], c.n[1], c.n[2], c.n[3], kThreads);
     }},
    {"bit_linear_t_i8",
     [](Call& c) {
       bit_linear_t_i8(c.at<int8_t>(0), c.at<uint32_t>(1), c.at<int32_t>(2), c.n[0], c.n[1], c.n[2], c.n[3], kThreads);
     }},
    {"bit_matmul",
     [](Call& c) {
       bit_matmul(c.at<uint32_t>(0), c.at<uint32_t>(1), c.at<int32_t>(2), c.n[0], c.n[1], c.n[2], c.n[3], kThreads);
     }},
    // Sizes: the rule, whether to sample, the population, (the batch,) rows and columns.
    {"mask_update",
     [](Call& c) {
       mask_update(static_cast<Rule>(c.n[0]), c.tensors(1), c.at<float>(0), c.n[2], c.n[3], c.n[4], c.n[1] != 0,
                   kThreads);
     }},
    {"grad_update_f32",
     [](Call& c) {
       mask_grad_update_f32(static_cast<Rule>(c.n[0]), c.tensors(2), c.at<float>(0), c.at<float>(1), c.n[2], c.n[3],
                            c.n[4], c.n[5], c.n[1] != 0, true, kThreads);
     }},
    {"grad_update_bits",
     [](Call& c) {
       mask_grad_update_bits(static_cast<Rule>(c.n[0]), c.tensors(2), c.at<float>(0), c.at<uint32_t>(1), c.n[2], c.n[3],
                             c.n[4], c.n[5], c.n[1] != 0, kThreads);
     }},
};

}  // namespace

int main() {
  std::string line, op, token;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    Call call;
    words >> op;
    while (words >> token && token != ";") call.n.push_back(std::stoll(token));
    for (size_t bytes; words >> bytes;) {
      call.operands.emplace_back(bytes);
      std::cin.read(call.operands.back().data(), static_cast<std::streamsize>(bytes));
    }
    kOps.at(op)(call);
    for (const auto& operand : call.operands) {
      std::cout.write(operand.data(), static_cast<std::streamsize>(operand.size()));
    }
  }
  return 0;
}
