// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/fitted.h"

#include <algorithm>
#include <atomic>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <tbb/parallel_for.h>

#include "sim/attention/full_rows.h"
#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"
#include "sim/trace/trace.h"

namespace kvspan::policies {

LayerVectors read_vectors(const Trace& trace, int layer, char which, RowIndex begin, RowIndex end,
                          bool before_rope) {
  const TraceMeta& m = trace.meta();
  const TensorView* tensor = which == 'q'   ? trace.q(layer)
                             : which == 'k' ? trace.k(layer)
                                            : trace.v(layer);
  LayerVectors out;
  out.begin = begin;
  out.heads = which == 'q' ? m.query_heads : m.kv_heads;
  out.dim = which == 'v' ? m.v_head_dim : m.head_dim;
  const std::int64_t row = std::int64_t{out.heads} * out.dim;
  out.data.resize(index((end - begin) * row));
  const std::string name = fmt::format("{}: layers.{}.{}", trace.name(), layer, which);
  if (tensor == nullptr) throw TraceError(fmt::format("{}: the fit needs it", name));
  widen(*tensor, begin * row, out.data, name);
  if (!before_rope || !m.rope) return out;
  for (RowIndex r = begin; r < end; ++r) {
    for (int h = 0; h < out.heads; ++h) {
      const std::size_t at = index(((r - begin) * out.heads + h) * out.dim);
      rotate(*m.rope, -static_cast<double>(r), std::span(out.data).subspan(at, index(out.dim)));
    }
  }
  return out;
}

std::vector<std::vector<float>> largest_future(const Trace& trace, int layer, RowIndex gap,
                                               RowIndex begin, RowIndex end) {
  const TraceMeta& m = trace.meta();
  std::vector<std::vector<float>> out(index(m.kv_heads), std::vector<float>(index(end), 0.0F));
  const int group = m.query_heads / m.kv_heads;
  for_each_row(trace, layer, std::min(end, std::max(gap, begin)), end,
               [&](int q, RowIndex row, const RowTerms& terms) {
                 auto& best = out[index(q / group)];
                 const double sum = terms.sum + terms.sink;
                 if (!(sum > 0)) return;
                 const auto scale = static_cast<float>(1 / sum);
                 for (RowIndex i = 0; i <= row - gap; ++i)
                   best[index(i)] = std::max(best[index(i)], terms.terms[i] * scale);
               });
  return out;
}

const std::vector<FittedScorer>& fitted_scorers() {
  static const std::vector<FittedScorer> all = {foresightkv_fit(), write_gate_fit(), judgeq_fit(),
                                                locret_fit()};
  return all;
}

const FittedScorer& fitted_scorer(const std::string& name) {
  std::vector<std::string> names;
  for (const FittedScorer& scorer : fitted_scorers()) {
    if (scorer.name == name) return scorer;
    names.push_back(scorer.name);
  }
  throw ConfigError(fmt::format("'{}' has nothing to fit; {}", name, nearest_hint(name, names)));
}

std::vector<Regressor> fit_layer(const FittedScorer& scorer, const Trace& trace, int layer,
                                 RowIndex end, const FitOptions& options) {
  std::vector<std::vector<Samples>> samples = {scorer.gather(trace, layer, 0, end, options)};
  if (scorer.label_all) scorer.label_all(samples, options);
  std::vector<Regressor> out;
  for (const Samples& s : samples.front()) out.push_back(scorer.fit(s, options));
  return out;
}

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
  if (std::find(scorer.methods.begin(), scorer.methods.end(), options.method) ==
      scorer.methods.end()) {
    throw ConfigError(fmt::format("fit {}: found method '{}', expected one of {}; {}", scorer.name,
                                  options.method, fmt::join(scorer.methods, ", "),
                                  nearest_hint(options.method, scorer.methods)));
  }
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
    const std::size_t heads = learn.front().samples[index(l)].size();
    for (std::size_t h = 0; h < heads; ++h) {
      Samples all;
      for (const Part& part : learn) append(part.samples[index(l)][h], all);
      report.train_rows += all.rows();
      out.set.regressors[index(l)].push_back(scorer.fit(all, options));
    }
    step();
    const auto quality = [&](const std::vector<Part>& parts, std::size_t* rows) {
      double sum = 0;
      for (const Part& part : parts) {
        for (std::size_t h = 0; h < heads; ++h) {
          const Samples& s = part.samples[index(l)][h];
          if (rows != nullptr) *rows += s.rows();
          sum += scorer.quality(out.set.regressors[index(l)][h], s, *part.trace, l,
                                static_cast<int>(h), part.from, part.end);
        }
        if (rows != nullptr) step();
      }
      return sum / static_cast<double>(parts.size() * heads);
    };
    report.train = quality(learn, nullptr);
    report.test = quality(check, &report.test_rows);
  });

  const FitOutcome::Layer total = out.total();
  const auto names = [](const std::vector<Trace>& traces, bool sums) {
    std::string text;
    for (const Trace& t : traces)
      text += (text.empty() ? "" : " ") + (sums ? t.sha256() : t.name());
    return text;
  };
  Metadata& about = out.set.about;
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
  about["measure"] = out.measure;
  about["train_score"] = fmt::format("{:.4f}", total.train);
  about["test_score"] = fmt::format("{:.4f}", total.test);
  about["note"] = "not the authors' weights";
  return out;
}

Parameter weights_parameter() {
  return {.name = "weights",
          .kind = Parameter::Kind::text,
          .fallback = "self",
          .help = "file of `kvspan fit`; self: fitted on the first half of the prompt"};
}

std::shared_ptr<const RegressorSet> load_weights(const Arguments& arguments,
                                                 const std::string& method) {
  if (arguments.is("weights", "self")) return nullptr;
  const std::string& file = arguments.text("weights");
  auto set = std::make_shared<RegressorSet>(RegressorSet::load(file));
  if (set->scorer != arguments.policy()) {
    throw ConfigError(
        fmt::format("{}(weights): '{}' was fitted for {}", arguments.policy(), file, set->scorer));
  }
  if (!method.empty() && set->regressors.front().front().method != method) {
    throw ConfigError(fmt::format("{}(weights): '{}' holds {}, expected {}", arguments.policy(),
                                  file, set->regressors.front().front().method, method));
  }
  return set;
}

std::string fitted_note(const Arguments& arguments, const std::string& method,
                        const Geometry& geometry) {
  if (arguments.is("weights", "self")) {
    return fmt::format(
        "stand-in: {} fitted on the first half of this prompt, not the authors' weights{}", method,
        geometry.trace == nullptr ? " (no trace: not fitted)" : "");
  }
  return fmt::format("stand-in: {} of {}, not the authors' weights", method,
                     arguments.text("weights"));
}

double agreement(const Regressor& model, const Samples& samples) {
  const std::size_t rows = samples.rows();
  std::vector<double> out(rows);
  model.evaluate(samples.x, out);
  if (model.method == "logit") return area_under_curve(out, samples.y);
  if (samples.decision.empty()) return kendall_tau(out, samples.y);
  double sum = 0;
  int count = 0;
  for (std::size_t i = 0; i < rows; ++count) {
    std::size_t j = i;
    while (j < rows && samples.decision[j] == samples.decision[i]) ++j;
    sum += kendall_tau(std::span(out).subspan(i, j - i), std::span(samples.y).subspan(i, j - i));
    i = j;
  }
  return count > 0 ? sum / count : 0;
}

}  // namespace kvspan::policies
