// SPDX-License-Identifier: Apache-2.0
// A small deterministic "model" for tests of whoever drives a runner: arithmetic on few numbers,
// with real attention (attention_cpu), keys and values kept as a runner keeps them.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <vector>

#include <tbb/task_arena.h>

#include "tracegen/forward/attention.h"
#include "tracegen/forward/runner.h"

namespace kvspan::test {

inline tracegen::ModelSpec fake_model(int layers = 4) {
  tracegen::ModelSpec spec;
  spec.architecture = "llama";
  spec.name = "fake";
  spec.layers = layers;
  spec.query_heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = 6;
  spec.hidden = spec.query_heads * spec.head_dim;
  spec.intermediate = 8;
  spec.vocabulary = 50;
  spec.sliding_window.assign(static_cast<std::size_t>(layers), 0);
  if (layers > 1) spec.sliding_window[1] = 7;
  spec.rope.theta = 10000;
  spec.rope.dim = spec.head_dim;
  return spec;
}

class FakeRunner : public tracegen::Runner {
 public:
  FakeRunner(const tracegen::ModelSpec& spec, const tracegen::RunnerOptions& options)
      : spec_(spec),
        options_(options),
        arena_(options.threads > 0 ? options.threads : tbb::task_arena::automatic) {}

  void embed(std::span<const std::int32_t> ids, std::span<float> hidden) override {
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      const int h = static_cast<int>(i) % spec_.hidden;
      hidden[i] = embedding(ids[i / static_cast<std::size_t>(spec_.hidden)], h);
    }
  }

  void layer(int layer, RowIndex first, std::span<float> hidden, tracegen::AttentionHook& hook,
             const std::function<void(double)>& progress) override {
    ++layer_calls;
    const int q_size = spec_.hidden;
    const int kv_size = spec_.kv_heads * spec_.head_dim;
    const auto rows = static_cast<std::int64_t>(hidden.size()) / spec_.hidden;
    const tracegen::Emit emit = hook.emit(layer);
    Kv& kv = at(layer, first, (first + rows) * kv_size);
    std::vector<float> q(hidden.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* in = hidden.data() + r * spec_.hidden;
      const auto mix = [&](int i, int salt) {
        return 2 * in[(i * 5 + layer) % spec_.hidden] +
               std::sin(static_cast<float>(i + salt + layer)) * in[(i + 3) % spec_.hidden];
      };
      for (int i = 0; i < q_size; ++i) q[static_cast<std::size_t>(r * q_size + i)] = mix(i, 0);
      for (int i = 0; i < kv_size; ++i) {
        kv.k[static_cast<std::size_t>((first + r) * kv_size + i)] = mix(i, 40);
        kv.v[static_cast<std::size_t>((first + r) * kv_size + i)] = mix(i, 80);
      }
    }
    std::vector<float> mass(
        emit.column_mass ? static_cast<std::size_t>(spec_.query_heads * (first + rows)) : 0);
    constexpr std::int64_t kBlock = 5;
    for (std::int64_t b = 0; b < rows; b += kBlock) {
      const std::int64_t count = std::min(kBlock, rows - b);
      if (emit.qkv) {
        hook.on_qkv({layer, first + b, count, q.data() + b * q_size,
                     kv.k.data() + (first + b) * kv_size, kv.v.data() + (first + b) * kv_size});
      }
      const auto cells = static_cast<std::size_t>(count * spec_.query_heads);
      std::vector<float> out(cells * static_cast<std::size_t>(spec_.head_dim)), lse(cells);
      std::vector<float> prob(cells * static_cast<std::size_t>(emit.top_k));
      std::vector<std::int32_t> index(prob.size());
      tracegen::AttentionProblem problem;
      problem.query_heads = spec_.query_heads;
      problem.kv_heads = spec_.kv_heads;
      problem.head_dim = spec_.head_dim;
      problem.first = first + b;
      problem.rows = count;
      problem.window = spec_.sliding_window[static_cast<std::size_t>(layer)];
      problem.scale = 1 / std::sqrt(static_cast<float>(spec_.head_dim));
      tracegen::AttentionTensors tensors;
      tensors.q = q.data() + b * q_size;
      tensors.k = kv.k.data();
      tensors.v = kv.v.data();
      tensors.out = out.data();
      tensors.top_k = emit.top_k;
      if (emit.top_k > 0) tensors.prob = prob.data();
      if (emit.top_k > 0) tensors.index = index.data();
      tensors.lse = lse.data();
      tensors.column_mass = emit.column_mass ? mass.data() : nullptr;
      tensors.column_stride = first + rows;
      arena_.execute([&] { tracegen::attention_cpu(problem, tensors); });
      if (emit.top_k > 0 || emit.lse) {
        hook.on_scores(
            {layer, first + b, count, emit.top_k, prob.data(), index.data(), lse.data()});
      }
      for (std::size_t i = 0; i < out.size(); ++i) {
        float& h = hidden[static_cast<std::size_t>(b * spec_.hidden) + i];
        h = std::tanh(0.7F * h + 0.6F * out[i]);
      }
      if (progress) progress(static_cast<double>(b + count) / static_cast<double>(rows));
    }
    if (emit.column_mass) hook.on_column_mass(layer, first + rows, mass);
  }

