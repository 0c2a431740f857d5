// SPDX-License-Identifier: Apache-2.0
// What a cache policy is made of.
//
// Every published system is a combination of a few independent decisions ("roles"). A policy file
// fills some of the slots of a Recipe; recipes compose; bind() turns a recipe into a Policy, which
// the replay engine (or, later, a running model) drives one pass of one layer at a time:
//
//     attend (all rows of the pass)  ->  Scorer  ->  Budget  ->  Pick  ->  victims leave at pass end
//
// A role sees one layer at the end of one pass through View and never a future row; those that must
// look ahead say so (reads_future) and are printed as stand-ins or bounds.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sim/base/types.h"
#include "sim/policy/passes.h"

namespace kvspan {

struct Rope;

// Geometry of one stored layer. heads is the head axis of ledger and decisions: kv_heads, or
// query_heads when a policy stores one set per query head (group=none).
struct LayerShape {
  int layer = 0;  // index in the trace
  int layers = 0;
  int model_layer = 0;  // index in the model
  int model_layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int heads = 0;
  int k_dim = 0;
  int v_dim = 0;
  [[nodiscard]] int group() const { return query_heads / heads; }  // query heads per stored head
};

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

struct Decision;

// One layer at the end of one pass, as the roles of one policy see it. Spans are valid until the
// call returns. `entries` are tokens, ascending; results follow their order.
class View {
 public:
  virtual ~View() = default;
  [[nodiscard]] virtual const LayerShape& shape() const = 0;
  [[nodiscard]] virtual const Pass& pass() const = 0;
  // Resident entries of a stored head, ascending, newborns included.
  [[nodiscard]] virtual std::span<const TokenIndex> resident(int head) const = 0;

