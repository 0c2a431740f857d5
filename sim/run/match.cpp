// SPDX-License-Identifier: Apache-2.0
#include "sim/run/match.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/run/run.h"

namespace kvspan {
namespace {

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

bool sizes(const Term& term, const Argument& argument) {
  const auto& parameters = find_policy(term.name).parameters;
  return std::any_of(parameters.begin(), parameters.end(),
                     [&](const Parameter& p) { return p.name == argument.key && p.sizes; });
}

void drop_sizes(RecipeSpec& spec) {
  for (Term& term : spec) {
    drop_sizes(term.inner);
    std::erase_if(term.arguments, [&](const Argument& arg) { return sizes(term, arg); });
  }
}

// What the user gave that a tuned knob would throw away: sizes beside a budget, and the knob itself
// where it is no budget, whose kind is kept.
std::string given_in_place(const RecipeSpec& spec, const Tunable& tunable) {
  std::string out;
  for (const Term& term : spec) {
    out = given_in_place(term.inner, tunable);
    if (!out.empty()) return out;
    for (const Argument& arg : term.arguments) {
      const bool knob = term.name == tunable.term && arg.key == tunable.knob.parameter;
      if (!sizes(term, arg) && (!knob || tunable.turns_amount())) continue;
      out += fmt::format("{}{}={}", out.empty() ? "" : ",", arg.key, arg.values.front());
    }
    if (!out.empty()) return out;
  }
  return out;
}

// What the search looks at. On a score trace `value` of retained attention is a lower bound.
struct Tried {
  double value = 0, upper = 0, footprint = 0;
};

Tried tried(const RunResult& run, MatchTarget::What what) {
  const double footprint = run.metrics.footprint;
  if (what == MatchTarget::What::footprint) return {footprint, footprint, footprint};
  if (what == MatchTarget::What::peak_bytes) {
    const auto bytes = static_cast<double>(run.metrics.peak_bytes.total);
    return {bytes, bytes, footprint};
  }
  const Fidelity& f = *run.fidelity;
  const PhaseFidelity& judged = f.decode ? *f.decode : *f.all;
  const double mass = judged.mass_mean;
  return {mass, judged.mass_upper ? judged.mass_upper->mean : mass, footprint};
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

constexpr int kScan = 32;  // positions tried of a knob that is not monotone

// Nearer than this a target counts as met: a point, or 1 % of bytes.
double tolerance(const MatchTarget& target) {
  return target.what == MatchTarget::What::peak_bytes ? 0.01 * target.value : 0.01;
}

// One policy's search over its knob.
struct Search {
  Tunable tunable;
  TokenCount low = 0, high = 0;  // positions still possible
  std::map<TokenCount, Tried> values;
};

// The knobs of several policies, turned together: one replay a step.
class Matching {
 public:
  Matching(const Trace& trace, const MatchTarget& target, const EngineOptions& options,
           const Accounting& accounting)
      : trace_(trace),
        target_(target),
        at_most_(target.what != MatchTarget::What::mass),
        geometry_(geometry_of(trace, options)),
        quick_(options),
        accounting_(accounting) {
    quick_.fidelity = !at_most_;
    quick_.output_error = false;
    quick_.keep_scores = false;
    quick_.progress = nullptr;
  }

  void add(const RecipeSpec& spec) {
    std::optional<Tunable> tunable = make_tunable(spec, geometry_);
    if (!tunable) {
      throw ConfigError(
          fmt::format("--match: {} has no parameter to tune; leave it out", to_text(spec)));
    }
    if (const std::string given = given_in_place(spec, *tunable); !given.empty()) {
      throw ConfigError(
          fmt::format("--match turns {} of {}, and '{}' gives {} in its place; leave that out",
                      tunable->knob.parameter, tunable->term, to_text(spec), given));
    }
    const Knob& knob = tunable->knob;
    const TokenCount lowest = knob.lowest;
    const TokenCount highest = knob.highest;
    searches_.push_back({std::move(*tunable), lowest, highest, {}});
  }

  // The ends first: they tell whether the target can be reached at all.
  void try_ends() {
    std::vector<Position> ends;
    for (Search& s : searches_) {
      ends.emplace_back(&s, s.low);
      if (s.high != s.low) ends.emplace_back(&s, s.high);
    }
    evaluate(ends);
  }

  // Knobs that are not monotone: positions at equal ratios, of which the best that fits is taken.
  void scan() {
    std::vector<Position> scanned;
    for (Search& s : searches_) {
      if (s.tunable.knob.monotone) continue;
      for (const TokenCount position : ratios(s.low, s.high)) {
        if (!s.values.contains(position)) scanned.emplace_back(&s, position);
      }
    }
    if (!scanned.empty()) evaluate(scanned);
    for (Search& s : searches_) {
      if (!s.tunable.knob.monotone) s.low = s.high = closest(s);
    }
  }

  // at_most: the largest position with value <= X, knowing that `low` has it; mass: the smallest
  // position with value >= X, knowing that `high` has it.
  void bisect() {
    bisect([this](const Tried& t) { return fits(t.value); });
    for (const Search& s : searches_) found_.push_back(at_most_ ? s.low : s.high);
  }

  // Score traces: the smallest footprint whose upper bound reaches the target, too.
  void bisect_upper() {
    if (at_most_ || trace_.is_qkv()) return;
    for (Search& s : searches_) {
      if (s.tunable.knob.monotone) s.low = s.tunable.knob.lowest;
    }
    bisect([this](const Tried& t) { return fits(t.upper); });
  }

  // Everything is measured at the positions that were found; `others` run along.
  std::vector<RunResult> results(const EngineOptions& options,
                                 const std::vector<RecipeSpec>& others) {
    std::vector<RecipeSpec> specs;
    for (std::size_t i = 0; i < searches_.size(); ++i)
      specs.push_back(searches_[i].tunable.at(found_[i]));
    specs.insert(specs.end(), others.begin(), others.end());
    std::vector<RunResult> runs =
        run_policies(trace_, enter(trace_, geometry_, specs), options, accounting_);
    for (std::size_t i = 0; i < searches_.size(); ++i)
      runs[i].match = outcome(searches_[i], runs[i]);
    return runs;
  }

 private:
  using Position = std::pair<Search*, TokenCount>;

  [[nodiscard]] bool fits(double value) const {
    return at_most_ ? value <= target_.value : value >= target_.value;
  }

  template <class Fits>
  void bisect(const Fits& reaches) {
    for (;;) {
      std::vector<Position> middle;
      for (Search& s : searches_) {
        TokenCount& anchor = at_most_ ? s.low : s.high;
        TokenCount& other = at_most_ ? s.high : s.low;
        if (!reaches(s.values.at(anchor))) continue;  // out of reach
        if (reaches(s.values.at(other))) anchor = other;
        if (s.high - s.low > 1) middle.emplace_back(&s, s.low + (s.high - s.low) / 2);
      }
      if (middle.empty()) return;
      evaluate(middle);
      for (const auto& [s, position] : middle)
        (reaches(s->values.at(position)) == at_most_ ? s->low : s->high) = position;
    }
  }

  [[nodiscard]] RunResult::Match outcome(const Search& search, const RunResult& run) const {
    const Tried reached = tried(run, target_.what);
    RunResult::Match out;
    out.what = what_name(target_.what);
    out.wanted = target_.value;
    out.reached = reached.value;
    out.lowest = out.highest = reached.value;
    for (const auto& [position, t] : search.values) {
      out.lowest = std::min(out.lowest, t.value);
      out.highest = std::max(out.highest, t.value);
      const double nearest = out.next.value_or(t.value);
      if (!fits(t.value))
        out.next = at_most_ ? std::min(nearest, t.value) : std::max(nearest, t.value);
    }
    out.reachable = out.lowest <= target_.value && target_.value <= out.highest;
    out.met = std::abs(reached.value - target_.value) <= tolerance(target_);
    if (at_most_ || trace_.is_qkv()) return out;
    out.upper = reached.upper;
    for (const auto& [position, t] : search.values) {
      if (fits(t.upper))
        out.least_footprint = std::min(out.least_footprint.value_or(t.footprint), t.footprint);
    }
    return out;
  }

  void evaluate(const std::vector<Position>& positions) {
    std::vector<RecipeSpec> specs;
    for (const auto& [search, position] : positions) specs.push_back(search->tunable.at(position));
    const std::vector<RunResult> runs =
        run_policies(trace_, enter(trace_, geometry_, specs), quick_, accounting_);
    for (std::size_t i = 0; i < positions.size(); ++i)
      positions[i].first->values[positions[i].second] = tried(runs[i], target_.what);
  }

  static std::vector<TokenCount> ratios(TokenCount low, TokenCount high) {
    const auto span = static_cast<double>(high - low + 1);
    std::vector<TokenCount> out;
    for (int i = 1; i < kScan; ++i) {
      const auto step = static_cast<TokenCount>(std::pow(span, static_cast<double>(i) / kScan));
      out.push_back(std::min(low + step, high));
    }
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
  }

  [[nodiscard]] TokenCount closest(const Search& s) const {
    const auto distance = [&](double value) {
      return fits(value) ? std::abs(value - target_.value)
                         : std::numeric_limits<double>::infinity();
    };
    return std::min_element(s.values.begin(), s.values.end(),
                            [&](const auto& a, const auto& b) {
                              return distance(a.second.value) < distance(b.second.value);
                            })
        ->first;
  }

  const Trace& trace_;
  MatchTarget target_;
  bool at_most_;  // the value may be at most the target's; else at least
  Geometry geometry_;
  EngineOptions quick_;  // of the search, which looks at one figure
  Accounting accounting_;
  std::vector<Search> searches_;
  std::vector<TokenCount> found_;  // [searches]
};

}  // namespace

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

bool is_baseline(const RecipeSpec& spec) { return spec.size() == 1 && spec.front().name == "full"; }

bool Tunable::turns_amount() const {
  const auto& parameters = find_policy(term).parameters;
  return std::any_of(parameters.begin(), parameters.end(), [&](const Parameter& p) {
    return p.name == knob.parameter && p.kind == Parameter::Kind::amount;
  });
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
  if (what == "retained" || what == "mass") {  // mass: its name before
    out.what = MatchTarget::What::mass;
  } else if (what != "footprint") {
    throw ConfigError(
        fmt::format("--match: found '{}', expected footprint=X, peak_bytes=X or retained=X; {}",
                    text, nearest_hint(what, {"footprint", "peak_bytes", "retained"})));
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

std::vector<RunResult> run_matched(const Trace& trace, const std::vector<RecipeSpec>& specs,
                                   const MatchTarget& target, const EngineOptions& options,
                                   const Accounting& accounting) {
  Matching matching(trace, target, options, accounting);
  std::vector<RecipeSpec> baselines;
  for (const RecipeSpec& spec : specs) {
    if (is_baseline(spec))
      baselines.push_back(spec);
    else
      matching.add(spec);
  }
  if (baselines.size() == specs.size())
    throw ConfigError("--match: the full cache has no parameter to tune; name policies beside it");
  matching.try_ends();
  matching.scan();
  matching.bisect();
  matching.bisect_upper();
  std::vector<RunResult> runs = matching.results(options, baselines);
  // In the order given.
  auto baseline = runs.begin() + static_cast<std::ptrdiff_t>(specs.size() - baselines.size());
  auto tuned = runs.begin();
  std::vector<RunResult> out;
  for (const RecipeSpec& spec : specs)
    out.push_back(std::move(*(is_baseline(spec) ? baseline : tuned)++));
  return out;
}

}  // namespace kvspan