  void restore(const tracegen::RowsQkv& rows) override {
    const int kv_size = spec_.kv_heads * spec_.head_dim;
    Kv& kv = at(rows.layer, rows.first, (rows.first + rows.rows) * kv_size);
    std::copy(rows.k, rows.k + rows.rows * kv_size, kv.k.begin() + rows.first * kv_size);
    std::copy(rows.v, rows.v + rows.rows * kv_size, kv.v.begin() + rows.first * kv_size);
  }

  void head(std::span<const float> hidden,
            const std::function<void(std::int64_t, std::int64_t, const float*)>& use) override {
    const auto rows = static_cast<std::int64_t>(hidden.size()) / spec_.hidden;
    constexpr std::int64_t kBlock = 3;
    for (std::int64_t b = 0; b < rows; b += kBlock) {
      const std::int64_t count = std::min(kBlock, rows - b);
      std::vector<float> logits;
      for (std::int64_t r = b; r < b + count; ++r) {
        for (int id = 0; id < spec_.vocabulary; ++id) {
          float sum = 0;
          for (int h = 0; h < spec_.hidden; ++h)
            sum += hidden[static_cast<std::size_t>(r * spec_.hidden + h)] * embedding(id + 7, h);
          logits.push_back(2 * sum);
        }
      }
      use(b, count, logits.data());
    }
  }

  [[nodiscard]] std::string description() const override { return "fake"; }
  [[nodiscard]] std::int64_t memory_bytes() const override { return 1000; }

  int layer_calls = 0;

 private:
  struct Kv {
    std::vector<float> k, v;
  };
  // Keys and values of a layer, `floats` long; without keep_kv those of one layer only.
  Kv& at(int layer, RowIndex first, std::int64_t floats) {
    if (!options_.keep_kv) {
      std::erase_if(kv_, [layer](const auto& entry) { return entry.first != layer; });
    }
    Kv& kv = kv_[layer];
    const std::int64_t before = first * spec_.kv_heads * spec_.head_dim;
    if (static_cast<std::int64_t>(kv.k.size()) < before)
      throw std::logic_error("rows before were never given");
    kv.k.resize(static_cast<std::size_t>(floats));
    kv.v.resize(static_cast<std::size_t>(floats));
    return kv;
  }
  static float embedding(std::int32_t id, int h) {
    return std::sin(0.37F * static_cast<float>((id + 1) * (h + 2))) +
           0.3F * std::cos(static_cast<float>(id * 3 + h));
  }
  tracegen::ModelSpec spec_;
  tracegen::RunnerOptions options_;
  tbb::task_arena arena_;
  std::map<int, Kv> kv_;
};

}  // namespace kvspan::test
