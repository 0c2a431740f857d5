// SPDX-License-Identifier: Apache-2.0
// What every twin of the post-fill policies sees: parameters, moments, verdicts; amounts and
// picking.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "tests/twin/catalogue_postfill.h"
#include "tests/twin/parts.h"

namespace kvspan::twin::postfill {

inline constexpr int kBytes = 2;  // of an element

// A policy's name and parameters.
struct Choice {
  std::string name;
  const Parameters& all;
  std::string prefix;  // "inner." inside a wrapper

  [[nodiscard]] bool has(const std::string& key) const { return all.count(prefix + key) > 0; }
  [[nodiscard]] std::string text(const std::string& key, const std::string& fallback) const {
    return has(key) ? all.at(prefix + key) : fallback;
  }
  [[nodiscard]] double real(const std::string& key, double fallback) const {
    return has(key) ? std::stod(all.at(prefix + key)) : fallback;
  }
  [[nodiscard]] int count(const std::string& key, int fallback) const {
    return has(key) ? std::stoi(all.at(prefix + key)) : fallback;
  }
  [[nodiscard]] bool is(const std::string& key, const std::string& word,
                        const std::string& fallback) const {
    return text(key, fallback) == word;
  }
  [[nodiscard]] Choice inner() const { return {text("inner", ""), all, prefix + "inner."}; }
};

// All that is fixed before the replay.
struct World {
  const Trace& t;
  Choice policy;
  const Tables& tables;
  int layers = 0;     // stored layers
  int prompt = 0;     // n
  int point = 0;      // n': the prompt-end rules act after the pass that ends here
  int prefilled = 0;  // of arXiv 2506.17121's programs: the prompt without its last token
  int heads = 0;      // stored heads of a layer
  std::vector<Pass> passes;
  std::vector<char> admitted{};  // [layers, heads, tokens] write_gate

  [[nodiscard]] std::size_t flat(int l, int h, int token) const {
    return (at(l) * at(heads) + at(h)) * at(t.tokens) + at(token);
  }
  [[nodiscard]] long long entry_bytes() const { return 1LL * (t.head_dim + t.v_head_dim) * kBytes; }
  [[nodiscard]] int group() const { return t.query_heads / heads; }
  [[nodiscard]] int kv_head(int h) const { return h / (heads / t.kv_heads); }
};

using Tokens = std::vector<int>;

using Values = std::vector<double>;

// The end of one pass of one layer.
struct Moment {
  int l = 0;
  Pass pass;
  std::vector<Tokens> resident;  // [heads] ascending, newborns included
  [[nodiscard]] int end() const { return pass.end; }
};

// What foresightkv adds up from cut to cut; H2O in `acc`.
struct Sums {
  double acc = 0, decayed = 0;
};

// State that outlives a pass.
struct Memory {
  std::vector<char> lazy;            // [layers] simlayerkv
  std::map<int, Tokens> leader_set;  // chunkkv: what a block of layers keeps
  std::map<int, Tokens> places;  // decoding, cake, vase: a cache of a head of a layer, in its order
  std::map<int, char> near_places;  // ... two places hung on a near tie
  std::set<int> begun;              // foresightkv: heads of layers that have had a cut
  std::map<std::tuple<int, int, int>, Sums> sums;  // of a layer, query head, token
};

// What stays in every head, and which heads hung on a near tie.
struct Verdict {
  std::vector<Tokens> kept;
  std::vector<char> near;
  explicit Verdict(const Moment& m) : kept(m.resident), near(m.resident.size(), 0) {}
};

[[nodiscard]] Tokens range(int begin, int end);

[[nodiscard]] const double* key_of(const World& u, int l, int kv_head, int token);

[[nodiscard]] const double* value_of(const World& u, int l, int kv_head, int token);

[[nodiscard]] double squared_norm(const double* x, int dim);

// p' of one row over `keys`.
[[nodiscard]] Values attention(const World& u, int l, int g, int row, const Tokens& keys);

[[nodiscard]] Values full_attention(const World& u, int l, int g, int row);

[[nodiscard]] Amount amount_of(const std::string& text);

[[nodiscard]] int budget_of(const World& u, const Choice& c);

// The share that stays as the authors' codes have it: 1 - s, s the double nearest to what goes.
[[nodiscard]] double share_of(const Amount& a);

[[nodiscard]] int half_even(double x);

// Indices of all but the best `keep`: compared in fp32, so that sums that tie on paper tie here;
// lower indices win ties. Near ties are judged in double.
[[nodiscard]] std::vector<std::size_t> drop(const Values& scores, int keep, bool& near);

// Entries of `from` that are not in `gone`.
[[nodiscard]] Tokens without(const Tokens& from, const Tokens& gone);

using ScoreOf = std::function<Values(const Tokens& candidates)>;

// Entries that may not leave: the first `sinks`, the newest `recent`.
struct Safe {
  int sinks = 0, recent = 0;
};

[[nodiscard]] Tokens candidates_of(const Tokens& resident, Safe safe, int end);

// The best `budget` entries, what is safe counted inside; if that is more, the newest of it.
[[nodiscard]] Tokens best(const Tokens& resident, Safe safe, int end, int budget,
                          const ScoreOf& score, bool& near);

}  // namespace kvspan::twin::postfill
