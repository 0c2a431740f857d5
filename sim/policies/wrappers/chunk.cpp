// SPDX-License-Identifier: Apache-2.0
// chunk(policy): the best entries of every `length` candidates, each chunk scored by itself.
// Source: kvpress ChunkPress (after FINCH, arXiv 2408.00167). A chunk gets floor(B * its length /
// all candidates), the last one the remainder, so that the budget is spent exactly; what is too
// much for it goes to those before (kvpress keeps max(1, int(length * share)) of each). What a
// policy protects is taken out before, once: kvpress' wrapper protects the sinks and the window of
// every chunk. Attention scores are those of the whole prompt's rows.
#include <algorithm>

#include "sim/policies/shared/wrapping.h"

namespace kvspan::policies {
namespace {

// Scores each chunk of the candidates as if there were no other.
class ByChunk final : public Scorer {
 public:
  ByChunk(std::unique_ptr<Scorer> inner, std::size_t length)
      : inner_(std::move(inner)), length_(length) {}
  Needs needs() const override { return inner_->needs(); }
  void observe(const View& view, RowIndex begin, RowIndex end) override {
    inner_->observe(view, begin, end);
  }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    double slack = 0;
    for (std::size_t i = 0; i < entries.size(); i += length_) {
      const std::size_t count = std::min(length_, entries.size() - i);
      slack = std::max(slack,
                       inner_->score(view, head, entries.subspan(i, count), out.subspan(i, count)));
    }
    return slack;
  }

 private:
  std::unique_ptr<Scorer> inner_;
  std::size_t length_;
};

// Places of every chunk. REQUIRES: keep <= entries.
std::vector<TokenCount> places(TokenCount keep, TokenCount entries, TokenCount length) {
  std::vector<TokenCount> sizes;
  for (TokenCount i = 0; i < entries; i += length) sizes.push_back(std::min(length, entries - i));
  std::vector<TokenCount> out;
  TokenCount rest = keep;
  for (const TokenCount size : sizes) {
    out.push_back(keep * size / entries);
    rest -= out.back();
  }
  for (std::size_t c = sizes.size(); rest > 0;) {  // the last chunk, then whoever has room
    --c;
    const TokenCount more = std::min(rest, sizes[c] - out[c]);
    out[c] += more;
    rest -= more;
  }
  return out;
}

Pick pick_by_chunk(TokenCount length) {
  return [length](const View& view, int head, std::span<const TokenIndex> entries,
                  std::span<const double> scores, TokenCount keep, std::vector<char>& leaves) {
    std::size_t begin = 0;
    for (const TokenCount stay : places(keep, static_cast<TokenCount>(entries.size()), length)) {
      const std::size_t count = std::min(index(length), entries.size() - begin);
      std::vector<char> out(count, 0);
      pick_top(view, head, entries.subspan(begin, count), scores.subspan(begin, count), stay, out);
      std::copy(out.begin(), out.end(), leaves.begin() + static_cast<std::ptrdiff_t>(begin));
      begin += count;
    }
  };
}

}  // namespace

PolicyEntry chunk() {
  PolicyEntry entry;
  entry.name = "chunk";
  entry.kind = MethodKind::wrapper;
  entry.summary = "spreads a policy's budget evenly over chunks of the prompt";
  entry.source = "NVIDIA/kvpress, ChunkPress; after FINCH, arXiv 2408.00167";
  entry.evidence = "code read";
  entry.differs =
      "kvpress spends int(share x length) in every chunk, here the whole budget is spent";
  entry.needs = "what the inner policy needs";
  entry.wrapper = true;
  entry.parameters = {{.name = "length",
                       .fallback = "1024",
                       .unit = "candidates",
                       .help = "of a chunk",
                       .range = {1, 1e9}}};
  entry.wrap = [](Arguments& arguments, const Geometry&, Recipe inner) {
    require_plain_pick(arguments, inner);
    const TokenCount length = arguments.count("length");
    Scoring& scoring = inner.scorer.value;
    scoring.make = [make = scoring.make, length](const LayerShape& shape) {
      return std::make_unique<ByChunk>(make(shape), index(length));
    };
    inner.pick = own_of(arguments, pick_by_chunk(length));
    inner.terms = wrapped_terms(inner, arguments);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
