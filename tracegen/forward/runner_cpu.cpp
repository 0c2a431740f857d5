// SPDX-License-Identifier: Apache-2.0
// One pass of one layer goes in waves of rows, so that memory holds a wave's activations and the
// layer's keys and values, whatever the length:
//
//   hidden --norm--> q k v --rope--> [k, v of all rows so far] --attention--> o --> + hidden
//          --norm--> silu(gate) * up --> down --> + hidden
//
// Weights stay in their stored type: each product widens a tile of 256 of their rows and uses it
// for all rows of the wave, 1 conversion per 1,024 multiply-adds in prefill.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <fmt/format.h>
#include <tbb/enumerable_thread_specific.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "tracegen/forward/attention.h"
#include "tracegen/forward/dense_kernels.h"
#include "tracegen/forward/layer_math.h"
#include "tracegen/forward/runner.h"
#include "tracegen/forward/runner_common.h"
#include "tracegen/forward/scratch.h"

namespace kvspan::tracegen {
namespace {

constexpr std::int64_t kTileRows = 512;  // of a wave in one product
constexpr std::int64_t kTileOutputs = 256;
constexpr std::int64_t kMostKvBytes = std::int64_t{1} << 30;  // in anonymous memory, all layers

class CpuRunner final : public Runner {
 public:
  CpuRunner(const Checkpoint& checkpoint, const RunnerOptions& options)
      : checkpoint_(checkpoint),
        spec_(checkpoint_.spec()),
        options_(options),
        math_(spec_, [this](const float* x, std::int64_t rows, const WeightMatrix& w,
                            const std::vector<float>& bias, float* y,
                            std::int64_t ldy) { dense(x, rows, w, bias, y, ldy); }),
        arena_(options.threads > 0 ? options.threads : tbb::task_arena::automatic) {
    const std::size_t layers = options.keep_kv ? static_cast<std::size_t>(spec_.layers) : 1;
    keys_.reserve(layers);
    const std::int64_t elements = options.tokens * spec_.kv_width();
    const bool large = 8 * elements * static_cast<std::int64_t>(layers) > kMostKvBytes;
    const std::filesystem::path folder = large ? options.scratch : std::filesystem::path();
    for (std::size_t l = 0; l < layers; ++l) {
      keys_.emplace_back(elements, folder);
      values_.emplace_back(elements, folder);
    }
  }

  void embed(std::span<const std::int32_t> ids, std::span<float> hidden) override {
    embed_rows(checkpoint_, ids, hidden);
  }

  void layer(int layer, RowIndex first, std::span<float> hidden, AttentionHook& hook,
             const std::function<void(double)>& progress) override {
    const LayerWeights& weights = checkpoint_.layer(layer);
    const Emit emit = hook.emit(layer);
    const std::int64_t rows = static_cast<std::int64_t>(hidden.size()) / spec_.hidden;
    const std::span<const std::uint8_t> visible = hook.visible(layer, first, rows);
    const Kv kv = kv_of(layer);
    if (emit.column_mass)
      mass_.assign(static_cast<std::size_t>(spec_.query_heads * (first + rows)), 0);
    for (std::int64_t begin = 0; begin < rows; begin += kWave) {
      const std::int64_t count = std::min(kWave, rows - begin);
      const Wave wave{layer,
                      first,
                      rows,
                      first + begin,
                      count,
                      hidden.subspan(static_cast<std::size_t>(begin * spec_.hidden),
                                     static_cast<std::size_t>(count * spec_.hidden))};
      arena_.execute([&] { project(weights, wave, kv); });
      if (emit.qkv) {
        hook.on_qkv({layer, wave.row, count, q_.data(), kv.k + wave.row * spec_.kv_width(),
                     kv.v + wave.row * spec_.kv_width()});
      }
      arena_.execute([&] { attend(wave, kv, visible, emit); });
      if (emit.top_k > 0 || emit.lse) {
        hook.on_scores({layer, wave.row, count, emit.top_k, emit.top_k > 0 ? prob_.data() : nullptr,
                        emit.top_k > 0 ? index_.data() : nullptr,
                        emit.lse ? lse_.data() : nullptr});
      }
      arena_.execute(
          [&] { math_.finish(weights, layer, attended_.data(), count, wave.hidden.data()); });
      if (progress) progress(static_cast<double>(begin + count) / static_cast<double>(rows));
    }
    if (emit.column_mass) hook.on_column_mass(layer, first + rows, mass_);
    if (rows > 1) checkpoint_.release(layer);  // a prompt comes once; generation comes again
  }