  // Attention items return their slack: by how much any single value may be wrong because the trace
  // holds truncated or rounded probabilities (0 for a qkv trace).
  //
  // Sum over the last `rows` rows of p' of one query head; out [entries].
  virtual double votes(int query_head, RowIndex rows, std::span<const TokenIndex> entries,
                       std::span<double> out) const = 0;
  // p' of one row of this pass, or of an earlier one over today's entries; out [entries].
  virtual double probabilities(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                               std::span<double> out) const = 0;
  // Scaled and soft-capped logits of one row; out [entries], -infinity where the row cannot read the
  // entry, or where it lies more than 87 nats below the row's maximum. REQUIRES: Needs.q, Needs.k.
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
  [[nodiscard]] virtual double score_scale() const = 0;  // of q . k
  // Null when the trace does not say how q and k were rotated. See Needs.rope.
  [[nodiscard]] virtual const Rope* rope() const = 0;
  // True if output errors are measured, so that a store must hand over altered vectors.
  [[nodiscard]] virtual bool measures_output() const = 0;
  // What a lower stored layer decided at the end of the same pass (index reuse across layers); null
  // if nothing was decided there. REQUIRES: Policy.reads_lower_layers, layer < shape().layer.
  [[nodiscard]] virtual const Decision* lower(int layer) const = 0;
};

// ---- Roles ---------------------------------------------------------------------------------------

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
// (the prompt, or one chunk of it; kCompeting: as many as compete in that head).
constexpr RowIndex kCompeting = -1;
struct Sizing {
  TokenCount tokens = kAll;
  RowIndex rows = 0;
  TokenCount discount = 0;      // of `tokens`: transient entries that do not stay (patched chunks)
  RowIndex window_rows = kAll;  // an observation window is at most this long
  RowIndex born = 0;            // rows so far
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
  // reads [query_heads], all empty. Rows [begin, end) of view.pass() are about to attend; their q may
  // be looked at.
  virtual void select(const View& /*view*/, std::span<Reads> /*reads*/) {}
  // True if every row reads a set of its own; then mask() is called for each row, with 1 at the
  // resident entries up to the row, and zeroes those that the row does not read.
  [[nodiscard]] virtual bool by_row() const { return false; }
  virtual void mask(const View& /*view*/, int /*query_head*/, RowIndex /*row*/,
                    std::span<float> /*mask*/) {}
};

// How an entry is held: bytes of its payload on the device and on the host. Index 0 of a policy's
// list is how entries are born; {"host", 0, e} is offloaded, {"copy", e, e} a device copy of a host
// entry, {"int2", e / 8 + scales, 0} quantised.
struct Representation {
  std::string name;
  std::int64_t device_bytes = 0;
  std::int64_t host_bytes = 0;
  int entries = -1;  // counts as this many device entries; -1: one if it has device bytes
};

// From `row` on, the entry is held as `representation`.
struct Change {
  RowIndex row = 0;
  int head = 0;
  TokenIndex token = 0;
  int representation = 0;
};

struct Eviction {
  int head = 0;
  TokenIndex token = 0;
  float score = 0;        // NaN where no score was taken
  std::int32_t rank = 0;  // 0: first to go
};

// The vectors of an entry as they are held from the end of this pass on; empty: unchanged.
struct Rewrite {
  int kv_head = 0;
  TokenIndex token = 0;
  std::vector<float> k, v;
};

// What leaves, and what changes, at the end of one pass of one layer.
struct Decision {
  std::vector<Eviction> evictions;  // by head, then token
  std::vector<Change> changes;
  std::vector<Rewrite> rewrites;
  std::int64_t decided = 0;    // (head) decisions in which somebody had to leave
  std::int64_t undecided = 0;  // of these: the margin is below the slack it rests on
};

// Entries of a stored head that are still there after the decision so far, ascending.
[[nodiscard]] std::vector<TokenIndex> survivors(const View& view, int head, const Decision& so_far);

// Bytes of an entry, and what becomes of a victim.
class Store : public Role {
 public:
  // Representation that a victim changes to instead of dying; nullopt: it dies. Such an entry stays
  // resident and competes no more.
  [[nodiscard]] virtual std::optional<int> demote(int /*head*/, TokenIndex /*token*/) {
    return std::nullopt;
  }
  // At the end of every pass, after all rules: takes in victims (out.evictions), changes what age or
  // demotion (out.changes) asks for, and hands over altered vectors if view.measures_output().
  virtual void age(const View& /*view*/, Decision& /*out*/) {}
  // True if add_output() contributes to the attention of later rows (a state that absorbed victims).
  [[nodiscard]] virtual bool adds_output() const { return false; }
  // Adds to the unnormalised output of one row, sum exp(z - max) v, and to its denominator.
  virtual void add_output(int /*query_head*/, std::span<const float> /*q*/, double /*max*/,
                          std::span<double> /*numerator*/, double& /*denominator*/) {}
};

// ---- Rules ---------------------------------------------------------------------------------------

// When a rule acts. Decode rows are counted from the eviction point.
struct Schedule {
  bool every_chunk = false;   // after each chunk of the prompt but the last
  bool evict_point = true;    // after the pass that ends at n'
  RowIndex decode_every = 0;  // after every k-th decode row; 0: never
  RowIndex phase = 0;         // decode rows that count as gone at the eviction point
  [[nodiscard]] bool due(const Pass& pass) const;
  [[nodiscard]] static Schedule prompt_end() { return {}; }
  [[nodiscard]] static Schedule prompt_end_and_decode() { return {false, true, 1}; }
  [[nodiscard]] static Schedule every_pass() { return {true, true, 1}; }
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
struct Rule {
  Schedule schedule;
  Domain domain = Domain::all;
  bool window_in_pass = false;          // votes() look at rows of this pass only
  bool probe_with_prompt_tail = false;  // score with the prompt's last rows, re-rotated (patched)
  Axis axis = Axis::head;
  ScorerFactory scorer;
  // An admission: whoever scores at most this leaves, whatever the budget.
  std::optional<double> threshold;
  TokenIndex first = 0;  // entries before it neither compete nor count
  std::shared_ptr<const Budget> budget;
  std::function<Sizing(const Pass&)> sizing;
  std::function<Protect(const Pass&, TokenCount tokens)> protect;
  Pick pick = pick_top;
};

// Bytes of state that a policy keeps beside its entries, listed as overhead.
struct Charge {
  std::int64_t entry = 0;  // per resident entry (layer, stored head, token)
  std::int64_t once = 0;   // for the whole model
  // For the whole model while `row` attends: summaries and buffers that grow or come and go.
  std::function<std::int64_t(RowIndex row)> during = nullptr;
  [[nodiscard]] std::int64_t at(RowIndex row) const { return once + (during ? during(row) : 0); }
};

// Closed form of a store: device bytes of one stored head in which `entries` entries compete after
// the decisions at the end of `pass` (all that are resident, unless the store keeps victims).
using Payload = std::function<std::int64_t(TokenCount entries, const Pass& pass)>;

// The integer that sweeps and --match turn. footprint, bytes and mass never fall as it grows when
// monotone.
struct Knob {
  std::string parameter;
  TokenCount lowest = 1;
  TokenCount highest = 1;
  bool monotone = true;
  std::function<std::string(TokenCount)> value;  // text of the parameter at a knob position
};

// A policy bound to a trace's geometry: everything an engine or a running model needs.
struct Policy {
  std::string spec;   // canonical: every parameter in declaration order
  std::string klass;  // "eviction", "head budget", ...
  bool per_query_head = false;
  bool bound = false;  // reads the future: a bound, not a method
  std::vector<std::string> notes;
  std::vector<Rule> rules;
  SelectorFactory prefill_reads;  // of the prompt's passes
  SelectorFactory selector;       // of the passes after the eviction point
  StoreFactory store;
  std::vector<Representation> representations;  // [0] is how entries are born
  Payload payload;                              // null: every entry is held as it was born
  bool alters_vectors = false;                  // the store rewrites, or adds to the output
  bool demotes = false;                         // victims stay resident in another representation
  bool renumbers = false;                       // positions are places in the cache
  int full_layers = 0;                          // the model's first layers, left alone
  Charge charge;
  bool reads_lower_layers = false;  // layers run in order, and View::lower() shows their decisions
  std::int64_t role_bytes = 0;      // memory that the roles of one layer use, where it is large
  std::vector<RowIndex> cuts;       // rows at which a pass must end beside the engine's own
  std::optional<Knob> knob;
  // Counts do not depend on the content of the trace: capacities are exact, else upper bounds.
  bool closed_form = true;
};

// One layer of one policy: the object that an engine or a running model drives.
class LayerPolicy {
 public:
  LayerPolicy(const Policy& policy, const LayerShape& shape);
  // Everything that any role of this layer observes.
  [[nodiscard]] Needs needs() const;
  // Rows before the end of `pass` that a rule due there observes; 0 if none is due.
  [[nodiscard]] RowIndex rows_observed(const Pass& pass) const;
  [[nodiscard]] bool due(const Pass& pass) const;  // a rule acts, or the store ages
  [[nodiscard]] bool due(const Pass& pass, std::size_t rule) const;
  [[nodiscard]] bool selects() const { return prefill_reads_ || selector_; }
  [[nodiscard]] Selector* selector(const Pass& pass) const;  // of this pass; may be null
  [[nodiscard]] Store* store() const { return store_.get(); }
  void observe(const View& view, RowIndex begin, RowIndex end);
  // Runs every rule that is due. views[r] shows the layer through rule r's domain, null if the rule is
  // not due; one more, at the end, shows it to the store if there is one.
  [[nodiscard]] Decision end_pass(std::span<const View* const> views);

 private:
  void apply(std::size_t rule, const View& view, Decision& out);
  const Policy* policy_;
  LayerShape shape_;
  std::vector<std::unique_ptr<Scorer>> scorers_;  // one a rule
  std::unique_ptr<Selector> prefill_reads_, selector_;
  std::unique_ptr<Store> store_;
  std::vector<std::vector<char>> demoted_;  // [heads][tokens so far] competes no more
};

// Text of a PolicyError or note: "policy, layer 3, row 512: what".
[[nodiscard]] std::string at(const Policy& policy, const LayerShape& shape, const Pass& pass);

}  // namespace kvspan
