// SPDX-License-Identifier: Apache-2.0
// What kvspan replay measured: a run for every pool that decisions went through.
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gui/model/result_node.h"
#include "gui/model/result_parts.h"
#include "sim/base/text.h"

namespace kvspan::gui {

using nlohmann::json;

namespace {

// A figure of the file, checked; null stays null.
json json_number(const Node& node) { return node.number_or_null() < 0 ? json() : node.value(); }

// What the views know as layouts are what was predicted for the pool's layout, and what came of it.
json figures_of(const Node& layout) {
  const Node used = layout["measured"], most = layout["most_backed"];
  json out = {
      {"peak_bytes", {{"total", json_number(most["backed"])}, {"row", json_number(most["row"])}}},
      {"layouts",
       {{kBacked, {{"total", json_number(most["backed"])}}},
        {kDevice, {{"total", json_number(most["measured"])}}}}}};
  const std::pair<const char*, Node> peaks[] = {{kPredicted, layout["predicted"]}, {kPool, used}};
  for (const auto& [name, peak] : peaks) {
    for (const char* figure : {"total", "prefill", "decode", "row"})
      out["layouts"][name][figure] = json_number(peak[figure]);
  }
  return out;
}

std::string shortage_text(const Node& shortage) {
  constexpr std::int64_t kMost = std::int64_t{1} << 60U;
  return fmt::format("out of memory in row {}: {} bytes asked, {} free",
                     shortage["row"].integer(0, kMost), shortage["asked"].integer(0, kMost),
                     shortage["free"].integer(0, kMost));
}

}  // namespace

bool is_replay(const json& document) {
  if (!document.contains("runs") || !document["runs"].is_array() || document["runs"].empty())
    return false;
  const json& first = document["runs"][0];
  return document.contains("device") && first.is_object() && first.contains("layouts") &&
         !first.contains("per_layer");
}

void read_pools(const Node& root, Result& result) {
  const std::string device = one_line(root["device"]["name"].text());
  const Node runs = root["runs"], ids = root["trace"]["layer_ids"];
  for (std::size_t l = 0; l < ids.size(); ++l)
    result.trace.layer_ids.push_back(static_cast<int>(ids.item(l).integer(0, 1 << 20)));
  json figures = json::array();
  for (std::size_t r = 0; r < runs.size(); ++r) {
    const Node node = runs.item(r), layouts = node["layouts"];
    const std::string policy = one_line(node["policy"].text());
    for (const auto& [key, found] : layouts.value().items()) {
      const std::string layout = one_line(key);
      const Node of = layouts[key.c_str()];
      Run& run = result.runs.emplace_back();
      run.replayed = policy;
      run.policy = fmt::format("pool({}, {})", policy, layout);
      run.label = fmt::format("{} in {}, measured", one_line(node["label"].text()), layout);
      run.klass = "memory behind a pool on " + device;
      if (!of["out_of_memory"].value().is_null())
        run.notes.push_back(shortage_text(of["out_of_memory"]));
      if (found.contains("timeline")) {
        const Node timeline = of["timeline"];
        const std::vector<RowIndex> rows = json_rows(timeline, result.trace.tokens);
        if (!rows.empty()) run.bytes = json_series(timeline, "backed", rows, result.trace.tokens);
      }
      figures.push_back(figures_of(of));
    }
  }
  if (result.runs.empty()) runs.wrong("found no layout, expected what was measured of one");
  result.json = std::make_shared<const json>(json{{"runs", std::move(figures)}});
  for (std::size_t r = 0; r < result.runs.size(); ++r)
    result.runs[r].figures = &result.json->at("runs")[r];
}

}  // namespace kvspan::gui
