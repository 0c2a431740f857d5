// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/registry.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan {
namespace {

Recipe make_recipe(const RecipeSpec& spec, const Geometry& geometry);

Recipe make_term(const Term& term, const Geometry& geometry) {
  return make_recipe(find_policy(term.name), term, geometry);
}

Recipe make_recipe(const RecipeSpec& spec, const Geometry& geometry) {
  Recipe recipe = make_term(spec.front(), geometry);
  for (std::size_t t = 1; t < spec.size(); ++t)
    recipe = merge(recipe, make_term(spec[t], geometry));
  return recipe;
}

// Letters and digits in lower case: papers write StreamingLLM, SnapKV, R-KV.
std::string bare(const std::string& name) {
  std::string out;
  for (const char c : name) {
    const auto letter = static_cast<unsigned char>(c);
    if (std::isalnum(letter) != 0) out += static_cast<char>(std::tolower(letter));
  }
  return out;
}

}  // namespace

Recipe make_recipe(const PolicyEntry& entry, const Term& written, const Geometry& geometry) {
  Term term = written;
  term.name = entry.name;
  Arguments arguments(term, entry.parameters);
  if (entry.wrapper) {
    if (term.inner.empty()) {
      throw ConfigError(
          fmt::format("{} is a wrapper: it takes a policy first, as in {}(snapkv(budget=10%))",
                      entry.name, entry.name));
    }
    Recipe inner = make_recipe(term.inner, geometry);
    const bool chunked = inner.chunked.has_value();
    // Wrappers may rank otherwise; chunks ask the same scorer.
    const std::string ranking = std::exchange(inner.scorer.value.ranking, "");
    Recipe wrapped = entry.wrap(arguments, geometry, std::move(inner));
    if (wrapped.chunked && !chunked) wrapped.scorer.value.ranking = ranking;
    return wrapped;
  }
  if (!term.inner.empty() && !spreads_a_budget(entry.kind)) {
    throw ConfigError(fmt::format("{} takes no policy inside its parentheses; found '{}'",
                                  entry.name, to_text(term.inner)));
  }
  Recipe recipe = entry.make(arguments, geometry);
  recipe.name = entry.name;
  recipe.kinds = {entry.kind};
  recipe.terms = {arguments.canonical()};
  if (recipe.scorer.value.sharing != Sharing::none)
    recipe.scorer.value.ranking = arguments.canonical("budget");
  const auto claim = [&](auto& slot) { slot.owner = entry.name; };
  claim(recipe.scorer);
  claim(recipe.size);
  claim(recipe.layers);
  claim(recipe.shape);
  claim(recipe.schedule);
  claim(recipe.protect);
  claim(recipe.pick);
  claim(recipe.admission);
  claim(recipe.prefill_reads);
  claim(recipe.selector);
  claim(recipe.store);
  // adakv(snapkv) is adakv+snapkv: a budget that is spread over another policy's entries.
  if (!term.inner.empty()) return merge(recipe, make_recipe(term.inner, geometry));
  return recipe;
}

const PolicyEntry& find_policy(const std::string& name) {
  std::vector<std::string> names;
  for (const PolicyEntry& entry : registry()) {
    if (entry.name == name) return entry;
    names.push_back(entry.name);
  }
  for (const PolicyEntry& entry : registry()) {
    if (!bare(name).empty() && bare(entry.name) == bare(name)) return entry;
  }
  throw ConfigError(fmt::format("unknown policy '{}'; {}", name, nearest_hint(name, names)));
}

Policy make_policy(const RecipeSpec& spec, const Geometry& geometry) {
  if (spec.size() == 1 && !find_policy(spec[0].name).alone.empty()) {
    throw ConfigError(
        fmt::format("{} cannot run alone: {}", spec[0].name, find_policy(spec[0].name).alone));
  }
  return bind(make_recipe(spec, geometry), geometry);
}

Policy make_policy(const std::string& spec, const Geometry& geometry) {
  return make_policy(parse_spec(spec), geometry);
}

std::vector<RecipeSpec> all_policies() {
  std::vector<RecipeSpec> out;
  for (const PolicyEntry& entry : registry()) {
    if (!entry.wrapper && !entry.needs_file && entry.alone.empty())
      out.push_back({Term{entry.name, {}, {}}});
  }
  return out;
}

void apply_budget(RecipeSpec& spec, const std::string& budget) {
  for (Term& term : spec) {
    apply_budget(term.inner, budget);
    bool takes_budget = false;
    bool sized = false;
    for (const Parameter& p : find_policy(term.name).parameters) {
      const bool given = std::any_of(term.arguments.begin(), term.arguments.end(),
                                     [&](const Argument& arg) { return arg.key == p.name; });
      takes_budget = takes_budget || p.name == "budget";
      sized = sized || (given && (p.sizes || p.name == "budget"));
    }
    if (takes_budget && !sized) term.arguments.push_back({"budget", {budget}});
  }
}

}  // namespace kvspan
