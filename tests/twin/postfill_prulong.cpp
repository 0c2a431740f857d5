// SPDX-License-Identifier: Apache-2.0
// Twins of the baselines of arXiv 2506.17121 as its programs run them: SnapKV and PyramidKV
// (preset=prulong), alone and after every chunk, and Locret with a share. All leave the prompt's
// last token to the first decode call.
#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/twin/postfill_rules.h"

namespace kvspan::twin::postfill {
namespace {

int up_to_64(int x) { return (x + 63) / 64 * 64; }

// Share s of x tokens, as int() of a product of doubles.
int share_tokens(const Choice& c, int x) {
  return static_cast<int>(share_of(amount_of(c.text("budget", "20%"))) * x);
}

// What SnapKV's cluster is given: the keys of a chunk and, if it is patched, the prompt's last keys
// behind them; the last `window` rows vote.
struct Chunk {
  int begin = 0, end = 0;  // tokens whose entries may stay
  int patch = 0;           // tokens of the prompt's end behind them
  [[nodiscard]] int size() const { return end - begin + patch; }
};

// Votes of one query head for the chunk's entries before the window, pooled on average.
Values chunk_votes(const World& u, const Choice& c, int l, int g, const Chunk& k, int prefilled) {
  const Layer& layer = u.t.layers[at(l)];
  const int window = c.count("window", 64);
  const int first = k.patch > 0 ? prefilled - window : k.end - window;
  const Tokens seen = range(k.begin, k.end);
  const int candidates = k.patch > 0 ? k.end - k.begin : k.end - k.begin - window;
  Values votes(at(candidates), 0.0);
  for (int row = first; row < first + window; ++row) {
    // Patch rows and keys stand behind the chunk: to each other as ever, to the chunk moved.
    const int shift = k.patch > 0 ? k.end - first : 0;
    const Values z = raw_logits(u.t, layer, g, query(u.t, layer, g, row, shift), row + shift, seen);
    Values all = z;
    if (k.patch > 0) {
      const Tokens own = range(first, row + 1);
      const Values more = raw_logits(u.t, layer, g, query(u.t, layer, g, row, 0), row, own);
      all.insert(all.end(), more.begin(), more.end());
    }
    const Values p = softmax_of(layer, g, all);
    for (int e = 0; e < candidates; ++e) votes[at(e)] += p[at(e)];
  }
  return pool(votes, c.count("kernel", 5), c.is("pool", "max", "avg"));
}

// Entries before the window that PyramidKV's cluster keeps of `size` keys.
int pyramid_top(const World& u, const Choice& c, int model_layer, int capacity, int size, int w) {
  const auto floored = [](int a, int b) { return static_cast<int>(std::floor(1.0 * a / b)); };
  const int base = capacity - w;
  int low = floored(base, c.count("beta", 20)), high = 2 * base - low;
  if (high >= size - w) {
    high = size - w;
    low = 2 * base - high;
  }
  if (size < 2 * base) return base;
  return high - model_layer * floored(high - low, u.t.model_layers - 1);
}

void cluster(const World& u, const Choice& c, int model_layer, const Chunk& k, int capacity,
             int prefilled, const Moment& m, Verdict& out) {
  const int w = c.count("window", 64);
  if (k.size() < capacity) return;
  int top = capacity - w;
  if (c.name == "pyramidkv" && capacity > w) {
    top = pyramid_top(u, c, model_layer, capacity, k.size(), w);
  }
  if (capacity <= w) top = 0;
  const int older = std::max(0, k.size() - w);  // the window of a patched chunk is the patch
  for (int h = 0; h < u.heads; ++h) {
    std::vector<Values> per_head;
    const auto [first, last] = readers(u.t, u.heads, h);
    for (int g = first; g < last && older > 0 && top > 0; ++g) {
      per_head.push_back(chunk_votes(u, c, m.l, g, k, prefilled));
    }
    bool near = false;
    Tokens gone;
    if (per_head.empty()) {
      gone = range(k.begin, k.begin + older);
    } else {
      for (const std::size_t e : drop(reduce(per_head, "mean"), std::min(top, older), near)) {
        gone.push_back(k.begin + static_cast<int>(e));
      }
    }
    out.kept[at(h)] = without(m.resident[at(h)], gone);
    if (near) out.near[at(h)] = 1;
  }
}

}  // namespace

bool of_prulong(const Choice& c) {
  if (c.name == "chunked") return of_prulong(c.inner());
  if (c.name == "locret") return amount_of(c.text("budget", "20%")).kind == Amount::share;
  return c.is("preset", "prulong", "none");
}

void prulong(const World& u, const Moment& m, int model_layer, Verdict& out) {
  const bool chunked = u.policy.name == "chunked";
  const Choice c = chunked ? u.policy.inner() : u.policy;
  const int b = m.end(), prefilled = u.prefilled;
  if (c.name == "locret") {
    const int tail = prefilled - c.count("local", 100);
    if (b > prefilled || (b > tail && b < prefilled)) return;
    int stabilizers = c.count("stabilizers", 2500);
    if (!c.has("stabilizers")) stabilizers = std::min(stabilizers, budget_of(u, c) / 2);
    const int budget = std::max(stabilizers, up_to_64(share_tokens(c, b)));
    for (int h = 0; h < u.heads; ++h) {
      out.kept[at(h)] = by_table(u, m, h, b < tail ? stabilizers : 0, budget, out);
    }
    return;
  }
  const int w = c.count("window", 64);
  if (!chunked) {
    if (b != prefilled) return;
    const bool share = amount_of(c.text("budget", "20%")).kind == Amount::share;
    const int asked = share ? share_tokens(c, u.prompt) : budget_of(u, c);
    cluster(u, c, model_layer, {0, b, 0}, up_to_64(std::max(asked, w)), prefilled, m, out);
    return;
  }
  if (b > prefilled) return;
  const bool patched = u.policy.is("variant", "patched", "naive") && b < prefilled;
  const Chunk k{m.pass.begin, b, patched ? w : 0};
  cluster(u, c, model_layer, k, share_tokens(c, b - k.begin) + k.patch, prefilled, m, out);
}

}  // namespace kvspan::twin::postfill
