// SPDX-License-Identifier: Apache-2.0
// R-KV: examples by hand, its definition with the whole matrix of cosines over several decisions,
// and the rows in which it decides.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/policies/shared/groups.h"
#include "sim/predict/analytic.h"
#include "tests/support/cases.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::deaths;
using test::weights;

namespace {

using Rows = std::vector<int>;

// The authors' arithmetic, on lists: the cache of one KV head in the order of its slots.
struct Definition {
  const test::TraceSpec& spec;
  int head;
  bool cache_order;
  static constexpr int kHeads = 2, kQueryHeads = 4, kDim = 4;  // of random_spec below
  static constexpr int kWindow = 3, kKernel = 3;
  static constexpr double kLambda = 0.6;

  [[nodiscard]] double key(int t, int d) const {
    return spec.layers[0].k[index((t * kHeads + head) * kDim + d)];
  }
  [[nodiscard]] double cosine(int s, int t) const {
    double dot = 0, a = 0, b = 0;
    for (int d = 0; d < kDim; ++d) {
      dot += key(s, d) * key(t, d);
      a += key(s, d) * key(s, d);
      b += key(t, d) * key(t, d);
    }
    return dot / std::sqrt(a * b);
  }
  [[nodiscard]] double logit(int row, int t) const {  // the group's largest
    double most = -1e9;
    for (int q = 2 * head; q < 2 * head + 2; ++q) {
      double z = 0;
      for (int d = 0; d < kDim; ++d)
        z += spec.layers[0].q[index((row * kQueryHeads + q) * kDim + d)] * key(t, d);
      most = std::max(most, z / 2);
    }
    return most;
  }
  [[nodiscard]] std::vector<double> redundancy(const Rows& cache) const {
    const std::size_t n = cache.size();
    std::vector<double> r(n, 0.0);
    for (std::size_t i = 0; i < n; ++i) {
      std::vector<double> c(n, 0.0);
      std::size_t last = 0;
      for (std::size_t j = 0; j < n; ++j) {
        if (i != j) c[j] = cosine(cache[i], cache[j]);
        if (c[j] > 0.5) last = j;
      }
      c[last] = 0;
      for (std::size_t j = 0; j < n; ++j) r[j] += c[j] / static_cast<double>(n);
    }
    double sum = 0;
    for (double& x : r) sum += x = std::exp(x);
    for (double& x : r) x /= sum;
    return r;
  }
  [[nodiscard]] std::vector<double> importance(const Rows& cache, int end) const {
    std::vector<double> out(cache.size() - kWindow, 0.0);
    for (int row = end - kWindow; row < end; ++row) {
      std::vector<double> p;
      for (std::size_t i = 0; i < out.size(); ++i) p.push_back(std::exp(logit(row, cache[i])));
      const double all = std::accumulate(p.begin(), p.end(), 0.0);
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += p[i] / all / kWindow;
    }
    policies::pool(policies::Pool::max, kKernel, out);
    return out;
  }
  // The cache after a decision; who is missing has left.
  [[nodiscard]] Rows cut(const Rows& cache, int end, std::size_t budget) const {
    const std::vector<double> r = redundancy(cache);
    const std::vector<double> s = importance(cache, end);
    std::vector<std::pair<double, std::size_t>> order;
    for (std::size_t i = 0; i < s.size(); ++i)
      order.emplace_back(-(kLambda * s[i] - (1 - kLambda) * r[i]), i);
    std::sort(order.begin(), order.end());
    order.resize(budget - kWindow);
    Rows out;
    for (const auto& [score, i] : order) out.push_back(cache[i]);
    if (!cache_order) std::sort(out.begin(), out.end());
    out.insert(out.end(), cache.end() - kWindow, cache.end());
    return out;
  }
  [[nodiscard]] Rows run(int prompt, int tokens, int buffer, std::size_t budget) const {
    Rows death(index(tokens), tokens);
    Rows cache;
    for (int end = 1; end < tokens; ++end) {
      cache.push_back(end - 1);
      const bool flag = end == prompt || (end > prompt && (end - 1) % buffer == 0);
      if (!flag || cache.size() < budget) continue;
      const Rows after = cut(cache, end, budget);
      for (const int t : cache) {
        if (std::find(after.begin(), after.end(), t) == after.end()) death[index(t)] = end;
      }
      cache = after;
    }
    return death;
  }
};

}  // namespace

