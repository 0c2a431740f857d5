// SPDX-License-Identifier: Apache-2.0
// DuoAttention: retrieval heads keep everything, streaming heads keep sinks and a recent window.
// Source: Xiao et al., arXiv 2410.10819; code mit-han-lab/duo-attention. heads=FILE holds gates per
// (layer, KV head), [layers][kv_heads] as JSON or TSV: with sparsity they are cut at that quantile as
// in the authors' code, without it a gate above 0.5 is a full head. With sparsity and no file the
// streaming heads are chosen on the replayed trace itself (rows [N/2, N), mean mass outside sinks and
// window, maximum over the group): a stand-in that reads the future, and is printed as one.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <numeric>
#include <sstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/attention_stats.h"
#include "sim/error.h"
#include "sim/policies/helpers.h"

namespace kvspan::policies {
namespace {

using Gates = std::vector<std::vector<double>>;  // [layers][kv_heads]
using Mask = std::vector<std::vector<bool>>;     // true: full head

class HeadMask final : public Budget {
 public:
  HeadMask(Mask full, TokenCount streaming) : full_(std::move(full)), streaming_(streaming) {}
  TokenCount capacity(const LayerShape& shape, int head, const Sizing& /*sizing*/) const override {
    const bool full = full_[static_cast<std::size_t>(shape.layer)][static_cast<std::size_t>(head)];
    return full ? kAll : streaming_;
  }

