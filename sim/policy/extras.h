// SPDX-License-Identifier: Apache-2.0
// What one policy or wrapper uses, and no other: bases of the structs that everybody knows, so that
// these stay short. A new policy needs nothing from here.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sim/base/types.h"

namespace kvspan {

struct Decision;

// Of Traits.
struct TraitExtras {
  // qpruningkv: tokens of a budget are multiplied by it (equal bytes at lower precision).
  double size_factor = 1;
  // scissorhands: the budget is told how many entries compete, not how many rows the prompt has.
  bool competing = false;
  // scissorhands: memory that the roles of one layer use, where it is large.
  std::int64_t role_bytes = 0;
  // chunkkv: layers run in order, and View::lower() shows their decisions.
  bool reads_lower_layers = false;
  // global, cake, lava: at the evict point no layer is cut before all have attended.
  bool waits_for_layers = false;
  // scissorhands(mode=eval_code): a role looks rows of the whole trace up, not of its own run.
  bool reads_trace = false;
  // streaming_llm: positions are places in the cache.
  bool renumbers = false;
  // locret, preset=prulong: the prompt's last rows that go through decode: what acts at the evict
  // point acts so many rows earlier.
  RowIndex early = 0;
  // preset=prulong: a prompt in one pass may keep a multiple of it, and its window at least.
  TokenCount capacity_step = 0;
  // whole_blocks: entries leave in blocks of so many tokens.
  TokenCount block_size = 0;
};

// r_kv, decoding: how the entries of a head lie in the cache after a decision. Programs that gather
// what torch's topk returns leave it in falling order of the scores; whoever pools or looks for
// neighbours then sees that order.
struct CacheOrder {
  bool by_score = false;         // false: by token, always
  bool protected_first = false;  // what may not leave lies before the rest, not behind it
  bool when_full = false;        // laid anew even if exactly the budget is held and nobody leaves
  double ties_from = std::numeric_limits<double>::infinity();  // lagkv: scores above are equal
};

// Of Sizing.
struct SizingExtras {
  bool competing_rows = false;  // `rows` is how many entries compete in a head: see Sizing::among()
  TokenCount discount = 0;  // chunked: of `tokens`, transient entries that do not stay (patched)
  RowIndex window_rows = kAll;  // chunked: an observation window is at most this long
  RowIndex born = 0;            // mikv: rows so far
  RowIndex heads_window =
      0;  // pyramid+adakv: the window of the heads that share out a layer's size
};

// Of Scoring: whether budgets of one ranking may share the scores of a cache that nothing has left.
// once: only where one decision is taken, since the scorer remembers what it looked at.
enum class Sharing : std::uint8_t { none, once, always };

// Of Scoring.
struct ScoringExtras {
  Sharing sharing = Sharing::none;
  std::string ranking;  // canonical text without the budget, of what is shared; empty: nothing is
  bool by_position = false;  // criticalkv asks: the ranking does not look at attention
  bool at_birth = false;     // dms, block ask: a score is known at birth, and never changes
  bool by_place = false;     // decoding asks: a score depends on what lies beside an entry
  bool row_by_row = false;   // chunked asks: looks at rows, not at View::votes()
  CacheOrder order;
};

// Of Rule.
struct RuleExtras {
  std::string ranking;                  // rules of one ranking may share scores; empty: they do not
  bool window_in_pass = false;          // chunked: votes() look at rows of this pass only
  bool probe_with_prompt_tail = false;  // chunked: score with the prompt's last rows, re-rotated
  TokenIndex first = 0;                 // sagekv: entries before it neither compete nor count
  CacheOrder order;
};

// Scores of entries of one stored head.
struct KnownScores {
  std::vector<double> values;  // [entries]
  double slack = 0;
};

// Of View.
class ViewExtras {
 public:
  virtual ~ViewExtras() = default;
  // What another budget of the rule's ranking was given for these entries, if nothing has left
  // either cache; null: to be scored, and then handed over by share().
  [[nodiscard]] virtual const KnownScores* known(int /*head*/,
                                                 std::span<const TokenIndex> /*entries*/) const {
    return nullptr;
  }
  virtual void share(int /*head*/, std::span<const TokenIndex> /*entries*/,
                     std::span<const double> /*scores*/, double /*slack*/) const {}
  // RowSums: the same of what a role remembers of the rows before `end`.
  [[nodiscard]] virtual std::shared_ptr<const void> known_state(RowIndex /*end*/) const {
    return nullptr;
  }
  virtual void share_state(RowIndex /*end*/, const std::shared_ptr<const void>& /*state*/) const {}
  // chunkkv: what a lower stored layer decided at the end of the same pass (index reuse across
  // layers); null if nothing was decided there.
  // REQUIRES: Traits.reads_lower_layers, layer < shape().layer.
  [[nodiscard]] virtual const Decision* lower(int /*layer*/) const { return nullptr; }
  // global, cake, lava: entries that a budget of all layers lets each head of this layer keep, from
  // the evict point on. [heads]
  [[nodiscard]] virtual std::span<const TokenCount> allotted() const { return {}; }
};

// Of Store.
class StoreExtras {
 public:
  virtual ~StoreExtras() = default;
  // mikv: representation that a victim changes to instead of dying; nullopt: it dies. Such an entry
  // stays resident and competes no more.
  [[nodiscard]] virtual std::optional<int> demote(int /*head*/, TokenIndex /*token*/) {
    return std::nullopt;
  }
  // less: true if add_output() contributes to the attention of later rows (a state that absorbed
  // victims).
  [[nodiscard]] virtual bool adds_output() const { return false; }
  // less: adds to the unnormalised output of one row, sum exp(z - max) v, and to its denominator.
  virtual void add_output(int /*query_head*/, std::span<const float> /*q*/, double /*max*/,
                          std::span<double> /*numerator*/, double& /*denominator*/) {}
};

}  // namespace kvspan
