// SPDX-License-Identifier: Apache-2.0
// The kernels on every SIMD target of this machine, against plain loops in double. Buffers have the
// exact size that the header states, so that AddressSanitizer sees any access beyond them.
#include "sim/attention/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <hwy/targets.h>

namespace {

namespace kernels = kvspan::kernels;
using kernels::kPanel;

constexpr double kUnit = 0x1p-24;  // half an ulp of a float, relative
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Dispatches to one SIMD target while it lives.
class OnTarget {
 public:
  explicit OnTarget(std::int64_t target) { hwy::SetSupportedTargetsForTest(target); }
  ~OnTarget() { hwy::SetSupportedTargetsForTest(0); }
  OnTarget(const OnTarget&) = delete;
  OnTarget& operator=(const OnTarget&) = delete;
};

// Targets of this machine that the kernels are compiled for: each dispatches to code of its own.
std::vector<std::int64_t> targets() {
  std::vector<std::int64_t> result;
  std::vector<std::string> names;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const OnTarget guard(target);
    const std::string name = kernels::target_name();
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    names.push_back(name);
    result.push_back(target);
  }
  return result;
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  float normal() { return normal_(engine_); }
  std::int64_t below(std::int64_t end) {
    return std::uniform_int_distribution<std::int64_t>(0, end - 1)(engine_);
  }
  std::vector<float> normals(std::int64_t count, float deviation = 1) {
    std::vector<float> result(static_cast<std::size_t>(count));
    for (float& x : result) x = deviation * normal();
    return result;
  }
  std::vector<float> bits(std::int64_t count) {
    std::vector<float> result(static_cast<std::size_t>(count));
    for (float& x : result) x = below(2) == 1 ? 1.0F : 0.0F;
    return result;
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

template <class T>
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t columns, T fill = T())
      : columns_(columns), data_(static_cast<std::size_t>(rows * columns), fill) {}
  Matrix(std::int64_t columns, std::vector<T> data) : columns_(columns), data_(std::move(data)) {}

  T* operator[](std::int64_t row) { return data_.data() + row * columns_; }
  const T* operator[](std::int64_t row) const { return data_.data() + row * columns_; }
  std::vector<T>& data() { return data_; }
  const std::vector<T>& data() const { return data_; }
  std::int64_t rows() const { return static_cast<std::int64_t>(data_.size()) / columns_; }
  std::vector<const T*> pointers() const {
    std::vector<const T*> result;
    for (std::int64_t r = 0; r < rows(); ++r) result.push_back((*this)[r]);
    return result;
  }
  std::vector<T*> pointers() {
    std::vector<T*> result;
    for (std::int64_t r = 0; r < rows(); ++r) result.push_back((*this)[r]);
    return result;
  }

 private:
  std::int64_t columns_;
  std::vector<T> data_;
};

// Equality of bits: unlike ==, it tells -0 from 0 and finds a NaN equal to itself.
std::vector<std::uint32_t> bits(const std::vector<float>& values) {
  std::vector<std::uint32_t> result;
  for (const float value : values) result.push_back(std::bit_cast<std::uint32_t>(value));
  return result;
}
std::vector<std::uint64_t> bits(const std::vector<double>& values) {
  std::vector<std::uint64_t> result;
  for (const double value : values) result.push_back(std::bit_cast<std::uint64_t>(value));
  return result;
}
std::uint64_t bits(double value) { return std::bit_cast<std::uint64_t>(value); }

struct Keys {
  int dim;
  std::int64_t tokens;
  std::vector<float> panels;
};

Keys pack(const Matrix<float>& keys, int dim) {
  const std::int64_t tokens = keys.rows();
  Keys result{dim, tokens,
              std::vector<float>(static_cast<std::size_t>(kernels::padded(tokens) * dim), kNan)};
  kernels::pack_keys(keys[0], tokens, keys[1] - keys[0], dim, result.panels.data());
  return result;
}

Matrix<float> logits(const Matrix<float>& q, const Keys& keys, float scale, float softcap = 0) {
  Matrix<float> out(q.rows(), kernels::padded(keys.tokens), kNan);
  kernels::logits(q.pointers().data(), q.rows(), keys.dim, keys.panels.data(), 0,
                  kernels::padded(keys.tokens) / kPanel, scale, softcap, out.pointers().data());
  return out;
}

