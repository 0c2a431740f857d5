// SPDX-License-Identifier: Apache-2.0
// Compiled twice, with KVSPAN_TWIN=kEigenAvx2 (-mavx2 -mfma) and KVSPAN_TWIN=kEigenAvx512
// (-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma). Eigen's namespace is renamed, or the linker
// would merge the two versions of its inline functions.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the "undefined" vectors inside its own AVX-512 intrinsics for a mistake (PR 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define KVSPAN_CONCATENATE(a, b) a##b
#define KVSPAN_EXPAND(a, b) KVSPAN_CONCATENATE(a, b)
#define Eigen KVSPAN_EXPAND(EigenFor_, KVSPAN_TWIN)

#include "tests/bench/eigen_twin.h"

#include <Eigen/Core>

namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Input = Eigen::Map<const RowMajor>;
using Strided = Eigen::Map<RowMajor, 0, Eigen::OuterStride<>>;
using StridedInput = Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>;
using Packet = Eigen::internal::packet_traits<float>::type;

int fma_loop(std::int64_t steps) {
  using kvspan::bench::kFmaChains;
  Packet sums[kFmaChains];
  for (int c = 0; c < kFmaChains; ++c) sums[c] = Eigen::internal::pset1<Packet>(1.0F);
  const Packet factor = Eigen::internal::pset1<Packet>(0.999F);
  for (std::int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kFmaChains; ++c) {
      sums[c] = Eigen::internal::pmadd(sums[c], factor, factor);
    }
  }
  for (int c = 0; c < kFmaChains; ++c) {
    volatile float sink = Eigen::internal::pfirst(sums[c]);
    static_cast<void>(sink);
  }
  return static_cast<int>(sizeof(Packet) / sizeof(float));
}

void logits(const float* q, std::int64_t rows, int dim, const float* keys, std::int64_t tokens,
            float* z, std::int64_t z_stride) {
  Strided(z, rows, tokens, Eigen::OuterStride<>(z_stride)).noalias() =
      Input(q, rows, dim) * Input(keys, tokens, dim).transpose();
}

float softmax(float* z, std::int64_t count) {
  Eigen::Map<Eigen::ArrayXf> row(z, count);
  const float max = row.maxCoeff();
  row = (row - max).exp();
  return row.sum();
}

void values(const float* terms, std::int64_t rows, std::int64_t tokens, std::int64_t terms_stride,
            const float* v, int dim, float* out) {
  Eigen::Map<RowMajor>(out, rows, dim).noalias() =
      StridedInput(terms, rows, tokens, Eigen::OuterStride<>(terms_stride)) * Input(v, tokens, dim);
}

}  // namespace

namespace kvspan::bench {

const EigenTwin KVSPAN_TWIN{fma_loop, logits, softmax, values};

}  // namespace kvspan::bench
