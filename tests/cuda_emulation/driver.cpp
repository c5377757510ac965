// Runs one of fastbin's CUDA kernels on the CPU, for tests/test_cuda_emulated.py: operands come from files, the result
// goes to one.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "cuda/bit_linear.h"
#include "cuda/bit_linear_wgmma.h"
#include "cuda/bit_matmul.h"
#include "cuda/mask_update.h"
#include "cuda/ptx.h"

namespace {

using namespace fastbin::cuda;

// A copy of a file that ends with its allocation, `skip` words into it: the address sanitizer sees reads beyond the
// end.
struct Operand {
  Operand(const std::string& path, std::size_t skip) : skip_(skip) {
    std::FILE* file = std::fopen(path.c_str(), "rb");
    if (file == nullptr) throw std::runtime_error("cannot read " + path);
    std::fseek(file, 0, SEEK_END);
    const auto bytes = static_cast<std::size_t>(std::ftell(file));
    std::rewind(file);
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, bytes + 4 * skip) != 0) throw std::runtime_error("out of memory");
    memory_ = static_cast<unsigned char*>(memory);
    if (std::fread(memory_ + 4 * skip, 1, bytes, file) != bytes) throw std::runtime_error("cannot read " + path);
    std::fclose(file);
  }
  ~Operand() { std::free(memory_); }
  Operand(const Operand&) = delete;
  Operand& operator=(const Operand&) = delete;

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(memory_ + 4 * skip_);
  }

 private:
  std::size_t skip_;
  unsigned char* memory_;
};

template <typename T>
void save(const std::string& path, const std::vector<T>& y) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  std::fwrite(y.data(), sizeof(T), y.size(), file);
  std::fclose(file);
}

void run_bit_matmul(const std::string& kernel, char** argument) {
  const auto number = [&] { return static_cast<int64_t>(std::strtoll(*argument++, nullptr, 10)); };
  BitMatmul p{};
  p.population = number(), p.rows_a = number(), p.rows_b = number(), p.words = number();
  const auto skip = static_cast<std::size_t>(number());
  const Operand a(*argument++, skip), b(*argument++, skip), thresholds(*argument++, 0);
  const std::string out = *argument++;
  p.a = a.as<uint32_t>(), p.b = b.as<uint32_t>();
  const bool packed = number() != 0;
  p.member_stride = number(), p.row_stride = number(), p.column_stride = number();
  if (packed) p.thresholds = thresholds.as<int32_t>();
  std::vector<int32_t> y(static_cast<std::size_t>(p.population * p.rows_a * (packed ? (p.rows_b + 31) / 32 : p.rows_b)),
                         INT32_MIN);
  p.y = y.data();
  const Queue queue{1, nullptr};
  if (kernel == "auto") bit_matmul(p, queue);
  if (kernel == "bmma") bit_matmul_bmma(p, queue);
  if (kernel == "popc") bit_matmul_popc(p, queue);
  if (kernel == "wgmma") {
    if (!wgmma_fits(p)) throw std::runtime_error("wgmma does not fit");
    bit_matmul_wgmma(p, queue);
  }
  save(out, y);
}

void run_bit_linear(char** argument) {
  const auto number = [&] { return static_cast<int64_t>(std::strtoll(*argument++, nullptr, 10)); };
  BitLinear p{};
  p.type = static_cast<Scalar>(number());
  p.population = number(), p.batch = number(), p.rows = number(), p.inputs = number();
  const auto skip = static_cast<std::size_t>(number());
  emulated_multiprocessors = static_cast<int>(number());
  const Operand x(*argument++, 0), w(*argument++, skip);
  const std::string out = *argument++;
  p.x = x.as<void>(), p.w = w.as<uint32_t>();
  const bool half = p.type == Scalar::kBFloat16 || p.type == Scalar::kFloat16;
  std::vector<uint16_t> y(static_cast<std::size_t>(p.population * p.batch * p.rows * (half ? 1 : 2)), 0xffff);
  p.y = y.data();
  bit_linear_vector(p, {1, nullptr});
  save(out, y);
}