// The largest of |got - want| / bound, 0 / 0 counting as 0.
class WorstError {
 public:
  void add(double got, double want, double bound) {
    const double error = std::abs(got - want);
    const double relative = error == 0 ? 0 : error / bound;
    if (!(relative <= worst_)) worst_ = relative;
  }
  double value() const { return worst_; }

 private:
  double worst_ = 0;
};

}  // namespace

TEST_CASE("the kernels are compiled for more than one target on x86", "[kernels]") {
  REQUIRE(!targets().empty());
#if defined(__x86_64__)
  CHECK(targets().size() >= 2);
#endif
}

TEST_CASE("pack_keys lays out panels of 64 keys and fills up with zeros", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const int dim = GENERATE(1, 5, 16, 64, 70);
  const std::int64_t tokens = GENERATE(1, 63, 64, 65, 130);
  const std::int64_t stride = dim + GENERATE(0, 3);
  CAPTURE(dim, tokens, stride);
  std::vector<float> keys = Random(1).normals((tokens - 1) * stride + dim);
  std::vector<float> panels(static_cast<std::size_t>(kernels::padded(tokens) * dim), kNan);
  kernels::pack_keys(keys.data(), tokens, stride, dim, panels.data());
  std::vector<float> want(panels.size(), 0.0F);
  for (std::int64_t j = 0; j < tokens; ++j) {
    for (std::int64_t i = 0; i < dim; ++i) {
      const std::int64_t at = (j / kPanel * dim + i) * kPanel + j % kPanel;
      want[static_cast<std::size_t>(at)] = keys[static_cast<std::size_t>(j * stride + i)];
    }
  }
  CHECK(bits(panels) == bits(want));
}

// A sum of n products in fp32 is off by at most n units of the sum of the absolute products; one
// unit more for the product with the scale, 20 units of the value for the soft cap.
TEST_CASE("logits agree with a double loop", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const int dim = GENERATE(1, 7, 32, 64, 80, 128, 256);
  const std::int64_t rows = GENERATE(1, 2, 3, 4, 5, 6, 7, 13, 24);
  const std::int64_t tokens = GENERATE(2, 64, 200);
  const float softcap = GENERATE(0.0F, 5.0F);
  CAPTURE(dim, rows, tokens, softcap);
  Random random(static_cast<unsigned>(rows));
  const Matrix<float> q(dim, random.normals(rows * dim));
  const Matrix<float> keys(dim, random.normals(tokens * dim));
  const float scale = 1 / std::sqrt(static_cast<float>(dim));
  const Matrix<float> got = logits(q, pack(keys, dim), scale, softcap);
  WorstError worst;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < tokens; ++j) {
      double want = 0;
      double bound = 0;
      for (std::int64_t i = 0; i < dim; ++i) {
        const double product = static_cast<double>(q[r][i]) * static_cast<double>(keys[j][i]);
        want += product;
        bound += std::abs(product);
      }
      want *= static_cast<double>(scale);
      bound *= static_cast<double>(scale) * (dim + 1) * kUnit;
      if (softcap > 0) {
        const double cap = static_cast<double>(softcap);
        want = cap * std::tanh(want / cap);
        bound += 20 * kUnit * std::abs(want);
      }
      worst.add(static_cast<double>(got[r][j]), want, bound);
    }
    for (std::int64_t j = tokens; j < kernels::padded(tokens); ++j) REQUIRE(got[r][j] == 0);
  }
  CHECK(worst.value() <= 1);
}

