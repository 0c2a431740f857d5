// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/head_masks.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <system_error>
#include <tuple>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

class HeadMask final : public Budget {
 public:
  HeadMask(Mask full, TokenCount streaming) : full_(std::move(full)), streaming_(streaming) {}
  TokenCount capacity(const LayerShape& shape, int head, const Sizing& /*sizing*/) const override {
    return full_[index(shape.layer)][index(head)] ? kAll : streaming_;
  }

 private:
  Mask full_;
  TokenCount streaming_;
};

HeadScores parse_head_scores(const std::string& policy, const std::string& file) {
  std::ifstream in(file);
  if (!in) throw TraceError(fmt::format("{}: cannot read heads file '{}'", policy, file));
  std::stringstream text;
  text << in.rdbuf();
  const std::string content = text.str();
  const auto first = content.find_first_not_of(" \t\r\n");
  HeadScores gates;
  try {
    if (first != std::string::npos && content[first] == '[')
      return nlohmann::json::parse(content).get<HeadScores>();
  } catch (const nlohmann::json::exception&) {
    throw TraceError(fmt::format("{}: '{}' is not a JSON list of lists of numbers", policy, file));
  }
  for (std::string line; std::getline(text, line);) {
    std::istringstream row(line);
    std::vector<double> values{std::istream_iterator<double>(row), {}};
    if (!row.eof())
      throw TraceError(fmt::format("{}: '{}': not a number in line '{}'", policy, file, line));
    if (!values.empty()) gates.push_back(std::move(values));
  }
  return gates;
}

// (gate, layer, head) of every head.
std::vector<std::tuple<double, std::size_t, std::size_t>> listed(const HeadScores& gates) {
  std::vector<std::tuple<double, std::size_t, std::size_t>> out;
  for (std::size_t l = 0; l < gates.size(); ++l) {
    for (std::size_t h = 0; h < gates[l].size(); ++h) out.emplace_back(gates[l][h], l, h);
  }
  return out;
}

}  // namespace

HeadScores read_head_scores(const std::string& policy, const std::string& file,
                            const Geometry& geometry, bool query_heads) {
  HeadScores gates = parse_head_scores(policy, file);
  const std::size_t stored = index(geometry.layers());
  const std::size_t model = index(geometry.model_layers);
  for (const auto& row : gates) {
    const bool fits = row.size() == index(geometry.kv_heads) ||
                      (query_heads && row.size() == index(geometry.query_heads));
    if (!fits || row.size() != gates.front().size()) {
      throw TraceError(fmt::format(
          "{}: '{}' has a layer of {} gates, expected {} KV heads{}", policy, file, row.size(),
          geometry.kv_heads,
          query_heads
              ? fmt::format(" or {} query heads, alike in every layer", geometry.query_heads)
              : ""));
    }
    for (const double gate : row) {
      if (!std::isfinite(gate))
        throw TraceError(fmt::format("{}: '{}' holds a gate that is not finite", policy, file));
    }
  }
  if (gates.size() != stored && gates.size() != model) {
    throw TraceError(fmt::format("{}: '{}' has {} layers, expected {} (stored) or {} (model)",
                                 policy, file, gates.size(), stored, model));
  }
  return gates;
}

std::string truncation(const Trace* trace) {
  return trace == nullptr || trace->is_qkv() ? ""
                                             : " (a score trace: its truncated attention decides "
                                               "here, and 'undecided' does not count that)";
}

std::string HeadSource::fitted_on() const {
  return (other ? fmt::format("'{}'", other->name()) : "this trace") +
         (future ? " (reads the future)" : "") + truncation(trace);
}

HeadSource head_source(const Arguments& arguments, const std::string& parameter,
                       const Geometry& geometry) {
  HeadSource out;
  if (!arguments.has(parameter)) {
    out.trace = geometry.trace;
    out.future = true;
    return out;
  }
  const std::string& file = arguments.text(parameter);
  if (!file.ends_with(".safetensors") && !file.ends_with(".safetensors.index.json")) {
    out.file = file;
    return out;
  }
  out.other = std::make_shared<const Trace>(Trace::open(file));
  out.trace = out.other.get();
  std::error_code none;  // a trace in memory has no file
  out.future =
      geometry.trace != nullptr && std::filesystem::equivalent(file, geometry.trace->name(), none);
  const TraceMeta& m = out.trace->meta();
  if ((m.layer_ids != geometry.layer_ids && m.layers != geometry.model_layers) ||
      m.query_heads != geometry.query_heads || m.kv_heads != geometry.kv_heads) {
    throw TraceError(fmt::format(
        "{}({}): '{}' has {} layers, {} query heads and {} KV heads, expected the same {} layers "
        "as here (or all {}), {} and {}",
        arguments.policy(), parameter, file, m.layers, m.query_heads, m.kv_heads, geometry.layers(),
        geometry.model_layers, geometry.query_heads, geometry.kv_heads));
  }
  return out;
}

HeadScores fitted_gates(const Trace& trace, const Protect& protect) {
  const auto outside = mean_mass_outside(trace, protect.sinks, protect.recent);
  const int kv_heads = trace.meta().kv_heads;
  const int group = trace.meta().query_heads / kv_heads;
  HeadScores gates;
  for (const auto& layer : outside) {
    gates.emplace_back();
    for (int h = 0; h < kv_heads; ++h) {
      gates.back().push_back(
          *std::max_element(layer.begin() + h * group, layer.begin() + (h + 1) * group));
    }
  }
  return gates;
}

std::int64_t below_quantile(double quantile, std::int64_t heads) {
  return std::llrint(std::ceil(quantile * static_cast<double>(heads - 1) - 1e-9));
}

Mask cut_lowest(const HeadScores& gates, std::int64_t streaming) {
  auto order = listed(gates);
  std::sort(order.begin(), order.end());
  Mask mask;
  for (const auto& layer : gates) mask.emplace_back(layer.size(), true);
  for (std::size_t i = 0; i < index(streaming); ++i)
    mask[std::get<1>(order[i])][std::get<2>(order[i])] = false;
  return mask;
}

Mask cut_highest(const HeadScores& gates, std::int64_t full) {
  auto order = listed(gates);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return std::get<0>(a) > std::get<0>(b); });
  Mask mask;
  for (const auto& layer : gates) mask.emplace_back(layer.size(), false);
  for (std::size_t i = 0; i < index(full); ++i)
    mask[std::get<1>(order[i])][std::get<2>(order[i])] = true;
  return mask;
}

Recipe streaming_heads(Mask mask, const Protect& protect, const Geometry& geometry) {
  const std::int64_t heads = std::int64_t{geometry.layers()} * geometry.kv_heads;
  Recipe recipe;
  recipe.scorer = own(position_scoring());
  recipe.shape = own(std::make_shared<HeadMask>(std::move(mask), protect.sinks + protect.recent));
  recipe.schedule = own(Schedule::every_pass());
  recipe.protect = own(ProtectRule([protect](TokenCount) { return protect; }));
  recipe.charge.once = (heads + 7) / 8;
  return recipe;
}

}  // namespace kvspan::policies
