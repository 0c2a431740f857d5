// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/score/device_scores.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/types.h"
#include "sim/replay/host_scores.h"

namespace kvspan::gpu_replay {
namespace {

// Of what is read, relative to the row's largest term: below it the CPU takes the row, as the
// engine takes such rows anew.
constexpr double kUnderflow = 1e-25;

// Tensors of one layer, all of one type: the trace's own bytes, or all of them widened.
class Tensors {
 public:
  Tensors(const Trace& trace, int layer, bool values) : name_(trace.name()) {
    std::array<const TensorView*, 3> of = {trace.q(layer), trace.k(layer),
                                           values ? trace.v(layer) : nullptr};
    const Dtype dtype = of[0]->dtype;
    const bool same = std::ranges::all_of(
        of, [&](const TensorView* t) { return t == nullptr || t->dtype == dtype; });
    type_ = !same                  ? ScoreType::f32
            : dtype == Dtype::f16  ? ScoreType::f16
            : dtype == Dtype::bf16 ? ScoreType::bf16
                                   : ScoreType::f32;
    for (std::size_t i = 0; i < of.size(); ++i) {
      if (of[i] == nullptr) continue;
      bytes_[i] = of[i]->bytes;
      if (same) continue;
      wide_[i].resize(index(of[i]->elements()));
      widen(*of[i], 0, wide_[i], fmt::format("{}: layers.{}", name_, layer));
      bytes_[i] = std::as_bytes(std::span<const float>(wide_[i]));
    }
  }
  [[nodiscard]] ScoreType type() const { return type_; }
  // 0: q, 1: k, 2: v
  [[nodiscard]] std::span<const std::byte> bytes(std::size_t tensor) const {
    return bytes_[tensor];
  }

 private:
  std::string name_;
  ScoreType type_ = ScoreType::f32;
  std::array<std::vector<float>, 3> wide_;
  std::array<std::span<const std::byte>, 3> bytes_;
};

class DevicePass final : public ScorePass {
 public:
  DevicePass(LoadScores load, std::string name) : load_(load), name_(std::move(name)) {}
  [[nodiscard]] std::string name() const override { return name_; }

  void measure(const ScoreTask& task, const std::function<void(const ScorePiece&)>& use) override {
    const TraceMeta& m = task.trace.meta();
    const bool outputs = std::ranges::any_of(task.vectors, &DeathVector::outputs);
    const Tensors tensors(task.trace, task.layer, outputs);
    const std::vector<float> sinks = task.trace.sink_logits(task.layer);
    const ScoreInput input{
        .query_heads = m.query_heads,
        .kv_heads = m.kv_heads,
        .k_dim = m.head_dim,
        .v_dim = m.v_head_dim,
        .tokens = m.tokens,
        .window = m.sliding_window.empty() ? 0 : m.sliding_window[index(task.layer)],
        .type = tensors.type(),
        .scale = static_cast<float>(m.score_scale),
        .softcap = static_cast<float>(m.logit_softcap),
        .q = tensors.bytes(0),
        .k = tensors.bytes(1),
        .v = tensors.bytes(2),
        .sinks = sinks,
        .vectors = task.vectors};
    std::unique_lock lock(device_);
    const std::unique_ptr<ScoreLayer> layer = load_(input);
    ScorePiece piece;
    piece.query_heads = m.query_heads;
    ScoreFigures figures;
    for (std::size_t at = 0; at < task.rows.size(); at += piece.rows.size()) {
      piece.rows =
          task.rows.subspan(at, std::min(index(layer->most_rows()), task.rows.size() - at));
      piece.resize(task.vectors.size());
      layer->run(piece.rows, figures);
      lock.unlock();  // nobody waits for this layer's arithmetic on the CPU
      take_over(task, figures, piece);
      use(piece);
      lock.lock();
    }
  }

 private:
  static void take_over(const ScoreTask& task, const ScoreFigures& figures, ScorePiece& piece) {
    std::vector<char> again(piece.rows.size(), 0);
    for (std::size_t v = 0; v < task.vectors.size(); ++v) {
      for (int q = 0; q < piece.query_heads; ++q) {
        for (std::size_t i = 0; i < piece.rows.size(); ++i) {
          const std::size_t at = piece.at(v, q, i);
          const double full = figures.sums[piece.at(0, q, i)];
          const double kept = figures.sums[piece.at(v + 1, q, i)];
          const float error = figures.errors[piece.at(v + 1, q, i)];
          if (!std::isfinite(figures.max[piece.at(0, q, i)]) || !std::isfinite(full + kept) ||
              std::isnan(error)) {
            throw TraceError(
                fmt::format("{}: layers.{}: row {}, query head {}: its attention is not a number "
                            "(one of q, k or v is none, or q.k overflows fp32)",
                            task.trace.name(), task.layer, piece.rows[i], q));
          }
          piece.retained[at] = kept / full;
          piece.error[at] = static_cast<double>(error);
          if (task.vectors[v].outputs && kept < kUnderflow) again[i] = 1;
        }
      }
    }
    redo(task, again, piece);
  }

  static void redo(const ScoreTask& task, const std::vector<char>& again, ScorePiece& piece) {
    std::vector<std::int64_t> rows;
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < again.size(); ++i) {
      if (again[i] == 0) continue;
      rows.push_back(piece.rows[i]);
      places.push_back(i);
    }
    if (rows.empty()) return;
    auto place = places.begin();
    HostScores().measure(
        {task.trace, task.layer, rows, task.vectors}, [&](const ScorePiece& known) {
          for (std::size_t i = 0; i < known.rows.size(); ++i, ++place) {
            for (std::size_t v = 0; v < task.vectors.size(); ++v) {
              for (int q = 0; q < piece.query_heads; ++q) {
                piece.retained[piece.at(v, q, *place)] = known.retained[known.at(v, q, i)];
                piece.error[piece.at(v, q, *place)] = known.error[known.at(v, q, i)];
              }
            }
          }
        });
  }

  LoadScores load_;
  std::string name_;
  std::mutex device_;
};

}  // namespace

std::shared_ptr<ScorePass> make_device_scores(LoadScores load, std::string name) {
  return std::make_shared<DevicePass>(load, std::move(name));
}

}  // namespace kvspan::gpu_replay