TEST_CASE("logits do not depend on row blocking, row count or panel range", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const int dim = GENERATE(7, 64, 96);
  const float softcap = GENERATE(0.0F, 30.0F);
  const std::int64_t rows = 29;
  const std::int64_t tokens = 5 * kPanel - 9;
  CAPTURE(dim, softcap);
  Random random(7);
  const Matrix<float> q(dim, random.normals(rows * dim));
  const Keys keys = pack(Matrix<float>(dim, random.normals(tokens * dim)), dim);
  const Matrix<float> want = logits(q, keys, 0.3F, softcap);
  const std::int64_t panels = kernels::padded(tokens) / kPanel;

  for (std::int64_t size = 1; size <= rows; ++size) {
    Matrix<float> got(rows, kernels::padded(tokens), kNan);
    const std::vector<const float*> from = std::as_const(q).pointers();
    const std::vector<float*> to = got.pointers();
    for (std::int64_t r = 0; r < rows; r += size) {
      const std::int64_t count = std::min(size, rows - r);
      const std::int64_t split = random.below(panels + 1);
      kernels::logits(from.data() + r, count, dim, keys.panels.data(), split, panels, 0.3F, softcap,
                      to.data() + r);
      kernels::logits(from.data() + r, count, dim, keys.panels.data(), 0, split, 0.3F, softcap,
                      to.data() + r);
    }
    CAPTURE(size);
    REQUIRE(bits(got.data()) == bits(want.data()));
  }
}

TEST_CASE("equal keys have equal logits wherever they stand", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const int dim = GENERATE(33, 128);
  const std::int64_t tokens = 3 * kPanel + 5;
  Random random(3);
  const std::vector<float> key = random.normals(dim);
  Matrix<float> keys(tokens, dim);
  for (std::int64_t j = 0; j < tokens; ++j) std::copy(key.begin(), key.end(), keys[j]);
  const Matrix<float> q(dim, random.normals(11 * dim));
  const Matrix<float> got = logits(q, pack(keys, dim), 0.1F, GENERATE(0.0F, 1.0F));
  for (std::int64_t r = 0; r < q.rows(); ++r) {
    for (std::int64_t j = 0; j < tokens; ++j) REQUIRE(got[r][j] == got[r][0]);
  }
}

TEST_CASE("small integers give exact logits on every target", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const int dim = 64;
  Random random(5);
  Matrix<float> q(8, dim);
  Matrix<float> keys(100, dim);
  for (float& x : q.data()) x = static_cast<float>(random.below(17) - 8);
  for (float& x : keys.data()) x = static_cast<float>(random.below(17) - 8);
  const Matrix<float> got = logits(q, pack(keys, dim), 0.125F);
  for (std::int64_t r = 0; r < 8; ++r) {
    for (std::int64_t j = 0; j < 100; ++j) {
      float want = 0;
      for (std::int64_t i = 0; i < dim; ++i) want += q[r][i] * keys[j][i];
      REQUIRE(got[r][j] == want / 8);
    }
  }
}

TEST_CASE("softmax terms are within 1.5 ulp of exp and exact at the maximum", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const std::int64_t count = 1 << 16;
  double worst = 0;
  for (std::int64_t round = 0; round < 8; ++round) {
    std::vector<float> z(static_cast<std::size_t>(count));
    Random random(static_cast<unsigned>(round));
    for (std::int64_t j = 1; j < count; ++j) {
      const float step = static_cast<float>(j) / static_cast<float>(count);
      // All magnitudes: evenly over [-90, 0], or over the exponents.
      const float x = round < 4 ? 90.0F * step : std::exp2(-30 + 36 * step);
      z[static_cast<std::size_t>(j)] = -x * (1 + 1e-4F * static_cast<float>(random.below(10)));
    }
    const std::vector<float> x = z;
    const kernels::Softmax softmax = kernels::softmax_terms(z.data(), 0, count, count);
    REQUIRE(softmax.max == 0);
    REQUIRE(z[0] == 1);
    for (std::size_t j = 0; j < z.size(); ++j) {
      const double want = std::exp(static_cast<double>(x[j]));
      if (want < 1.1756e-38) {  // no subnormal terms
        REQUIRE((z[j] == 0 || z[j] >= std::numeric_limits<float>::min()));
        continue;
      }
      int exponent = 0;
      std::frexp(want, &exponent);
      worst = std::max(worst,
                       std::abs(static_cast<double>(z[j]) - want) * std::ldexp(1.0, 24 - exponent));
    }
  }
  CHECK(worst < 1.5);
}

