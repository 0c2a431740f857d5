// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/birth_models.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/replay_scores.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

constexpr RowIndex kMostSamples = 4096;  // of a head

BirthValues values_of(const BirthModel& model) {
  const auto models = std::make_shared<LayerModels>(model.policy, model);
  return [table = model.table, models](const View& view, int head, TokenIndex begin, TokenIndex end,
                                       std::span<double> out) {
    const LayerShape& shape = view.shape();
    if (table) {
      const double* row = table->layers[index(shape.layer)].data() + head * table->tokens;
      std::copy(row + begin, row + end, out.begin());
      return;
    }
    std::vector<float> x;
    for (TokenIndex t = begin; t < end; ++t) {
      for (const std::vector<float>& part : {view.key(head, t), view.value(head, t)})
        x.insert(x.end(), part.begin(), part.end());
    }
    const auto width = index(shape.k_dim + shape.v_dim);
    models->of(shape, shape.heads, width)[index(head)].evaluate(x, out);
  };
}

}  // namespace

std::vector<Samples> samples_of_entries(const Trace& trace, int layer, RowIndex from, RowIndex last,
                                        const EntryLabel& label) {
  const TraceMeta& m = trace.meta();
  const LayerVectors k = read_vectors(trace, layer, 'k', from, last);
  const LayerVectors v = read_vectors(trace, layer, 'v', from, last);
  const RowIndex stride = std::max<RowIndex>(1, (last - from + kMostSamples - 1) / kMostSamples);
  std::vector<Samples> out(index(m.kv_heads));
  for (int h = 0; h < m.kv_heads; ++h) {
    Samples& s = out[index(h)];
    s.width = index(m.head_dim + m.v_head_dim);
    for (RowIndex i = from; i < last; i += stride) {
      const double y = label(h, i);
      if (std::isnan(y)) continue;
      for (const auto& part : {k.at(i, h), v.at(i, h)})
        s.x.insert(s.x.end(), part.begin(), part.end());
      s.y.push_back(y);
    }
  }
  return out;
}

FittedScorer ridge_of_entries(
    const std::string& name, const std::string& label,
    std::function<std::vector<Samples>(const Trace&, int, RowIndex, RowIndex, const FitOptions&)>
        gather) {
  FittedScorer out;
  out.name = name;
  out.features = "k; v";
  out.label = label;
  out.methods = {"ridge"};
  out.gather = std::move(gather);
  out.fit = [](const Samples& samples, const FitOptions& o) {
    return fit_ridge(samples, o.lambda);
  };
  out.quality = [](const Regressor& model, const Samples& samples, const auto&...) {
    return agreement(model, samples);
  };
  return out;
}

FittedScorer ridge_of_replay(const std::string& name, bool plus) {
  FittedScorer out = ridge_of_entries(
      name, fmt::format("log of {}'s score, by the trace's replay", plus ? "KVzip+" : "KVzip"),
      [name, plus](const Trace& trace, int layer, RowIndex from, RowIndex end, const FitOptions&) {
        ReplaySettings settings{.policy = name, .plus = plus};
        (void)read_probes(trace, settings);
        settings.sinks = settings.probes.front().begin;
        const ReplayColumns scores = look_at_layer(trace, layer, settings);
        const RowIndex last = std::max(from, std::min(end, settings.at));
        return samples_of_entries(trace, layer, from, last, [&](int head, RowIndex token) {
          const double score = scores[index(head)][index(token)];
          return score > 0 ? std::log(score) : std::numeric_limits<double>::quiet_NaN();
        });
      });
  out.reads_replay = true;
  return out;
}

std::vector<Parameter> birth_model_parameters() {
  return {{.name = "scorer",
           .kind = Parameter::Kind::word,
           .fallback = "ridge",
           .help = "file: `scores` of `weights`",
           .choices = {"ridge", "file"}},
          weights_parameter()};
}

BirthModel birth_model(const Arguments& arguments, const Geometry& geometry) {
  BirthModel out;
  out.policy = arguments.policy();
  out.fit_end = geometry.evict_point / 2;
  out.trace = geometry.trace;
  out.memo = geometry.memo;
  if (!arguments.is("scorer", "file")) {
    out.weights = load_weights(arguments, "ridge");
    out.notes.push_back(fitted_note(arguments, "ridge", geometry));
    return out;
  }
  if (arguments.is("weights", "self")) {
    throw ConfigError(
        fmt::format("{}(scorer=file): found weights=self, expected a safetensors file with "
                    "`scores` [layers, heads, tokens]",
                    out.policy));
  }
  out.table = std::make_shared<LayerTable>(
      read_layer_table(arguments.text("weights"), {"scores"}, geometry, out.policy));
  if (out.table->heads != geometry.kv_heads) {
    throw ConfigError(fmt::format(
        "{}(scorer=file): scores are per KV head, found one per query head", out.policy));
  }
  return out;
}

BirthModel replay_model(const Arguments& arguments, const Geometry& geometry) {
  BirthModel out = birth_model(arguments, geometry);
  if (!out.table && !out.weights)
    out.notes.emplace_back("its labels are of a replay, which was asked after the whole prompt");
  return out;
}

Scoring birth_model_scoring(const BirthModel& model) {
  Scoring scoring;
  const Needs needs = model.table ? Needs{} : Needs{.k = true, .v = true};
  scoring.make = birth_scorer(needs, [model](const LayerShape&) { return values_of(model); });
  scoring.evicts_in_decode = true;
  scoring.at_birth = true;
  return scoring;
}

}  // namespace kvspan::policies
