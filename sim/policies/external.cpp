// SPDX-License-Identifier: Apache-2.0
// Methods that were run elsewhere: scores(FILE) ranks entries by given scores, deaths(FILE) replays
// given death rows. File formats: traces/README.md, "Files for external methods".
#include <algorithm>
#include <cmath>
#include <set>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

using Table = std::shared_ptr<const LayerTable>;

class FromTable final : public Scorer {
 public:
  FromTable(Table table, const LayerShape& shape)
      : table_(std::move(table)), layer_(static_cast<std::size_t>(shape.layer)) {}
  double score(const View& /*view*/, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const double* row = table_->layers[layer_].data() + head * table_->tokens;
    for (std::size_t i = 0; i < entries.size(); ++i) out[i] = row[entries[i]];
    return 0;
  }

 private:
  Table table_;
  std::size_t layer_;
};

// As many entries as have a death row beyond the end of the pass.
class StillAlive final : public Budget {
 public:
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& /*sizing*/) const override {
    return kAll;
  }
  bool content_free() const override { return false; }
  void counts(const View& view, const Scores& scores, const Sizing& /*sizing*/,
              std::span<TokenCount> keep) const override {
    const auto now = static_cast<double>(view.pass().end);
    for (std::size_t h = 0; h < keep.size(); ++h) {
      keep[h] = std::count_if(scores.values[h].begin(), scores.values[h].end(),
                              [&](double d) { return d > now; });
    }
  }
};

Scoring table_scoring(const Table& table, const Geometry& geometry) {
  Scoring scoring;
  scoring.make = [table](const LayerShape& shape) {
    return std::make_unique<FromTable>(table, shape);
  };
  scoring.per_query_head =
      table->heads == geometry.query_heads && geometry.query_heads != geometry.kv_heads;
  scoring.by_position = true;
  scoring.at_birth = true;
  return scoring;
}

}  // namespace

PolicyEntry scores() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "scores";
  entry.klass = "external";
  entry.summary = "ranks entries by scores from a file (an external method)";
  entry.source = "file of the user";
  entry.evidence = "definition";
  entry.needs = "nothing";
  entry.needs_file = true;
  entry.parameters = {
      {"file", Kind::text, "", "", "safetensors with `scores` [layers, heads, tokens]", {}},
      budget_parameter(),
      {"at", Kind::word, "prompt_end", "", "when it evicts", {"prompt_end", "every_pass"}},
      {"recent", Kind::count, "0", "tokens", "newest kept whatever their score", {}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    const auto table = std::make_shared<LayerTable>(
        read_layer_table(arguments.text("file"), {"scores"}, geometry, "scores"));
    for (const auto& layer : table->layers) {
      if (!std::all_of(layer.begin(), layer.end(), [](double s) { return std::isfinite(s); })) {
        throw TraceError(fmt::format("scores: {}: a score is not finite", arguments.text("file")));
      }
    }
    const bool every_pass = arguments.is("at", "every_pass");
    Scoring scoring = table_scoring(table, geometry);
    scoring.evicts_in_decode = every_pass;
    recipe.scorer = own(scoring);
    recipe.size = size_of(arguments);
    recipe.schedule = own(every_pass ? Schedule::every_pass() : Schedule::prompt_end());
    recipe.protect = own(protect_recent(arguments.count("recent")));
    recipe.knob = budget_knob(geometry);
    return recipe;
  };
  return entry;
}

PolicyEntry deaths() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "deaths";
  entry.klass = "external";
  entry.summary = "replays given death rows (an external method, or an earlier --lifetimes file)";
  entry.source = "file of the user";
  entry.evidence = "definition";
  entry.needs = "nothing";
  entry.needs_file = true;
  entry.parameters = {
      {"file", Kind::text, "", "", "safetensors with `runs.{run}.death` or `death`", {}},
      {"run", Kind::count, "0", "", "which run of the file", {}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    const std::string& file = arguments.text("file");
    const auto table = std::make_shared<LayerTable>(read_layer_table(
        file, {fmt::format("runs.{}.death", arguments.count("run")), "death"}, geometry, "deaths"));
    std::set<RowIndex> rows;
    for (std::size_t l = 0; l < table->layers.size(); ++l) {
      for (std::size_t i = 0; i < table->layers[l].size(); ++i) {
        const auto death = static_cast<std::int64_t>(table->layers[l][i]);
        const auto token = static_cast<std::int64_t>(i) % table->tokens;
        if (death <= token || death > geometry.tokens) {
          throw TraceError(fmt::format(
              "deaths: {}: layer {}, head {}, token {} dies at row {}, expected a row in [{}, {}]",
              file, l, static_cast<std::int64_t>(i) / table->tokens, token, death, token + 1,
              geometry.tokens));
        }
        if (death < geometry.tokens) rows.insert(death);
      }
    }
    recipe.cuts.assign(rows.begin(), rows.end());
    Scoring scoring = table_scoring(table, geometry);
    scoring.evicts_in_decode = true;
    recipe.scorer = own(scoring);
    recipe.shape = own<std::shared_ptr<const Budget>>(std::make_shared<StillAlive>());
    recipe.schedule = own(Schedule::every_pass());
    recipe.closed_form = false;
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
