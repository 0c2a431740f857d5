// SPDX-License-Identifier: Apache-2.0
// What every twin of the stores sees: parameters, entries as they are held, attention; rounding.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "tests/twin/catalogue_stores.h"
#include "tests/twin/parts.h"

namespace kvspan::twin::stores {

inline constexpr int kElement = 2;  // bytes of an element as it is born

// ---- parameters -----------------------------------------------------------------------------

struct Fraction {
  long long top = 0, bottom = 1;
};

[[nodiscard]] Fraction parse_share(const std::string& text);

[[nodiscard]] int floor_of(const Fraction& f, int n);

struct Setup {
  const Trace& trace;
  const Parameters& parameters;
  std::string evictor, store;
  int layers, heads, prompt, point;
  std::vector<Pass> passes;

  [[nodiscard]] std::string text(const std::string& key, const std::string& fallback) const {
    const auto found = parameters.find(key);
    return found == parameters.end() ? fallback : found->second;
  }
  [[nodiscard]] int number(const std::string& key, int fallback) const {
    const auto found = parameters.find(key);
    return found == parameters.end() ? fallback : std::stoi(found->second);
  }
  [[nodiscard]] bool has(const std::string& key) const { return parameters.count(key) != 0; }
  [[nodiscard]] long long entry_bytes() const {
    return static_cast<long long>(trace.head_dim + trace.v_head_dim) * kElement;
  }
  [[nodiscard]] long long held_bytes() const;
  // Entries of a head that a budget stands for; one in bytes is divided by an entry as it is held.
  [[nodiscard]] int budget(const std::string& written) const {
    if (written.back() == '%') return std::max(1, floor_of(parse_share(written), point));
    if (written.back() != 'B') return std::stoi(written);
    return static_cast<int>(std::stoll(written) / (held_bytes() * layers * heads));
  }
};

[[nodiscard]] Setup make_setup(const Trace& t, const std::string& policy, const Parameters& p,
                               const Plan& plan);

// Rounding of x to an integer; `near` counts what fp32 may round the other way, being off by
// `slack`.
[[nodiscard]] double rounded(double x, double slack, long long& near);

// `error`: of x in fp32, where it is not the last bit's.
[[nodiscard]] double to_half(double x, long long& near, double error = 0);

// scale = fp16((max - min) / (2^bits - 1)), zero = fp16(min). `slack`: relative error of the input
// in fp32; 0 for the trace's own elements.
void quantise(std::vector<double*>& x, int bits, double slack, Outcome& out);

// Groups of `group` consecutive channels of one vector.
void quantise_vector(std::vector<double>& x, int bits, int group, double slack, Outcome& out);

[[nodiscard]] long long packed(int dim, int bits, int group);

// An entry as it is held.
struct Entry {
  std::vector<double> k, v;
  long long k_bytes = 0, v_bytes = 0;
  bool alive = true;     // as of now
  bool competes = true;  // mikv: in the high tier
  bool k_packed = false, v_packed = false;
};

// Victims of one KV head, as their mean.
struct Folded {
  int count = 0;
  std::vector<double> k, v;  // sums
};

struct LayerState {
  const Layer* layer = nullptr;
  int index = 0;
  std::vector<std::vector<Entry>> entries;      // [kv_heads][tokens]
  std::vector<std::vector<double>> column_sum;  // [query_heads][tokens]
  std::vector<std::vector<double>> last_row;    // [query_heads][tokens] p' of the newest row
  std::vector<Folded> folded;                   // [kv_heads]
  std::vector<std::vector<double>> balancer;    // [kv_heads][head_dim] mikv
};

[[nodiscard]] std::vector<double> stored(const std::vector<double>& x, int heads, int dim,
                                         int token, int head);

[[nodiscard]] double logit(const Trace& t, const std::vector<double>& q,
                           const std::vector<double>& k, bool cap);

// exp(z - max) / sum, a sink logit in the sum; -infinity gives 0.
[[nodiscard]] std::vector<double> softmax(const Layer& layer, int head, std::vector<double> z);

[[nodiscard]] bool readable(const Layer& layer, int row, int token);

struct Row {
  std::vector<double> p;       // [tokens] full cache
  std::vector<double> own;     // [tokens] p' over the policy's entries, as the trace has them
  std::vector<double> output;  // [v_head_dim] of the entries as they are held
  double mass = 0, error = 0, logits = 0;
};

[[nodiscard]] Row attend(const Setup& u, const LayerState& s, int g, int i);

}  // namespace kvspan::twin::stores
