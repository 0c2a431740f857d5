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

// What the newest rows attend to beyond the window; zero while nobody has to leave.
class CapScorer final : public Scorer {
 public:
  CapScorer(TokenCount cap, TokenCount window) : cap_(cap), window_(window) {}
  Needs needs() const override;
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  TokenCount cap_, window_;
};

// A tenth of every head leaves while a layer's heads hold more than `cap` on average.
class CapBudget final : public Budget {
 public:
  explicit CapBudget(TokenCount cap) : cap_(cap) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& /*sizing*/) const override {
    return kAll;
  }
  bool content_free() const override { return false; }
  void counts(const View& view, const Scores& scores, const Sizing& sizing,
              std::span<TokenCount> keep) const override;

 private:
  TokenCount cap_;
};

}  // namespace kvspan::policies
