// SPDX-License-Identifier: Apache-2.0
// The roles of a policy: what a role sees (View), and what each one decides.
//
//     attend (all rows of the pass)  ->  Scorer  ->  Budget  ->  victims leave at pass end
//
// A role sees one layer at the end of one pass through View and never a future row; those that must
// look ahead say so (reads_future) and are printed as stand-ins or bounds. Most policies bring a
// Scorer and nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sim/base/types.h"
#include "sim/policy/decision.h"
#include "sim/policy/extras.h"
#include "sim/policy/passes.h"
#include "sim/policy/shape.h"

namespace kvspan {

struct Rope;
class ModelBudget;

// Rows that a role watches one by one: none; the prompt's last row and every decode row; all.
enum class Observe : std::uint8_t { never, from_prompt_end, always };

// What a role observes of attention. Every item runs over the entries that the rows read under this
// policy's own cache (p', not the full-cache p), and is computed only when somebody asks for it.
struct Needs {
  RowIndex last_rows = 0;                // votes(): this many rows before a decision
  bool column_sums = false;              // column_sum(): all rows, from the first
  Observe observe = Observe::never;      // Role::observe(): these rows, right after they attended
  bool q = false, k = false, v = false;  // vectors of the trace: a score trace is refused
  bool rope = false;                     // re-rotation: the trace must hold the rope_* fields
  void merge(const Needs& other);
};

// One layer at the end of one pass, as the roles of one policy see it. Spans are valid until the
// call returns. `entries` are tokens, ascending (a rule with a CacheOrder hands them to its scorer
// as they lie in the cache); results follow their order.
class View : public ViewExtras {
 public:
  [[nodiscard]] virtual const LayerShape& shape() const = 0;
  [[nodiscard]] virtual const Pass& pass() const = 0;
  // Resident entries of a stored head, ascending, newborns included.
  [[nodiscard]] virtual std::span<const TokenIndex> resident(int head) const = 0;
  // The same as they lie in the cache; resident() unless a rule's CacheOrder says otherwise.
  [[nodiscard]] virtual std::span<const TokenIndex> cached(int head) const {
    return resident(head);
  }

