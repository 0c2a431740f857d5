// SPDX-License-Identifier: Apache-2.0
// The registry: from the text of a specification to a policy.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "sim/policy/method_kind.h"
#include "sim/policy/parameters.h"
#include "sim/policy/recipe.h"

namespace kvspan {

// A policy or wrapper as the catalogue knows it.
struct PolicyEntry {
  std::string name;
  MethodKind kind = MethodKind::eviction;
  std::string summary;   // one line
  std::string source;    // paper, section, code
  std::string evidence;  // how far the algorithm was read: code, paper, secondary
  std::string differs;   // where sources disagree, and the default here; empty: nowhere
  std::string needs;     // what a trace must hold, in words
  std::vector<Parameter> parameters;
  bool wrapper = false;     // takes one recipe first
  std::string alone;        // why it cannot run alone; empty: it can
  bool needs_file = false;  // cannot be part of "all"
  std::function<Recipe(Arguments&, const Geometry&)> make;
  std::function<Recipe(Arguments&, const Geometry&, Recipe inner)> wrap;  // of a wrapper
};

// Every policy, in the order of the documentation.
[[nodiscard]] const std::vector<PolicyEntry>& registry();
[[nodiscard]] const PolicyEntry& find_policy(const std::string& name);  // Errors: ConfigError

// What one term of an entry means, in the registry or not.
[[nodiscard]] Recipe make_recipe(const PolicyEntry& entry, const Term& written,
                                 const Geometry& geometry);
// Builds and binds a specification without sets.
[[nodiscard]] Policy make_policy(const RecipeSpec& spec, const Geometry& geometry);
[[nodiscard]] Policy make_policy(const std::string& spec, const Geometry& geometry);
// Every registered policy that can run alone, without files.
[[nodiscard]] std::vector<RecipeSpec> all_policies();
// Adds budget=VALUE to every term that has that parameter and is not sized by its own arguments.
void apply_budget(RecipeSpec& spec, const std::string& budget);

}  // namespace kvspan
