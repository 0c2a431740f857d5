// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/write_gate_fit.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include <tbb/parallel_for.h>
#include <tbb/task_group.h>

#include "sim/base/error.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

constexpr std::size_t kMostSamples = 4096;  // of a head

// [rms(k before rotary); rms(k)] of one token.
void append_features(std::span<const float> before, std::span<const float> after,
                     std::vector<float>& x) {
  for (const std::span<const float> k : {before, after}) {
    double square = 0;
    for (const float value : k) square += static_cast<double>(value) * static_cast<double>(value);
    const double scale = 1 / std::sqrt(square / static_cast<double>(k.size()) + 1e-6);
    for (const float value : k) x.push_back(static_cast<float>(static_cast<double>(value) * scale));
  }
}

RowIndex fit_window(TokenCount window, RowIndex end) {
  return std::clamp<RowIndex>(window, 1, std::max<RowIndex>(1, end / 2));
}

// Labels are utilities until label_all() cuts them.
std::vector<Samples> gather(const Trace& trace, int layer, RowIndex from, RowIndex end,
                            const FitOptions& options) {
  const TraceMeta& m = trace.meta();
  const RowIndex window = fit_window(options.window, end - from);
  const HeadValues utility = largest_future(trace, layer, window, from, end);
  const LayerVectors k = read_vectors(trace, layer, 'k', from, end);
  const LayerVectors before = read_vectors(trace, layer, 'k', from, end, true);
  std::vector<Samples> out(index(m.kv_heads));
  const RowIndex last = std::max(from, end - window);
  const RowIndex stride =
      (last - from + static_cast<RowIndex>(kMostSamples) - 1) / static_cast<RowIndex>(kMostSamples);
  for (int h = 0; h < m.kv_heads; ++h) {
    Samples& s = out[index(h)];
    s.width = index(2 * m.head_dim);
    for (RowIndex i = from; i < last; i += std::max<RowIndex>(1, stride)) {
      append_features(before.at(i, h), k.at(i, h), s.x);
      s.y.push_back(static_cast<double>(utility[index(h)][index(i)]));
    }
  }
  return out;
}

void label_all(std::vector<std::vector<Samples>>& layers, const FitOptions& options) {
  std::vector<float> utilities;
  for (const auto& heads : layers) {
    for (const Samples& s : heads) {
      for (const double u : s.y) utilities.push_back(static_cast<float>(u));
    }
  }
  const double theta = value_exceeded_by(utilities, options.rate);
  for (auto& heads : layers) {
    for (Samples& s : heads) {
      for (double& u : s.y) u = u > theta ? 1 : 0;
    }
  }
}

Regressor fit(const Samples& samples, const FitOptions& options) {
  if (options.method == "logit") return fit_logit(samples, options.lambda);
  // Not the published width: a prompt has too few entries for it.
  return fit_mlp(samples,
                 {.hidden = 16, .steps = options.steps, .seed = options.seed, .pairwise = false});
}

}  // namespace

double value_exceeded_by(std::vector<float>& values, double rate) {
  const auto count = static_cast<std::size_t>(rate * static_cast<double>(values.size()) + 1e-9);
  if (count >= values.size()) return -std::numeric_limits<double>::infinity();
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(count);
  std::nth_element(values.begin(), at, values.end(), std::greater<>());
  return static_cast<double>(*at);
}

LearnedGates::LearnedGates(const FitSource& source, const Geometry& geometry)
    : trace_(*source.trace), models_(index(trace_.meta().layers)) {
  const int layers = trace_.meta().layers;
  if (source.weights) {
    for (int l = 0; l < layers; ++l) {
      models_[index(l)] = source.weights->layer(
          trace_.meta().layer_ids[index(l)], index(geometry.kv_heads), index(2 * geometry.k_dim));
    }
    return;
  }
  std::vector<std::vector<Samples>> samples(index(layers));
  tbb::parallel_for(0, layers, [&](int l) {
    samples[index(l)] = gather(trace_, l, 0, source.fit_end, source.fit);
  });
  if (tbb::is_current_task_group_canceling()) throw Interrupted();  // not all were gathered
  label_all(samples, source.fit);
  tbb::parallel_for(0, layers, [&](int l) {
    for (const Samples& head : samples[index(l)])
      models_[index(l)].push_back(fit(head, source.fit));
  });
}

HeadValues LearnedGates::of_layer(int layer) const {
  const RowIndex tokens = trace_.meta().tokens;
  const LayerVectors k = read_vectors(trace_, layer, 'k', 0, tokens);
  const LayerVectors before = read_vectors(trace_, layer, 'k', 0, tokens, true);
  HeadValues out;
  for (int h = 0; h < trace_.meta().kv_heads; ++h) {
    std::vector<float> x;
    for (RowIndex i = 0; i < tokens; ++i) append_features(before.at(i, h), k.at(i, h), x);
    std::vector<double> odds(index(tokens));
    models_[index(layer)][index(h)].evaluate(x, odds);
    out.emplace_back(odds.begin(), odds.end());
  }
  return out;
}

FittedScorer write_gate_fit() {
  FittedScorer out;
  out.name = "write_gate";
  out.features = "rms(k before rotary); rms(k)";
  out.label = "a row behind the window gives it more than the quantile of `rate`";
  out.methods = {"logit", "mlp"};
  out.gather = gather;
  out.label_all = label_all;
  out.fit = fit;
  out.quality = [](const Regressor& model, const Samples& samples, const auto&...) {
    std::vector<double> odds(samples.rows());
    model.evaluate(samples.x, odds);
    return area_under_curve(odds, samples.y);
  };
  return out;
}

}  // namespace kvspan::policies
