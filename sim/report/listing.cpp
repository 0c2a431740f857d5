// SPDX-License-Identifier: Apache-2.0
#include "sim/report/listing.h"

#include <algorithm>
#include <numeric>
#include <string_view>

#include <fmt/format.h>

#include "sim/base/text.h"

namespace kvspan {

std::string label_of(const RunResult& run) {
  return one_line(run.label.empty() ? run.spec : run.label);
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

std::string layer_subset(const TraceMeta& trace) {
  if (trace.layers >= trace.model_layers) return "";
  return fmt::format("bytes of {} of {} layers", trace.layers, trace.model_layers);
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
  if (run.fidelity) {
    for (const auto* phase : {&run.fidelity->all, &run.fidelity->prefill, &run.fidelity->decode}) {
      if (*phase && !(*phase)->exact_percentiles) add("percentiles from a histogram of 65536 bins");
    }
  }
  return notes;
}

}  // namespace kvspan
