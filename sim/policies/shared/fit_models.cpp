// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/fit_models.h"

#include <algorithm>
#include <atomic>
#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <tbb/parallel_for.h>

#include "sim/base/error.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

// Samples of one more trace; its decisions are others.
void append(const Samples& more, Samples& out) {
  const std::int32_t offset = out.decision.empty() ? 0 : out.decision.back() + 1;
  out.width = more.width;
  out.outputs = more.outputs;
  out.x.insert(out.x.end(), more.x.begin(), more.x.end());
  out.y.insert(out.y.end(), more.y.begin(), more.y.end());
  for (const std::int32_t d : more.decision) out.decision.push_back(d + offset);
}

// [layers][heads] of one trace.
using LayerSamples = std::vector<std::vector<Samples>>;

struct Part {
  const Trace* trace = nullptr;
  RowIndex from = 0, end = 0;
  LayerSamples samples;
};

void check_together(const std::vector<Trace>& train, const std::vector<Trace>& test) {
  const TraceMeta& a = train.front().meta();
  for (const std::vector<Trace>* list : {&train, &test}) {
    for (const Trace& trace : *list) {
      const TraceMeta& b = trace.meta();
      if (!trace.is_qkv())
        throw TraceError(fmt::format("{}: a fit needs q and k; it is a score trace", trace.name()));
      if (a.layer_ids != b.layer_ids || a.query_heads != b.query_heads ||
          a.kv_heads != b.kv_heads || a.head_dim != b.head_dim || a.v_head_dim != b.v_head_dim) {
        throw ConfigError(fmt::format("fit: {} and {} differ in layers, heads or dimensions",
                                      train.front().name(), trace.name()));
      }
    }
  }
}

void check_method(const FittedScorer& scorer, const std::string& method) {
  const auto& known = scorer.methods;
  if (std::find(known.begin(), known.end(), method) != known.end()) return;
  throw ConfigError(fmt::format("fit {}: found method '{}', expected one of {}; {}", scorer.name,
                                method, fmt::join(known, ", "), nearest_hint(method, known)));
}

// Mean over parts and heads of one layer; adds the samples to `rows`.
double mean_quality(const FittedScorer& scorer, const std::vector<Regressor>& models, int layer,
                    const std::vector<Part>& parts, std::size_t& rows,
                    const std::function<void()>& step) {
  double sum = 0;
  for (const Part& part : parts) {
    for (std::size_t h = 0; h < models.size(); ++h) {
      const Samples& s = part.samples[index(layer)][h];
      rows += s.rows();
      sum += scorer.quality(models[h], s, *part.trace, layer, static_cast<int>(h), part.from,
                            part.end);
    }
    step();
  }
  return sum / static_cast<double>(parts.size() * models.size());
}

std::string names(const std::vector<Trace>& traces, bool sums) {
  std::string text;
  for (const Trace& t : traces) text += (text.empty() ? "" : " ") + (sums ? t.sha256() : t.name());
  return text;
}

Metadata describe(const FittedScorer& scorer, const std::vector<Trace>& train,
                  const std::vector<Trace>& test, const FitOptions& options,
                  const FitOutcome& outcome) {
  const FitOutcome::Layer total = outcome.total();
  Metadata about;
  about["features"] = scorer.features;
  about["label"] = scorer.label;
  about["regulariser"] = options.method == "mlp"
                             ? fmt::format("none, {} steps of Adam", options.steps)
                         : options.method == "centres" ? "none"
                                                       : fmt::format("ridge {:g}", options.lambda);
  about["seed"] = std::to_string(options.seed);
  about["train"] = names(train, false);
  about["train_sha256"] = names(train, true);
  about["train_rows"] = std::to_string(total.train_rows);
  about["test"] = test.empty() ? "second half of each training prompt" : names(test, false);
  about["test_sha256"] = names(test, true);
  about["test_rows"] = std::to_string(total.test_rows);
  about["measure"] = outcome.measure;
  about["train_score"] = fmt::format("{:.4f}", total.train);
  about["test_score"] = fmt::format("{:.4f}", total.test);
  about["note"] = "not the authors' weights";
  return about;
}

}  // namespace

FitOutcome::Layer FitOutcome::total() const {
  Layer out;
  for (const Layer& l : layers) {
    out.train_rows += l.train_rows;
    out.test_rows += l.test_rows;
    out.train += l.train / static_cast<double>(layers.size());
    out.test += l.test / static_cast<double>(layers.size());
  }
  return out;
}

FitOutcome fit_models(const FittedScorer& scorer, const std::vector<Trace>& train,
                      const std::vector<Trace>& test, const FitOptions& options,
                      const std::function<void(double)>& progress,
                      const std::function<bool()>& cancelled) {
  if (train.empty()) throw ConfigError("fit: no training trace");
  check_method(scorer, options.method);
  check_together(train, test);
  const int layers = train.front().meta().layers;
  std::vector<Part> learn;
  std::vector<Part> check;
  for (const Trace& t : train) {
    const RowIndex n = t.meta().prompt_tokens;
    learn.push_back({&t, 0, test.empty() ? n / 2 : n, LayerSamples(index(layers))});
    if (test.empty()) check.push_back({&t, n / 2, n, LayerSamples(index(layers))});
  }
  for (const Trace& t : test)
    check.push_back({&t, 0, t.meta().prompt_tokens, LayerSamples(index(layers))});

  std::atomic<int> done{0};
  const double steps =
      static_cast<double>(layers) * static_cast<double>(learn.size() + 2 * check.size() + 1);
  const auto step = [&] {
    if (cancelled && cancelled()) throw Interrupted();
    if (progress) progress(static_cast<double>(++done) / steps);
  };
  for (std::vector<Part>* parts : {&learn, &check}) {
    for (Part& part : *parts) {
      FitOptions own = options;
      if (own.budget == 0)
        own.budget = std::max<TokenCount>(1, part.trace->meta().prompt_tokens / 5);
      tbb::parallel_for(0, layers, [&](int l) {
        part.samples[index(l)] = scorer.gather(*part.trace, l, part.from, part.end, own);
        step();
      });
      if (scorer.label_all) scorer.label_all(part.samples, own);
    }
  }
  FitOutcome out;
  out.set.scorer = scorer.name;
  out.set.layer_ids = train.front().meta().layer_ids;
  out.set.regressors.resize(index(layers));
  out.layers.resize(index(layers));
  out.measure = options.method == "logit" || scorer.name == "write_gate" ? "AUC" : "Kendall tau";
  tbb::parallel_for(0, layers, [&](int l) {
    FitOutcome::Layer& report = out.layers[index(l)];
    std::vector<Regressor>& models = out.set.regressors[index(l)];
    const std::size_t heads = learn.front().samples[index(l)].size();
    for (std::size_t h = 0; h < heads; ++h) {
      Samples all;
      for (const Part& part : learn) append(part.samples[index(l)][h], all);
      models.push_back(scorer.fit(all, options));
    }
    step();
    report.train = mean_quality(scorer, models, l, learn, report.train_rows, [] {});
    report.test = mean_quality(scorer, models, l, check, report.test_rows, step);
  });
  out.set.about = describe(scorer, train, test, options, out);
  return out;
}

}  // namespace kvspan::policies
