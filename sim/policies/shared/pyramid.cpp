// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/pyramid.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace kvspan::policies {
namespace {

enum class Rounding : std::uint8_t { code, exact, kvpress };

class Pyramid final : public Budget {
 public:
  struct Settings {
    PyramidWindow window;
    double beta;
    Rounding rounding;
    std::optional<Amount> size;
  };
  explicit Pyramid(Settings settings) : settings_(std::move(settings)) {}

  TokenCount capacity(const LayerShape& shape, int /*head*/, const Sizing& sizing) const override {
    const bool shared_out = sizing.heads_window > 0;
    const TokenCount window = std::min(
        shared_out && !settings_.window.always ? sizing.heads_window : settings_.window.tokens,
        sizing.window_rows);
    if (settings_.rounding == Rounding::kvpress) return kvpress_layer(shape, sizing, window);
    const TokenCount base = sizing.tokens - window;
    if (base <= 0) return sizing.tokens;  // the newest `budget` entries
    // Nothing to compress; in AdaKV's program layer 0 may still lose entries to the rounding.
    if (sizing.rows < sizing.tokens && !(shared_out && shape.model_layer == 0)) return kAll;
    // PyramidKV's program gives up the pyramid for large budgets, AdaKV's does not.
    if ((sizing.rows < 2 * base && !shared_out) || shape.model_layers < 2) return sizing.tokens;
    const RowIndex most = sizing.rows - window;
    return (settings_.rounding == Rounding::exact ? exact_layer(shape, base, most)
                                                  : code_layer(shape, base, most)) +
           window;
  }

 private:
  TokenCount code_layer(const LayerShape& shape, TokenCount base, RowIndex most) const {
    auto lowest =
        static_cast<TokenCount>(floor_quotient(static_cast<double>(base), settings_.beta));
    TokenCount highest = 2 * base - lowest;
    if (highest >= most) {
      highest = most;
      lowest = 2 * base - highest;
    }
    const TokenCount step = (highest - lowest) / (shape.model_layers - 1);
    return highest - shape.model_layer * step;
  }

  // In doubles, in the code's own order of operations; llrint is Python's round (half to even).
  TokenCount kvpress_layer(const LayerShape& shape, const Sizing& sizing, TokenCount window) const {
    if (sizing.rows <= sizing.tokens) return kAll;
    const auto n = static_cast<double>(sizing.rows);
    const auto w = static_cast<double>(window);
    const double kept = tokens_before_rounding(settings_.size, sizing);
    const double capacity = w + kept;
    double lowest = (capacity - w) / settings_.beta;
    double highest = (capacity - w) * 2 - lowest;
    if (highest >= n - w) {
      highest = n - w;
      lowest = (capacity - w) * 2 - highest;
    }
    if (!(n >= highest && highest >= lowest && lowest >= w))
      return std::max<TokenCount>(1, std::llrint(kept));
    const double step =
        shape.model_layers > 1 ? (highest - lowest) / (shape.model_layers - 1) : 0.0;
    return std::llrint(highest - shape.model_layer * step);
  }

  // The paper's straight line, rounded by largest remainder so that the layers' mean is the base.
  TokenCount exact_layer(const LayerShape& shape, TokenCount base, RowIndex most) const {
    const auto layers = static_cast<std::size_t>(shape.model_layers);
    double lowest = static_cast<double>(base) / settings_.beta;
    double highest = 2.0 * static_cast<double>(base) - lowest;
    if (highest >= static_cast<double>(most)) {
      highest = static_cast<double>(most);
      lowest = 2.0 * static_cast<double>(base) - highest;
    }
    std::vector<double> fraction(layers);
    std::vector<TokenCount> count(layers);
    TokenCount rest = base * shape.model_layers;
    for (std::size_t l = 0; l < layers; ++l) {
      const double exact =
          highest - (highest - lowest) * static_cast<double>(l) / static_cast<double>(layers - 1);
      count[l] = static_cast<TokenCount>(std::floor(exact));
      fraction[l] =
          std::round((exact - std::floor(exact)) * 1e9);  // equal fractions differ in doubles
      rest -= count[l];
    }
    std::vector<std::size_t> order(layers);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return fraction[a] > fraction[b]; });
    for (std::size_t i = 0; i < layers && rest > 0; ++i, --rest) ++count[order[i]];
    return count[static_cast<std::size_t>(shape.model_layer)];
  }

  Settings settings_;
};

}  // namespace

std::vector<Parameter> pyramid_parameters() {
  using Kind = Parameter::Kind;
  return {
      {.name = "beta",
       .kind = Kind::real,
       .fallback = "20",
       .help = "the last layer gets budget / beta",
       .range = {1, 1e6}},
      {.name = "rounding",
       .kind = Kind::word,
       .fallback = "code",
       .help = "code: integer steps, may overspend; exact: keeps the total; kvpress: its formula",
       .choices = {"code", "exact", "kvpress"}}};
}

BudgetSlot pyramid_layers(const Arguments& arguments, PyramidWindow window,
                          std::optional<Amount> size) {
  const Rounding rounding = arguments.is("rounding", "exact")     ? Rounding::exact
                            : arguments.is("rounding", "kvpress") ? Rounding::kvpress
                                                                  : Rounding::code;
  return own(std::make_shared<Pyramid>(
      Pyramid::Settings{window, arguments.real("beta"), rounding, std::move(size)}));
}

}  // namespace kvspan::policies
