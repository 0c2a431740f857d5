// SPDX-License-Identifier: Apache-2.0
// Full cache: nothing is ever evicted. The baseline of every figure.
// model_window=evict: entries leave when the model's own sliding window has passed them, which
// loses nothing (Mistral, Gemma); keep is what runtimes without window support do.
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

// The next row reads keys j > row - W: of the older entries, the newest W - 1 are still of use.
class ModelWindow final : public Budget {
 public:
  explicit ModelWindow(std::vector<std::int64_t> window) : window_(std::move(window)) {}
  TokenCount capacity(const LayerShape& shape, int /*head*/,
                      const Sizing& /*sizing*/) const override {
    const std::int64_t window = window_[static_cast<std::size_t>(shape.layer)];
    return window == 0 ? kAll : window - 1;
  }

 private:
  std::vector<std::int64_t> window_;
};

}  // namespace

PolicyEntry full() {
  PolicyEntry entry;
  entry.name = "full";
  entry.kind = MethodKind::baseline;
  entry.summary = "keeps every entry";
  entry.source = "Vaswani et al. 2017";
  entry.evidence = "definition";
  entry.needs = "nothing";
  entry.parameters = {{.name = "model_window",
                       .kind = Parameter::Kind::word,
                       .fallback = "keep",
                       .help = "entries outside the model's own sliding window",
                       .choices = {"keep", "evict"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    if (arguments.is("model_window", "evict") && !geometry.sliding_window.empty()) {
      recipe.scorer = own(position_scoring());
      recipe.shape = own(std::make_shared<ModelWindow>(geometry.sliding_window));
      recipe.schedule = own(Schedule::every_pass());
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
