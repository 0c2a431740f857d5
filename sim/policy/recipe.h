// SPDX-License-Identifier: Apache-2.0
// Recipes: policies before they are bound to a trace. A policy file turns its arguments into a
// Recipe by filling slots; `a+b` merges slots; a wrapper maps one recipe to another.
//
// A filling is `own` (the method itself) or `defaulted` (what it needs to run alone). Own beats
// default in any order; two own fillings of one slot are refused, naming the slot and both.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sim/policy/policy.h"
#include "sim/policy/spec.h"

namespace kvspan {

class Trace;

// What a recipe is bound to: the geometry of a trace (or of a model, for the analytic model).
struct Geometry {
  int model_layers = 0;
  std::vector<int> layer_ids;  // [stored layers] index in the model
  int query_heads = 0;
  int kv_heads = 0;
  int k_dim = 0;
  int v_dim = 0;
  std::int64_t tokens = 0;                   // N
  std::int64_t prompt = 0;                   // n
  std::int64_t evict_at = 0;                 // n'
  std::int64_t chunk = 0;                    // 0: one prefill pass
  std::int64_t kv_bytes = 2;                 // per element
  std::uint64_t seed = 0;                    // --seed: of every policy that does not give its own
  std::vector<std::int64_t> sliding_window;  // [stored layers], 0: none; empty: none at all
  const Trace* trace = nullptr;              // null in the analytic model
  [[nodiscard]] int layers() const { return static_cast<int>(layer_ids.size()); }
  [[nodiscard]] std::int64_t entry_bytes() const { return (k_dim + v_dim) * kv_bytes; }
  [[nodiscard]] LayerShape shape(int layer, bool per_query_head) const;
};

template <class T>
struct Slot {
  enum class Filling : std::uint8_t { empty, defaulted, own };
  T value{};
  Filling filling = Filling::empty;
  std::string owner;
  [[nodiscard]] explicit operator bool() const { return filling != Filling::empty; }
};

// How entries are ranked.
struct Scoring {
  ScorerFactory make;
  RowIndex window = 0;  // observation window, rows
  Axis axis = Axis::head;
  bool per_query_head = false;  // group=none
  bool by_position = false;     // the ranking does not look at attention
  bool at_birth = false;        // a score is known when its entry is born, and never changes
  bool evicts_in_decode = false;
  // Bytes of its state for the whole model while `row` attends, where Charge::entry does not say it.
  std::function<std::int64_t(RowIndex row)> state = nullptr;
};

// Which entries are written at all: a score at birth, compared with a threshold when the entry leaves
// the local window.
struct Admission {
  ScorerFactory make;
  double threshold = 0;
  TokenCount window = 0;
};

// How entries are held.
struct Storing {
  StoreFactory make;
  std::vector<Representation> representations;  // beyond [0], which bind() fills in
  Payload payload;                              // closed form; null: as born
  // Where other rules evict what `payload` cannot follow, `bound` stands for it, and predictions are
  // upper bounds. Null: as born.
  enum class Exact : std::uint8_t { always, without_decode_evictions, without_evictions };
  Exact exact = Exact::always;
  Payload bound;
  bool alters_vectors = false;
  bool demotes = false;  // victims stay resident
  // Bytes of an entry that a budget in bytes is divided by; 0: as born.
  std::int64_t entry_bytes = 0;
};

using ProtectRule = std::function<Protect(TokenCount budget)>;

struct Recipe {
  std::string name;                // of the first term
  std::vector<std::string> terms;  // canonical text, one a term
  std::string klass;

  Slot<Scoring> scorer;
  Slot<Amount> size;
  Slot<std::shared_ptr<const Budget>> shape;  // how the size is spread over layers and heads
  Slot<Schedule> schedule;
  Slot<ProtectRule> protect;
  Slot<Pick> pick;
  Slot<Admission> admission;
  Slot<SelectorFactory> prefill_reads;  // what the prompt's rows read
  Slot<SelectorFactory> selector;       // what later rows read
  Slot<Storing> store;

  // Set by the chunked() wrapper: the rule acts after every chunk of the prompt.
  struct Chunked {
    bool metric_count = true;  // count=metric|implementation
    bool patched = false;
    bool compete_all = false;
    bool small_window = false;
  };
  std::optional<Chunked> chunked;

