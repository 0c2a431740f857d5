// SPDX-License-Identifier: Apache-2.0
// Twins of what chooses the entries that a row reads: quest, rocketkv, retroattention, refreshkv,
// infinigen and minference.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/twin/decode_policies.h"

namespace kvspan::twin::decode {
namespace {

// Pages with the best key bounds; what is read is chosen, nothing is evicted.
struct Quest : Policy {
  Quest(World& world, std::string prefix_, const char* per_default)
      : Policy(world), prefix(std::move(prefix_)), per(w.word(prefix + "per", per_default)) {
    page = w.count(prefix + "page", 16);
    pages_read = std::max({w.count(prefix + "least", 3), w.amount(prefix + "budget") / page, 1});
  }
  [[nodiscard]] bool dense(int l, int row) const {
    return row < w.n || w.t.layers[at(l)].model_layer < w.count(prefix + "skip", 2);
  }
  // Pages that a query head reads in a row; empty: everything.
  std::vector<int> choose(int l, int g, int row) {
    std::vector<int> living;
    const std::vector<int> held = w.residents(l, g / w.G, row);
    for (const int j : held) {
      if (living.empty() || living.back() != j / page) living.push_back(j / page);
    }
    if (static_cast<int>(living.size()) <= pages_read) return {};
    std::vector<double> scores;
    for (const int p : living) {
      double top = -kInfinity;
      for (int x = 0; x < w.Hq; ++x) {
        if (per == "kv" ? x / w.G != g / w.G : x != g) continue;
        const std::vector<double> q = w.q(l, x, row);
        double bound = 0;
        for (int i = 0; i < w.d; ++i) {
          double low = kInfinity, high = -kInfinity;
          for (int j = p * page; j < std::min((p + 1) * page, row + 1); ++j) {
            const double key = w.k(l, g / w.G, j)[at(i)];
            low = std::min(low, key);
            high = std::max(high, key);
          }
          bound += std::max(q[at(i)] * low, q[at(i)] * high);
        }
        top = std::max(top, bound);
      }
      scores.push_back(top);
    }
    bool near = false;
    std::vector<int> chosen;
    if (w.word(prefix + "last_page", "true") == "true") {
      const int newest = living.back();
      living.pop_back();
      scores.pop_back();
      chosen = w.best(living, scores, false, pages_read - 1, near);
      chosen.push_back(newest);
    } else {
      chosen = w.best(living, scores, false, pages_read, near);
    }
    w.decide(l, near);
    return chosen;
  }
  void select(int l, Pass pass) override {
    for (int row = pass.begin; row < pass.end; ++row) {
      if (dense(l, row)) continue;
      for (int g = 0; g < w.Hq; ++g) {
        const std::vector<int> pages = choose(l, g, row);
        if (pages.empty()) continue;
        std::vector<int> keys;
        for (const int j : w.residents(l, g / w.G, row)) {
          if (std::find(pages.begin(), pages.end(), j / page) != pages.end()) keys.push_back(j);
        }
        w.out.active[w.reader(l, g, row)] = keys;
      }
    }
  }
  [[nodiscard]] long long page_count(int row) const { return (row + page) / page; }
  long long overhead(int row, long long /*entries*/) override {
    return static_cast<long long>(w.L) * w.Hk * page_count(row) * 2 * w.d * 2;
  }
  std::string prefix, per;
  int page = 16, pages_read = 0;
};

// A row also attends to the pages of the next rows.
struct Retro : Quest {
  explicit Retro(World& world) : Quest(world, "", "kv") {}
  void select(int l, Pass pass) override {
    for (int row = pass.begin; row < pass.end; ++row) {
      if (dense(l, row)) continue;
      for (int g = 0; g < w.Hq; ++g) {
        std::set<int> keys, own;
        for (int u = row; u < std::min(w.N, row + w.count("window", 2)); ++u) {
          const std::vector<int> pages = choose(l, g, u);
          for (int j = 0; j <= row; ++j) {
            const bool in =
                pages.empty() || std::find(pages.begin(), pages.end(), j / page) != pages.end();
            if (in) keys.insert(j);
            if (in && u == row) own.insert(j);
          }
        }
        w.out.active[w.reader(l, g, row)] = {keys.begin(), keys.end()};
        first[w.reader(l, g, row)] = own;
      }
    }
  }
  long long loads(int l, int h, int row) override {
    if (dense(l, row)) return Policy::loads(l, h, row);
    std::set<int> read;
    for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
      for (const int j : first[w.reader(l, g, row)]) {
        if (w.reads(l, row, j)) read.insert(j);
      }
    }
    return static_cast<long long>(read.size());
  }
  long long overhead(int row, long long entries) override {
    const long long past = w.count("window", 2) - 1;
    return Quest::overhead(row, entries) +
           past * w.L * (static_cast<long long>(w.Hq) * w.t.v_head_dim * 2 + 4LL * w.Hq) +
           w.L * w.Hk * page_count(row);
  }
  std::map<std::size_t, std::set<int>> first;  // [reader] S_u
};

// A small copy that full rows make anew.
struct RefreshKv : Policy {
  using Policy::Policy;
  void select(int l, Pass pass) override {
    const int row = pass.begin;
    if (row < w.n) return;
    const int size = w.amount("budget");
    if (row == w.n) {
      copy.assign(at(w.Hk), {});
      refresh(l, w.n - 1);
    }
    const int stride = w.count("stride", 5);
    bool full = (row - w.n + 1) % stride == 0;
    if (full && w.word("schedule", "compare") == "compare") {
      const std::vector<double> now = mean_query(l, row);
      double dot = 0, a = 0, b = 0;
      for (int i = 0; i < w.d; ++i) {
        dot += now[at(i)] * last[at(i)];
        a += now[at(i)] * now[at(i)];
        b += last[at(i)] * last[at(i)];
      }
      const double cosine = dot / std::sqrt(a * b);
      const double bar = w.real("threshold", 0.95);
      full = cosine <= bar;
      w.decide(l, std::abs(cosine - bar) < kNear);
    }
    if (full) {
      refresh(l, row);
      return;
    }
    for (int h = 0; h < w.Hk; ++h) {
      std::vector<int>& held = copy[at(h)];  // the first leaves first
      held.push_back(row);
      std::vector<int> keys = held;
      std::sort(keys.begin(), keys.end());
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) w.out.active[w.reader(l, g, row)] = keys;
      while (static_cast<int>(held.size()) > size) held.erase(held.begin());
    }
  }
  void refresh(int l, int row) {
    std::vector<int> all(at(row + 1));
    std::iota(all.begin(), all.end(), 0);
    for (int h = 0; h < w.Hk; ++h) {
      std::vector<double> top(all.size(), 0.0);
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
        const std::vector<double> p = w.attention(l, g, row, all);
        for (std::size_t e = 0; e < p.size(); ++e) top[e] = std::max(top[e], p[e]);
      }
      top = pool(top, w.count("kernel", 7), true);
      bool near = false;
      const std::vector<int> chosen = w.best(all, top, true, w.amount("budget"), near);
      std::vector<double> scores;
      for (const int j : chosen) {
        scores.push_back(fp32(top[at(j)]));
        for (const int i : chosen) near = near || close(top[at(i)], top[at(j)]);
      }
      copy[at(h)] = ranking(chosen, scores);
      std::reverse(copy[at(h)].begin(), copy[at(h)].end());
      w.decide(l, near);
    }
    last = mean_query(l, row);
  }
  [[nodiscard]] std::vector<double> mean_query(int l, int row) const {
    std::vector<double> mean(at(w.d), 0.0);
    for (int g = 0; g < w.Hq; ++g) {
      const std::vector<double> q = w.q(l, g, row);
      for (int i = 0; i < w.d; ++i) mean[at(i)] += q[at(i)];
    }
    return mean;  // times the heads: its direction counts
  }
  long long overhead(int row, long long /*entries*/) override {
    const bool compares = w.word("schedule", "compare") == "compare";
    const long long query = compares ? static_cast<long long>(w.L) * w.d * 2 : 0;
    if (row < w.n) return query;
    const long long entry = (w.d + w.t.v_head_dim) * 2;
    return query +
           static_cast<long long>(w.L) * w.Hk * std::min(w.amount("budget"), row + 1) * entry;
  }
  std::vector<std::vector<int>> copy;  // [kv_heads] what leaves first, first
  std::vector<double> last;            // mean query of the last full row
};

