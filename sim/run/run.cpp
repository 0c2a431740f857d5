// SPDX-License-Identifier: Apache-2.0
#include "sim/run/run.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/policy/registry.h"

namespace kvspan {
namespace {

std::vector<std::string> read_spec_file(const std::string& path) {
  std::ifstream in(path);
  if (!in) throw ConfigError(fmt::format("cannot read policy file '{}'", path));
  try {
    const nlohmann::json json = nlohmann::json::parse(in);
    if (json.is_string()) return {json.get<std::string>()};
    return json.get<std::vector<std::string>>();
  } catch (const nlohmann::json::exception&) {
    throw ConfigError(fmt::format(
        "'{}' is not a JSON list of policy specifications such as [\"snapkv(budget=512)\"]", path));
  }
}

// The term whose `budget` (or other knob) is turned, innermost first; null: none has it.
const Term* find_knob_term(const RecipeSpec& spec, const std::string& parameter) {
  for (const Term& term : spec) {
    const Term* inner = find_knob_term(term.inner, parameter);
    if (inner != nullptr) return inner;
    const auto& parameters = find_policy(term.name).parameters;
    if (std::any_of(parameters.begin(), parameters.end(),
                    [&](const Parameter& p) { return p.name == parameter; })) {
      return &term;
    }
  }
  return nullptr;
}

const Term& knob_term(const RecipeSpec& spec, const std::string& parameter) {
  const Term* term = find_knob_term(spec, parameter);
  return term != nullptr ? *term : spec.front();
}

void drop_sizes(RecipeSpec& spec) {
  for (Term& term : spec) {
    drop_sizes(term.inner);
    const auto& parameters = find_policy(term.name).parameters;
    std::erase_if(term.arguments, [&](const Argument& arg) {
      return std::any_of(parameters.begin(), parameters.end(),
                         [&](const Parameter& p) { return p.name == arg.key && p.sizes; });
    });
  }
}

constexpr int kScan = 32;  // positions tried of a knob that is not monotone

// One policy's search over its knob.
struct Search {
  Tunable tunable;
  TokenCount low = 0, high = 0;  // knob positions still possible
  std::map<TokenCount, double> values;
};

double value_of(const RunResult& run, MatchTarget::What what) {
  switch (what) {
    case MatchTarget::What::footprint:
      return run.metrics.footprint;
    case MatchTarget::What::peak_bytes:
      return static_cast<double>(run.metrics.peak_bytes.total);
    case MatchTarget::What::mass:
      break;
  }
  const Fidelity& f = *run.fidelity;
  return f.decode ? f.decode->mass_mean : f.all->mass_mean;
}

std::string what_name(MatchTarget::What what) {
  switch (what) {
    case MatchTarget::What::footprint:
      return "footprint";
    case MatchTarget::What::peak_bytes:
      return "peak_bytes";
    case MatchTarget::What::mass:
      break;
  }
  return "mass";
}

}  // namespace

std::vector<RecipeSpec> expand_policies(const std::vector<std::string>& texts,
                                        const std::vector<std::string>& budgets) {
  std::vector<RecipeSpec> given;
  for (const std::string& text : texts) {
    if (text == "all") {
      for (RecipeSpec& spec : all_policies()) given.push_back(std::move(spec));
    } else if (text.starts_with('@')) {
      for (const std::string& line : read_spec_file(text.substr(1)))
        given.push_back(parse_spec(line));
    } else {
      given.push_back(parse_spec(text));
    }
  }
  std::vector<RecipeSpec> out;
  std::vector<std::string> seen;
  const auto add = [&](const RecipeSpec& spec) {
    const std::string text = to_text(spec);
    if (std::find(seen.begin(), seen.end(), text) != seen.end()) return;
    seen.push_back(text);
    out.push_back(spec);
  };
  for (const RecipeSpec& spec : given) {
    for (const RecipeSpec& single : expand_sets(spec)) {
      if (budgets.empty()) add(single);
      for (const std::string& budget : budgets) {
        RecipeSpec sized = single;
        apply_budget(sized, budget);
        add(sized);
      }
    }
  }
  return out;
}

RecipeSpec Tunable::at(TokenCount position) const {
  RecipeSpec out = spec;
  set_argument(out, term, knob.parameter, knob.value(position));
  return out;
}

std::optional<Tunable> make_tunable(const RecipeSpec& spec, const Geometry& geometry) {
  Tunable out;
  out.spec = spec;
  drop_sizes(out.spec);
  const Policy policy = make_policy(out.spec, geometry);
  if (!policy.knob) return std::nullopt;
  out.knob = *policy.knob;
  out.term = knob_term(out.spec, out.knob.parameter).name;
  const RecipeSpec canonical = parse_spec(policy.spec);
  for (const Argument& argument : knob_term(canonical, out.knob.parameter).arguments) {
    if (argument.key == out.knob.parameter) out.value = argument.values.front();
  }
  return out;
}

MatchTarget parse_match(const std::string& text) {
  const auto equals = text.find('=');
  const std::string what = text.substr(0, equals);
  const std::string value = equals == std::string::npos ? "" : text.substr(equals + 1);
  MatchTarget out;
  out.text = text;
  if (what == "peak_bytes") {
    out.what = MatchTarget::What::peak_bytes;
    out.value = static_cast<double>(parse_bytes(value, "--match peak_bytes"));
    return out;
  }
  if (what == "mass") {
    out.what = MatchTarget::What::mass;
  } else if (what != "footprint") {
    throw ConfigError(
        fmt::format("--match: found '{}', expected footprint=X, peak_bytes=X or mass=X; {}", text,
                    nearest_hint(what, {"footprint", "peak_bytes", "mass"})));
  }
  const bool percent = value.ends_with('%');
  char* end = nullptr;
  out.value = std::strtod(value.c_str(), &end);
  if (value.empty() || std::string(end) != (percent ? "%" : "")) {
    throw ConfigError(
        fmt::format("--match {}: found '{}', expected a share such as 0.4 or 40%", what, value));
  }
  if (percent) out.value /= 100;
  if (!(out.value > 0 && out.value <= 1)) {
    throw ConfigError(fmt::format(
        "--match {}: found '{}', expected a share above 0 and at most 1 (or 100%)", what, value));
  }
  return out;
}

std::vector<RunResult> run_policies(const Trace& trace, const std::vector<RecipeSpec>& specs,
                                    const EngineOptions& options, const Accounting& accounting) {
  const Geometry geometry = geometry_of(trace, options);
  (void)parse_layout(accounting.layout);
  std::vector<Policy> policies;
  for (const RecipeSpec& spec : specs) policies.push_back(make_policy(spec, geometry));
  return run_policies(trace, specs, std::move(policies), options, accounting);
}

std::vector<RunResult> run_policies(const Trace& trace, const std::vector<RecipeSpec>& specs,
                                    std::vector<Policy> policies, const EngineOptions& options,
                                    const Accounting& accounting) {
  std::vector<Replay> replays = replay(trace, policies, options);
  std::vector<RunResult> out;
  for (std::size_t p = 0; p < policies.size(); ++p) {
    RunResult run;
    run.spec = policies[p].spec;
    run.label = to_text(specs[p]);
    run.klass = policies[p].klass;
    run.bound = policies[p].bound;
    run.notes = policies[p].notes;
    if (trace.meta().layers != trace.meta().model_layers) {
      run.notes.push_back(
          fmt::format("bytes of {} of {} layers", trace.meta().layers, trace.meta().model_layers));
    }
    const bool budgets_follow_content =
        std::any_of(policies[p].rules.begin(), policies[p].rules.end(),
                    [](const Rule& rule) { return rule.budget && !rule.budget->content_free(); });
    if (!trace.is_qkv() && budgets_follow_content)
      run.notes.emplace_back("budgets rest on truncated attention: undecided counts rankings");
    run.ledger = std::move(replays[p].ledger);
    run.metrics = compute_metrics(run.ledger, accounting);
    run.fidelity = std::move(replays[p].fidelity);
    run.undecided = replays[p].undecided;
    out.push_back(std::move(run));
  }
  return out;
}

std::vector<RunResult> run_matched(const Trace& trace, const std::vector<RecipeSpec>& specs,
                                   const MatchTarget& target, const EngineOptions& options,
                                   const Accounting& accounting) {
  const Geometry geometry = geometry_of(trace, options);
  std::vector<Search> searches;
  for (const RecipeSpec& spec : specs) {
    std::optional<Tunable> tunable = make_tunable(spec, geometry);
    if (!tunable) {
      throw ConfigError(
          fmt::format("--match: {} has no parameter to tune; leave it out", to_text(spec)));
    }
    Search s;
    s.tunable = std::move(*tunable);
    s.low = s.tunable.knob.lowest;
    s.high = s.tunable.knob.highest;
    searches.push_back(std::move(s));
  }
  const bool at_most = target.what != MatchTarget::What::mass;
  EngineOptions quick = options;
  quick.fidelity = !at_most;
  quick.output_error = false;
  quick.keep_scores = false;
  quick.progress = nullptr;
  const auto evaluate = [&](const std::vector<std::pair<Search*, TokenCount>>& positions) {
    std::vector<RecipeSpec> at;
    for (const auto& [search, position] : positions) at.push_back(search->tunable.at(position));
    const std::vector<RunResult> runs = run_policies(trace, at, quick, accounting);
    for (std::size_t i = 0; i < positions.size(); ++i)
      positions[i].first->values[positions[i].second] = value_of(runs[i], target.what);
  };
  const auto fits = [&](double value) {
    return at_most ? value <= target.value : value >= target.value;
  };
  // The ends first: they tell whether the target can be reached at all.
  std::vector<std::pair<Search*, TokenCount>> ends;
  for (Search& s : searches) {
    ends.emplace_back(&s, s.low);
    if (s.high != s.low) ends.emplace_back(&s, s.high);
  }
  evaluate(ends);
  // Knobs that are not monotone: positions at equal ratios, of which the best that fits is taken.
  std::vector<std::pair<Search*, TokenCount>> scanned;
  for (Search& s : searches) {
    if (s.tunable.knob.monotone) continue;
    const auto span = static_cast<double>(s.high - s.low + 1);
    std::vector<TokenCount> positions;
    for (int i = 1; i < kScan; ++i) {
      const auto step = static_cast<TokenCount>(std::pow(span, static_cast<double>(i) / kScan));
      positions.push_back(std::min(s.low + step, s.high));
    }
    positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
    for (const TokenCount position : positions) {
      if (!s.values.contains(position)) scanned.emplace_back(&s, position);
    }
  }
  if (!scanned.empty()) evaluate(scanned);
  for (Search& s : searches) {
    if (s.tunable.knob.monotone) continue;
    const auto closeness = [&](double value) {
      return fits(value) ? std::abs(value - target.value) : std::numeric_limits<double>::infinity();
    };
    const auto best = std::min_element(
        s.values.begin(), s.values.end(),
        [&](const auto& a, const auto& b) { return closeness(a.second) < closeness(b.second); });
    s.low = s.high = best->first;
  }
  // Bisection. at_most: the largest position with value <= X, knowing that `low` has it; mass: the
  // smallest position with value >= X, knowing that `high` has it.
  for (;;) {
    std::vector<std::pair<Search*, TokenCount>> middle;
    for (Search& s : searches) {
      const TokenCount anchor = at_most ? s.low : s.high;
      if (!fits(s.values.at(anchor))) continue;  // out of reach
      if (fits(s.values.at(at_most ? s.high : s.low))) {
        (at_most ? s.low : s.high) = at_most ? s.high : s.low;
      }
      if (s.high - s.low > 1) middle.emplace_back(&s, s.low + (s.high - s.low) / 2);
    }
    if (middle.empty()) break;
    evaluate(middle);
    for (const auto& [s, position] : middle) {
      const bool fit = fits(s->values.at(position));
      if (at_most) {
        (fit ? s->low : s->high) = position;
      } else {
        (fit ? s->high : s->low) = position;
      }
    }
  }
  std::vector<RecipeSpec> tuned;
  for (const Search& s : searches) tuned.push_back(s.tunable.at(at_most ? s.low : s.high));
  std::vector<RunResult> runs = run_policies(trace, tuned, options, accounting);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const Search& s = searches[i];
    RunResult::Match match;
    match.what = what_name(target.what);
    match.wanted = target.value;
    match.reached = value_of(runs[i], target.what);
    match.reachable = fits(match.reached);
    const auto [lowest, highest] =
        std::minmax_element(s.values.begin(), s.values.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; });
    match.lowest = lowest->second;
    match.highest = highest->second;
    runs[i].match = match;
  }
  return runs;
}

}  // namespace kvspan