  std::vector<Rule> more_rules;  // after the recipe's own
  Charge charge;
  double size_factor =
      1;                // tokens of a budget are multiplied by it (equal bytes at lower precision)
  int full_layers = 0;  // the model's first layers, left alone
  bool reads_lower_layers = false;
  bool renumbers = false;       // positions are places in the cache
  std::int64_t role_bytes = 0;  // memory that the roles of one layer use, where it is large
  bool competing = false;  // the budget is told how many entries compete, not the prompt's rows
  std::vector<RowIndex> cuts;
  std::vector<std::string> notes;
  std::optional<Knob> knob;
  bool bound = false;
  bool closed_form = true;
};

// a+b. Errors: ConfigError naming the slot and both owners.
[[nodiscard]] Recipe merge(const Recipe& a, const Recipe& b);

// Errors: ConfigError when the recipe is incomplete (a shape without a scorer, ...).
[[nodiscard]] Policy bind(const Recipe& recipe, const Geometry& geometry);

// ---- Parameters and the registry -----------------------------------------------------------------

// One declared parameter of a policy.
struct Parameter {
  enum class Kind : std::uint8_t { count, amount, real, word, text };
  std::string name;
  Kind kind = Kind::count;
  std::string fallback;  // default; "auto": unset; "": required
  std::string unit;      // "tokens", "rows", ...
  std::string help;
  std::vector<std::string> choices;  // of a word; the first is the default
  double lowest = 0;
  double highest = 1e12;
  bool sizes = false;  // sets the policy's size itself, in place of `budget`
};

// The arguments of one term, checked against its parameters.
class Arguments {
 public:
  // Errors: ConfigError naming the unknown key or the value out of range, and the nearest valid one.
  Arguments(const Term& term, const std::vector<Parameter>& parameters);
  [[nodiscard]] bool given(const std::string& name) const;  // by the user
  [[nodiscard]] bool has(const std::string& name) const;    // given, or defaulted to a value
  [[nodiscard]] std::int64_t count(const std::string& name) const;
  [[nodiscard]] double real(const std::string& name) const;
  [[nodiscard]] Amount amount(const std::string& name) const;
  [[nodiscard]] const std::string& text(const std::string& name) const;
  [[nodiscard]] bool is(const std::string& name, const std::string& word) const {
    return text(name) == word;
  }
  // Replaces a value, in the canonical text too ("auto": not in use).
  void set(const std::string& name, const std::string& value) { values_.at(name) = value; }
  [[nodiscard]] std::string canonical() const;  // name(key=value,...)
  [[nodiscard]] const std::string& policy() const { return policy_; }

 private:
  std::string policy_;
  const std::vector<Parameter>* parameters_;
  std::map<std::string, std::string> values_;
  std::map<std::string, bool> given_;
};

struct PolicyEntry {
  std::string name;
  std::string klass;
  std::string summary;   // one line
  std::string source;    // paper, section, code
  std::string evidence;  // how far the algorithm was read: code, paper, secondary
  std::string differs;   // where sources disagree, and the default here; empty: nowhere
  std::string needs;     // what a trace must hold, in words
  std::vector<Parameter> parameters;
  bool wrapper = false;     // takes one recipe first
  std::string alone;        // why it cannot run alone; empty: it can
  bool needs_file = false;  // cannot be part of "all"
  std::function<Recipe(Arguments&, const Geometry&)> make;
  std::function<Recipe(Arguments&, const Geometry&, Recipe inner)> wrap;  // of a wrapper
};

// Every policy, in the order of the documentation.
[[nodiscard]] const std::vector<PolicyEntry>& registry();
[[nodiscard]] const PolicyEntry& find_policy(const std::string& name);  // Errors: ConfigError

// Builds and binds a specification without sets.
[[nodiscard]] Policy make_policy(const RecipeSpec& spec, const Geometry& geometry);
[[nodiscard]] Policy make_policy(const std::string& spec, const Geometry& geometry);
// Every registered policy that can run alone, without files.
[[nodiscard]] std::vector<RecipeSpec> all_policies();
// Adds budget=VALUE to every term that has that parameter and is not sized by its own arguments.
void apply_budget(RecipeSpec& spec, const std::string& budget);

// ---- Shared budgets ------------------------------------------------------------------------------

// Entries of one stored head that an amount stands for: tokens, a share of the first n' rows, or
// bytes over all stored layers and `heads` heads of `entry_bytes` an entry.
//   what   "policy: parameter", for the message
// Errors: ConfigError when the bytes are less than one entry a head.
[[nodiscard]] TokenCount budget_tokens(const Amount& amount, const Geometry& geometry, int heads,
                                       std::int64_t entry_bytes, const std::string& what);

// The same number of entries for every layer and head.
[[nodiscard]] std::shared_ptr<const Budget> uniform_budget();

}  // namespace kvspan
