// SPDX-License-Identifier: Apache-2.0
// Twins of chunkkv, and of the wrappers chunk, block and criticalkv.
#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

// EntropyGatedChunkKVPress, step by step. Chunks inside the window tie there: the newest first.
Tokens gated(const Values& token, int length, int spiky, int window_begin, int budget, bool& near) {
  const int n = static_cast<int>(token.size());
  Values score, rank, entropy;
  for (int a = 0; a < n; a += length) {
    const int b = std::min(a + length, n);
    const Values own(token.begin() + a, token.begin() + b);
    score.push_back(mean(own));
    rank.push_back(a >= window_begin ? 1e6 * (1 + a) : score.back());
    double sum = 0, h = 0;
    for (const double s : own) sum += s;
    for (const double s : own) h -= s / (sum + 1e-8) * std::log(s / (sum + 1e-8) + 1e-8);
    entropy.push_back(b - a == 1 ? 0 : std::clamp(h / std::log(b - a), 0.0, 1.0));
  }
  const auto rounded = [](double x) { return static_cast<double>(static_cast<float>(x)); };
  const auto median = [&](Values x) {
    for (double& v : x) v = rounded(v);
    std::sort(x.begin(), x.end());
    return x[(x.size() - 1) / 2];
  };
  const double important = median(score), coherent = median(entropy);
  std::vector<int> order = range(0, static_cast<int>(score.size()));
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return static_cast<float>(rank[at(a)]) > static_cast<float>(rank[at(b)]);
  });
  for (std::size_t i = 0; i < score.size(); ++i) {
    const double gap = std::abs(rounded(entropy[i]) - coherent);
    near = near || near_tie(rounded(score[i]), important) || (gap > 0 && gap < 1e-7);
    if (i > 0) near = near || near_tie(rank[at(order[i])], rank[at(order[i - 1])]);
  }
  std::vector<char> keep(at(n), 0);
  const auto take = [&](int a, int b, int count) {
    Tokens left;
    Values scores;
    for (int j = a; j < b; ++j) {
      if (keep[at(j)] != 0) continue;
      left.push_back(j);
      scores.push_back(token[at(j)]);
    }
    const int taken = std::min(count, static_cast<int>(left.size()));
    std::vector<char> gone(left.size(), 0);
    for (const std::size_t e : drop(scores, taken, near)) gone[e] = 1;
    for (std::size_t e = 0; e < left.size(); ++e)
      if (gone[e] == 0) keep[at(left[e])] = 1;
    budget -= taken;
  };
  for (const int i : order) {
    const int a = i * length, b = std::min(a + length, n);
    const bool cut = static_cast<float>(score[at(i)]) >= static_cast<float>(important) &&
                     static_cast<float>(entropy[at(i)]) < static_cast<float>(coherent);
    take(a, b, cut ? std::min(budget, spiky) : budget);
  }
  take(0, n, budget);
  Tokens out;
  for (int j = 0; j < n; ++j)
    if (keep[at(j)] != 0) out.push_back(j);
  return out;
}

// One set for all heads: the best chunks of `length`, by sum or mean; `window` entries at the end
// are added (paper), or rank above all (kvpress).
Tokens chunk_set(const World& u, const Moment& m, bool& near) {
  const Choice& c = u.policy;
  const int n = m.end(), budget = budget_of(u, c);
  const bool paper = c.is("preset", "paper", "paper");
  const int length = c.count("length", paper ? 10 : 20);
  const int window = std::min(c.count("window", paper ? 8 : 64), n);
  if (n <= budget) return range(0, n);
  Values token(at(n), 0.0);
  if (paper) {
    for (int g = 0; g < u.t.query_heads; ++g) {
      for (int row = n - window; row < n; ++row) {
        const Values p = full_attention(u, m.l, g, row);
        for (int j = 0; j < n - window && j <= row; ++j) token[at(j)] += p[at(j)];
      }
    }
  } else {
    const Parameters none{{"kernel", "5"}, {"pool", "avg"}};
    const Ballot x = ballot(u, {"snapkv", none, ""}, m, window);
    double top = 0;
    for (const Values& v : x.votes) {
      for (const double s : v) top = std::max(top, s / window);
    }
    for (int h = 0; h < u.heads; ++h) {
      for (int j = 0; j < n; ++j) {
        token[at(j)] += j < n - window ? x.votes[at(h)][at(j)] / window : top + 1;
      }
    }
  }
  if (c.is("preset", "entropy", "paper"))
    return gated(token, length, c.count("spiky", 4), n - window, budget, near);
  const int end = paper ? n - window : n;
  Values chunks;
  for (int a = 0; a < end; a += length) {
    const int b = std::min(a + length, end);
    double sum = 0;
    for (int j = a; j < b; ++j) sum += token[at(j)];
    chunks.push_back(paper ? sum : sum / (b - a));
    if (!paper && a >= n - window)
      chunks.back() = 1e6 * (1 + a);  // equal on paper: the newest stays
  }
  const int count = static_cast<int>(chunks.size());
  const Amount size = amount_of(c.text("budget", "20%"));
  const int part = size.kind == Amount::share ? static_cast<int>(count * share_of(size))
                                              : static_cast<int>(1LL * count * budget / n);
  const int keep = paper ? budget / length : std::max(1, part);
  Tokens gone;
  for (const std::size_t e : drop(chunks, keep, near)) {
    for (int j = static_cast<int>(e) * length;
         j < std::min((static_cast<int>(e) + 1) * length, end); ++j) {
      gone.push_back(j);
    }
  }
  return without(range(0, n), gone);
}

}  // namespace