TEST_CASE("softmax terms agree with a double loop inside the range and are 0 outside",
          "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const unsigned seed = GENERATE(range(0U, 60U));
  Random random(seed);
  const std::int64_t size = kPanel * (1 + random.below(6));
  const std::int64_t begin = random.below(size);
  const std::int64_t end = begin + 1 + random.below(size - begin);
  CAPTURE(seed, size, begin, end);
  std::vector<float> z = random.normals(size, 10);
  for (std::int64_t j = 0; j < size; ++j) {  // what lies outside must not matter
    if (j < begin || j >= end) z[static_cast<std::size_t>(j)] = j % 2 == 0 ? kNan : kInfinity;
  }
  const std::vector<float> logit = z;
  const kernels::Softmax softmax = kernels::softmax_terms(z.data(), begin, end, size);

  CHECK(softmax.max == *std::max_element(logit.begin() + begin, logit.begin() + end));
  double sum = 0;
  WorstError worst;
  for (std::int64_t j = 0; j < size; ++j) {
    const auto at = static_cast<std::size_t>(j);
    if (j < begin || j >= end) {
      REQUIRE(std::bit_cast<std::uint32_t>(z[at]) == 0);
      continue;
    }
    const double want = std::exp(static_cast<double>(logit[at] - softmax.max));
    sum += want;
    worst.add(static_cast<double>(z[at]), want, 3 * kUnit * want + 1.2e-38);
  }
  CHECK(worst.value() <= 1);
  CHECK(std::abs(softmax.sum - sum) <= 6 * kUnit * sum);

  // Bit for bit the masked sum with every key in the mask, or just the range.
  const std::vector<float> ones(z.size(), 1.0F);
  std::vector<float> inside(z.size(), 0.0F);
  std::fill(inside.begin() + begin, inside.begin() + end, 1.0F);
  CHECK(bits(kernels::masked_sum(z.data(), ones.data(), size)) == bits(softmax.sum));
  CHECK(bits(kernels::masked_sum(z.data(), inside.data(), size)) == bits(softmax.sum));
}

TEST_CASE("softmax of one key is 1", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  for (std::int64_t at = 0; at < 2 * kPanel; ++at) {
    std::vector<float> z(2 * kPanel, kNan);
    z[static_cast<std::size_t>(at)] = -1234.5F;
    const kernels::Softmax softmax = kernels::softmax_terms(z.data(), at, at + 1, 2 * kPanel);
    REQUIRE(softmax.max == -1234.5F);
    REQUIRE(softmax.sum == 1);
    for (std::int64_t j = 0; j < 2 * kPanel; ++j) {
      REQUIRE(z[static_cast<std::size_t>(j)] == (j == at ? 1.0F : 0.0F));
    }
  }
}

TEST_CASE("softmax of equal logits counts them", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const float value = GENERATE(0.0F, -3e38F, 3e38F, 17.3F);
  const std::int64_t end = GENERATE(1, 17, 64, 1000);
  const std::int64_t size = kernels::padded(end);
  std::vector<float> z(static_cast<std::size_t>(size), value);
  const kernels::Softmax softmax = kernels::softmax_terms(z.data(), 0, end, size);
  CHECK(softmax.max == value);
  CHECK(softmax.sum == static_cast<double>(end));
  CHECK(std::all_of(z.begin(), z.begin() + end, [](float term) { return term == 1; }));
}

TEST_CASE("softmax survives a spread far beyond the range of exp", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const float low = GENERATE(-1000.0F, -1e10F, -3.4e38F, -kInfinity);
  const float high = GENERATE(0.0F, 500.0F, 3.4e38F);
  CAPTURE(low, high);
  std::vector<float> z(kPanel, low);
  z[5] = high;
  z[63] = high;
  const kernels::Softmax softmax = kernels::softmax_terms(z.data(), 0, kPanel, kPanel);
  CHECK(softmax.max == high);
  CHECK(softmax.sum == 2);
  for (std::size_t j = 0; j < z.size(); ++j) {
    REQUIRE(std::bit_cast<std::uint32_t>(z[j]) == (j == 5 || j == 63 ? 0x3F800000U : 0U));
  }
}

TEST_CASE("softmax reports a maximum that is not finite for any NaN or infinity", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const float bad = GENERATE(values({kNan, -kNan, kInfinity}));
  const std::int64_t begin = 3;
  const std::int64_t end = 3 * kPanel + 17;
  const std::int64_t size = 4 * kPanel;
  for (std::int64_t at = begin; at < end; ++at) {
    std::vector<float> z = Random(2).normals(size);
    z[static_cast<std::size_t>(at)] = bad;
    CAPTURE(at, bad);
    REQUIRE(!std::isfinite(kernels::softmax_terms(z.data(), begin, end, size).max));
  }
  std::vector<float> none(kPanel, -kInfinity);
  CHECK(!std::isfinite(kernels::softmax_terms(none.data(), 0, kPanel, kPanel).max));
}

