// SPDX-License-Identifier: Apache-2.0
// From a configuration to a plan, and a plan as a file.
#include <algorithm>
#include <filesystem>
#include <glob.h>
#include <map>
#include <set>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/build_info.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "sim/run/request.h"
#include "sim/sweep/grid.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// Sorted; what is no pattern stands for itself, so that opening it says what is wrong.
std::vector<std::string> files_of(const std::string& pattern) {
  if (pattern.find_first_of("*?[") == std::string::npos || fs::exists(pattern)) return {pattern};
  glob_t found{};
  std::vector<std::string> files;
  if (::glob(pattern.c_str(), 0, nullptr, &found) == 0) {
    for (std::size_t i = 0; i < found.gl_pathc; ++i) files.emplace_back(found.gl_pathv[i]);
  }
  ::globfree(&found);
  if (files.empty())
    throw ConfigError(fmt::format("the pattern {} finds no trace", in_quotes(pattern)));
  return files;
}

SweepTrace look_at(const std::string& path, const Checksum& checksum) {
  const Trace trace = Trace::open(path);
  const TraceMeta& meta = trace.meta();
  return {path,
          checksum(trace.tensors().files()),
          meta.model,
          meta.tokens,
          meta.prompt_tokens,
          meta.layers,
          meta.model_layers,
          meta.query_heads,
          meta.kv_heads};
}

std::vector<SweepTrace> traces_of(const Config& config, const Checksum& checksum) {
  std::vector<SweepTrace> traces;
  std::map<std::string, std::string> known;
  for (const std::string& pattern : config.traces) {
    for (const std::string& path : files_of(pattern)) {
      traces.push_back(look_at(path, checksum));
      const auto [at, fresh] = known.emplace(traces.back().sha256, path);
      if (!fresh)
        throw ConfigError(fmt::format("traces '{}' and '{}' are the same", at->second, path));
    }
  }
  return traces;
}

std::vector<SweepSpec> specs_of(const Config& config, const Checksum& checksum) {
  std::vector<std::string> named = config.policies;
  const auto all = std::remove(named.begin(), named.end(), "all");
  const bool from_all = all != named.end();
  named.erase(all, named.end());
  std::set<std::string> wanted;  // by name
  for (const RecipeSpec& spec : expand_policies(named, config.budgets))
    wanted.insert(to_text(spec));
  std::vector<SweepSpec> out;
  for (const RecipeSpec& spec : expand_policies(config.policies, config.budgets)) {
    SweepSpec one{to_text(spec), false, {}};
    one.from_all = from_all && !wanted.contains(one.text);
    for (const fs::path& file : files_of_policies({}, {spec}))
      one.sha256.push_back(checksum({file}));
    out.push_back(std::move(one));
  }
  return out;
}

json trace_json(const SweepTrace& trace) {
  return {{"path", trace.path},
          {"sha256", trace.sha256},
          {"model", valid_utf8(trace.model)},
          {"tokens", trace.tokens},
          {"prompt_tokens", trace.prompt_tokens},
          {"layers", trace.layers},
          {"model_layers", trace.model_layers},
          {"query_heads", trace.query_heads},
          {"kv_heads", trace.kv_heads}};
}

SweepTrace trace_from(const json& found) {
  SweepTrace trace;
  found.at("path").get_to(trace.path);
  found.at("sha256").get_to(trace.sha256);
  found.at("model").get_to(trace.model);
  found.at("tokens").get_to(trace.tokens);
  found.at("prompt_tokens").get_to(trace.prompt_tokens);
  found.at("layers").get_to(trace.layers);
  found.at("model_layers").get_to(trace.model_layers);
  found.at("query_heads").get_to(trace.query_heads);
  found.at("kv_heads").get_to(trace.kv_heads);
  return trace;
}

Config config_from(const json& found) {
  Config config;
  found.at("traces").get_to(config.traces);
  found.at("prompts").get_to(config.prompts);
  found.at("evict_at").get_to(config.evict_at);
  found.at("chunks").get_to(config.chunks);
  found.at("policies").get_to(config.policies);
  found.at("budgets").get_to(config.budgets);
  found.at("kv_bytes").get_to(config.kv_bytes);
  found.at("prefill").get_to(config.prefill);
  found.at("layouts").get_to(config.layouts);
  found.at("seeds").get_to(config.seeds);
  found.at("fidelity").get_to(config.fidelity);
  config.sample = found.value("sample", "");
  config.regret = found.value("regret", false);  // plans of older programs have none
  return config;
}

}  // namespace

Plan make_plan(const Config& config, const Checksum& checksum) {
  Plan plan;
  plan.config = config;
  const BuildInfo build = build_info();
  plan.version = fmt::format("{} {}", build.version, build.git);
  plan.specs = specs_of(config, checksum);
  plan.traces = traces_of(config, checksum);
  return plan;
}

json to_json(const Plan& plan) {
  json traces = json::array();
  for (const SweepTrace& trace : plan.traces) traces.push_back(trace_json(trace));
  json specs = json::array();
  for (const SweepSpec& spec : plan.specs) {
    specs.push_back({{"text", spec.text}, {"from_all", spec.from_all}, {"sha256", spec.sha256}});
  }
  return {{"schema_version", 1},
          {"version", plan.version},
          {"config", to_json(plan.config)},
          {"traces", std::move(traces)},
          {"policies", std::move(specs)}};
}

Plan parse_plan(std::string_view text, const std::string& name) {
  // The policies of a large sweep are a long list.
  constexpr JsonLimits kLimits{std::size_t{1} << 30U, 8};
  Plan plan;
  try {
    const json root = parse_json_strict(text, kLimits);
    if (root.at("schema_version") != 1) {
      throw ConfigError(
          fmt::format("{}: schema_version is {}, expected 1, which is what this "
                      "program reads",
                      name, json_text(root.at("schema_version"))));
    }
    root.at("version").get_to(plan.version);
    plan.config = config_from(root.at("config"));
    for (const json& trace : root.at("traces")) plan.traces.push_back(trace_from(trace));
    for (const json& found : root.at("policies")) {
      SweepSpec& spec = plan.specs.emplace_back();
      found.at("text").get_to(spec.text);
      found.at("from_all").get_to(spec.from_all);
      found.at("sha256").get_to(spec.sha256);
    }
  } catch (const std::invalid_argument& error) {
    throw ConfigError(fmt::format("{}: {}", name, error.what()));
  } catch (const json::exception& error) {
    throw ConfigError(
        fmt::format("{}: is not what a sweep writes ({})", name, one_line(error.what())));
  }
  return plan;
}

}  // namespace kvspan::sweep
