// SPDX-License-Identifier: Apache-2.0
#include "sim/report/listing.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/policy/spec.h"

namespace kvspan {
namespace {

const Term* find_term(const RecipeSpec& spec, std::string_view name) {
  for (const Term& term : spec) {
    if (term.name == name) return &term;
    if (const Term* inner = find_term(term.inner, name)) return inner;
  }
  return nullptr;
}

// The value of the first argument of that name; empty: none.
std::string value_of(const RecipeSpec& spec, std::string_view key) {
  for (const Term& term : spec) {
    for (const Argument& argument : term.arguments) {
      if (argument.key == key) return argument.values.front();
    }
    if (std::string inner = value_of(term.inner, key); !inner.empty()) return inner;
  }
  return "";
}

}  // namespace

std::string chunked_amount(const std::string& spec) {
  if (spec.find("chunked(") == spec.npos) return "";
  try {
    const RecipeSpec recipe = parse_spec(spec);
    const Term* chunked = find_term(recipe, "chunked");
    const std::string budget = chunked == nullptr ? "" : value_of(chunked->inner, "budget");
    if (budget.empty() || budget == "auto") return "";
    if (!budget.ends_with('%')) return budget + " in all";
    const bool all = value_of({{chunked->name, {}, chunked->arguments}}, "compete") == "all";
    return budget + (all ? " of all chunks so far" : " of each chunk");
  } catch (const Error&) {
    return "";  // of a file that writes its specs otherwise
  }
}

std::string label_with_amount(const std::string& label, const std::string& amount) {
  if (amount.empty()) return label;
  const std::size_t begin = label.find("budget=");
  if (begin == label.npos) return label + ": " + amount;
  const std::size_t end = std::min(label.find_first_of(",)", begin), label.size());
  return label.substr(0, begin) + amount + label.substr(end);
}

std::string brief_label(std::string label) {
  constexpr std::string_view kChunk = " of each chunk";
  const std::size_t at = label.find(kChunk);
  if (at != label.npos) label.replace(at, kChunk.size(), " of each");
  return label;
}

std::string Footnotes::marks(const std::vector<std::string>& notes) {
  std::string out;
  for (const std::string& note : notes) {
    const auto known = std::find(notes_.begin(), notes_.end(), one_line(note));
    out += fmt::format("{}[{}]", out.empty() ? " " : "", known - notes_.begin() + 1);
    if (known == notes_.end()) notes_.push_back(one_line(note));
  }
  return out;
}

std::string label_of(const RunResult& run) {
  return one_line(
      label_with_amount(run.label.empty() ? run.spec : run.label, chunked_amount(run.spec)));
}

std::vector<std::size_t> display_order(const RunReport& report) {
  const auto place = [&](std::size_t run) {
    const std::string_view spec = report.runs[run].spec;
    if (report.runs[run].bound) return 2;
    return spec.substr(0, spec.find('(')) == "full" && spec.find('+') == spec.npos ? 0 : 1;
  };
  std::vector<std::size_t> order(report.runs.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return place(a) < place(b); });
  return order;
}

const PhaseFidelity* judged_phase(const RunResult& run) {
  if (!run.fidelity) return nullptr;
  if (run.fidelity->decode) return &*run.fidelity->decode;
  return run.fidelity->all ? &*run.fidelity->all : nullptr;
}

std::vector<std::pair<std::size_t, std::size_t>> not_ranked(const RunReport& report) {
  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  const std::vector<std::size_t> order = display_order(report);
  const auto interval = [&](std::size_t r) -> std::optional<MassInterval> {
    const PhaseFidelity* phase = judged_phase(report.runs[r]);
    if (phase == nullptr || !phase->mass_upper || report.runs[r].bound) return std::nullopt;
    return MassInterval{phase->mass_mean, phase->mass_upper->mean};
  };
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto a = interval(order[i]);
    for (std::size_t j = i + 1; a && j < order.size(); ++j) {
      const auto b = interval(order[j]);
      if (b && a->low < b->high && b->low < a->high) pairs.emplace_back(order[i], order[j]);
    }
  }
  return pairs;
}

std::string layer_subset(const TraceMeta& trace) {
  if (trace.layers >= trace.model_layers) return "";
  return fmt::format("bytes of {} of {} layers", trace.layers, trace.model_layers);
}

std::string sample_note(const RunResult& run) {
  if (!run.fidelity) return "";
  const PassPlan& plan = run.ledger.plan;
  std::string of;
  const auto add = [&](const char* rows, const std::optional<RowIndex>& sample, RowIndex all) {
    if (!sample) return;
    of += fmt::format("{}{} rows are of {} of {}", of.empty() ? "" : ", of ", rows, *sample, all);
  };
  add("prompt", run.fidelity->prefill_sample, plan.prompt);
  add("decode", run.fidelity->decode_sample, plan.tokens - plan.prompt);
  using Of = FidelitySample::Of;
  const Of sampled = run.fidelity->sampled;
  const auto& estimate = run.fidelity->estimate;
  if (estimate && sampled != Of::rows) {
    of +=
        fmt::format("{}{} of {} {}, drawn at random", of.empty() ? "" : ", evenly spread, and of ",
                    estimate->drawn, estimate->of, sampled == Of::heads ? "KV heads" : "layers");
  } else if (!of.empty()) {
    of += sampled == Of::rows ? ", drawn at random" : ", evenly spread";
  }
  return of.empty() ? "" : "retained attention and output error of " + of;
}

std::vector<std::string> notes_of(const RunReport& report, const RunResult& run) {
  std::vector<std::string> notes;
  const auto add = [&](const std::string& note) {
    if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(note);
  };
  for (const std::string& note : run.notes) add(valid_utf8(note));
  if (const std::string subset = layer_subset(report.trace); !subset.empty()) add(subset);
  const auto is_bound = [](const std::string& note) { return note.starts_with("bound"); };
  if (run.bound && std::none_of(notes.begin(), notes.end(), is_bound)) {
    add("bound: reads the future");
  }
  if (report.trace.kv_heads > 0 && run.ledger.heads > report.trace.kv_heads) {
    add(fmt::format(
        "keeps a set for each of {} query heads, where the full cache has {} KV heads: footprint "
        "and peak KV are shares of the larger number, bytes are up to {:.3g} times theirs",
        run.ledger.heads, report.trace.kv_heads,
        static_cast<double>(run.ledger.heads) / report.trace.kv_heads));
  }
  if (run.fidelity) {
    if (run.fidelity->all && run.fidelity->all->mass_upper) add(std::string(kIntervalNote));
    if (const std::string note = sample_note(run); !note.empty()) add(note);
    for (const auto* phase : {&run.fidelity->all, &run.fidelity->prefill, &run.fidelity->decode}) {
      if (*phase && !(*phase)->exact_percentiles) add("percentiles from a histogram of 65536 bins");
    }
  }
  return notes;
}

}  // namespace kvspan
