// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/whole_blocks.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace kvspan {
namespace {

class InBlocks final : public Budget {
 public:
  InBlocks(std::shared_ptr<const Budget> inner, TokenCount size)
      : inner_(std::move(inner)), size_(size) {}
  TokenCount capacity(const LayerShape& shape, int head, const Sizing& sizing) const override {
    return rounded(inner_->capacity(shape, head, sizing), sizing);
  }
  bool content_free() const override { return inner_->content_free(); }
  const ModelBudget* over_layers() const override { return inner_->over_layers(); }
  bool within_layer() const override { return inner_->within_layer(); }
  void counts(const View& view, const Scores& scores, const Sizing& sizing,
              std::span<TokenCount> keep) const override {
    inner_->counts(view, scores, sizing, keep);
    for (TokenCount& tokens : keep) tokens = rounded(tokens, sizing);
  }

 private:
  TokenCount rounded(TokenCount tokens, const Sizing& sizing) const {
    if (tokens == kAll) return kAll;
    return std::max<TokenCount>(1, tokens / size_) * size_ + sizing.born % size_;
  }
  std::shared_ptr<const Budget> inner_;
  TokenCount size_;
};

struct Block {
  double score = 0;
  std::size_t first = 0, end = 0;  // places among the entries
};

std::vector<Block> blocks_of(std::span<const TokenIndex> entries, std::span<const double> scores,
                             TokenCount size) {
  std::vector<Block> out;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (i == 0 || entries[i] / size != entries[i - 1] / size) out.push_back({0, i, i});
    out.back().score += scores[i];
    out.back().end = i + 1;
  }
  // As scores are compared: sums of the same terms in another order are equal.
  for (Block& block : out) block.score = static_cast<float>(block.score);
  return out;
}

void pick_blocks(std::span<const TokenIndex> entries, std::span<const double> scores,
                 TokenCount places, TokenCount size, std::vector<char>& leaves) {
  std::vector<Block> blocks = blocks_of(entries, scores, size);
  std::stable_sort(blocks.begin(), blocks.end(),
                   [](const Block& a, const Block& b) { return a.score > b.score; });
  const auto stay = static_cast<std::size_t>(places / size);
  for (std::size_t b = stay; b < blocks.size(); ++b) {
    std::fill(leaves.begin() + static_cast<std::ptrdiff_t>(blocks[b].first),
              leaves.begin() + static_cast<std::ptrdiff_t>(blocks[b].end), 1);
  }
}

}  // namespace

Rule in_whole_blocks(Rule rule, TokenCount size) {
  rule.budget = std::make_shared<InBlocks>(rule.budget, size);
  rule.protect = [protect = rule.protect, size](const Pass& pass, TokenCount tokens) {
    Protect out = protect ? protect(pass, tokens) : Protect{};
    out.sinks = (out.sinks + size - 1) / size * size;
    const RowIndex first = pass.end - std::min<RowIndex>(out.recent, pass.end);
    // Where both parts do not fit, the newest give way, as the budget's other places would.
    const TokenCount places = std::max<TokenCount>(tokens - out.sinks, pass.end % size);
    out.recent = std::min<TokenCount>(pass.end - first / size * size, places);
    return out;
  };
  rule.pick = [size](const View&, int, std::span<const TokenIndex> entries,
                     std::span<const double> scores, TokenCount keep, std::vector<char>& leaves) {
    pick_blocks(entries, scores, keep, size, leaves);
  };
  return rule;
}

}  // namespace kvspan
