// SPDX-License-Identifier: Apache-2.0
// decoding(policy): leaves the prompt alone; after every `every`-th decode row the policy cuts each
// head to `target` entries, prompt included, in place of its own schedule and budget.
// Source: kvpress DecodingPress, whose defaults these are. There a policy that looks at queries
// sees the last 256 hidden states, all rotated to the current position; here it sees its last rows
// as they were. The queries of the last 256 rows (more if the policy's window is larger) are
// charged.
//
// kvpress gathers what topk returns: from the second cut on its cache holds first what the last cut
// protected, then the others in falling order of their scores, then what came since. Pooled votes
// (snapkv, pyramidkv), the partitions of lagkv and the windows of cur see these neighbours
// (order=cache; equal scores, whose order is torch's choice there, keep their places) or those of
// the text (order=token). Nothing else looks at places: streaming_llm's entries all tie, adakv
// masks there, and chunkkv, which DecodingPress refuses, sorts what it keeps.
#include <algorithm>

#include "sim/policies/shared/wrapping.h"

namespace kvspan::policies {
namespace {

// How the entries lie in the cache after a cut. A policy with an order of its own keeps it.
CacheOrder order_of(const Arguments& arguments, const Recipe& inner) {
  const Scoring& scoring = inner.scorer.value;
  const bool masks = inner.shape && !inner.shape.value->content_free();
  if (arguments.is("order", "token") || !scoring.by_place || masks) return {};
  CacheOrder order = scoring.order;
  if (!order.by_score) order.by_score = order.protected_first = true;
  return order;
}

}  // namespace

PolicyEntry decoding() {
  PolicyEntry entry;
  entry.name = "decoding";
  entry.kind = MethodKind::wrapper;
  entry.summary = "lets a policy act in decode only, every so many rows, down to a total size";
  entry.source = "NVIDIA/kvpress, DecodingPress";
  entry.evidence = "code read";
  entry.differs =
      "kvpress rotates all buffered queries to the current position, here each has its own; "
      "its cache lies in falling order of the last cut's scores (order=cache, the default), which "
      "pooling and partitions see from the second cut on";
  entry.needs = "what the inner policy needs, for decode rows";
  entry.wrapper = true;
  entry.parameters = {{.name = "every",
                       .fallback = "512",
                       .unit = "rows",
                       .help = "decode rows between two cuts",
                       .range = {1, 1e9}},
                      {.name = "target",
                       .fallback = "2048",
                       .unit = "tokens",
                       .help = "entries after a cut",
                       .range = {.lowest = 1}},
                      {.name = "order",
                       .kind = Parameter::Kind::word,
                       .fallback = "cache",
                       .help = "in which entries are pooled or partitioned: the cache's (falling "
                               "scores of the last cut), or the tokens'",
                       .choices = {"cache", "token"}}};
  entry.wrap = [](Arguments& arguments, const Geometry& geometry, Recipe inner) {
    require_ranking(arguments, inner);
    const Needs needs = needs_of(inner, geometry);
    const TokenCount target = arguments.count("target");
    if (inner.size.filling == Slot<Amount>::Filling::own) {
      inner.notes.push_back(
          fmt::format("decoding: target={} replaces the budget of {}", target, inner.size.owner));
    }
    inner.schedule = own_of(arguments, Schedule::each_decode_row(arguments.count("every")));
    inner.size = own_of(arguments, Amount{Amount::Kind::tokens, target, 0, std::to_string(target)});
    inner.scorer.value.evicts_in_decode = true;
    inner.scorer.value.order = order_of(arguments, inner);
    if (needs.last_rows > 0 || needs.q) {
      const std::int64_t row_bytes = std::int64_t{geometry.layers()} * geometry.query_heads *
                                     geometry.k_dim * geometry.kv_bytes;
      const RowIndex rows = std::max<RowIndex>(256, needs.last_rows);
      inner.charge.during = [before = inner.charge.during, row_bytes, rows,
                             prompt = geometry.evict_point](RowIndex row) {
        const std::int64_t ring =
            row < prompt ? 0 : std::min<RowIndex>(rows, row + 1 - prompt) * row_bytes;
        return ring + (before ? before(row) : 0);
      };
    }
    inner.knob = Knob{"target", 1, geometry.tokens, true,
                      [](TokenCount tokens) { return std::to_string(tokens); }};
    inner.terms = wrapped_terms(inner, arguments);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