 private:
  Mask full_;
  TokenCount streaming_;
};

Gates parse_gates(const std::string& file) {
  std::ifstream in(file);
  if (!in) throw TraceError(fmt::format("duoattention: cannot read heads file '{}'", file));
  std::stringstream text;
  text << in.rdbuf();
  const std::string content = text.str();
  const auto first = content.find_first_not_of(" \t\r\n");
  Gates gates;
  try {
    if (first != std::string::npos && content[first] == '[')
      return nlohmann::json::parse(content).get<Gates>();
  } catch (const nlohmann::json::exception&) {
    throw TraceError(
        fmt::format("duoattention: '{}' is not a JSON list of lists of numbers", file));
  }
  for (std::string line; std::getline(text, line);) {
    std::istringstream row(line);
    std::vector<double> values{std::istream_iterator<double>(row), {}};
    if (!row.eof())
      throw TraceError(fmt::format("duoattention: '{}': not a number in line '{}'", file, line));
    if (!values.empty()) gates.push_back(std::move(values));
  }
  return gates;
}

Gates read_gates(const std::string& file, const Geometry& geometry) {
  Gates gates = parse_gates(file);
  const auto stored = static_cast<std::size_t>(geometry.layers());
  const auto model = static_cast<std::size_t>(geometry.model_layers);
  for (const auto& row : gates) {
    if (row.size() != static_cast<std::size_t>(geometry.kv_heads)) {
      throw TraceError(
          fmt::format("duoattention: '{}' has a layer of {} gates, expected {} KV heads", file,
                      row.size(), geometry.kv_heads));
    }
    for (const double gate : row) {
      if (!std::isfinite(gate))
        throw TraceError(fmt::format("duoattention: '{}' holds a gate that is not finite", file));
    }
  }
  if (gates.size() != stored && gates.size() != model) {
    throw TraceError(
        fmt::format("duoattention: '{}' has {} layers, expected {} (stored) or {} (model)", file,
                    gates.size(), stored, model));
  }
  return gates;
}

// The `streaming` lowest gates stream; ties go to the lower (layer, head).
Mask cut_lowest(const Gates& gates, std::int64_t streaming) {
  std::vector<std::pair<double, std::pair<std::size_t, std::size_t>>> order;
  Mask mask;
  for (std::size_t l = 0; l < gates.size(); ++l) {
    mask.emplace_back(gates[l].size(), true);
    for (std::size_t h = 0; h < gates[l].size(); ++h) order.push_back({gates[l][h], {l, h}});
  }
  std::sort(order.begin(), order.end());
  for (std::int64_t i = 0; i < streaming; ++i) {
    const auto [l, h] = order[static_cast<std::size_t>(i)].second;
    mask[l][h] = false;
  }
  return mask;
}

// Heads below the quantile of the gates stream: numpy's linear interpolation, as the authors use it
// (they add noise below 1e-6 to break ties; here ties go to the lower (layer, head)).
std::int64_t below_quantile(double sparsity, std::int64_t heads) {
  return std::llrint(std::ceil(sparsity * static_cast<double>(heads - 1) - 1e-9));
}

Gates fitted_gates(const Geometry& geometry, const Protect& protect) {
  const auto outside = mean_mass_outside(*geometry.trace, protect.sinks, protect.recent);
  const int group = geometry.query_heads / geometry.kv_heads;
  Gates gates;
  for (const auto& layer : outside) {
    gates.emplace_back();
    for (int h = 0; h < geometry.kv_heads; ++h) {
      gates.back().push_back(
          *std::max_element(layer.begin() + h * group, layer.begin() + (h + 1) * group));
    }
  }
  return gates;
}

}  // namespace

PolicyEntry duoattention() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "duoattention";
  entry.klass = "head budget";
  entry.summary = "retrieval heads keep all, streaming heads keep sinks and a recent window";
  entry.source = "Xiao et al. 2024, arXiv 2410.10819";
  entry.evidence = "code read";
  entry.needs =
      "nothing with heads=FILE; else q and k, or probabilities of the last half of the rows";
  entry.parameters = {
      {"heads", Kind::text, "auto", "", "file of gates, [layers][kv_heads], JSON or TSV", {}},
      {"sparsity",
       Kind::real,
       "auto",
       "",
       "share of streaming heads; auto: 0.5 without a file",
       {},
       0,
       1},
      {"sinks", Kind::count, "128", "tokens", "kept by streaming heads", {}},
      {"window", Kind::count, "1024", "tokens", "newest kept by streaming heads", {}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const Protect protect{arguments.count("sinks"), arguments.count("window")};
    const std::int64_t heads = static_cast<std::int64_t>(geometry.layers()) * geometry.kv_heads;
    Recipe recipe;
    Mask mask;
    if (arguments.has("heads")) {
      const Gates all = read_gates(arguments.text("heads"), geometry);
      const auto gates_total = static_cast<std::int64_t>(all.size()) * geometry.kv_heads;
      Mask full;
      if (arguments.has("sparsity")) {
        full = cut_lowest(all, below_quantile(arguments.real("sparsity"), gates_total));
      } else {
        for (const auto& row : all) {
          full.emplace_back();
          for (const double gate : row) full.back().push_back(gate > 0.5);
        }
      }
      const bool stored = all.size() == static_cast<std::size_t>(geometry.layers());
      for (int l = 0; l < geometry.layers(); ++l) {
        mask.push_back(full[static_cast<std::size_t>(
            stored ? l : geometry.layer_ids[static_cast<std::size_t>(l)])]);
      }
    } else {
      if (!arguments.has("sparsity")) arguments.set("sparsity", "0.5");
      const std::int64_t streaming =
          std::llrint(arguments.real("sparsity") * static_cast<double>(heads));
      Gates gates(static_cast<std::size_t>(geometry.layers()),
                  std::vector<double>(static_cast<std::size_t>(geometry.kv_heads), 0.0));
      if (geometry.trace != nullptr && streaming > 0 && streaming < heads) {
        gates = fitted_gates(geometry, protect);
        recipe.notes.emplace_back(
            "stand-in: streaming heads fitted on this trace (reads the future)");
      } else if (geometry.trace == nullptr) {
        recipe.notes.emplace_back(
            "which heads stream is fitted on a trace; only their number matters here");
      }
      mask = cut_lowest(gates, streaming);
    }
    recipe.scorer = own(position_scoring());
    recipe.shape = own<std::shared_ptr<const Budget>>(
        std::make_shared<HeadMask>(std::move(mask), protect.sinks + protect.recent));
    recipe.schedule = own(Schedule::every_pass());
    recipe.protect = own(ProtectRule([protect](TokenCount) { return protect; }));
    recipe.charge.once = (heads + 7) / 8;
    if (!arguments.has("heads")) {
      recipe.knob = Knob{"sparsity", 0, heads, true, [heads](TokenCount full) {
                           return fmt::format("{:.12g}", static_cast<double>(heads - full) /
                                                             static_cast<double>(heads));
                         }};
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
