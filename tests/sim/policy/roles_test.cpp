// SPDX-License-Identifier: Apache-2.0
// What roles may do beyond ranking entries, against attention computed in double on the side.
#include <cmath>
#include <map>
#include <set>

#include <catch2/catch.hpp>

#include "sim/attention/layer_scores.h"
#include "sim/predict/analytic.h"
#include "sim/run/run.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;

namespace {

constexpr int kTokens = 40;
constexpr int kPrompt = 28;
constexpr int kQueryHeads = 4;
constexpr int kKvHeads = 2;
constexpr int kDim = 4;
constexpr int kGroup = kQueryHeads / kKvHeads;

test::TraceSpec spec_of(std::uint64_t seed) {
  return test::random_spec({.layers = 1,
                            .tokens = kTokens,
                            .prompt_tokens = kPrompt,
                            .query_heads = kQueryHeads,
                            .kv_heads = kKvHeads,
                            .head_dim = kDim,
                            .seed = seed});
}

// The attention of one (query head, row) over some keys, in double.
struct Row {
  std::map<int, double> p;
  std::vector<double> output = std::vector<double>(kDim, 0.0);
};
struct Vectors {
  std::vector<double> q, k, v;
};

double logit(const Vectors& x, int q, int row, int key) {
  double z = 0;
  for (int d = 0; d < kDim; ++d) {
    z += x.q[static_cast<std::size_t>((row * kQueryHeads + q) * kDim + d)] *
         x.k[static_cast<std::size_t>((key * kKvHeads + q / kGroup) * kDim + d)];
  }
  return z / std::sqrt(static_cast<double>(kDim));
}

Row attend(const Vectors& x, int q, int row, const std::set<int>& keys) {
  Row out;
  double sum = 0;
  for (const int key : keys) {
    if (key > row) continue;
    out.p[key] = std::exp(logit(x, q, row, key));
    sum += out.p[key];
  }
  for (auto& [key, p] : out.p) {
    p /= sum;
    for (int d = 0; d < kDim; ++d) {
      out.output[static_cast<std::size_t>(d)] +=
          p * x.v[static_cast<std::size_t>((key * kKvHeads + q / kGroup) * kDim + d)];
    }
  }
  return out;
}

std::set<int> range(int begin, int end) {
  std::set<int> out;
  for (int i = begin; i < end; ++i) out.insert(i);
  return out;
}

double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t d = 0; d < a.size(); ++d) {
    difference += (a[d] - b[d]) * (a[d] - b[d]);
    norm += b[d] * b[d];
  }
  return std::sqrt(difference / norm);
}

// Mean over query heads and decode rows.
template <class F>
double decode_mean(F value) {
  double sum = 0;
  for (int row = kPrompt; row < kTokens; ++row) {
    for (int q = 0; q < kQueryHeads; ++q) sum += value(q, row);
  }
  return sum / (kQueryHeads * (kTokens - kPrompt));
}

Policy full(const Trace& trace) { return make_policy("full", geometry_of(trace, {})); }

Vectors vectors(const test::TraceSpec& spec) {
  return {spec.layers[0].q, spec.layers[0].k, spec.layers[0].v};
}

}  // namespace

