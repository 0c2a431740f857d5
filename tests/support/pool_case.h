// SPDX-License-Identifier: Apache-2.0
// A pool with random entries in the memory of a GPU, or of the emulation of one, and attention over
// it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "gpu_replay/cuda/module.h"
#include "gpu_replay/pool/kv_pool.h"

namespace kvspan::test {

using namespace kvspan::gpu_replay;

// Through the entry of the module, whose code is linked into the test.
inline const ReplayModule& device() { return *kvspan_replay_module(); }

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct PoolShapeCase {
  int heads = 1, group = 1, k_dim = 64, v_dim = 64, tokens = 40;
  Element element = Element::f16;
  std::string layout = "paged16_per_head";
  double softcap = 0;
  bool sinks = false;
  double scale = 0.2;
};

// A pool with random entries, some of which have left; head 0 keeps none or one, as asked.
class PoolCase {
 public:
  PoolCase(const PoolShapeCase& shape, unsigned seed, int left_in_head_0 = -1)
      : shape_(shape),
        random_(seed),
        memory_(device().make_memory(0, 0)),
        arenas_(*memory_),
        bytes_((shape.k_dim + shape.v_dim) * bytes_of(shape.element)),
        pool_({1,
               shape.heads,
               shape.heads * shape.group,
               shape.tokens,
               {{"entry", bytes_, 0}},
               parse_layout(shape.layout)},
              arenas_),
        entries_(index(shape.heads)),
        scales_(index(shape.heads), shape.element == Element::fp8 ? 0.25F : 1.0F) {
    std::normal_distribution<float> normal;
    for (TokenIndex token = 0; token < shape.tokens; ++token) {
      pool_.append(0, token);
      for (int head = 0; head < shape.heads; ++head) {
        std::vector<float> x(index(shape.k_dim + shape.v_dim));
        std::vector<std::byte> coded(index(bytes_));
        for (float& value : x) value = normal(random_);
        encode(x, shape.element, scales_[0], coded);
        decode(coded, shape.element, scales_[0], x);  // as it is held
        REQUIRE(pool_.write(0, head, token, coded));
        entries_[index(head)].push_back(std::move(x));
      }
    }
    std::vector<Step> steps;
    for (int head = 0; head < shape.heads; ++head) {
      for (TokenIndex token = 0; token < shape.tokens; ++token) {
        const bool leaves = head == 0 && left_in_head_0 >= 0
                                ? token >= left_in_head_0
                                : std::bernoulli_distribution(0.4)(random_);
        if (leaves) steps.push_back({.head = head, .token = token});
      }
    }
    pool_.apply(0, steps, true);
    q_.resize(index(shape.heads * shape.group * shape.k_dim));
    for (float& x : q_) x = normal(random_);
    if (shape.sinks) sinks_.assign(index(shape.heads * shape.group), normal(random_));
    for (int head = 0; head < shape.heads; ++head) tables_.push_back(pool_.table_of(0, head));
  }

  [[nodiscard]] DecodeRow row() const {
    return {shape_.heads * shape_.group,
            shape_.heads,
            shape_.k_dim,
            shape_.v_dim,
            shape_.element,
            shape_.scale,
            shape_.softcap,
            q_,
            tables_,
            scales_,
            scales_,
            sinks_};
  }
  [[nodiscard]] DecodeResult on_device() const {
    DecodeResult out;
    out.output.assign(3, kNan);
    device().attend(row(), out);
    return out;
  }
  // In double; the largest difference of an output or a log-sum-exp.
  [[nodiscard]] double worst(const DecodeResult& found) const {
    double worst = 0;
    const auto differ = [&](double a, double b) {
      const double by = a == b ? 0 : std::fabs(a - b);
      worst = std::max(worst, std::isnan(by) ? std::numeric_limits<double>::infinity() : by);
    };
    for (int h = 0; h < shape_.heads * shape_.group; ++h) {
      std::vector<double> output(index(shape_.v_dim), 0);
      double sum = sinks_.empty() ? 0 : std::exp(double{sinks_[index(h)]});
      for (const TokenIndex token : pool_.held(0, h / shape_.group)) {
        const std::vector<float>& x = entries_[index(h / shape_.group)][index(token)];
        double logit = 0;
        for (int i = 0; i < shape_.k_dim; ++i)
          logit += shape_.scale * double{q_[index(h * shape_.k_dim + i)]} * double{x[index(i)]};
        if (shape_.softcap > 0) logit = shape_.softcap * std::tanh(logit / shape_.softcap);
        sum += std::exp(logit);
        for (int i = 0; i < shape_.v_dim; ++i)
          output[index(i)] += std::exp(logit) * double{x[index(shape_.k_dim + i)]};
      }
      differ(found.lse[index(h)], std::log(sum));
      for (int i = 0; i < shape_.v_dim; ++i)
        differ(found.output[index(h * shape_.v_dim + i)], sum == 0 ? 0 : output[index(i)] / sum);
    }
    return worst;
  }

 private:
  PoolShapeCase shape_;
  std::mt19937 random_;
  std::unique_ptr<DeviceMemory> memory_;
  ArenaSet arenas_;
  std::int64_t bytes_;
  KvPool pool_;
  std::vector<std::vector<std::vector<float>>> entries_;  // [heads][tokens] K then V
  std::vector<float> scales_, q_, sinks_;
  std::vector<HeadTable> tables_;
};

}  // namespace kvspan::test