TEST_CASE("masked sum agrees with a double loop and ignores what the mask leaves out",
          "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const unsigned seed = GENERATE(range(0U, 20U));
  Random random(seed);
  const std::int64_t size = kPanel * (1 + random.below(40));
  CAPTURE(seed, size);
  std::vector<float> terms = random.normals(size);
  for (float& term : terms) term = std::abs(term);
  const std::vector<float> mask = random.bits(size);
  double want = 0;
  for (std::size_t j = 0; j < terms.size(); ++j) {
    want += static_cast<double>(terms[j]) * static_cast<double>(mask[j]);
  }
  const double got = kernels::masked_sum(terms.data(), mask.data(), size);
  CHECK(std::abs(got - want) <= 4 * kUnit * want);

  // The same bits when the masked terms are set to zero, and with more keys of mask or term 0.
  std::vector<float> zeroed = terms;
  for (std::size_t j = 0; j < zeroed.size(); ++j) zeroed[j] *= mask[j];
  const std::vector<float> ones(terms.size(), 1.0F);
  CHECK(bits(kernels::masked_sum(zeroed.data(), ones.data(), size)) == bits(got));
  std::vector<float> longer = terms;
  std::vector<float> longer_mask = mask;
  longer.resize(terms.size() + 3 * kPanel, 0.25F);
  longer_mask.resize(mask.size() + 3 * kPanel, 0.0F);
  CHECK(bits(kernels::masked_sum(longer.data(), longer_mask.data(), size + 3 * kPanel)) ==
        bits(got));
  CHECK(kernels::masked_sum(terms.data(), mask.data(), 0) == 0);
}

TEST_CASE("masked_sums has the bits of masked_sum for every row", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const std::int64_t rows = GENERATE(1, 5, 16, 37);
  const std::int64_t size = kPanel * GENERATE(0, 1, 32, 33, 100);
  CAPTURE(rows, size);
  Random random(19);
  Matrix<float> terms(rows, size + 1);
  for (float& term : terms.data()) term = std::abs(random.normal());
  const std::vector<float> mask = random.bits(size);
  std::vector<double> sums(static_cast<std::size_t>(rows), std::nan(""));
  kernels::masked_sums(std::as_const(terms).pointers().data(), rows, mask.data(), size,
                       sums.data());
  std::vector<double> want;
  for (std::int64_t r = 0; r < rows; ++r) {
    want.push_back(kernels::masked_sum(terms[r], mask.data(), size));
  }
  CHECK(bits(sums) == bits(want));
}

TEST_CASE("add_columns adds rows one by one and leaves other keys alone", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const std::int64_t rows = GENERATE(1, 3, 4, 7, 8, 21);
  const std::int64_t size = kPanel * GENERATE(1, 3, 33);
  CAPTURE(rows, size);
  Random random(11);
  const Matrix<float> terms(size, random.normals(rows * size));
  const std::vector<const float*> row = terms.pointers();
  const std::vector<float> mask = random.bits(size);
  std::vector<double> inverse;
  for (std::int64_t r = 0; r < rows; ++r) {
    inverse.push_back(1 / (1 + std::abs(static_cast<double>(random.normal()))));
  }
  std::vector<double> start;
  for (std::int64_t j = 0; j < size; ++j) {
    const bool counted = mask[static_cast<std::size_t>(j)] != 0;
    start.push_back(counted ? 0.5 : j % 2 == 0 ? -0.0 : std::nan(""));
  }

  std::vector<double> at_once = start;
  kernels::add_columns(row.data(), inverse.data(), rows, mask.data(), size, at_once.data());
  std::vector<double> one_by_one = start;
  for (std::size_t r = 0; r < row.size(); ++r) {
    kernels::add_columns(row.data() + r, &inverse[r], 1, mask.data(), size, one_by_one.data());
  }
  CHECK(bits(one_by_one) == bits(at_once));

  WorstError worst;
  for (std::int64_t j = 0; j < size; ++j) {
    const auto at = static_cast<std::size_t>(j);
    if (mask[at] == 0) {
      REQUIRE(bits(at_once[at]) == bits(start[at]));
      continue;
    }
    double want = start[at];
    double bound = std::abs(want);
    for (std::size_t r = 0; r < row.size(); ++r) {
      const double share = static_cast<double>(row[r][j]) * inverse[r];
      want += share;
      bound += std::abs(share);
    }
    worst.add(at_once[at], want, static_cast<double>(2 * rows + 2) * 0x1p-53 * bound);
  }
  CHECK(worst.value() <= 1);
}