TEST_CASE("r_kv evicts near-duplicates, the oldest first", "[policy][r_kv]") {
  // x = (1, 0), y = (0, 1), Y = (0, -1). Window 1, lambda 0: redundancy alone.
  //   tokens            0 1 2 3 4 | 5 6 7 8 9 10
  //   keys              x x x y Y | x x x x x x
  // Length 5: rows 0, 1 spare column 2, row 2 spares column 1: columns sum to 2, 1, 0, -1 and 0 and
  //   1 leave; the newest is the window. In the cache then: 3 2 4.
  // Length 7 (one more than a multiple of 3), 3 2 4 5 6: rows 2 and 5 spare 6, row 6 spares 5; row
  //   4 has no duplicate, so that column 0 (entry 3) loses its -1: columns 0, 2, -1, 1: 2 and 5
  //   leave. In the cache: 4 3 6.
  // Length 10, 4 3 6 7 8 9: rows 6, 7, 8 spare 9, row 9 spares 8; row 3 takes the -1 off column 0
  //   (entry 4): columns 0, -1, 3, 3, 2: 6, 7, 8 leave.
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 1;
  spec.meta.head_dim = 2;
  spec.meta.tokens = 11;
  spec.meta.prompt_tokens = 5;
  spec.layers.push_back({});
  spec.layers[0].q.assign(22, 0.0);
  spec.layers[0].k = {1, 0, 2, 0, 1, 0, 0, 1, 0, -3, 1, 0, 1, 0, 3, 0, 1, 0, 1, 0, 1, 0};
  const Trace trace = test::make_trace(spec);
  CHECK(deaths(trace, "r_kv(budget=3,buffer=3,window=1,lambda=0)") ==
        Rows{5, 5, 7, 11, 11, 7, 10, 10, 10, 11, 11});
  // Importance alone is SnapKV's, but for the window's share of the softmax.
  const Trace heavy = weights({0, 3, 1, 2, 0, 0, 0}, 6);
  CHECK(deaths(heavy, "r_kv(budget=3,window=1,kernel=1,lambda=1)") ==
        deaths(heavy, "snapkv(budget=3,window=1,kernel=1)"));
  CHECK_THROWS_WITH(deaths(heavy, "r_kv(kernel=4)"), Contains("nearest: 5"));
}

TEST_CASE("r_kv pools and looks for the last duplicate in the order of its cache",
          "[policy][r_kv]") {
  // The authors' program on these vectors: after the prompt its cache holds 2 3 1 5; at length 8 it
  // keeps 1 2 3 and the window 7. Sorted by token before, it would keep 2 3 5.
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 1;
  spec.meta.head_dim = 4;
  spec.meta.tokens = 9;
  spec.meta.prompt_tokens = 6;
  spec.meta.score_scale = 0.5;
  spec.layers.push_back({});
  spec.layers[0].k = {1, 2,  -3, 0, 0,  0, -2, 0,  2, -1, 1,  3, -3, -3, 1, -1, -2, 3,
                      3, -3, -2, 2, -2, 2, -3, -2, 1, 0,  -3, 0, 2,  3,  1, 1,  1,  1};
  spec.layers[0].q.assign(36, 0.0);
  const double q5[] = {3, -3, 1, -2}, q7[] = {-3, -2, -2, -2};
  std::copy(q5, q5 + 4, spec.layers[0].q.begin() + 20);
  std::copy(q7, q7 + 4, spec.layers[0].q.begin() + 28);
  const Trace trace = test::make_trace(spec);
  const std::string settings = "r_kv(budget=4,window=1,kernel=3,lambda=0.5,buffer=7";
  CHECK(deaths(trace, settings + ")") == Rows{6, 9, 9, 9, 6, 8, 8, 9, 9});
  CHECK(deaths(trace, settings + ",order=token)") == Rows{6, 8, 9, 9, 6, 9, 8, 9, 9});
}

