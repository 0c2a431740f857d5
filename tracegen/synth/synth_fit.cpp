// SPDX-License-Identifier: Apache-2.0
#include "tracegen/synth/synth_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/attention/full_rows.h"
#include "sim/base/error.h"

namespace kvspan::tracegen {
namespace {

constexpr int kSteps = 14;
constexpr std::int64_t kFitRows = 128;
constexpr std::int64_t kGeometryRows = 64;
constexpr double kLeastMass = 1e-4;  // of a bin: below, its logit hardly matters

double correlation(const std::vector<double>& x, const std::vector<double>& y) {
  const auto n = static_cast<double>(x.size());
  const double mx = std::accumulate(x.begin(), x.end(), 0.0) / n;
  const double my = std::accumulate(y.begin(), y.end(), 0.0) / n;
  double xy = 0, xx = 0, yy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xy += (x[i] - mx) * (y[i] - my);
    xx += (x[i] - mx) * (x[i] - mx);
    yy += (y[i] - my) * (y[i] - my);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0;
}

KeyGeometry geometry_of(const Trace& trace, int layer) {
  const TraceMeta& meta = trace.meta();
  const RowIndex end = meta.prompt_tokens;
  const RowIndex begin = std::max<RowIndex>(end - kGeometryRows, end / 2);
  const auto group = meta.query_heads / meta.kv_heads;
  const auto keys = static_cast<std::size_t>(std::max<RowIndex>(begin - kSynthSinks, 0));
  std::vector<std::vector<double>> mass(static_cast<std::size_t>(meta.kv_heads),
                                        std::vector<double>(keys, 1e-12));
  for_each_row(trace, layer, begin, end, [&](int head, RowIndex, const RowTerms& row) {
    std::vector<double>& of = mass[static_cast<std::size_t>(head / group)];
    for (std::size_t j = 0; j < keys; ++j) {
      of[j] += static_cast<double>(row.terms[static_cast<std::size_t>(kSynthSinks) + j]) /
               (row.sum + row.sink);
    }
  });
  KeyGeometry out;
  std::vector<float> k(static_cast<std::size_t>(meta.head_dim));
  std::vector<float> last(k.size());
  for (int h = 0; h < meta.kv_heads; ++h) {
    std::vector<double> norms;
    std::vector<double> logs;
    double cosines = 0;
    for (std::size_t j = 0; j < keys; ++j) {
      const auto token = kSynthSinks + static_cast<std::int64_t>(j);
      widen(*trace.k(layer), (token * meta.kv_heads + h) * meta.head_dim, k,
            fmt::format("{}: layers.{}.k", trace.name(), layer));
      double square = 0, product = 0;
      for (std::size_t i = 0; i < k.size(); ++i) {
        square += static_cast<double>(k[i]) * static_cast<double>(k[i]);
        product += static_cast<double>(k[i]) * static_cast<double>(last[i]);
      }
      norms.push_back(std::sqrt(square));
      logs.push_back(std::log(mass[static_cast<std::size_t>(h)][j]));
      if (j > 0) cosines += product / std::max(norms[j] * norms[j - 1], 1e-30);
      last = k;
    }
    if (keys < 2) continue;
    out.norm_correlation += correlation(norms, logs) / meta.kv_heads;
    out.neighbour_cosine += cosines / static_cast<double>(keys - 1) / meta.kv_heads;
  }
  return out;
}

double needle_mass(const RowStats& rows, const std::vector<Span>& spans) {
  double sum = 0;
  for (std::size_t s = 0; s < spans.size(); ++s) {
    if (spans[s].name.starts_with("needle")) sum += rows.spans[s];
  }
  return sum;
}

// Half the sum of |a - b|: the mass that lies at another distance.
double moved(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]) / 2;
  return sum;
}

// The unknowns of one head, and the best that was seen.
struct HeadFit {
  HeadProfile now;
  double noise = 1, persistent = 0.5;  // hitters = noise * persistent, content the rest
  HeadProfile best;
  double least = std::numeric_limits<double>::infinity();

  void apply() {
    now.hitters = noise * persistent;
    now.content = noise * std::sqrt(1 - persistent * persistent);
  }

  void begin(const HeadStats& real, const TraceStats& stats, bool needles) {
    now.sink = real.prompt.sink;
    if (needles) now.needle = needle_mass(real.decode, stats.spans);
    now.spread = 1;
    now.locality.assign(stats.bins.size(), 0.0);
    apply();
  }