TEST_CASE("a role that watches rows sees each of them once, in order, with the logits of its reads",
          "[roles]") {
  struct Seen {
    std::vector<RowIndex> rows;
    double worst = 0;
  };
  const test::TraceSpec spec = spec_of(1);
  const Vectors x = vectors(spec);
  class Watcher final : public Scorer {
   public:
    Watcher(Observe rows, Seen& seen, const Vectors& x) : rows_(rows), seen_(&seen), x_(&x) {}
    Needs needs() const override { return {.observe = rows_, .q = true, .k = true}; }
    void observe(const View& view, RowIndex begin, RowIndex end) override {
      for (RowIndex row = begin; row < end; ++row) {
        seen_->rows.push_back(row);
        for (int q = 0; q < kQueryHeads; ++q) {
          const auto entries = view.resident(q / kGroup);
          std::vector<double> z(entries.size());
          std::vector<double> p(entries.size());
          view.logits(q, row, entries, z);
          view.probabilities(q, row, entries, p);
          const Row expected =
              attend(*x_, q, static_cast<int>(row), std::set<int>(entries.begin(), entries.end()));
          for (std::size_t i = 0; i < entries.size(); ++i) {
            if (entries[i] > row) {
              CHECK(std::isinf(z[i]));
              CHECK(p[i] == 0.0);
              continue;
            }
            seen_->worst = std::max(
                {seen_->worst, std::abs(z[i] - logit(*x_, q, static_cast<int>(row), entries[i])),
                 std::abs(p[i] - expected.p.at(entries[i]))});
          }
        }
      }
    }
    double score(const View&, int, std::span<const TokenIndex> entries,
                 std::span<double> out) override {
      for (std::size_t i = 0; i < entries.size(); ++i) out[i] = entries[i];
      return 0;
    }

   private:
    Observe rows_;
    Seen* seen_;
    const Vectors* x_;
  };
  const Trace trace = test::make_trace(spec);
  for (const auto& [rows, first] :
       {std::pair{Observe::always, 0}, std::pair{Observe::from_prompt_end, kPrompt - 1}}) {
    Seen seen;
    Policy policy = make_policy("random(budget=9)", geometry_of(trace, {}));
    policy.rules[0].scorer = [&seen, &x, r = rows](const LayerShape&) {
      return std::make_unique<Watcher>(r, seen, x);
    };
    EngineOptions options;
    options.block_rows = 7;
    options.chunk = 10;
    (void)replay(trace, {policy}, options);
    std::vector<RowIndex> expected;
    for (RowIndex row = first; row < kTokens; ++row) expected.push_back(row);
    CHECK(seen.rows == expected);
    CHECK(seen.worst < 1e-5);
  }
}

TEST_CASE("an admission drops what scores too little when it leaves the window", "[roles]") {
  const Trace trace = test::make_trace(spec_of(2));
  Policy policy = full(trace);
  class Third final : public Scorer {  // every third token passes
   public:
    double score(const View&, int, std::span<const TokenIndex> entries,
                 std::span<double> out) override {
      for (std::size_t i = 0; i < entries.size(); ++i) out[i] = entries[i] % 3 == 0 ? 1 : 0;
      return 0;
    }
  };
  Rule rule;
  rule.schedule = Schedule::every_pass();
  rule.scorer = [](const LayerShape&) { return std::make_unique<Third>(); };
  rule.threshold = 0.0;
  rule.protect = [](const Pass&, TokenCount) { return Protect{0, 5}; };
  policy.rules.push_back(rule);
  const Ledger ledger = replay(trace, {policy}, {})[0].ledger;
  for (int h = 0; h < kKvHeads; ++h) {
    const auto deaths = ledger.deaths(0, h);
    for (int t = 0; t < kTokens; ++t) {
      // Gone at the first pass end b with t < b - 5: the prompt's, or decode row t + 5.
      const int leaves = std::max(kPrompt, t + 6);
      const int expected = t % 3 == 0 || leaves >= kTokens ? kTokens : leaves;
      CHECK(static_cast<int>(deaths[static_cast<std::size_t>(t)]) == expected);
    }
  }
}

