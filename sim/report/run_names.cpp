// SPDX-License-Identifier: Apache-2.0
#include "sim/report/run_names.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/policy/spec.h"

namespace kvspan {
namespace {

using nlohmann::json;

// Empty where the text is none: reports may come from elsewhere.
RecipeSpec spec_or_nothing(const std::string& text) {
  try {
    return parse_spec(text);
  } catch (const Error&) {
    return {};
  }
}

bool is_number(const std::string& value) {
  return value.find_first_of("0123456789") != std::string::npos &&
         value.find_first_not_of("0123456789.%eE+-KMGiB ") == std::string::npos;
}

void drop_numbers(RecipeSpec& spec) {
  for (Term& term : spec) {
    drop_numbers(term.inner);
    std::erase_if(term.arguments, [](const Argument& argument) {
      return std::all_of(argument.values.begin(), argument.values.end(), is_number);
    });
  }
}

std::optional<std::string> budget_in(const RecipeSpec& spec) {
  for (const Term& term : spec) {
    if (auto inner = budget_in(term.inner)) return inner;
    for (const Argument& argument : term.arguments) {
      if (argument.key == "budget" && argument.values.front() != "auto")
        return argument.values.front();
    }
  }
  return std::nullopt;
}

json typed(const std::string& text) {
  json value = json::parse(text, nullptr, false);
  return value.is_number() || value.is_boolean() ? value : json(valid_utf8(text));
}

void add_parameters(const RecipeSpec& spec, json& out) {
  for (const Term& term : spec) {
    std::string key = term.name;
    for (int again = 2; out.contains(key); ++again) key = fmt::format("{}_{}", term.name, again);
    out[key] = json::object();
    for (const Argument& argument : term.arguments)
      out[key][argument.key] = typed(argument.values.front());
    add_parameters(term.inner, out);
  }
}

}  // namespace

std::string method_of(const std::string& label) {
  RecipeSpec spec = spec_or_nothing(label);
  drop_numbers(spec);
  return spec.empty() ? label : to_text(spec);
}

std::optional<std::string> budget_of(const std::string& spec) {
  return budget_in(spec_or_nothing(spec));
}

json parameters_json(const std::string& spec) {
  json out = json::object();
  add_parameters(spec_or_nothing(spec), out);
  return out;
}

}  // namespace kvspan