// At most 256 FMAs in fp32 (256 units of the sum of absolute products), the rest in fp64.
TEST_CASE("weighted values agree with a double loop for any row blocking", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const int dim = GENERATE(1, 17, 64, 80, 128);
  const std::int64_t count = GENERATE(0, 1, 100, 256, 257, 700);
  const std::int64_t stride = dim + GENERATE(0, 5);
  CAPTURE(dim, count, stride);
  const std::int64_t rows = 11;
  Random random(13);
  std::vector<std::int32_t> entries;
  std::int32_t entry = -1;
  for (std::int64_t c = 0; c < count; ++c) {
    entry += 1 + static_cast<std::int32_t>(random.below(3));
    entries.push_back(entry);
  }
  const std::int64_t tokens = entry + 2;
  Matrix<float> terms(tokens, random.normals(rows * tokens));
  const std::vector<float> values = random.normals((tokens - 1) * stride + dim);
  Matrix<double> out(rows, dim, std::nan(""));
  kernels::weighted_values(std::as_const(terms).pointers().data(), rows, entries.data(), count,
                           values.data(), stride, dim, out.pointers().data());
  WorstError worst;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < dim; ++i) {
      double want = 0;
      double bound = 0;
      for (const std::int32_t e : entries) {
        const double product =
            static_cast<double>(terms[r][e]) *
            static_cast<double>(values[static_cast<std::size_t>(e * stride + i)]);
        want += product;
        bound += std::abs(product);
      }
      worst.add(out[r][i], want, 256 * kUnit * bound);
    }
  }
  CHECK(worst.value() <= 1);

  for (std::int64_t size = 1; size < rows; ++size) {
    Matrix<double> blocks(rows, dim, std::nan(""));
    const std::vector<const float*> from = std::as_const(terms).pointers();
    const std::vector<double*> to = blocks.pointers();
    for (std::int64_t r = 0; r < rows; r += size) {
      kernels::weighted_values(from.data() + r, std::min(size, rows - r), entries.data(), count,
                               values.data(), stride, dim, to.data() + r);
    }
    CAPTURE(size);
    REQUIRE(bits(blocks.data()) == bits(out.data()));
  }
}

TEST_CASE("dot products are those of a loop, norms to the bit", "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const int dim = GENERATE(1, 17, 128);
  const std::int64_t count = GENERATE(0, 1, 64, 131);
  Random random(19);
  const Matrix<float> x(dim, random.normals(count * dim));
  const std::vector<float> floats = random.normals(dim);
  const std::vector<double> y(floats.begin(), floats.end());
  std::vector<double> products(static_cast<std::size_t>(count));
  std::vector<double> norms = products;
  kernels::dots(x.data().data(), count, dim, y.data(), products.data());
  kernels::squared_norms(x.data().data(), count, dim, dim, norms.data());
  if (count == 0) SUCCEED("nothing is read, and nothing written");
  for (std::int64_t j = 0; j < count; ++j) {
    double product = 0;
    double norm = 0;
    for (int i = 0; i < dim; ++i) {
      const auto value = static_cast<double>(x[j][i]);
      product += value * y[static_cast<std::size_t>(i)];
      norm += value * value;  // exact: fused or not, the sum is the same
    }
    REQUIRE(bits(products[static_cast<std::size_t>(j)]) == bits(product));
    REQUIRE(bits(norms[static_cast<std::size_t>(j)]) == bits(norm));
  }
}