// As many entries as score within alpha of the best, averaged over heads; the cache is on the host.
struct InfiniGen : Policy {
  using Policy::Policy;
  void select(int l, Pass pass) override {
    const int row = pass.begin;
    if (row < w.n || w.t.layers[at(l)].model_layer == 0) return;
    std::vector<int> earlier(at(row));
    std::iota(earlier.begin(), earlier.end(), 0);
    bool near = false;
    long long within = 0;
    for (int g = 0; g < w.Hq; ++g) {
      const std::vector<double> z = w.logits(l, g, row, earlier);
      const double bar = *std::max_element(z.begin(), z.end()) - w.real("alpha", 4);
      for (const double x : z) {
        within += x > bar;
        near = near || (std::abs(x - bar) < kNear && x != bar);
      }
    }
    const int fetched = std::min(static_cast<int>(within / w.Hq), w.amount("cap"));
    for (int g = 0; g < w.Hq; ++g) {
      std::vector<int> keys = w.best(earlier, w.logits(l, g, row, earlier), true, fetched, near);
      keys.push_back(row);
      w.out.active[w.reader(l, g, row)] = keys;
    }
    w.decide(l, near);
  }
  bool on_device(int /*l*/, int j, int row) override {
    return row < w.point || j >= (row < w.n ? w.point : row);
  }
  // Copies in flight for two layers; the model's first layer takes everything.
  long long overhead(int row, long long /*entries*/) override {
    if (row < w.point) return 0;
    const long long entry = (w.d + w.t.v_head_dim) * 2;
    const long long most = w.Hq * w.amount("cap") * entry;
    const bool first = w.t.layers[0].model_layer == 0;
    return most + std::max(most, first ? (row + 1) * w.Hk * entry : 0);
  }
};

