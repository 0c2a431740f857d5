// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/catalogue_decode.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/twin/decode_policies.h"

namespace kvspan::twin::decode {
namespace {

// One evicts, the other chooses what is read.
struct Both : Policy {
  Both(World& world, std::unique_ptr<Policy> one, std::unique_ptr<Policy> other)
      : Policy(world), evicts(std::move(one)), selects(std::move(other)) {}
  void begin(int l) override { evicts->begin(l); }
  void select(int l, Pass pass) override { selects->select(l, pass); }
  void watch(int l, Pass pass) override { evicts->watch(l, pass); }
  void end(int l, Pass pass) override { evicts->end(l, pass); }
  long long overhead(int row, long long entries) override {
    return evicts->overhead(row, entries) + selects->overhead(row, entries);
  }
  std::unique_ptr<Policy> evicts, selects;
};

std::vector<double> rotate(const World& w, std::vector<double> x, int shift) {
  turn(w.t.rope, w.d, shift, x);
  return x;
}

// Logits of a row when tokens are numbered by their places in the cache.
std::vector<double> renumbered(const World& w, int l, int g, int row) {
  const std::vector<int> held = w.residents(l, g / w.G, row);
  const auto slot = [&](int j) {
    return static_cast<int>(std::lower_bound(held.begin(), held.end(), j) - held.begin());
  };
  const std::vector<double> q = rotate(w, w.q(l, g, row), slot(row) - row);
  std::vector<double> z;
  for (const int j : w.out.active[w.reader(l, g, row)]) {
    z.push_back(w.reads(l, row, j) ? w.logit(q, rotate(w, w.k(l, g / w.G, j), slot(j) - j))
                                   : -kInfinity);
  }
  return z;
}

void measure(World& w, Policy& policy) {
  Outcome& out = w.out;
  out.row_mass.assign(at(w.N), 0.0);
  out.loaded.assign(at(w.N), 0);
  out.payload.assign(at(w.N), 0);
  out.overhead.assign(at(w.N), 0);
  std::vector<double> mass[2], error[2], distances;
  for (int l = 0; l < w.L; ++l) {
    for (int g = 0; g < w.Hq; ++g) {
      for (int row = 0; row < w.N; ++row) {
        std::vector<int> all(at(row + 1));
        std::iota(all.begin(), all.end(), 0);
        const std::vector<double> p = w.attention(l, g, row, all);
        const std::vector<int>& keys = out.active[w.reader(l, g, row)];
        double total = 0, kept = 0;
        for (const double x : p) total += x;
        for (const int j : keys) kept += p[at(j)];
        mass[row < w.n ? 0 : 1].push_back(kept / total);
        out.row_mass[at(row)] += kept / total / (w.L * w.Hq);
        const std::vector<double> z =
            policy.renumbers() ? renumbered(w, l, g, row) : w.logits(l, g, row, keys);
        const std::vector<double> own = w.softmax(l, g, z);
        const std::vector<double> before = w.logits(l, g, row, keys);
        double distance = 0;
        for (std::size_t e = 0; e < keys.size(); ++e) {
          if (std::isinf(z[e])) continue;
          distance += p[at(keys[e])] / kept * std::abs(z[e] - before[e]);
        }
        if (row >= w.n) distances.push_back(distance);
        double difference = 0, norm = 0;
        for (int x = 0; x < w.t.v_head_dim; ++x) {
          double full = 0, mine = 0;
          for (const int j : all) full += p[at(j)] * w.v(l, g / w.G, j, x);
          for (std::size_t e = 0; e < keys.size(); ++e)
            mine += own[e] * w.v(l, g / w.G, keys[e], x);
          difference += (mine - full) * (mine - full);
          norm += full * full;
        }
        error[row < w.n ? 0 : 1].push_back(difference == 0 ? 0 : std::sqrt(difference / norm));
      }
    }
  }
  const auto mean = [](const std::vector<double>& x) {
    return x.empty() ? kNaN
                     : std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
  };
  out.prefill_mass = mean(mass[0]);
  out.mass = mean(mass[1]);
  out.prefill_error = mean(error[0]);
  out.error = mean(error[1]);
  out.logit_error = mean(distances);
  for (int row = 0; row < w.N; ++row) {
    long long held = 0, device = 0;
    for (int l = 0; l < w.L; ++l) {
      for (int h = 0; h < w.Hk; ++h) {
        out.loaded[at(row)] += policy.loads(l, h, row);
        for (const int j : w.residents(l, h, row)) {
          ++held;
          device += policy.on_device(l, j, row);
        }
      }
    }
    out.payload[at(row)] = device * (w.d + w.t.v_head_dim) * 2;
    out.overhead[at(row)] = policy.overhead(row, held);
  }
}

std::unique_ptr<Policy> make(World& w, const std::string& name) {
  if (const auto plus = name.find('+'); plus != std::string::npos) {
    auto other =
        name.substr(plus + 1) == "quest" ? quest(w, "quest.") : make(w, name.substr(plus + 1));
    return std::make_unique<Both>(w, make(w, name.substr(0, plus)), std::move(other));
  }
  if (name == "streaming_llm") return streaming(w, false);
  if (name == "lambda") return streaming(w, true);
  if (name == "scissorhands") return scissorhands(w);
  if (name == "keyformer") return keyformer(w);
  if (name == "r_kv") return r_kv(w);
  if (name == "sagekv") return sagekv(w);
  if (name == "fastgen") return fastgen(w);
  if (name == "h2o") return h2o(w);
  if (name == "quest") return quest(w, "");
  if (name == "rocketkv") return rocketkv(w);
  if (name == "retroattention") return retroattention(w);
  if (name == "refreshkv") return refreshkv(w);
  if (name == "infinigen") return infinigen(w);
  if (name == "minference") return minference(w);
  if (name == "clusterkv") return clusterkv(w);
  throw std::invalid_argument("unknown policy: " + name);
}

}  // namespace

Outcome simulate(const Trace& t, const std::string& name, const Parameters& parameters,
                 const Plan& plan, const Text& text) {
  World w{t,
          parameters,
          text,
          static_cast<int>(t.layers.size()),
          t.query_heads,
          t.kv_heads,
          t.query_heads / t.kv_heads,
          t.head_dim,
          t.tokens,
          plan.prompt >= 0 ? plan.prompt : t.prompt_tokens,
          0,
          {},
          {}};
  w.point = plan.evict_point >= 0 ? plan.evict_point : w.n;
  const int step = plan.chunk > 0 ? plan.chunk : w.point;
  for (int a = 0; a < w.point; a += step) w.passes.push_back({a, std::min(a + step, w.point)});
  if (w.point < w.n) w.passes.push_back({w.point, w.n});
  for (int a = w.n; a < w.N; ++a) w.passes.push_back({a, a + 1});

  w.out.heads = w.Hk;
  w.out.death.assign(at(w.L) * at(w.Hk) * at(w.N), w.N);
  w.out.active.assign(at(w.L) * at(w.Hq) * at(w.N), {});
  w.out.near.assign(at(w.L), 0);
  const std::unique_ptr<Policy> policy = make(w, name);
  for (int l = 0; l < w.L; ++l) {
    policy->begin(l);
    for (const Pass& pass : w.passes) {
      for (int row = pass.begin; row < pass.end; ++row) {
        for (int g = 0; g < w.Hq; ++g)
          w.out.active[w.reader(l, g, row)] = w.residents(l, g / w.G, row);
      }
      policy->select(l, pass);
      policy->watch(l, pass);
      if (pass.end < w.N) policy->end(l, pass);  // after the last pass nothing has to go
    }
  }
  measure(w, *policy);
  return std::move(w.out);
}

}  // namespace kvspan::twin::decode