  void restore(const RowsQkv& rows) override {
    const Kv kv = kv_of(rows.layer);
    std::copy_n(rows.k, rows.rows * spec_.kv_width(), kv.k + rows.first * spec_.kv_width());
    std::copy_n(rows.v, rows.rows * spec_.kv_width(), kv.v + rows.first * spec_.kv_width());
  }

  void head(std::span<const float> hidden,
            const std::function<void(std::int64_t, std::int64_t, const float*)>& use) override {
    const std::int64_t rows = static_cast<std::int64_t>(hidden.size()) / spec_.hidden;
    const WeightMatrix& head = checkpoint_.head();
    const std::int64_t block = head_block_rows(spec_);
    std::vector<float> logits(static_cast<std::size_t>(std::min(rows, block) * head.rows));
    for (std::int64_t begin = 0; begin < rows; begin += block) {
      const std::int64_t count = std::min(block, rows - begin);
      arena_.execute([&] {
        math_.head(checkpoint_, hidden.data() + begin * spec_.hidden, count, logits.data());
      });
      use(begin, count, logits.data());
    }
  }

  [[nodiscard]] std::string description() const override {
    return fmt::format("CPU, {} thread{}, {}, fp32", arena_.max_concurrency(),
                       arena_.max_concurrency() == 1 ? "" : "s", kernels::target_name());
  }

  [[nodiscard]] std::int64_t memory_bytes() const override {
    std::int64_t bytes = 0;
    for (const Scratch& s : keys_) bytes += s.in_file() ? 0 : 2 * s.bytes();
    const std::int64_t wave = std::min(kWave, options_.tokens);
    const std::int64_t width =
        2 * spec_.q_width() + 2 * spec_.hidden + 2 * std::int64_t{spec_.intermediate};
    bytes +=
        wave * width * 4 + std::min(head_block_rows(spec_), options_.tokens) * spec_.vocabulary * 4;
    // A thread's widened tile, logits of a tile of attention rows, packed keys and outputs.
    const std::int64_t widest =
        std::max({std::int64_t{spec_.hidden}, std::int64_t{spec_.intermediate}, spec_.q_width()});
    return bytes + arena_.max_concurrency() * (kTileOutputs * widest * 4 + (std::int64_t{2} << 20));
  }

 private:
  struct Wave {
    int layer;
    RowIndex first;      // of the pass
    std::int64_t rows;   // of the pass
    RowIndex row;        // first row of the wave
    std::int64_t count;  // rows of the wave
    std::span<float> hidden;
  };
  struct Kv {
    float* k;
    float* v;
  };

  [[nodiscard]] Kv kv_of(int layer) const {
    const std::size_t i = options_.keep_kv ? static_cast<std::size_t>(layer) : 0;
    return {keys_[i].data(), values_[i].data()};
  }

  // y [rows, ldy] = x [rows, columns] W^T + bias.
  void dense(const float* x, std::int64_t rows, const WeightMatrix& w,
             const std::vector<float>& bias, float* y, std::int64_t ldy) {
    const std::int64_t row_tiles = (rows + kTileRows - 1) / kTileRows;
    const std::int64_t output_tiles = (w.rows + kTileOutputs - 1) / kTileOutputs;
    tbb::parallel_for(std::int64_t{0}, output_tiles, [&](std::int64_t tile) {
      const std::int64_t output = tile * kTileOutputs;
      const std::int64_t outputs = std::min(kTileOutputs, w.rows - output);
      std::vector<float>& widened = widened_.local();
      widened.resize(static_cast<std::size_t>(kTileOutputs * w.columns));
      widen_rows(w, output, outputs, widened.data());
      tbb::this_task_arena::isolate([&] {
        tbb::parallel_for(std::int64_t{0}, row_tiles, [&](std::int64_t t) {
          const std::int64_t row = t * kTileRows;
          const std::int64_t count = std::min(kTileRows, rows - row);
          float* out = y + row * ldy + output;
          if (!bias.empty()) {
            for (std::int64_t r = 0; r < count; ++r) {
              std::copy_n(bias.begin() + output, outputs, out + r * ldy);
            }
          }
          kernels::gemm({.m = count,
                         .n = outputs,
                         .k = w.columns,
                         .a = x + row * w.columns,
                         .lda = w.columns,
                         .b = widened.data(),
                         .ldb = w.columns,
                         .b_transposed = true,
                         .beta = bias.empty() ? 0.0F : 1.0F,
                         .c = out,
                         .ldc = ldy});
        });
      });
    });
  }