  void step(const HeadStats& real, const HeadStats& got, const std::vector<Span>& spans) {
    const double persistence = real.persistence.value_or(0) - got.persistence.value_or(0);
    const double entropy = real.prompt.entropy - got.prompt.entropy;
    const double needle =
        now.needle ? needle_mass(real.decode, spans) - needle_mass(got.decode, spans) : 0;
    const double loss = std::abs(real.prompt.sink - got.prompt.sink) +
                        moved(real.prompt.distance, got.prompt.distance) + 0.1 * std::abs(entropy) +
                        0.3 * std::abs(persistence) + std::abs(needle);
    if (loss < least) {
      least = loss;
      best = now;
    }
    const auto share = [](double x) { return std::clamp(x, 0.0, 1.0); };
    now.sink = share(now.sink.value_or(0) + 0.5 * (real.prompt.sink - got.prompt.sink));
    if (now.needle) now.needle = share(*now.needle + 0.5 * needle);
    for (std::size_t b = 0; b < now.locality.size(); ++b) {
      now.locality[b] += 0.6 * std::log((real.prompt.distance[b] + kLeastMass) /
                                        (got.prompt.distance[b] + kLeastMass));
    }
    const double mean = std::accumulate(now.locality.begin(), now.locality.end(), 0.0) /
                        static_cast<double>(now.locality.size());
    for (double& x : now.locality) x = std::clamp(x - mean, -15.0, 15.0);
    noise = std::clamp(noise - 0.4 * entropy, 0.0, 8.0);
    persistent = share(persistent + 0.7 * persistence);
    apply();
  }
};

SynthPlan plan_of(const TraceMeta& meta) {
  SynthPlan plan;
  for (const Span& span : meta.spans) {
    if (span.name.starts_with("needle")) plan.needles.push_back(span);
    if (span.name.starts_with("question")) plan.questions.push_back(span);
    if (span.name.starts_with("turn")) plan.turns.push_back(span);
  }
  std::sort(plan.turns.begin(), plan.turns.end(),
            [](const Span& a, const Span& b) { return a.begin < b.begin; });
  return plan;
}

}  // namespace

SynthFit fit_synth(const Trace& trace, const std::string& name, std::uint64_t seed,
                   const std::function<void(double)>& tick) {
  const TraceMeta& meta = trace.meta();
  if (!trace.is_qkv()) {
    throw TraceError(
        fmt::format("{}: a score trace has no keys; synth fit needs q and k", trace.name()));
  }
  SynthFit fit;
  fit.options = checked({.tokens = meta.tokens,
                         .prompt_tokens = meta.prompt_tokens,
                         .layers = meta.layers,
                         .layer_ids = meta.layer_ids,
                         .model_layers = meta.model_layers,
                         .query_heads = meta.query_heads,
                         .kv_heads = meta.kv_heads,
                         .head_dim = meta.head_dim,
                         .values = trace.has_v(),
                         .seed = seed});
  fit.plan = plan_of(meta);
  fit.profile.name = "fitted to " + name;
  fit.profile.description =
      "fitted by kvspan synth fit to attention statistics; no weights and no text in it";
  const auto told = [&](int layer, int step) {
    if (tick) tick((layer + static_cast<double>(step) / (kSteps + 1)) / meta.layers);
  };
  for (int l = 0; l < meta.layers; ++l) {
    const int id = meta.layer_ids[static_cast<std::size_t>(l)];
    const TraceStats real = trace_stats(trace, {.rows = kFitRows, .layers = {id}});
    const KeyGeometry real_keys = geometry_of(trace, l);
    told(l, 1);
    SynthOptions one = fit.options;
    one.layers = 1;
    one.layer_ids = {id};
    const bool needles = !fit.plan.needles.empty() && meta.tokens > meta.prompt_tokens;
    std::vector<HeadFit> heads(static_cast<std::size_t>(meta.query_heads));
    for (std::size_t q = 0; q < heads.size(); ++q)
      heads[q].begin(real.layers[0].heads[q], real, needles);
    LayerProfile layer;
    for (int step = 0; step < kSteps; ++step) {
      SynthProfile profile;
      profile.layers = {layer};
      for (const HeadFit& head : heads) profile.layers[0].heads.push_back(head.now);
      const Trace made = synth_trace(one, fit.plan, profile);
      // The synthetic spans are those of its plan, in another order than the trace's.
      const TraceStats got = trace_stats(made, {.rows = kFitRows});
      for (std::size_t q = 0; q < heads.size(); ++q) {
        HeadStats seen = got.layers[0].heads[q];
        std::vector<double> mass(real.spans.size());
        for (std::size_t s = 0; s < mass.size(); ++s) {
          for (std::size_t i = 0; i < got.spans.size(); ++i) {
            if (got.spans[i].name == real.spans[s].name) mass[s] = seen.decode.spans[i];
          }
        }
        seen.decode.spans = mass;
        heads[q].step(real.layers[0].heads[q], seen, real.spans);
      }
      const double c = geometry_of(made, 0).norm_correlation;
      layer.key_common =
          std::clamp(layer.key_common + 4 * (c - real_keys.norm_correlation), -20.0, 20.0);
      told(l, 2 + step);
    }
    for (const HeadFit& head : heads) layer.heads.push_back(head.best);
    fit.profile.layers.push_back(layer);
    fit.real_keys.push_back(real_keys);
  }
  const Trace made = synth_trace(fit.options, fit.plan, fit.profile);
  fit.real = trace_stats(trace, {});
  fit.synthetic = trace_stats(made, {});
  for (int l = 0; l < meta.layers; ++l) fit.synthetic_keys.push_back(geometry_of(made, l));
  return fit;
}

