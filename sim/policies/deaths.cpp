// SPDX-License-Identifier: Apache-2.0
// A method that was run elsewhere: replays given death rows.
// File format: traces/README.md, "Files for external methods".
#include <algorithm>
#include <cmath>
#include <set>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/death_rows.h"
#include "sim/policies/shared/layer_table.h"

namespace kvspan::policies {
namespace {

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

}  // namespace

PolicyEntry deaths() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "deaths";
  entry.kind = MethodKind::external;
  entry.summary = "replays given death rows (an external method, or an earlier --lifetimes file)";
  entry.source = "file of the user";
  entry.evidence = "definition";
  entry.differs =
      "a --lifetimes file of another trace is refused; rows of death inside a pass, where no "
      "method "
      "evicts, are replayed, and the run says so";
  entry.needs = "nothing";
  entry.needs_file = true;
  entry.parameters = {{.name = "file",
                       .kind = Kind::text,
                       .unit = "file",
                       .help = "safetensors with `runs.{run}.death` or `death`"},
                      {.name = "run", .fallback = "0", .help = "which run of the file"},
                      own_name_parameter()};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    check_own_name(arguments);
    const std::string& file = arguments.text("file");
    const auto table = std::make_shared<LayerTable>(read_layer_table(
        file, {fmt::format("runs.{}.death", arguments.count("run")), "death"}, geometry, "deaths"));
    std::set<RowIndex> rows;
    for (std::size_t l = 0; l < table->layers.size(); ++l) {
      for (std::size_t i = 0; i < table->layers[l].size(); ++i) {
        const double death = table->layers[l][i];
        const auto token = static_cast<std::int64_t>(i) % table->tokens;
        const auto last = static_cast<double>(geometry.tokens);
        if (!(death > static_cast<double>(token) && death <= last) || death != std::floor(death)) {
          throw TraceError(
              fmt::format("deaths: {}: {} dies at row {}, expected a whole row in [{}, {}]", file,
                          table->place(l, i), death, token + 1, geometry.tokens));
        }
        if (death < last) rows.insert(static_cast<RowIndex>(death));
      }
    }
    recipe.cuts.assign(rows.begin(), rows.end());
    recipe.notes = notes_of_death_rows(file, rows, geometry);
    Scoring scoring = table_scoring(table, geometry);
    scoring.evicts_in_decode = true;
    recipe.scorer = own(scoring);
    recipe.shape = own(std::make_shared<StillAlive>());
    recipe.schedule = own(Schedule::every_pass());
    recipe.closed_form = false;
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
