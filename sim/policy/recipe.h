// SPDX-License-Identifier: Apache-2.0
// Recipes: policies before they are bound to a trace. A policy file turns its arguments into a
// Recipe by filling slots; `a+b` merges slots; a wrapper maps one recipe to another.
//
// A filling is `own` (the method itself) or `defaulted` (what it needs to run alone). Own beats
// default in any order; two own fillings of one slot are refused, naming the slot and both.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sim/policy/method_kind.h"
#include "sim/policy/policy.h"
#include "sim/policy/spec.h"

namespace kvspan {

template <class T>
struct Slot {
  enum class Filling : std::uint8_t { empty, defaulted, own };
  T value{};
  Filling filling = Filling::empty;
  std::string owner;
  [[nodiscard]] explicit operator bool() const { return filling != Filling::empty; }
  [[nodiscard]] bool is_own() const { return filling == Filling::own; }
};

// How entries are ranked.
struct Scoring : ScoringExtras {
  ScorerFactory make;
  RowIndex window = 0;  // observation window, rows
  Axis axis = Axis::head;
  bool per_query_head = false;  // group=none
  bool evicts_in_decode = false;
  // Bytes of its state for the whole model while `row` attends, where Charge::entry does not say
  // it.
  std::function<std::int64_t(RowIndex row)> state = nullptr;
};

// Which entries are written at all: a score at birth, compared with a threshold when the entry
// leaves the local window.
struct Admission {
  ScorerFactory make;
  double threshold = 0;
  TokenCount window = 0;
  bool own_pages = false;  // write_gate: what is admitted fills pages of its own, in order
};

// How entries are held.
struct Storing {
  StoreFactory make;
  std::vector<Representation> representations;  // beyond [0], which bind() fills in
  Payload payload;                              // closed form; null: as born
  // Where other rules evict what `payload` cannot follow, `bound` stands for it, and predictions
  // are upper bounds. Null: as born.
  enum class Exact : std::uint8_t { always, without_decode_evictions, without_evictions };
  Exact exact = Exact::always;
  Payload bound;
  bool alters_vectors = false;
  bool demotes = false;  // victims stay resident
  // Bytes of an entry that a budget in bytes is divided by; 0: as born.
  std::int64_t entry_bytes = 0;
};

using ProtectRule = std::function<Protect(TokenCount budget)>;

struct Recipe : Traits {
  std::string name;                // of the first term
  std::vector<std::string> terms;  // canonical text, one a term
  std::vector<MethodKind> kinds;   // of the terms; once where both sides of a + agree

  Slot<Scoring> scorer;
  Slot<Amount> size;
  Slot<std::shared_ptr<const Budget>> layers;  // how the size is spread over layers
  Slot<std::shared_ptr<const Budget>> shape;   // ... over heads; over layers, too, without `layers`
  Slot<Schedule> schedule;
  Slot<ProtectRule> protect;
  Slot<Pick> pick;
  Slot<Admission> admission;
  Slot<SelectorFactory> prefill_reads;  // what the prompt's rows read
  Slot<SelectorFactory> selector;       // what later rows read
  Slot<Storing> store;

  // quest: its selector and the bytes that it keeps, over a cache whose admitted entries fill
  // pages of their own behind a window of `local` tokens, if there is one.
  struct Paged {
    SelectorFactory selector;
    Charge charge;
  };
  std::function<Paged(std::optional<TokenCount> local)> paged;

  // Set by the chunked() wrapper: the rule acts after every chunk of the prompt.
  struct Chunked {
    bool metric_count = true;  // count=metric|implementation
    bool patched = false;
    bool compete_all = false;
    bool small_window = false;
  };
  std::optional<Chunked> chunked;

  std::vector<Rule> more_rules;  // after the recipe's own
};

// a+b. Errors: ConfigError naming the slot and both owners.
[[nodiscard]] Recipe merge(const Recipe& a, const Recipe& b);

// Errors: ConfigError when the recipe is incomplete (a shape without a scorer, ...).
[[nodiscard]] Policy bind(const Recipe& recipe, const Geometry& geometry);

// Entries of one stored head that an amount stands for: tokens, a share of the first n' rows, or
// bytes over all stored layers and `heads` heads of `entry_bytes` an entry.
//   what   "policy: parameter", for the message
// Errors: ConfigError when the bytes are less than one entry a head.
[[nodiscard]] TokenCount budget_tokens(const Amount& amount, const Geometry& geometry, int heads,
                                       std::int64_t entry_bytes, const std::string& what);

// The same number of entries for every layer and head.
[[nodiscard]] std::shared_ptr<const Budget> uniform_budget();

}  // namespace kvspan
