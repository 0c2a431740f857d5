// SPDX-License-Identifier: Apache-2.0
#include "sim/report/massif.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/report/listing.h"
#include "sim/report/timeline_rows.h"

namespace kvspan {
namespace {

// Bytes of the entries that each layer holds in a row, as they were born.
std::vector<std::int64_t> bytes_by_layer(const Ledger& ledger, RowIndex row) {
  std::vector<std::int64_t> out;
  for (int layer = 0; layer < ledger.layers; ++layer) {
    std::int64_t held = 0;
    for (int head = 0; head < ledger.heads; ++head) {
      const auto born = ledger.deaths(layer, head).first(index(row + 1));
      held += std::count_if(born.begin(), born.end(), [&](std::uint32_t death) {
        return static_cast<RowIndex>(death) > row;
      });
    }
    out.push_back(held * ledger.representations[0].device_bytes);
  }
  return out;
}

// The tree of a snapshot: one node of all, or one more of each layer.
std::string tree_of(const RunReport& report, const RunResult& run, RowIndex row,
                    std::int64_t bytes) {
  std::vector<std::int64_t> layers = bytes_by_layer(run.ledger, row);
  if (std::accumulate(layers.begin(), layers.end(), std::int64_t{0}) != bytes) layers.clear();
  std::string text =
      fmt::format("n{}: {} (KV cache) keys and values that are held\n", layers.size(), bytes);
  std::vector<std::size_t> order(layers.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return layers[a] > layers[b]; });
  for (const std::size_t layer : order) {
    const int id = report.trace.layer_ids[layer];
    text += fmt::format(" n0: {} {:#x}: layer_{} ({})\n", layers[layer], id + 1, id,
                        one_line(label_of(run)));
  }
  return text;
}

}  // namespace

std::string massif_profile(const RunReport& report) {
  if (report.runs.size() != 1) {
    throw ConfigError(fmt::format("a massif profile is of one run; found {}: name one --policy",
                                  report.runs.size()));
  }
  const RunResult& run = report.runs.front();
  const Timeline& line = run.metrics.timeline;
  const std::vector<std::size_t> rows = timeline_rows(run);
  const auto peak = std::max_element(rows.begin(), rows.end(), [&](std::size_t a, std::size_t b) {
    return line.resident_bytes[a] < line.resident_bytes[b];
  });
  std::string text = fmt::format("desc: kvspan, a row a millisecond\ncmd: {}\ntime_unit: ms\n",
                                 one_line(fmt::format("{}", fmt::join(report.command, " "))));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::size_t row = rows[i];
    const std::int64_t kv = line.resident_bytes[row] - line.overhead_bytes[row];
    const bool largest = row == *peak;
    text += fmt::format(
        "#-----------\nsnapshot={}\n#-----------\ntime={}\nmem_heap_B={}\nmem_heap_extra_B={}\n"
        "mem_stacks_B=0\nheap_tree={}\n",
        i, row, kv, line.overhead_bytes[row], largest ? "peak" : "empty");
    if (largest) text += tree_of(report, run, static_cast<RowIndex>(row), kv);
  }
  return text;
}

}  // namespace kvspan
