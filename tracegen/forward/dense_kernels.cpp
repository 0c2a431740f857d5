// SPDX-License-Identifier: Apache-2.0
#include "tracegen/forward/dense_kernels.h"

#include <cmath>
#include <dnnl.h>
#include <limits>

#include <fmt/format.h>

#include "sim/base/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tracegen/forward/dense_kernels.cpp"
// clang-format off
#include "sim/attention/dispatch_targets.h"  // before Highway
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace kvspan::tracegen::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using V = hn::Vec<Floats>;

constexpr std::int64_t kBlock = 1024;  // sums: fp32 inside, fp64 across

const char* name() { return hwy::TargetName(HWY_TARGET); }

// Calls body(i, lanes) for whole vectors and once for the rest; both load and store through a tag
// of their own, so that no element past the end is touched.
template <class Body>
HWY_INLINE void for_vectors(std::int64_t count, Body body) {
  const Floats d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) body(i, d);
  for (; i < count; ++i) body(i, hn::CappedTag<float, 1>());
}

float maximum(const float* x, std::int64_t count) {
  const Floats d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  V most = hn::Set(d, -std::numeric_limits<float>::infinity());
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) most = hn::Max(most, hn::LoadU(d, x + i));
  float result = hn::GetLane(hn::MaxOfLanes(d, most));
  for (; i < count; ++i) result = std::max(result, x[i]);
  return result;
}

float exp_minus(float* x, std::int64_t count, float max) {
  const Floats d;
  V sum = hn::Zero(d);
  float rest = 0;
  for_vectors(count, [&](std::int64_t i, auto tag) HWY_ATTR {
    const auto term = hn::Exp(tag, hn::Sub(hn::LoadU(tag, x + i), hn::Set(tag, max)));
    hn::StoreU(term, tag, x + i);
    if constexpr (std::is_same_v<decltype(tag), Floats>) {
      sum = hn::Add(sum, term);
    } else {
      rest += hn::GetLane(term);
    }
  });
  return hn::GetLane(hn::SumOfLanes(d, sum)) + rest;
}

double sum_exp(const float* x, std::int64_t count, float max) {
  const Floats d;
  double total = 0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    V sum = hn::Zero(d);
    float rest = 0;
    for_vectors(std::min(kBlock, count - begin), [&](std::int64_t i, auto tag) HWY_ATTR {
      const auto term = hn::Exp(tag, hn::Sub(hn::LoadU(tag, x + begin + i), hn::Set(tag, max)));
      if constexpr (std::is_same_v<decltype(tag), Floats>) {
        sum = hn::Add(sum, term);
      } else {
        rest += hn::GetLane(term);
      }
    });
    total += double{hn::GetLane(hn::SumOfLanes(d, sum))} + double{rest};
  }
  return total;
}

bool all_finite(const float* x, std::int64_t count) {
  const Floats d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  V worst = hn::Zero(d);  // x * 0 is 0 for a number, NaN for everything else
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    worst = hn::Add(worst, hn::Mul(hn::LoadU(d, x + i), hn::Zero(d)));
  }
  bool finite = hn::AllTrue(d, hn::Eq(worst, hn::Zero(d)));
  for (; i < count; ++i) finite = finite && std::isfinite(x[i]);
  return finite;
}

void scale(float* x, std::int64_t count, float factor) {
  for_vectors(count, [&](std::int64_t i, auto tag) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(tag, x + i), hn::Set(tag, factor)), tag, x + i);
  });
}

void add_to(const float* x, std::int64_t count, double* sums) {
  for (std::int64_t i = 0; i < count; ++i) sums[i] += double{x[i]};
}

void append_above(const float* x, std::int64_t count, float threshold, std::int32_t base,
                  std::vector<Candidate>& out) {
  const Floats d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const V least = hn::Set(d, threshold);
  const auto take = [&](std::int64_t i) {
    if (x[i] > threshold) out.push_back({base + static_cast<std::int32_t>(i), x[i]});
  };
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    if (hn::AllFalse(d, hn::Gt(hn::LoadU(d, x + i), least))) continue;
    for (std::int64_t j = i; j < i + lanes; ++j) take(j);
  }
  for (; i < count; ++i) take(i);
}

void rms_norm(const float* x, const float* weight, std::int64_t count, double eps, float* out) {
  const Floats d;
  double total = 0;
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    V sum = hn::Zero(d);
    float rest = 0;
    for_vectors(std::min(kBlock, count - begin), [&](std::int64_t i, auto tag) HWY_ATTR {
      const auto value = hn::LoadU(tag, x + begin + i);
      if constexpr (std::is_same_v<decltype(tag), Floats>) {
        sum = hn::MulAdd(value, value, sum);
      } else {
        rest += hn::GetLane(hn::Mul(value, value));
      }
    });
    total += double{hn::GetLane(hn::SumOfLanes(d, sum))} + double{rest};
  }
  const auto inverse = static_cast<float>(1 / std::sqrt(total / static_cast<double>(count) + eps));
  for_vectors(count, [&](std::int64_t i, auto tag) HWY_ATTR {
    const auto normed = hn::Mul(hn::LoadU(tag, x + i), hn::Set(tag, inverse));
    hn::StoreU(hn::Mul(normed, hn::LoadU(tag, weight + i)), tag, out + i);
  });
}

