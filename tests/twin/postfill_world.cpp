// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/postfill_world.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace kvspan::twin::postfill {

Tokens range(int begin, int end) {
  Tokens out;
  for (int i = begin; i < end; ++i) out.push_back(i);
  return out;
}

const double* key_of(const World& u, int l, int kv_head, int token) {
  return u.t.layers[at(l)].k.data() +
         (at(token) * at(u.t.kv_heads) + at(kv_head)) * at(u.t.head_dim);
}

const double* value_of(const World& u, int l, int kv_head, int token) {
  return u.t.layers[at(l)].v.data() +
         (at(token) * at(u.t.kv_heads) + at(kv_head)) * at(u.t.v_head_dim);
}

double squared_norm(const double* x, int dim) {
  double sum = 0;
  for (int i = 0; i < dim; ++i) sum += x[i] * x[i];
  return sum;
}

Values attention(const World& u, int l, int g, int row, const Tokens& keys) {
  const Layer& layer = u.t.layers[at(l)];
  return softmax(u.t, layer, g, query(u.t, layer, g, row, 0), row, keys);
}

Values full_attention(const World& u, int l, int g, int row) {
  return attention(u, l, g, row, range(0, row + 1));
}

Amount amount_of(const std::string& text) {
  Amount a;
  const std::string number = text.substr(0, text.size() - 1);
  if (text.back() == '%') {
    a.kind = Amount::share;
    a.decimal = number;
  } else if (text.back() == 'B') {
    a.kind = Amount::bytes;
    a.value = std::stod(number);
  } else {
    a.value = std::stod(text);
  }
  return a;
}

int budget_of(const World& u, const Choice& c) {
  return budget_tokens(amount_of(c.text("budget", "20%")), u.point,
                       u.layers * u.heads * u.entry_bytes());
}

double share_of(const Amount& a) {
  const Decimal percent = parse_decimal(a.decimal);
  const auto all = static_cast<double>(100 * percent.scale);
  return 1.0 - static_cast<double>(100 * percent.scale - percent.digits) / all;
}

int half_even(double x) { return static_cast<int>(std::nearbyint(x)); }

std::vector<std::size_t> drop(const Values& scores, int keep, bool& near) {
  Values rounded;
  for (const double s : scores) rounded.push_back(static_cast<double>(static_cast<float>(s)));
  bool exact_near = false;
  const std::vector<std::size_t> out = losers(rounded, keep, exact_near);
  std::vector<char> leaves(scores.size(), 0);
  for (const std::size_t e : out) leaves[e] = 1;
  double worst_kept = kInfinity, best_lost = -kInfinity;
  for (std::size_t e = 0; e < scores.size(); ++e) {
    if (leaves[e] != 0) {
      best_lost = std::max(best_lost, scores[e]);
    } else {
      worst_kept = std::min(worst_kept, scores[e]);
    }
  }
  if (std::isinf(worst_kept) || std::isinf(best_lost)) return out;
  for (std::size_t e = 0; e < scores.size(); ++e) {
    near = near || near_tie(scores[e], leaves[e] != 0 ? worst_kept : best_lost);
  }
  return out;
}

Tokens without(const Tokens& from, const Tokens& gone) {
  Tokens out;
  for (const int j : from) {
    if (std::find(gone.begin(), gone.end(), j) == gone.end()) out.push_back(j);
  }
  return out;
}

Tokens candidates_of(const Tokens& resident, Safe safe, int end) {
  Tokens out;
  for (const int j : resident) {
    if (j >= safe.sinks && j < end - safe.recent) out.push_back(j);
  }
  return out;
}

Tokens best(const Tokens& resident, Safe safe, int end, int budget, const ScoreOf& score,
            bool& near) {
  if (static_cast<int>(resident.size()) <= budget) return resident;
  const Tokens candidates = candidates_of(resident, safe, end);
  const Tokens kept = without(resident, candidates);
  if (static_cast<int>(kept.size()) >= budget) return {kept.end() - budget, kept.end()};
  Tokens gone;
  for (const std::size_t e :
       drop(score(candidates), budget - static_cast<int>(kept.size()), near)) {
    gone.push_back(candidates[e]);
  }
  return without(resident, gone);
}

}  // namespace kvspan::twin::postfill
