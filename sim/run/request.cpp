// SPDX-License-Identifier: Apache-2.0
#include "sim/run/request.h"

#include <algorithm>
#include <fstream>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/policy/registry.h"
#include "sim/trace/safetensors.h"

namespace kvspan {
namespace {

std::vector<std::string> read_spec_file(const std::string& path) {
  std::ifstream in(path);
  if (!in) throw ConfigError(fmt::format("cannot read policy file '{}'", path));
  try {
    const nlohmann::json found = nlohmann::json::parse(in);
    if (found.is_string()) return {found.get<std::string>()};
    return found.get<std::vector<std::string>>();
  } catch (const nlohmann::json::exception&) {
    throw ConfigError(fmt::format(
        "'{}' is not a JSON list of policy specifications such as [\"snapkv(budget=512)\"]", path));
  }
}

// A specification as written, with the registry's names for its policies.
RecipeSpec parse_named(const std::string& text) {
  const auto name = [](const auto& self, RecipeSpec& spec) -> void {
    for (Term& term : spec) {
      term.name = find_policy(term.name).name;
      self(self, term.inner);
    }
  };
  RecipeSpec spec = parse_spec(text);
  name(name, spec);
  return spec;
}

void add_file(const std::string& file, std::vector<std::filesystem::path>& files) {
  files.emplace_back(file);
  if (!file.ends_with(".index.json")) return;
  try {
    const std::vector<std::filesystem::path> shards = TensorSet::open(file).files();
    files.insert(files.end(), shards.begin(), shards.end());
  } catch (const Error&) {  // the policy says what is wrong with it
  }
}

void add_files(const RecipeSpec& spec, std::vector<std::filesystem::path>& files) {
  for (const Term& term : spec) {
    add_files(term.inner, files);
    const auto& parameters = find_policy(term.name).parameters;
    for (const Argument& argument : term.arguments) {
      const auto p =
          std::find_if(parameters.begin(), parameters.end(),
                       [&](const Parameter& known) { return known.name == argument.key; });
      if (p == parameters.end() || p->unit != "file") continue;
      for (const std::string& value : argument.values) {
        if (value != p->fallback) add_file(value, files);
      }
    }
  }
}

// K of "rows=K".
std::optional<std::int64_t> count_after(std::string_view word, const std::string& text) {
  if (!text.starts_with(word)) return std::nullopt;
  const std::string digits = text.substr(word.size());
  if (digits.empty() || digits.size() > 12 ||
      digits.find_first_not_of("0123456789") != std::string::npos || std::stoll(digits) == 0) {
    return std::nullopt;
  }
  return std::stoll(digits);
}

void use_own_names(RecipeSpec& spec) {
  for (Term& term : spec) {
    use_own_names(term.inner);
    const auto name = std::find_if(term.arguments.begin(), term.arguments.end(),
                                   [](const Argument& a) { return a.key == "name"; });
    if (name == term.arguments.end() || name->values.front() == "auto") continue;
    term.name = name->values.front();
    std::erase_if(term.arguments,
                  [](const Argument& a) { return a.key == "name" || a.key == "file"; });
  }
}

}  // namespace

void apply_fidelity(const std::string& text, EngineOptions& engine) {
  engine.sample_long_prompts = text == "auto";
  if (text == "auto" || text == "all") return;
  if (text == "none") {
    engine.fidelity = false;
    return;
  }
  const auto rows = count_after("rows=", text);
  if (!rows) {
    throw ConfigError(fmt::format(
        "--fidelity: found '{}', expected auto, all, none or rows=K with K >= 1", text));
  }
  engine.fidelity_rows = *rows;
}

void apply_sample(const std::string& text, EngineOptions& engine) {
  using Of = FidelitySample::Of;
  engine.sample = {};
  if (text.empty()) return;
  for (const auto& [word, of] :
       {std::pair("rows=", Of::rows), {"heads=", Of::heads}, {"layers=", Of::layers}}) {
    const auto count = count_after(word, text);
    if (count) engine.sample = {of, *count, 0};
  }
  if (engine.sample.of == Of::everything) {
    throw ConfigError(fmt::format(
        "--sample: found '{}', expected rows=K, heads=K or layers=K with K >= 1", text));
  }
}

std::string label_of(const RecipeSpec& spec) {
  RecipeSpec shown = spec;
  use_own_names(shown);
  return to_text(shown);
}

std::vector<std::filesystem::path> files_of_policies(const std::vector<std::string>& texts,
                                                     const std::vector<RecipeSpec>& specs) {
  std::vector<std::filesystem::path> files;
  for (const std::string& text : texts) {
    if (text.starts_with('@')) files.emplace_back(text.substr(1));
  }
  for (const RecipeSpec& spec : specs) add_files(spec, files);
  return files;
}

std::vector<RecipeSpec> expand_policies(const std::vector<std::string>& texts,
                                        const std::vector<std::string>& budgets,
                                        std::vector<std::string>* repeated) {
  std::vector<RecipeSpec> given;
  for (const std::string& text : texts) {
    if (text == "all") {
      for (RecipeSpec& spec : all_policies()) given.push_back(std::move(spec));
    } else if (text.starts_with('@')) {
      for (const std::string& line : read_spec_file(text.substr(1)))
        given.push_back(parse_named(line));
    } else {
      given.push_back(parse_named(text));
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
  std::vector<std::string> named;  // before budgets, which may make one run of several
  for (const RecipeSpec& spec : given) {
    for (const RecipeSpec& single : expand_sets(spec)) {
      const std::string name = to_text(single);
      if (std::find(named.begin(), named.end(), name) == named.end())
        named.push_back(name);
      else if (repeated != nullptr)
        repeated->push_back(name);
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

}  // namespace kvspan