// Everything that the update writes, one after the other, goes to the output.
void run_mask_grad_update(const std::string& rule, char** argument) {
  const auto number = [&] { return static_cast<int64_t>(std::strtoll(*argument++, nullptr, 10)); };
  Gradient gradient{};
  gradient.type = static_cast<Scalar>(number());
  gradient.bits = number() != 0;
  MaskUpdate p{};
  p.rule = rule == "sgd" ? Rule::kSgd : rule == "adam" ? Rule::kAdam : Rule::kBop;
  p.sample = number() != 0;
  p.population = number(), gradient.batch = number(), p.rows = number(), p.cols = number();
  const auto skip = static_cast<std::size_t>(number());
  const Operand gy(*argument++, 0), x(*argument++, 0);
  const Operand scores(*argument++, skip), first(*argument++, skip), second(*argument++, skip), words(*argument++, 0);
  const Operand hyper(*argument++, 0), seed(*argument++, 0), step(*argument++, 0);
  gradient.gy = gy.as<void>(), gradient.x = x.as<void>();
  if (p.rule != Rule::kBop) p.scores = scores.as<float>();
  if (p.rule == Rule::kAdam) p.second = second.as<float>();
  p.first = first.as<float>(), p.words = words.as<uint32_t>();
  p.hyper = hyper.as<double>(), p.seed = seed.as<int64_t>(), p.step = step.as<int64_t>();
  std::vector<UpdateConstants> constants(static_cast<std::size_t>(p.population));
  std::vector<int64_t> flips(static_cast<std::size_t>(p.population), -1);
  p.constants = constants.data(), p.flips = flips.data();
  mask_grad_update(p, gradient, {1, nullptr});
  std::vector<char> all;
  const auto append = [&](const void* from, std::size_t bytes) {
    all.insert(all.end(), static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
  };
  const auto edges = static_cast<std::size_t>(p.population * p.rows * p.cols);
  append(flips.data(), 8 * flips.size());
  append(p.step, 8);
  append(p.words, 4 * static_cast<std::size_t>(p.population * p.rows * p.row_words()));
  append(p.first, 4 * edges);
  if (p.second != nullptr) append(p.second, 4 * edges);
  if (p.scores != nullptr) append(p.scores, 4 * edges);
  save(*argument, all);
}

void run_bit_linear_wgmma(bool transposed, char** argument) {
  const auto number = [&] { return static_cast<int64_t>(std::strtoll(*argument++, nullptr, 10)); };
  BitProduct p{};
  p.transposed = transposed;
  p.type = static_cast<Scalar>(number());
  p.population = number(), p.batch = number(), p.inner = number(), p.outputs = number();
  const auto skip = static_cast<std::size_t>(number());
  emulated_multiprocessors = static_cast<int>(number());
  const Operand x(*argument++, 0), w(*argument++, skip);
  const std::string out = *argument++;
  p.x = x.as<void>(), p.w = w.as<uint32_t>();
  const int words = p.type == Scalar::kInt8 ? 2 : 1;
  std::vector<uint16_t> y(static_cast<std::size_t>(p.population * p.batch * p.outputs * words), 0xffff);
  p.y = y.data();
  bit_linear_wgmma(p, {1, nullptr});
  save(out, y);
}

// Sums of 16 products each, as tensor cores add them.
template <bool kHalf>
void run_add_products(char** argument) {
  const auto count = static_cast<std::size_t>(std::strtoll(*argument++, nullptr, 10));
  const Operand a(*argument++, 0), b(*argument++, 0), sums(*argument++, 0);
  std::vector<float> y(sums.as<float>(), sums.as<float>() + count);
  for (std::size_t i = 0; i < count; ++i) {
    std::array<emulation::Factor, 16> left, right;
    for (std::size_t k = 0; k < 16; ++k) {
      left[k] = factor_of<kHalf>(a.as<uint16_t>()[16 * i + k]),
      right[k] = factor_of<kHalf>(b.as<uint16_t>()[16 * i + k]);
    }
    y[i] = emulation::add_products(y[i], left, right);
  }
  save(*argument, y);
}

}  // namespace

int main(int count, char** argument) {
  try {
    if (count < 4) throw std::runtime_error("driver capability op kernel ...");
    emulated_capability = std::atoi(argument[1]);
    const std::string op = argument[2], kernel = argument[3];
    if (op == "bit_matmul") run_bit_matmul(kernel, argument + 4);
    if (op == "bit_linear" && kernel == "vector") run_bit_linear(argument + 4);
    if (kernel == "wgmma" && op != "bit_matmul") run_bit_linear_wgmma(op == "bit_linear_t", argument + 4);
    if (op == "mask_grad_update") run_mask_grad_update(kernel, argument + 4);
    if (op == "add_products")
      kernel == "float16" ? run_add_products<true>(argument + 4) : run_add_products<false>(argument + 4);
    if (emulated_device != 0) throw std::runtime_error("the current device was not given back");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