TEST_CASE("rows may read sets of their own, in the prompt too", "[roles]") {
  const test::TraceSpec spec = spec_of(3);
  const Vectors x = vectors(spec);
  const Trace trace = test::make_trace(spec);
  class Even final : public Selector {  // keys of the row's own parity, and the row itself
   public:
    bool by_row() const override { return true; }
    void mask(const View&, int, RowIndex row, std::span<float> mask) override {
      for (RowIndex j = 0; j <= row; ++j) {
        if ((row - j) % 2 != 0) mask[static_cast<std::size_t>(j)] = 0.0F;
      }
    }
  };
  Policy policy = full(trace);
  policy.prefill_reads =
      policy.selector = [](const LayerShape&) { return std::make_unique<Even>(); };
  const Replay got = replay(trace, {policy}, {})[0];
  const Metrics metrics = compute_metrics(got.ledger, {});
  CHECK(metrics.footprint == 1.0);
  CHECK(metrics.timeline.active_entries[20] == 11 * kKvHeads);
  CHECK(metrics.timeline.active_entries[37] == 19 * kKvHeads);
  const auto keys = [](int row) {
    std::set<int> out;
    for (int j = row; j >= 0; j -= 2) out.insert(j);
    return out;
  };
  CHECK(got.fidelity->decode->mass_mean == Approx(decode_mean([&](int q, int row) {
                                             const Row whole = attend(x, q, row, range(0, row + 1));
                                             double mass = 0;
                                             for (const int j : keys(row)) mass += whole.p.at(j);
                                             return mass;
                                           })).epsilon(1e-5));
  CHECK(got.fidelity->decode->error_mean == Approx(decode_mean([&](int q, int row) {
                                              return relative_error(
                                                  attend(x, q, row, keys(row)).output,
                                                  attend(x, q, row, range(0, row + 1)).output);
                                            })).epsilon(1e-4));
}

TEST_CASE("what a store rewrites is what later rows compute with", "[roles]") {
  const test::TraceSpec spec = spec_of(4);
  const Vectors x = vectors(spec);
  const Trace trace = test::make_trace(spec);
  // Halves the keys and negates the values of the prompt's even tokens at its end.
  class Halve final : public Store {
   public:
    Needs needs() const override { return {.k = true, .v = true}; }
    void age(const View& view, Decision& out) override {
      if (!view.pass().is_evict_point()) return;
      REQUIRE(view.measures_output());
      for (int h = 0; h < kKvHeads; ++h) {
        for (const TokenIndex t : survivors(view, h, out)) {
          if (t % 2 != 0) continue;
          std::vector<float> k = view.key(h, t);
          std::vector<float> v = view.value(h, t);
          for (float& e : k) e *= 0.5F;
          for (float& e : v) e = -e;
          out.changes.push_back({view.pass().end, h, t, 1});
          out.rewrites.push_back({h, t, std::move(k), std::move(v)});
        }
      }
    }
  };
  Policy policy = full(trace);
  policy.store = [](const LayerShape&) { return std::make_unique<Halve>(); };
  policy.representations.push_back({"half", 6, 0});
  policy.alters_vectors = true;
  policy.payload = [](TokenCount entries, const Pass& pass) -> std::int64_t {
    if (pass.end < kPrompt) return entries * 16;
    return kPrompt / 2 * 6 + (entries - kPrompt / 2) * 16;
  };
  const Replay got = replay(trace, {policy}, {})[0];

  Vectors held = x;
  for (int t = 0; t < kPrompt; t += 2) {
    for (int i = 0; i < kKvHeads * kDim; ++i) {
      held.k[static_cast<std::size_t>(t * kKvHeads * kDim + i)] *= 0.5;
      held.v[static_cast<std::size_t>(t * kKvHeads * kDim + i)] *= -1;
    }
  }
  CHECK(got.fidelity->decode->mass_min == 1.0);
  CHECK(got.fidelity->prefill->error_max == 0.0);
  CHECK(got.fidelity->decode->error_mean == Approx(decode_mean([&](int q, int row) {
                                              return relative_error(
                                                  attend(held, q, row, range(0, row + 1)).output,
                                                  attend(x, q, row, range(0, row + 1)).output);
                                            })).epsilon(1e-4));
  REQUIRE(got.fidelity->decode->logit_error.has_value());
  CHECK(*got.fidelity->decode->logit_error ==
        Approx(decode_mean([&](int q, int row) {
          double error = 0;
          for (const auto& [key, p] : attend(x, q, row, range(0, row + 1)).p)
            error += p * std::abs(logit(held, q, row, key) - logit(x, q, row, key));
          return error;
        })).epsilon(1e-4));

  // Bytes, and their closed form.
  const Metrics metrics = compute_metrics(got.ledger, {});
  CHECK(metrics.timeline.resident_bytes.back() == kKvHeads * (14 * 6 + (kTokens - 14) * 16));
  const Prediction predicted = predict(policy, geometry_of(trace, {}), {});
  CHECK(predicted.peak_bytes == metrics.peak_bytes);
  CHECK(predicted.byte_rows == metrics.byte_rows);
  CHECK(predicted.after_bytes[0] == metrics.timeline.resident_bytes.back());
}