void chunkkv(const World& u, const Moment& m, int model_layer, Memory& memory, Verdict& out) {
  const int block = model_layer / u.policy.count("reuse", 1);
  bool near = false;
  if (memory.leader_set.count(block) == 0) memory.leader_set[block] = chunk_set(u, m, near);
  for (Tokens& kept : out.kept) kept = memory.leader_set[block];
  if (near) std::fill(out.near.begin(), out.near.end(), 1);
}

void wrapped(const World& u, const Moment& m, Verdict& out) {
  const Choice& c = u.policy;
  const Choice p = c.inner();
  const int budget = budget_of(u, p), b = m.end();
  for (int h = 0; h < u.heads; ++h) {
    const Tokens& all = m.resident[at(h)];
    if (static_cast<int>(all.size()) <= budget) continue;
    const Tokens candidates = candidates_of(all, safe_of(u, p), b);
    Tokens kept = without(all, candidates);
    if (static_cast<int>(kept.size()) >= budget) {
      out.kept[at(h)] = {kept.end() - budget, kept.end()};
      continue;
    }
    const int left = budget - static_cast<int>(kept.size());
    const int n = static_cast<int>(candidates.size());
    bool near = false;
    const auto take = [&](const Tokens& from, const Values& score, int count) {
      Tokens gone;
      for (const std::size_t e : drop(score, count, near)) gone.push_back(from[e]);
      return without(from, gone);
    };
    if (c.name == "chunk") {
      const int length = c.count("length", 1024);
      // The remainder goes to the last chunk, and what is too much for it to those before.
      std::vector<int> share;
      int spent = 0;
      for (int a = 0; a < n; a += length) {
        share.push_back(static_cast<int>(1LL * left * std::min(length, n - a) / n));
        spent += share.back();
      }
      for (std::size_t i = share.size(); i-- > 0;) {
        const int room = std::min(length, n - static_cast<int>(i) * length) - share[i];
        share[i] += std::min(room, left - spent);
        spent += std::min(room, left - spent);
      }
      for (std::size_t i = 0; i < share.size(); ++i) {
        const int a = static_cast<int>(i) * length;
        const Tokens part(candidates.begin() + a, candidates.begin() + std::min(a + length, n));
        const Tokens some = take(part, score_by(u, p, m, h, part), share[i]);
        kept.insert(kept.end(), some.begin(), some.end());
      }
    } else if (c.name == "block") {
      const int size = c.count("size", 128);
      Tokens held(candidates.begin(), candidates.begin() + left);
      for (int a = left; a < n; a += size) {
        held.insert(held.end(), candidates.begin() + a, candidates.begin() + std::min(a + size, n));
        held = take(held, score_by(u, p, m, h, held), left);
      }
      kept.insert(kept.end(), held.begin(), held.end());
    } else {  // criticalkv
      const int first = std::max(1, static_cast<int>(c.real("ratio", 0.5) * budget));
      const Values score = score_by(u, p, m, h, candidates);
      // Votes are means over the window's rows next to epsilon.
      const int rows = p.name == "snapkv" ? std::min(p.count("window", 32), b) : 1;
      const Tokens sure =
          take(candidates, score, std::max(0, first - static_cast<int>(kept.size())));
      const Tokens rest = without(candidates, sure);
      const auto [g0, g1] = readers(u.t, u.heads, h);
      const int dv = u.t.v_head_dim;
      Values second;
      for (const int j : rest) {
        const double* v = value_of(u, m.l, u.kv_head(h), j);
        double norm = 0;
        if (u.tables.wo.empty()) {
          for (int i = 0; i < dv; ++i) norm += std::abs(v[i]);
        } else {
          const Values& wo = u.tables.wo[at(m.l)];
          const int width = u.t.query_heads * dv;
          for (int g = g0; g < g1; ++g) {
            for (int x = 0; x < static_cast<int>(wo.size()) / width; ++x) {
              double sum = 0;
              for (int i = 0; i < dv; ++i) sum += wo[at(x * width + g * dv + i)] * v[i];
              norm += std::abs(sum) / (g1 - g0);
            }
          }
        }
        const auto place = std::find(candidates.begin(), candidates.end(), j) - candidates.begin();
        second.push_back((score[static_cast<std::size_t>(place)] / rows + c.real("epsilon", 1e-4)) *
                         norm);
      }
      const Tokens more = take(rest, second, left - static_cast<int>(sure.size()));
      kept.insert(kept.end(), sure.begin(), sure.end());
      kept.insert(kept.end(), more.begin(), more.end());
    }
    std::sort(kept.begin(), kept.end());
    out.kept[at(h)] = kept;
    out.near[at(h)] = near ? 1 : 0;
  }
}

}  // namespace kvspan::twin::postfill
