// SPDX-License-Identifier: Apache-2.0
// The roles of Write-Gated KV: who is admitted, what a row of the prompt reads, and the cap.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sim/policies/shared/layer_table.h"
#include "sim/policies/write_gate_fit.h"

namespace kvspan::policies {

// Gates of all layers and tokens and the threshold, computed once, when somebody first asks.
class WriteGate {
 public:
  struct Settings {
    std::string gate;
    bool call_sinks = false;  // adaea
    std::shared_ptr<const RegressorSet> weights;
    std::shared_ptr<const LayerTable> table;
    FitOptions fit;
    double rate = 0;
    std::optional<double> threshold;  // instead of the rate
    Geometry geometry;
    // Prompt entries outside the window; all of the prompt if it is shorter.
    [[nodiscard]] std::ptrdiff_t outside() const;
  };
  explicit WriteGate(Settings settings) : settings_(std::move(settings)) {}
  // [tokens] 1: admitted.
  [[nodiscard]] const std::vector<float>& admitted(int layer, int kv_head);
  // Value less threshold.
  [[nodiscard]] double margin(int layer, int kv_head, RowIndex token);

 private:
  void ready();
  void compute();
  Settings settings_;
  std::once_flag once_;
  std::vector<HeadValues> values_, admitted_;  // [layers]
  double threshold_ = 0;
};

// The admission score: the margin of each entry.
class Gate final : public Scorer {
 public:
  Gate(std::shared_ptr<WriteGate> gates, const Needs& needs)
      : gates_(std::move(gates)), needs_(needs) {}
  Needs needs() const override { return needs_; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  std::shared_ptr<WriteGate> gates_;
  Needs needs_;
};

// A row of the prompt reads its window and what was admitted before it. Rows of a block read the
// window of the block's first row, and all up to themselves.
class WindowAndAdmitted final : public Selector {
 public:
  WindowAndAdmitted(std::shared_ptr<WriteGate> gates, TokenCount window, RowIndex block)
      : gates_(std::move(gates)), window_(window), block_(block) {}
  bool by_row() const override { return true; }
  void mask(const View& view, int query_head, RowIndex row, std::span<float> mask) override;

 private:
  std::shared_ptr<WriteGate> gates_;
  TokenCount window_;
  RowIndex block_;
};

// Whether heads hold too much beyond the window: those of a layer on average, or of all layers. Who
// was admitted and when a tenth left tells how many every head of the model holds, so that layers
// need not wait for each other.
class Cap {
 public:
  // gates null: of a layer.
  Cap(TokenCount most, TokenCount window, std::shared_ptr<WriteGate> gates,
      const Geometry& geometry)
      : most_(most),
        window_(window),
        gates_(std::move(gates)),
        geometry_(geometry),
        held_(index(std::int64_t{geometry.layers()} * geometry.kv_heads), 0) {}
  //   beyond   entries beyond the window of a layer's `heads` heads
  [[nodiscard]] bool exceeded(const Pass& pass, TokenCount beyond, int heads);
  [[nodiscard]] TokenCount window() const { return window_; }

 private:
  void count_pass(RowIndex begin, RowIndex end);
  TokenCount most_, window_;
  std::shared_ptr<WriteGate> gates_;
  Geometry geometry_;
  std::mutex mutex_;
  std::vector<TokenCount> held_;  // [layers, heads] beyond the window, after the passes so far
  std::vector<char> exceeded_;    // [passes so far]
};

// What the newest rows attend to beyond the window; zero while nobody has to leave.
class CapScorer final : public Scorer {
 public:
  explicit CapScorer(std::shared_ptr<Cap> cap) : cap_(std::move(cap)) {}
  Needs needs() const override;
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  std::shared_ptr<Cap> cap_;
};

// A tenth of every head leaves while the cap is exceeded.
class CapBudget final : public Budget {
 public:
  explicit CapBudget(std::shared_ptr<Cap> cap) : cap_(std::move(cap)) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& /*sizing*/) const override {
    return kAll;
  }
  bool content_free() const override { return false; }
  void counts(const View& view, const Scores& scores, const Sizing& sizing,
              std::span<TokenCount> keep) const override;

 private:
  std::shared_ptr<Cap> cap_;
};

}  // namespace kvspan::policies
