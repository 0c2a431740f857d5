// SPDX-License-Identifier: Apache-2.0
// What a recipe becomes when it is bound to a trace: rules, and what is known of the whole policy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sim/policy/roles.h"
#include "sim/policy/traits.h"

namespace kvspan {

// When a rule acts. Decode rows are counted from the eviction point.
struct Schedule {
  bool every_chunk = false;   // after each chunk of the prompt but the last
  bool evict_point = true;    // after the pass that ends at n'
  RowIndex decode_every = 0;  // after every k-th decode row; 0: never
  RowIndex phase = 0;         // decode rows that count as gone at the eviction point
  [[nodiscard]] bool due(const Pass& pass) const;
  // The schedules that methods have, by name.
  [[nodiscard]] static Schedule at_evict_point() { return {}; }
  [[nodiscard]] static Schedule from_evict_point(RowIndex every = 1, RowIndex gone = 0) {
    return {false, true, every, gone};
  }
  [[nodiscard]] static Schedule each_decode_row(RowIndex every = 1) {
    return {false, false, every};
  }
  [[nodiscard]] static Schedule every_pass() { return {true, true, 1}; }
  [[nodiscard]] static Schedule each_chunk() { return {true, true, 0}; }
  [[nodiscard]] static Schedule chunks_before_evict_point() { return {true, false, 0}; }
};

// Entries that may not leave: index < sinks, and index >= pass end - recent. They count inside the
// budget; if it is smaller than they are, the newest of them stay.
struct Protect {
  TokenCount sinks = 0;
  TokenCount recent = 0;
};

enum class Domain : std::uint8_t { all, newborn };  // which entries compete, and softmax keys
enum class Axis : std::uint8_t { layer, head };     // one set for all heads of a layer, or one each

// Chooses what stays of one head: true for the entries that leave. Default: the lowest scores, ties
// to the lower token index (which is kept).
using Pick =
    std::function<void(const View&, int head, std::span<const TokenIndex> entries,
                       std::span<const double> scores, TokenCount keep, std::vector<char>& leaves)>;
void pick_top(const View& view, int head, std::span<const TokenIndex> entries,
              std::span<const double> scores, TokenCount keep, std::vector<char>& leaves);

using ScorerFactory = std::function<std::unique_ptr<Scorer>(const LayerShape&)>;
using SelectorFactory = std::function<std::unique_ptr<Selector>(const LayerShape&)>;
using StoreFactory = std::function<std::unique_ptr<Store>(const LayerShape&)>;

// One eviction rule, complete.
struct Rule : RuleExtras {
  Schedule schedule;
  Domain domain = Domain::all;
  Axis axis = Axis::head;
  ScorerFactory scorer;
  // An admission: whoever scores at most this leaves, whatever the budget.
  std::optional<double> threshold;
  std::shared_ptr<const Budget> budget;
  std::function<Sizing(const Pass&)> sizing;
  std::function<Protect(const Pass&, TokenCount tokens)> protect;
  Pick pick = pick_top;
};

// Closed form of a store: device bytes of one stored head in which `entries` entries compete after
// the decisions at the end of `pass` (all that are resident, unless the store keeps victims).
using Payload = std::function<std::int64_t(TokenCount entries, const Pass& pass)>;

// A policy bound to a trace's geometry: everything an engine or a running model needs.
struct Policy : Traits {
  std::string spec;   // canonical: every parameter in declaration order
  std::string klass;  // kinds of its methods: "eviction", "head budget + eviction", ...
  bool per_query_head = false;
  std::vector<Rule> rules;
  SelectorFactory prefill_reads;  // of the prompt's passes
  SelectorFactory selector;       // of the passes after the eviction point
  StoreFactory store;
  std::vector<Representation> representations;  // [0] is how entries are born
  Payload payload;                              // null: every entry is held as it was born
  bool alters_vectors = false;                  // the store rewrites, or adds to the output
  bool demotes = false;                         // victims stay resident in another representation
};

// The rule whose budget is coupled over layers, and acts at the evict point; nullopt: none.
[[nodiscard]] std::optional<std::size_t> coupled_rule(const Policy& policy);

// The passes that a policy falls into. Errors: see make_passes().
[[nodiscard]] PassPlan passes_of(const Policy& policy, const Geometry& geometry);

}  // namespace kvspan
