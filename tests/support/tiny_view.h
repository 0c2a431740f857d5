// SPDX-License-Identifier: Apache-2.0
// What a store sees, made up.
#pragma once

#include <cstddef>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "sim/policy/roles.h"
#include "sim/trace/trace.h"

namespace kvspan::test {

// One layer of made-up vectors at the end of a pass: what a store sees.
class TinyView : public View {
 public:
  TinyView(std::vector<std::vector<float>> keys, std::vector<std::vector<float>> values,
           std::vector<std::vector<float>> queries = {})
      : keys_(std::move(keys)), values_(std::move(values)), queries_(std::move(queries)) {
    shape_.layers = shape_.model_layers = shape_.query_heads = shape_.kv_heads = shape_.heads = 1;
    shape_.k_dim = static_cast<int>(keys_[0].size());
    shape_.v_dim = static_cast<int>(values_[0].size());
    turn({0, static_cast<RowIndex>(keys_.size()), static_cast<RowIndex>(keys_.size()), 0, {}});
  }
  void turn(const Pass& pass) {
    pass_ = pass;
    resident_.resize(static_cast<std::size_t>(pass.end));
    std::iota(resident_.begin(), resident_.end(), 0);
  }
  // Entries that left by an earlier decision.
  void kill(TokenIndex token) { std::erase(resident_, token); }
  void set_rope(const Rope& rope) { rope_ = rope; }
  const LayerShape& shape() const override { return shape_; }
  const Pass& pass() const override { return pass_; }
  std::span<const TokenIndex> resident(int) const override { return resident_; }
  double votes(int, RowIndex, std::span<const TokenIndex>, std::span<double>) const override {
    return 0;
  }
  double probabilities(int, RowIndex, std::span<const TokenIndex>,
                       std::span<double>) const override {
    return 0;
  }
  void logits(int, RowIndex, std::span<const TokenIndex>, std::span<double>) const override {}
  double column_sum(int, std::span<const TokenIndex>, std::span<double>) const override {
    return 0;
  }
  std::vector<float> query(int, RowIndex row) const override {
    return queries_[static_cast<std::size_t>(row)];
  }
  std::vector<float> key(int, TokenIndex token) const override {
    return keys_[static_cast<std::size_t>(token)];
  }
  std::vector<float> value(int, TokenIndex token) const override {
    return values_[static_cast<std::size_t>(token)];
  }
  double score_scale() const override { return 1; }
  const Rope* rope() const override { return rope_ ? &*rope_ : nullptr; }
  bool measures_output() const override { return true; }
  const Decision* lower(int) const override { return nullptr; }

 protected:
  LayerShape shape_;

 private:
  std::vector<std::vector<float>> keys_, values_, queries_;
  Pass pass_;
  std::vector<TokenIndex> resident_;
  std::optional<Rope> rope_;
};

}  // namespace kvspan::test