TEST_CASE("terms over altered keys are a softmax of theirs, and tell how far they moved",
          "[kernels]") {
  const OnTarget guard(GENERATE(from_range(targets())));
  CAPTURE(kernels::target_name());
  const std::int64_t count = GENERATE(1, 16, 37);
  Random random(23);
  std::vector<float> z = random.normals(3 * count, 4);
  const std::vector<float> before = z;
  std::vector<float> full(z.size(), 0.0F);
  std::vector<std::int32_t> entries;
  for (std::int32_t e = 1; std::ssize(entries) < count; e += 1 + e % 3) entries.push_back(e);
  for (const std::int32_t e : entries) full[static_cast<std::size_t>(e)] = random.bits(1)[0] * 0.5F;
  const double full_max = 3;
  const kernels::HeldTerms got =
      kernels::held_terms(entries.data(), count, full.data(), full_max, z.data());
  double sum = 0;
  double distance = 0;
  double weight = 0;
  float most = -kInfinity;
  for (const std::int32_t e : entries) most = std::max(most, before[static_cast<std::size_t>(e)]);
  for (std::size_t e = 0; e < z.size(); ++e) {
    const auto logit = static_cast<double>(before[e]);
    if (std::find(entries.begin(), entries.end(), static_cast<std::int32_t>(e)) == entries.end()) {
      REQUIRE(z[e] == before[e]);
      continue;
    }
    const double term = std::exp(logit - static_cast<double>(most));
    REQUIRE(static_cast<double>(z[e]) == Approx(term).epsilon(1e-6));
    sum += term;
    weight += static_cast<double>(full[e]);
    if (full[e] > 0) distance += 0.5 * std::abs(full_max + std::log(0.5) - logit);
  }
  CHECK(got.max == most);
  CHECK(got.sum == Approx(sum).epsilon(1e-6));
  CHECK(got.weight == Approx(weight));
  CHECK(got.distance == Approx(distance).epsilon(1e-12).margin(1e-12));
}

TEST_CASE("targets with fused multiply-add agree bit for bit", "[kernels]") {
  const int dim = 80;
  const std::int64_t rows = 9;
  const std::int64_t tokens = 500;
  const std::int64_t size = kernels::padded(tokens);
  const float softcap = GENERATE(0.0F, 20.0F);
  Random random(17);
  const Matrix<float> q(dim, random.normals(rows * dim, 3));
  const Keys keys = pack(Matrix<float>(dim, random.normals(tokens * dim, 3)), dim);
  const std::vector<float> mask = random.bits(size);
  std::vector<std::int32_t> entries;
  for (std::int32_t e = 0; e < tokens; e += 1 + e % 2) entries.push_back(e);

  struct Results {
    std::string target;
    std::vector<float> logits, terms;
    std::vector<double> sums, columns, values;
  };
  const auto compute = [&] {
    Results results;
    results.target = kernels::target_name();
    Matrix<float> z = logits(q, keys, 0.5F, softcap);
    results.logits = z.data();
    std::vector<double> inverse;
    for (std::int64_t r = 0; r < rows; ++r) {
      const kernels::Softmax softmax = kernels::softmax_terms(z[r], r, tokens - 3 * r, size);
      inverse.push_back(1 / softmax.sum);
      results.sums.push_back(softmax.sum);
      results.sums.push_back(kernels::masked_sum(z[r], mask.data(), size));
    }
    results.terms = z.data();
    results.columns.resize(static_cast<std::size_t>(size));
    kernels::add_columns(std::as_const(z).pointers().data(), inverse.data(), rows, mask.data(),
                         size, results.columns.data());
    Matrix<double> out(rows, dim);
    kernels::weighted_values(std::as_const(z).pointers().data(), rows, entries.data(),
                             static_cast<std::int64_t>(entries.size()), q[0], 0, dim,
                             out.pointers().data());
    results.values = out.data();
    return results;
  };

  std::vector<Results> fused;
  for (const std::int64_t target : targets()) {
    const OnTarget guard(target);
    const std::string name = kernels::target_name();
    if (name.starts_with("AVX") || name == "NEON") fused.push_back(compute());
  }
  for (const Results& results : fused) {
    CAPTURE(results.target, fused[0].target);
    CHECK(bits(results.logits) == bits(fused[0].logits));
    CHECK(bits(results.terms) == bits(fused[0].terms));
    CHECK(bits(results.sums) == bits(fused[0].sums));
    CHECK(bits(results.columns) == bits(fused[0].columns));
    CHECK(bits(results.values) == bits(fused[0].values));
  }
}