void silu_multiply(float* gate, const float* up, std::int64_t count) {
  for_vectors(count, [&](std::int64_t i, auto tag) HWY_ATTR {
    const auto x = hn::LoadU(tag, gate + i);
    const auto one = hn::Set(tag, 1.0F);
    const auto silu = hn::Div(x, hn::Add(one, hn::Exp(tag, hn::Neg(x))));
    hn::StoreU(hn::Mul(silu, hn::LoadU(tag, up + i)), tag, gate + i);
  });
}

void add(float* x, const float* y, std::int64_t count) {
  for_vectors(count, [&](std::int64_t i, auto tag) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(tag, x + i), hn::LoadU(tag, y + i)), tag, x + i);
  });
}

void rotate_half(float* x, const float* cosine, const float* sine, std::int64_t pairs) {
  for_vectors(pairs, [&](std::int64_t i, auto tag) HWY_ATTR {
    const auto a = hn::LoadU(tag, x + i);
    const auto b = hn::LoadU(tag, x + pairs + i);
    const auto c = hn::LoadU(tag, cosine + i);
    const auto s = hn::LoadU(tag, sine + i);
    hn::StoreU(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), tag, x + i);
    hn::StoreU(hn::Add(hn::Mul(b, c), hn::Mul(a, s)), tag, x + pairs + i);
  });
}

}  // namespace kvspan::tracegen::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
// GCC's OpenMP runtime, which oneDNN uses; declared here so that no compiler needs OpenMP itself.
extern "C" void omp_set_num_threads(int);

namespace kvspan::tracegen::kernels {

HWY_EXPORT(name);
HWY_EXPORT(maximum);
HWY_EXPORT(exp_minus);
HWY_EXPORT(sum_exp);
HWY_EXPORT(all_finite);
HWY_EXPORT(scale);
HWY_EXPORT(add_to);
HWY_EXPORT(append_above);
HWY_EXPORT(rms_norm);
HWY_EXPORT(silu_multiply);
HWY_EXPORT(add);
HWY_EXPORT(rotate_half);

std::string target_name() { return HWY_DYNAMIC_DISPATCH(name)(); }

void gemm(const Gemm& g) {
  // Each of our threads computes its own tile: the setting is one of the calling thread.
  thread_local const bool serial = (omp_set_num_threads(1), true);
  (void)serial;
  const dnnl_status_t status = dnnl_sgemm('N', g.b_transposed ? 'T' : 'N', g.m, g.n, g.k, 1.0F, g.a,
                                          g.lda, g.b, g.ldb, g.beta, g.c, g.ldc);
  if (status != dnnl_success) {
    throw Error(fmt::format("oneDNN refused a product of [{}, {}] and [{}, {}]: status {}", g.m,
                            g.k, g.k, g.n, static_cast<int>(status)),
                1);
  }
}

float maximum(const float* x, std::int64_t count) {
  return HWY_DYNAMIC_DISPATCH(maximum)(x, count);
}
float exp_minus(float* x, std::int64_t count, float max) {
  return HWY_DYNAMIC_DISPATCH(exp_minus)(x, count, max);
}
double sum_exp(const float* x, std::int64_t count, float max) {
  return HWY_DYNAMIC_DISPATCH(sum_exp)(x, count, max);
}
bool all_finite(const float* x, std::int64_t count) {
  return HWY_DYNAMIC_DISPATCH(all_finite)(x, count);
}
void scale(float* x, std::int64_t count, float factor) {
  HWY_DYNAMIC_DISPATCH(scale)(x, count, factor);
}
void add_to(const float* x, std::int64_t count, double* sums) {
  HWY_DYNAMIC_DISPATCH(add_to)(x, count, sums);
}
void append_above(const float* x, std::int64_t count, float threshold, std::int32_t base,
                  std::vector<Candidate>& out) {
  HWY_DYNAMIC_DISPATCH(append_above)(x, count, threshold, base, out);
}
void rms_norm(const float* x, const float* weight, std::int64_t count, double eps, float* out) {
  HWY_DYNAMIC_DISPATCH(rms_norm)(x, weight, count, eps, out);
}
void silu_multiply(float* gate, const float* up, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(silu_multiply)(gate, up, count);
}
void add(float* x, const float* y, std::int64_t count) { HWY_DYNAMIC_DISPATCH(add)(x, y, count); }
void rotate_half(float* x, const float* cosine, const float* sine, std::int64_t pairs) {
  HWY_DYNAMIC_DISPATCH(rotate_half)(x, cosine, sine, pairs);
}

}  // namespace kvspan::tracegen::kernels
#endif