TEST_CASE("a state that absorbed victims adds to the output", "[roles]") {
  const test::TraceSpec spec = spec_of(5);
  const Vectors x = vectors(spec);
  const Trace trace = test::make_trace(spec);
  // Keeps every victim, aside: the output is the full cache's again.
  class Aside final : public Store {
   public:
    Needs needs() const override { return {.k = true, .v = true}; }
    void age(const View& view, Decision& out) override {
      for (const Eviction& e : out.evictions)
        kept_[e.head].emplace_back(view.key(e.head, e.token), view.value(e.head, e.token));
    }
    bool adds_output() const override { return true; }
    void add_output(int query_head, std::span<const float> q, double max,
                    std::span<double> numerator, double& denominator) override {
      for (const auto& [k, v] : kept_[query_head / kGroup]) {
        double z = 0;
        for (std::size_t d = 0; d < k.size(); ++d)
          z += static_cast<double>(q[d]) * static_cast<double>(k[d]);
        const double term = std::exp(z / std::sqrt(static_cast<double>(kDim)) - max);
        denominator += term;
        for (std::size_t d = 0; d < v.size(); ++d) numerator[d] += term * static_cast<double>(v[d]);
      }
    }

   private:
    std::map<int, std::vector<std::pair<std::vector<float>, std::vector<float>>>> kept_;
  };
  Policy policy = make_policy("streaming_llm(budget=9)", geometry_of(trace, {}));
  policy.store = [](const LayerShape&) { return std::make_unique<Aside>(); };
  policy.alters_vectors = true;
  const Replay got = replay(trace, {policy}, {})[0];
  CHECK(got.fidelity->decode->mass_mean < 0.9);
  CHECK(got.fidelity->decode->error_max < 1e-5);
}

TEST_CASE("a policy may leave the model's first layers alone", "[roles]") {
  const Trace trace = test::make_trace(test::random_spec({.layers = 3,
                                                          .tokens = kTokens,
                                                          .prompt_tokens = kPrompt,
                                                          .query_heads = 2,
                                                          .kv_heads = 2,
                                                          .head_dim = 4,
                                                          .seed = 6}));
  Policy policy = make_policy("h2o(budget=8)", geometry_of(trace, {}));
  policy.full_layers = 2;
  const RunResult all = test::run_one(trace, "h2o(budget=8)", {});
  const Ledger ledger = replay(trace, {policy}, {})[0].ledger;
  for (int h = 0; h < 2; ++h) {
    for (int l = 0; l < 2; ++l) {
      for (const std::uint32_t death : ledger.deaths(l, h)) CHECK(death == kTokens);
    }
    const auto a = ledger.deaths(2, h);
    const auto b = all.ledger.deaths(2, h);
    CHECK(std::equal(a.begin(), a.end(), b.begin()));
  }
  const Prediction predicted = predict(policy, geometry_of(trace, {}), {});
  CHECK(predicted.entry_rows == compute_metrics(ledger, {}).entry_rows);
}

TEST_CASE("state that comes and goes is overhead while it is there", "[roles]") {
  const Trace trace = test::make_trace(spec_of(7));
  Policy policy = make_policy("snapkv(budget=10,window=4)", geometry_of(trace, {}));
  policy.charge.once = 3;
  policy.charge.during = [](RowIndex row) { return row < kPrompt ? 1000 : row; };
  const Metrics metrics = compute_metrics(replay(trace, {policy}, {})[0].ledger, {});
  CHECK(metrics.timeline.overhead_bytes[5] == 1003);
  CHECK(metrics.timeline.overhead_bytes[35] == 38);
  CHECK(metrics.peak_bytes.overhead == 1003);
  const Prediction predicted = predict(policy, geometry_of(trace, {}), {});
  CHECK(predicted.peak_bytes == metrics.peak_bytes);
  CHECK(predicted.byte_rows == metrics.byte_rows);
}