// Vertical lines and diagonals in the prompt.
struct MInference : Policy {
  using Policy::Policy;
  void select(int l, Pass pass) override {
    const int b = pass.end;
    if (b > w.point) return;
    const int verticals = w.count("verticals", 1000), slashes = w.count("slashes", 6096);
    const int first = w.count("first", 30), forced = w.count("forced_slash", 100);
    std::vector<int> all(at(b));
    std::iota(all.begin(), all.end(), 0);
    for (int g = 0; g < w.Hq; ++g) {
      std::vector<int> columns, distances;
      bool near = false;
      if (w.word("pattern", "vertical_slash") == "a_shape") {
        for (int j = 0; j < std::min(b, verticals); ++j) columns.push_back(j);
        for (int j = 0; j < std::min(b, std::max(slashes, 1)); ++j) distances.push_back(j);
      } else {
        std::vector<double> column(at(b), 0.0), diagonal(at(b), 0.0);
        for (int row = std::max(pass.begin, b - w.count("last", 64)); row < b; ++row) {
          std::vector<double> z;
          for (const int j : all) {
            double dot = 0;
            const std::vector<double> q = w.q(l, g, row), k = w.k(l, g / w.G, j);
            for (int i = 0; i < w.d; ++i) dot += q[at(i)] * k[at(i)];
            z.push_back(j <= row ? dot * w.t.score_scale : -kInfinity);
          }
          z = w.softmax(l, -1, z);
          for (int j = 0; j <= row; ++j) {
            column[at(j)] += z[at(j)];
            diagonal[at(row - j)] += z[at(j)];
          }
        }
        for (int j = 0; j < b; ++j) {
          if (j < first) column[at(j)] = kInfinity;
          if (j < forced) diagonal[at(j)] = kInfinity;
        }
        columns = w.best(all, column, true, std::max(verticals, first), near);
        distances = w.best(all, diagonal, true, std::max(slashes, std::min(50, forced)), near);
      }
      w.decide(l, near);
      for (int row = pass.begin; row < b; ++row) {
        std::vector<int> keys;
        for (int j = 0; j <= row; ++j) {
          if (std::find(columns.begin(), columns.end(), j) != columns.end() ||
              std::find(distances.begin(), distances.end(), row - j) != distances.end()) {
            keys.push_back(j);
          }
        }
        w.out.active[w.reader(l, g, row)] = keys;
      }
    }
  }
};