  // Attention items return their slack: by how much any single value may be wrong because the trace
  // holds truncated or rounded probabilities (0 for a qkv trace).
  //
  // Sum over the last `rows` rows of p' of one query head; out [entries].
  virtual double votes(int query_head, RowIndex rows, std::span<const TokenIndex> entries,
                       std::span<double> out) const = 0;
  // p' of one row of this pass, or of an earlier one over today's entries; out [entries].
  virtual double probabilities(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                               std::span<double> out) const = 0;
  // Scaled and soft-capped logits of one row; out [entries], -infinity where the row cannot read
  // the entry, or where it lies more than 87 nats below the row's maximum. REQUIRES: Needs.q,
  // Needs.k.
  virtual void logits(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                      std::span<double> out) const = 0;
  // Sum over all rows so far of p' of one query head; out [entries]. REQUIRES: Needs.column_sums.
  virtual double column_sum(int query_head, std::span<const TokenIndex> entries,
                            std::span<double> out) const = 0;
  // Post-rotary query of a row, post-rotary key of an entry [k_dim], value [v_dim].
  // REQUIRES: Needs.q, Needs.k, Needs.v.
  [[nodiscard]] virtual std::vector<float> query(int query_head, RowIndex row) const = 0;
  [[nodiscard]] virtual std::vector<float> key(int kv_head, TokenIndex token) const = 0;
  [[nodiscard]] virtual std::vector<float> value(int kv_head, TokenIndex token) const = 0;
  // The same of many entries, at a fraction of the cost; out [entries][k_dim], [entries][v_dim].
  virtual void keys(int kv_head, std::span<const TokenIndex> entries, std::span<float> out) const;
  virtual void values(int kv_head, std::span<const TokenIndex> entries, std::span<float> out) const;
  // Those of every KV head of the tokens [begin, end), as they lie in the trace, at a fraction
  // again; out [tokens][kv_heads][k_dim], [tokens][kv_heads][v_dim].
  virtual void key_rows(TokenIndex begin, TokenIndex end, std::span<float> out) const;
  virtual void value_rows(TokenIndex begin, TokenIndex end, std::span<float> out) const;
  [[nodiscard]] virtual double score_scale() const = 0;  // of q . k
  // Null when the trace does not say how q and k were rotated. See Needs.rope.
  [[nodiscard]] virtual const Rope* rope() const = 0;
  // True if output errors are measured, so that a store must hand over altered vectors.
  [[nodiscard]] virtual bool measures_output() const = 0;
  // False if nobody reads Eviction::rank, so that victims need not be sorted.
  [[nodiscard]] virtual bool keeps_ranks() const { return true; }
};

// One object per layer; members are per-layer state.
class Role {
 public:
  virtual ~Role() = default;
  [[nodiscard]] virtual Needs needs() const { return {}; }
  // Rows [begin, end) of the pass have attended; the rows that Needs.observe names, in order.
  virtual void observe(const View& /*view*/, RowIndex /*begin*/, RowIndex /*end*/) {}
};

// Importance of entries: larger is kept.
class Scorer : public Role {
 public:
  // Scores of one stored head; out [entries]. Returns the slack (see View).
  virtual double score(const View& view, int head, std::span<const TokenIndex> entries,
                       std::span<double> out) = 0;
};

// The budget of a decision: `tokens` entries per head, out of `rows` rows that it is a budget of
// (the prompt, or one chunk of it).
struct Sizing : SizingExtras {
  TokenCount tokens;
  RowIndex rows;
  explicit Sizing(TokenCount most = kAll, RowIndex of_rows = 0) : tokens(most), rows(of_rows) {}
  // Out of as many as compete in a head, which among() fills in.
  [[nodiscard]] static Sizing of_competing(TokenCount most);
  [[nodiscard]] Sizing among(RowIndex competing) const;
};

// Scores of every stored head of a layer: values[h] follows entries[h] (evictable ones only).
struct Scores {
  std::vector<std::span<const TokenIndex>> entries;
  std::vector<std::vector<double>> values;
  std::vector<double> slack;           // [heads]
  std::vector<TokenCount> protected_;  // [heads] entries of the domain that may not leave
};

// How many entries each stored head of a layer may hold.
class Budget {
 public:
  virtual ~Budget() = default;
  // Most entries of the rule's domain after an eviction. This is the policy's closed form: the
  // analytic model and the conformance suite use the same function.
  [[nodiscard]] virtual TokenCount capacity(const LayerShape& shape, int head,
                                            const Sizing& sizing) const = 0;
  // True if counts() always equals capacity(), whatever the content of the trace.
  [[nodiscard]] virtual bool content_free() const { return true; }
  // Not null if it shares out one budget among all layers: see model_budget.h.
  [[nodiscard]] virtual const ModelBudget* over_layers() const { return nullptr; }
  // True if it shares out among the heads of a layer what another budget gives to the layer.
  [[nodiscard]] virtual bool within_layer() const { return false; }
  // capacity() less the discount: what stays.
  [[nodiscard]] TokenCount kept(const LayerShape& shape, int head, const Sizing& sizing) const;
  // keep [heads]. Budgets coupled across the heads of a layer look at all scores here.
  // REQUIRES: !content_free().
  virtual void counts(const View& view, const Scores& scores, const Sizing& sizing,
                      std::span<TokenCount> keep) const;
};

// What one query head reads in the rows of a pass, and what was moved from memory for it. Lists are
// ascending and resident; nullopt: everything.
struct Reads {
  std::optional<std::vector<TokenIndex>> attended;
  std::optional<std::vector<TokenIndex>> loaded;  // where it differs from what is attended
};

// Which resident entries the rows of a pass read. Called before attention.
class Selector : public Role {
 public:
  // reads [query_heads], all empty. Rows [begin, end) of view.pass() are about to attend; their q
  // may be looked at.
  virtual void select(const View& /*view*/, std::span<Reads> /*reads*/) {}
  // True if every row reads a set of its own; then mask() is called for each row, with 1 at the
  // resident entries up to the row, and zeroes those that the row does not read.
  [[nodiscard]] virtual bool by_row() const { return false; }
  virtual void mask(const View& /*view*/, int /*query_head*/, RowIndex /*row*/,
                    std::span<float> /*mask*/) {}
};

// Bytes of an entry, and what becomes of a victim.
class Store : public Role, public StoreExtras {
 public:
  // At the end of every pass, after all rules: takes in victims (out.evictions), changes what age
  // or demotion (out.changes) asks for, and hands over altered vectors if view.measures_output().
  virtual void age(const View& /*view*/, Decision& /*out*/) {}
};

// Entries of a stored head that are still there after the decision so far, ascending.
[[nodiscard]] std::vector<TokenIndex> survivors(const View& view, int head, const Decision& so_far);

}  // namespace kvspan