  // q of the wave, and its keys and values into the cache.
  void project(const LayerWeights& w, const Wave& wave, const Kv& kv) {
    q_.resize(static_cast<std::size_t>(wave.count * spec_.q_width()));
    const PositionRun run{wave.row, wave.count};
    math_.project(
        w, wave.layer, {&run, 1}, wave.hidden.data(),
        {q_.data(), kv.k + wave.row * spec_.kv_width(), kv.v + wave.row * spec_.kv_width()});
  }

  void attend(const Wave& wave, const Kv& kv, std::span<const std::uint8_t> visible,
              const Emit& emit) {
    const auto heads =
        static_cast<std::size_t>(wave.count) * static_cast<std::size_t>(spec_.query_heads);
    const std::int64_t keys = wave.row + wave.count;
    attended_.resize(heads * static_cast<std::size_t>(spec_.head_dim));
    prob_.resize(heads * static_cast<std::size_t>(emit.top_k));
    index_.resize(prob_.size());
    lse_.resize(emit.lse ? heads : 0);
    AttentionProblem problem;
    problem.query_heads = spec_.query_heads;
    problem.kv_heads = spec_.kv_heads;
    problem.head_dim = spec_.head_dim;
    problem.first = wave.row;
    problem.rows = wave.count;
    problem.window = spec_.window(wave.layer);
    problem.scale = static_cast<float>(spec_.score_scale());
    if (!visible.empty()) {  // [kv_heads, keys of the pass] to [kv_heads, keys of the wave]
      visible_.resize(static_cast<std::size_t>(spec_.kv_heads * keys));
      for (int h = 0; h < spec_.kv_heads; ++h) {
        std::copy_n(visible.data() + h * (wave.first + wave.rows), keys,
                    visible_.data() + h * keys);
      }
      problem.visible = visible_.data();
    }
    AttentionTensors tensors;
    tensors.q = q_.data();
    tensors.k = kv.k;
    tensors.v = kv.v;
    tensors.out = attended_.data();
    tensors.top_k = emit.top_k;
    tensors.prob = emit.top_k > 0 ? prob_.data() : nullptr;
    tensors.index = emit.top_k > 0 ? index_.data() : nullptr;
    tensors.lse = emit.lse ? lse_.data() : nullptr;
    tensors.column_mass = emit.column_mass ? mass_.data() : nullptr;
    tensors.column_stride = wave.first + wave.rows;
    attention_cpu(problem, tensors);
  }

  Checkpoint checkpoint_;
  const ModelSpec& spec_;
  RunnerOptions options_;
  LayerMath math_;
  tbb::task_arena arena_;
  std::vector<Scratch> keys_, values_;  // [layers or 1] of [tokens, kv_heads, head_dim]
  tbb::enumerable_thread_specific<std::vector<float>> widened_;
  // Of one wave, [rows, width].
  std::vector<float> q_, attended_, prob_, lse_;
  std::vector<std::int32_t> index_;
  std::vector<std::uint8_t> visible_;
  std::vector<float> mass_;  // [query_heads, keys of the pass]
};

}  // namespace

std::unique_ptr<Runner> make_cpu_runner(const Checkpoint& checkpoint,
                                        const RunnerOptions& options) {
  return std::make_unique<CpuRunner>(checkpoint, options);
}

}  // namespace kvspan::tracegen