// SnapKV to a prompt budget; then one set a row for the heads of a group, by padded pages of the
// cache and the largest channels of the queries, as the authors' rocket.py.
struct RocketKv : Policy {
  explicit RocketKv(World& world) : Policy(world), budget(w.amount("budget")) {
    const double c = std::max(1.0, 1.0 * w.N / budget);
    const double r = w.has("r") ? w.real("r", 0) : std::min(0.2 + std::log2(c) * 0.06, 0.8);
    const int m = w.N - w.point;
    capacity = std::max(static_cast<int>(w.N / std::pow(c, r)), std::min(2 * m, w.N));
    prompt = std::max(1, capacity - m);
    topk = budget >= w.N ? w.N : std::max(1, budget / 2);
    ratio = std::max(1.0, 1.0 * capacity / budget);
    page = static_cast<int>(std::ceil(std::sqrt(ratio)));
    if (page > ratio) page = 1;
    channels = std::max(1, static_cast<int>(w.d * page / ratio));
  }
  void end(int l, Pass pass) override {
    if (pass.end != w.point) return;
    const int window = std::min(w.count("window", 32), pass.end);
    for (int h = 0; h < w.Hk; ++h) {
      const std::vector<int> held = w.residents(l, h, pass.end - 1);
      if (static_cast<int>(held.size()) <= prompt) continue;
      std::vector<double> score(held.size() - at(window), 0.0);
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
        for (int row = pass.end - window; row < pass.end; ++row) {
          const std::vector<double> p = w.attention(l, g, row, held);
          for (std::size_t e = 0; e < score.size(); ++e) score[e] += p[e];
        }
      }
      score = pool(score, w.count("kernel", 63), true);
      score.resize(held.size(), 0.0);
      const int top = prompt - window;
      if (top > 0) {
        evict(l, h, pass.end, held, pass.end - window, score, true, top);
      } else {
        evict(l, h, pass.end, held, pass.end - prompt, score, true, 0);
      }
    }
  }
  void select(int l, Pass pass) override {
    if (pass.begin < w.n) return;
    const int row = pass.begin;
    for (int h = 0; h < w.Hk; ++h) {
      const std::vector<int> held = w.residents(l, h, row);
      const int n = static_cast<int>(held.size());
      if (n <= topk) continue;
      std::vector<std::vector<double>> q;
      std::vector<double> sum(at(w.d), 0.0), size(at(w.d), 0.0), s_hat(at(n), 0.0);
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
        q.push_back(w.q(l, g, row));
        for (int i = 0; i < w.d; ++i) {
          sum[at(i)] += q.back()[at(i)];
          size[at(i)] += std::abs(q.back()[at(i)]) / w.G;
        }
      }
      std::vector<int> all(at(w.d));
      std::iota(all.begin(), all.end(), 0);
      bool near = false;
      const std::vector<int> i1 = w.best(all, size, false, channels, near);
      for (const std::vector<double>& x : q) {
        double some = 0, every = 0;
        for (const int i : i1) some += std::abs(x[at(i)]);
        for (const double v : x) every += std::abs(v);
        if (some == 0) continue;
        std::vector<double> z;
        for (int e = 0; e < n; ++e) {
          double promise = 0;
          for (const int i : i1) {
            const double sign = sum[at(i)] > 0 ? 1 : -1;
            double most = -kInfinity;
            for (int o = e / page * page; o < std::min(n, (e / page + 1) * page); ++o)
              most = std::max(most, sign * w.k(l, h, held[at(o)])[at(i)]);
            promise += sign * x[at(i)] * most;
          }
          z.push_back(promise / std::sqrt(w.d * some / every));
        }
        z = w.softmax(l, -1, z);
        for (int e = 0; e < n; ++e) s_hat[at(e)] += z[at(e)];
      }
      const std::vector<int> chosen = w.best(held, s_hat, true, topk, near);
      w.decide(l, near);
      std::vector<int> sorted = chosen;
      std::sort(sorted.begin(), sorted.end());
      for (int g = h * w.G; g < (h + 1) * w.G; ++g) w.out.active[w.reader(l, g, row)] = sorted;
    }
  }
  long long overhead(int /*row*/, long long entries) override {
    return w.word("bounds", "formed") == "stored" ? entries * ((2 * w.d * 2 + page - 1) / page) : 0;
  }
  int budget, capacity = 0, prompt = 0, topk = 0, page = 1, channels = 0;
  double ratio = 1;
};

}  // namespace

std::unique_ptr<Policy> quest(World& w, const std::string& prefix) {
  return std::make_unique<Quest>(w, prefix, "query");
}

std::unique_ptr<Policy> rocketkv(World& w) { return std::make_unique<RocketKv>(w); }

std::unique_ptr<Policy> retroattention(World& w) { return std::make_unique<Retro>(w); }

std::unique_ptr<Policy> refreshkv(World& w) { return std::make_unique<RefreshKv>(w); }

std::unique_ptr<Policy> infinigen(World& w) { return std::make_unique<InfiniGen>(w); }

std::unique_ptr<Policy> minference(World& w) { return std::make_unique<MInference>(w); }

}  // namespace kvspan::twin::decode