TEST_CASE("r_kv equals its definition with the whole matrix of cosines", "[policy][r_kv]") {
  // Prompts below, at and just above the budget (at it nobody leaves, but the cache is laid anew),
  // then a decision in every fifth row. The two orders part.
  int parted = 0;
  for (const int prompt : {40, 13, 12, 11}) {
    const int tokens = prompt + 24;
    const test::TraceSpec spec = test::random_spec({.layers = 1,
                                                    .tokens = tokens,
                                                    .prompt_tokens = prompt,
                                                    .query_heads = 4,
                                                    .kv_heads = 2,
                                                    .seed = 8});
    const Trace trace = test::make_trace(spec);
    for (int h = 0; h < 2; ++h) {
      INFO("prompt " << prompt << ", head " << h);
      const std::string settings = "r_kv(budget=12,window=3,kernel=3,lambda=0.6,buffer=5";
      const Rows cache = Definition{spec, h, true}.run(prompt, tokens, 5, 12);
      const Rows token = Definition{spec, h, false}.run(prompt, tokens, 5, 12);
      CHECK(deaths(trace, settings + ")", {}, 0, h) == cache);
      CHECK(deaths(trace, settings + ",order=token)", {}, 0, h) == token);
      parted += cache != token ? 1 : 0;
    }
  }
  CHECK(parted > 0);
}

TEST_CASE("r_kv acts in the row after a length that its buffer divides", "[policy][r_kv]") {
  const auto held = [](int prompt, int row) {
    const Trace trace = weights(std::vector<double>(300, 0.0), prompt);
    return test::run_one(trace, "r_kv(budget=40)", {})
        .metrics.timeline.resident_entries[index(row)];
  };
  // A prompt of 100 is cut to 40; 128 tokens are there after row 127, and row 128 still reads 69.
  CHECK(held(100, 99) == 100);
  CHECK(held(100, 100) == 41);
  CHECK(held(100, 127) == 68);
  CHECK(held(100, 128) == 69);
  CHECK(held(100, 129) == 41);
  CHECK(held(100, 256) == 168);
  CHECK(held(100, 257) == 41);
  // A prompt of 128 is cut, and the first decode row acts again.
  CHECK(held(128, 128) == 41);
  CHECK(held(128, 129) == 41);
  // A short prompt stays until then.
  CHECK(held(30, 128) == 129);
  CHECK(held(30, 129) == 41);
}

TEST_CASE("r_kv saves 1 - B / T, and pays for a ring of queries and a similarity matrix",
          "[policy][r_kv]") {
  // The authors' table: a budget of 1024 at 16 Ki generated tokens saves 93.75 %.
  Geometry g = test::llama_8b(128, 16384 - 128 + 2);
  const Policy policy = make_policy("r_kv(budget=1024)", g);
  const Prediction p = predict(policy, g, {});
  const std::int64_t held = p.after[0] / 8 - 1;  // without the last row, after which nothing leaves
  CHECK(1.0 - static_cast<double>(held) / 16384 == 0.9375);
  CHECK(policy.charge.once == std::int64_t{32} * 8 * 32 * 128 * 2);
  CHECK(policy.charge.at(16384) - policy.charge.once ==
        std::int64_t{8} * (1024 + 128) * (1024 + 128) * 4);
  CHECK(policy.charge.at(16383) == policy.charge.once);
  CHECK(policy.charge.at(1152) - policy.charge.once == std::int64_t{8} * 1152 * 1152 * 4);
  CHECK(policy.charge.at(1024) - policy.charge.once == std::int64_t{8} * 1025 * 1025 * 4);
  CHECK(policy.charge.at(896) == policy.charge.once);  // below the budget
}