std::vector<FitLine> fit_lines(const SynthFit& fit, std::size_t layer) {
  const std::vector<HeadStats>& real = fit.real.layers[layer].heads;
  const std::vector<HeadStats>& got = fit.synthetic.layers[layer].heads;
  std::vector<FitLine> out;
  using Value = std::function<double(const HeadStats&, const std::vector<Span>&)>;
  const auto add = [&](const char* what, bool fitted, const Value& value) {
    FitLine line{what, fitted};
    const auto n = static_cast<double>(real.size());
    for (std::size_t q = 0; q < real.size(); ++q) {
      const double a = value(real[q], fit.real.spans);
      const double b = value(got[q], fit.synthetic.spans);
      line.real += a / n;
      line.synthetic += b / n;
      line.difference += std::abs(a - b) / n;
    }
    out.push_back(line);
  };
  add("sink mass", true, [](const HeadStats& h, const auto&) { return h.prompt.sink; });
  FitLine distance{"mass at another distance", true};
  for (std::size_t q = 0; q < real.size(); ++q) {
    distance.difference +=
        moved(real[q].prompt.distance, got[q].prompt.distance) / static_cast<double>(real.size());
  }
  out.push_back(distance);
  add("entropy", true, [](const HeadStats& h, const auto&) { return h.prompt.entropy; });
  add("persistence", true,
      [](const HeadStats& h, const auto&) { return h.persistence.value_or(0); });
  if (real[0].decode.rows > 0 && !fit.plan.needles.empty()) {
    add("needle, decode", true, [](const HeadStats& h, const std::vector<Span>& spans) {
      return needle_mass(h.decode, spans);
    });
  }
  out.push_back({"key norm ~ importance", true, fit.real_keys[layer].norm_correlation,
                 fit.synthetic_keys[layer].norm_correlation,
                 std::abs(fit.real_keys[layer].norm_correlation -
                          fit.synthetic_keys[layer].norm_correlation)});
  add("last 64", false, [](const HeadStats& h, const auto&) { return h.prompt.local; });
  add("ln support", false,
      [](const HeadStats& h, const auto&) { return std::log(h.prompt.support); });
  add("top 16", false, [](const HeadStats& h, const auto&) { return h.prompt.top[2]; });
  add("top 256", false, [](const HeadStats& h, const auto&) { return h.prompt.top[4]; });
  if (real[0].decode.rows > 0) {
    add("sink mass, decode", false, [](const HeadStats& h, const auto&) { return h.decode.sink; });
    add("entropy, decode", false, [](const HeadStats& h, const auto&) { return h.decode.entropy; });
    add("persistence, decode", false,
        [](const HeadStats& h, const auto&) { return h.into_decode.value_or(0); });
  }
  out.push_back({"cosine of neighbours", false, fit.real_keys[layer].neighbour_cosine,
                 fit.synthetic_keys[layer].neighbour_cosine,
                 std::abs(fit.real_keys[layer].neighbour_cosine -
                          fit.synthetic_keys[layer].neighbour_cosine)});
  return out;
}

nlohmann::json to_json(const SynthFit& fit) {
  nlohmann::json out = {{"profile", to_json(fit.profile)},
                        {"real", kvspan::to_json(fit.real)},
                        {"synthetic", kvspan::to_json(fit.synthetic)},
                        {"layers", nlohmann::json::array()}};
  for (std::size_t l = 0; l < fit.real.layers.size(); ++l) {
    nlohmann::json lines = nlohmann::json::array();
    for (const FitLine& line : fit_lines(fit, l)) {
      lines.push_back({{"what", line.what},
                       {"fitted", line.fitted},
                       {"real", line.real},
                       {"synthetic", line.synthetic},
                       {"difference", line.difference}});
    }
    out["layers"].push_back({{"layer", fit.real.layers[l].layer}, {"lines", std::move(lines)}});
  }
  return out;
}

}  // namespace kvspan::tracegen
