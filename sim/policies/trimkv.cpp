// SPDX-License-Identifier: Apache-2.0
// TRIM-KV: every entry has a learned retention beta when it is born, and is worth beta^age: the
// score is age x ln beta, age = rows so far + 1 - index (keys=true: plus ln ||k||). After every
// pass a head that holds `buffer` entries more than the budget, or longer, is cut to the budget.
// Nothing is protected but the newest `recent`. The cache stays in token order.
// file: `log_beta` [layers, kv_heads, tokens], numbers up to 0, by the authors' gates (a small
// network on the hidden state of each token); nothing of the kind is fitted here.
// Source: Bui et al., arXiv 2512.03324; code yejun-yun/trimkv (TrimKVCache, strategies alpha and
// knorm_alpha; memory 1,024 and buffer 128 for Qwen3, 512 and 128 in its README). Its dynamic cache
// ranks all heads together in every cut.
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/layer_table.h"
#include "sim/policies/shared/when_over.h"

namespace kvspan::policies {
namespace {

class Retention final : public Scorer {
 public:
  Retention(std::shared_ptr<const LayerTable> table, bool keys)
      : table_(std::move(table)), keys_(keys) {}
  Needs needs() const override { return {.k = keys_}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const std::vector<double>& layer = table_->layers[index(view.shape().layer)];
    const double* log_beta = layer.data() + head * table_->tokens;
    const auto now = static_cast<double>(view.pass().end + 1);
    for (std::size_t i = 0; i < entries.size(); ++i)
      out[i] = (now - static_cast<double>(entries[i])) * log_beta[entries[i]];
    if (!keys_) return 0;
    const std::vector<double> squares = norms_.of(view, view.shape().kv_head(head), entries);
    // The code's floor of a norm.
    for (std::size_t i = 0; i < entries.size(); ++i)
      out[i] += std::log(std::max(std::sqrt(squares[i]), 1e-12));
    return 0;
  }

 private:
  std::shared_ptr<const LayerTable> table_;
  bool keys_;
  SquaredNorms norms_{Vectors::keys};
};

std::shared_ptr<const LayerTable> read_log_beta(const std::string& file, const Geometry& geometry) {
  const auto table = std::make_shared<LayerTable>(
      read_layer_table(file, {"log_beta"}, geometry, "trimkv", TokensOf::trace));
  for (std::size_t l = 0; l < table->layers.size(); ++l) {
    for (std::size_t i = 0; i < table->layers[l].size(); ++i) {
      if (std::isfinite(table->layers[l][i]) && table->layers[l][i] <= 0) continue;
      throw TraceError(fmt::format("trimkv: {}: {} has the log_beta {}, expected a number up to 0",
                                   file, table->place(l, i), table->layers[l][i]));
    }
  }
  if (table->heads != geometry.kv_heads) {
    throw TraceError(fmt::format("trimkv: {}: log_beta is of {} heads, expected {} KV heads", file,
                                 table->heads, geometry.kv_heads));
  }
  return table;
}

}  // namespace

PolicyEntry trimkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "trimkv";
  entry.kind = MethodKind::eviction;
  entry.summary = "keeps what a learned retention, fading with age, has left, in decode too";
  entry.source = "Bui et al. 2025, arXiv 2512.03324; code yejun-yun/trimkv";
  entry.evidence = "code read; the gates' numbers come from a file";
  entry.differs =
      "the code's dynamic cache ranks all heads of all layers together, here as in its static one "
      "each head is cut by itself";
  entry.needs = "nothing; keys=true: k";
  entry.needs_file = true;
  entry.parameters = {
      {.name = "file",
       .kind = Kind::text,
       .unit = "file",
       .help = "safetensors with `log_beta` [layers, kv_heads, tokens]"},
      budget_parameter("20%", "entries after a cut, per layer and KV head"),
      {.name = "buffer",
       .fallback = "128",
       .unit = "entries",
       .help = "a cut is due when so many more than the budget are held"},
      {.name = "recent", .fallback = "0", .unit = "tokens", .help = "newest, kept"},
      {.name = "keys", .kind = Kind::flag, .fallback = "false", .help = "add ln ||k||"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const auto table = read_log_beta(arguments.text("file"), geometry);
    Scoring scoring;
    scoring.make = [table, keys = arguments.flag("keys")](const LayerShape&) {
      return std::make_unique<Retention>(table, keys);
    };
    scoring.evicts_in_decode = true;
    Recipe recipe = budgeted(arguments, geometry, own(scoring), own(Schedule::every_pass()));
    recipe.shape = own(std::make_shared<WhenOver>(arguments.count("buffer")));
    recipe.competing = true;
    recipe.protect = own(protect_recent(arguments.count("recent")));
    recipe.knob->monotone = false;                // when cuts are due changes with the budget
    recipe.charge.entry = geometry.kv_bytes + 4;  // log beta, and the index of the token
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
