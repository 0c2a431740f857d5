// SPDX-License-Identifier: Apache-2.0
// One layer of plain vectors that a selector is driven over, row by row.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "sim/policy/recipe.h"

namespace kvspan::test {

using Tokens = std::vector<TokenIndex>;
using Vector = std::vector<float>;

// One layer of plain vectors; scale 1. q [query_heads][tokens], k [kv_heads][tokens].
struct HeadVectors {
  std::vector<std::vector<Vector>> q, k;
  int prompt = 0;
  int layer = 5;  // in a model of 32: beyond the layers that are read in full
  [[nodiscard]] int tokens() const { return static_cast<int>(k[0].size()); }
};

inline std::vector<Vector> numbers(const std::vector<float>& list) {
  std::vector<Vector> out;
  for (const float x : list) out.push_back({x});
  return out;
}

// A layer under one selector: nothing is evicted unless `resident` says so.
class SelectorBench final : public View {
 public:
  SelectorBench(HeadVectors v, const std::string& spec) : v_(std::move(v)) {
    Geometry g;
    g.model_layers = 32;
    g.layer_ids = {v_.layer};
    g.query_heads = static_cast<int>(v_.q.size());
    g.kv_heads = static_cast<int>(v_.k.size());
    g.k_dim = g.v_dim = static_cast<int>(v_.k[0][0].size());
    g.tokens = v_.tokens();
    g.prompt = g.evict_point = v_.prompt;
    policy = make_policy(spec, g);
    shape_ = g.shape(0, false);
    if (policy.selector) decode_ = policy.selector(shape_);
    if (policy.prefill_reads) prefill_ = policy.prefill_reads(shape_);
    resident_.resize(v_.k.size());
    prompt();
  }

  // What each query head reads in the next row; every entry where the selector says nothing.
  std::vector<Tokens> next() {
    pass_.begin = pass_.end++;
    for (Tokens& list : resident_) list.push_back(static_cast<TokenIndex>(pass_.begin));
    reads.assign(v_.q.size(), {});
    decode_->select(*this, reads);
    if (decode_->needs().observe != Observe::never) decode_->observe(*this, pass_.begin, pass_.end);
    std::vector<Tokens> out;
    for (std::size_t q = 0; q < reads.size(); ++q)
      out.push_back(reads[q].attended ? *reads[q].attended : resident_[stored(q)]);
    return out;
  }
  Tokens skip_to(RowIndex row) {
    std::vector<Tokens> out;
    while (pass_.end <= row) out = next();
    return out[0];
  }
  Tokens masked(int query_head, RowIndex row) {
    std::vector<float> mask(static_cast<std::size_t>(v_.tokens()), 0.0F);
    std::fill_n(mask.begin(), row + 1, 1.0F);
    prefill_->mask(*this, query_head, row, mask);
    Tokens out;
    for (std::size_t t = 0; t < mask.size(); ++t)
      if (mask[t] != 0) out.push_back(static_cast<TokenIndex>(t));
    return out;
  }
  void evict(int head, TokenIndex token) {
    std::erase(resident_[static_cast<std::size_t>(head)], token);
  }

  const LayerShape& shape() const override { return shape_; }
  const Pass& pass() const override { return pass_; }
  std::span<const TokenIndex> resident(int head) const override {
    return resident_[static_cast<std::size_t>(head)];
  }
  double votes(int, RowIndex, std::span<const TokenIndex>, std::span<double>) const override {
    throw std::logic_error("not asked for");
  }
  double probabilities(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                       std::span<double> out) const override {
    double sum = 0;
    for (const TokenIndex t : resident_[stored(static_cast<std::size_t>(query_head))])
      sum += std::exp(dot(query_head, row, t));
    for (std::size_t i = 0; i < entries.size(); ++i)
      out[i] = std::exp(dot(query_head, row, entries[i])) / sum;
    return 0;
  }
  void logits(int, RowIndex, std::span<const TokenIndex>, std::span<double>) const override {
    throw std::logic_error("not asked for");
  }
  double column_sum(int, std::span<const TokenIndex>, std::span<double>) const override {
    throw std::logic_error("not asked for");
  }
  Vector query(int query_head, RowIndex row) const override {
    return v_.q[static_cast<std::size_t>(query_head)][static_cast<std::size_t>(row)];
  }
  Vector key(int kv_head, TokenIndex token) const override {
    return v_.k[static_cast<std::size_t>(kv_head)][static_cast<std::size_t>(token)];
  }
  Vector value(int, TokenIndex) const override { throw std::logic_error("not asked for"); }
  double score_scale() const override { return 1; }
  const Rope* rope() const override { return nullptr; }
  bool measures_output() const override { return false; }
  const Decision* lower(int) const override { return nullptr; }

  Policy policy;
  std::vector<Reads> reads;

 private:
  void prompt() {
    pass_ = {0, v_.prompt, v_.prompt, v_.prompt, {}};
    for (Tokens& list : resident_) {
      list.resize(static_cast<std::size_t>(v_.prompt));
      std::iota(list.begin(), list.end(), 0);
    }
    if (decode_ && decode_->needs().observe != Observe::never)
      decode_->observe(*this, pass_.end - 1, pass_.end);
  }
  [[nodiscard]] std::size_t stored(std::size_t query_head) const {
    return query_head * v_.k.size() / v_.q.size();
  }
  [[nodiscard]] double dot(int query_head, RowIndex row, TokenIndex token) const {
    const Vector q = query(query_head, row);
    const Vector k = key(static_cast<int>(stored(static_cast<std::size_t>(query_head))), token);
    double sum = 0;
    for (std::size_t i = 0; i < q.size(); ++i)
      sum += static_cast<double>(q[i]) * static_cast<double>(k[i]);
    return sum;
  }
  HeadVectors v_;
  LayerShape shape_;
  Pass pass_;
  std::vector<Tokens> resident_;
  std::unique_ptr<Selector> decode_, prefill_;
};

}  // namespace kvspan::test
