// SPDX-License-Identifier: Apache-2.0
// Two sweeps, cell by cell.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"
#include "sim/sweep/report_forms.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;

constexpr const char* kCompared[] = {"footprint_share",
                                     "peak_kv_share",
                                     "peak_bytes",
                                     "byte_rows",
                                     "host_footprint_share",
                                     "read_bytes",
                                     "retained_attention_mean_share",
                                     "retained_attention_p5_share",
                                     "output_error_mean_share",
                                     "regret_share",
                                     "optimum_footprint_share"};

struct Known {
  std::string trace, group, policy;
  const CellRecord* record = nullptr;
};

// Cells that are done, by what they are of.
std::map<std::string, Known> cells_of(const SweepFolder& sweep, bool by_name) {
  std::map<std::string, Known> out;
  for (const Cell& cell : sweep.grid.cells) {
    const auto found = sweep.records.cells.find(cell.id);
    if (found == sweep.records.cells.end() || found->second.status != CellRecord::Status::done)
      continue;
    const Setting& s = sweep.grid.settings[cell.setting];
    const Counting& c = sweep.grid.countings[cell.counting];
    const SweepTrace& trace = sweep.plan.traces[s.trace];
    const Group group{s.prompt, s.evict_at, s.chunk, s.kv_bytes, s.seed, c.prefill, c.layout};
    const std::string name = std::filesystem::path(trace.path).filename().string();
    Known known{name, text_of(group), sweep.plan.specs[cell.spec].text, &found->second};
    std::string key = json{by_name ? name : trace.sha256, known.group, known.policy}.dump();
    out.emplace(std::move(key), std::move(known));
  }
  return out;
}

bool same_traces(const SweepFolder& a, const SweepFolder& b) {
  return std::any_of(a.plan.traces.begin(), a.plan.traces.end(), [&](const SweepTrace& one) {
    return std::any_of(b.plan.traces.begin(), b.plan.traces.end(),
                       [&](const SweepTrace& other) { return one.sha256 == other.sha256; });
  });
}

double relative(const Change& change) {
  const double size = std::max(std::abs(change.before), std::abs(change.after));
  return size > 0 ? std::abs(change.by()) / size : 0;
}

// A figure that only one of them has counts as a change from or to nothing.
void compare_cell(const Known& before, const Known& after, double tolerance, Comparison& out) {
  const json a = json::parse(before.record->text);
  const json b = json::parse(after.record->text);
  const std::size_t known = out.changes.size();
  for (const char* figure : kCompared) {
    const json& x = a.value(figure, json());
    const json& y = b.value(figure, json());
    if (x.is_null() && y.is_null()) continue;
    const Change change{before.trace,
                        before.group,
                        before.policy,
                        figure,
                        x.is_number() ? x.get<double>() : 0,
                        y.is_number() ? y.get<double>() : 0};
    if (relative(change) > tolerance) out.changes.push_back(change);
  }
  if (out.changes.size() == known) ++out.same;
}

std::string in_words(const Known& known) {
  return fmt::format("{}, {}, {}", known.trace, known.group, known.policy);
}

void add_list(const std::vector<std::string>& cells, const char* what, std::size_t most,
              std::string& text) {
  if (cells.empty()) return;
  text += fmt::format("\n{} {}:\n", cells.size(), what);
  for (std::size_t i = 0; i < std::min(most, cells.size()); ++i)
    text += fmt::format("* {}\n", one_line(cells[i]));
  if (cells.size() > most) text += fmt::format("* and {} more\n", cells.size() - most);
}

}  // namespace

Comparison compare(const SweepFolder& before, const SweepFolder& after, double tolerance) {
  const bool by_name = !same_traces(before, after);
  const auto a = cells_of(before, by_name);
  const auto b = cells_of(after, by_name);
  Comparison out;
  for (const auto& [key, known] : a) {
    const auto other = b.find(key);
    if (other == b.end())
      out.only_before.push_back(in_words(known));
    else
      compare_cell(known, other->second, tolerance, out);
  }
  for (const auto& [key, known] : b) {
    if (!a.contains(key)) out.only_after.push_back(in_words(known));
  }
  std::stable_sort(out.changes.begin(), out.changes.end(),
                   [](const Change& x, const Change& y) { return relative(x) > relative(y); });
  return out;
}

std::string to_markdown(const Comparison& comparison, std::size_t most) {
  std::string text = fmt::format(
      "{} cells are the same; {} figures changed; {} cells only before, {} only after\n",
      comparison.same, comparison.changes.size(), comparison.only_before.size(),
      comparison.only_after.size());
  if (!comparison.changes.empty()) {
    text +=
        "\n| trace | setting | policy | figure | before | after | change % |\n"
        "|---|---|---|---|---|---|---|\n";
    for (std::size_t i = 0; i < std::min(most, comparison.changes.size()); ++i) {
      const Change& c = comparison.changes[i];
      text += fmt::format("| {} | {} | {} | {} | {:.6g} | {:.6g} | {} |\n", one_line(c.trace),
                          c.group, one_line(c.policy), c.figure, c.before, c.after,
                          c.before == 0 ? "new" : fmt::format("{:+.3g}", 100 * c.by() / c.before));
    }
    if (comparison.changes.size() > most)
      text += fmt::format("\nand {} more\n", comparison.changes.size() - most);
  }
  add_list(comparison.only_before, "cells only before", most, text);
  add_list(comparison.only_after, "cells only after", most, text);
  return text;
}

}  // namespace kvspan::sweep
