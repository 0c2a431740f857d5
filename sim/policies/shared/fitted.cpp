// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/fitted.h"

#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/groups.h"

namespace kvspan::policies {

const std::vector<FittedScorer>& fitted_scorers() {
  static const std::vector<FittedScorer> all = {foresightkv_fit(), write_gate_fit(),
                                                judgeq_fit(),      locret_fit(),
                                                kvzap_fit(),       fast_kvzip_fit()};
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

// All that a fit depends on, within one replay of a trace.
std::string fit_key(const std::string& scorer, const FitSource& source, int layer) {
  const FitOptions& o = source.fit;
  return fmt::format("fit {} {} {} {} {} {} {} {} {} {} {} {} {}", scorer, layer, source.fit_end,
                     o.method, o.lambda, o.seed, o.steps, o.budget, o.interval, o.window, o.rate,
                     o.queries, o.attention_only);
}

}  // namespace

LayerModels::LayerModels(std::string scorer, FitSource source)
    : scorer_(std::move(scorer)), source_(std::move(source)) {}

const std::vector<Regressor>& LayerModels::of(const LayerShape& shape, int heads,
                                              std::size_t width) {
  if (source_.weights) return source_.weights->layer(shape.model_layer, index(heads), width);
  if (!fitted_) {
    fitted_ = remembered<std::vector<Regressor>>(
        source_.memo, fit_key(scorer_, source_, shape.layer), [&] {
          return fit_layer(fitted_scorer(scorer_), *source_.trace, shape.layer, source_.fit_end,
                           source_.fit);
        });
  }
  return *fitted_;
}

Parameter weights_parameter() {
  return {.name = "weights",
          .kind = Parameter::Kind::text,
          .fallback = "self",
          .unit = "file",
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
