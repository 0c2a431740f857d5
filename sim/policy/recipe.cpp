// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/recipe.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"

namespace kvspan {
namespace {

template <class T>
Slot<T> merge_slot(const Slot<T>& a, const Slot<T>& b, const char* slot) {
  using Filling = typename Slot<T>::Filling;
  if (a.filling == Filling::own && b.filling == Filling::own) {
    throw ConfigError(
        fmt::format("'{}+{}' has no meaning: both bring their own {}", a.owner, b.owner, slot));
  }
  return b.filling > a.filling ? b : a;
}

class Uniform final : public Budget {
 public:
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return sizing.tokens;
  }
};

// Entries kept of a chunk of `rows` rows. Source: the metric and the evaluation code of arXiv
// 2506.17121 (kv_footprint.py, snapkv.py); products are formed in double as there.
TokenCount chunk_count(const Recipe::Chunked& chunked, const Amount& share, RowIndex window,
                       RowIndex rows) {
  const double product = (1.0 - share.one_minus_share()) * static_cast<double>(rows);
  if (!chunked.metric_count) return static_cast<TokenCount>(product);
  return std::min<TokenCount>(std::llrint(product) + window, rows);  // llrint: half to even
}

// The sizing of a rule: B of the prompt, or what a chunk (or all chunks so far) may keep.
std::function<Sizing(const Pass&)> sizing_rule(const Recipe& recipe, const Geometry& geometry,
                                               int heads) {
  const RowIndex prompt = geometry.evict_at;
  if (!recipe.size) return [prompt](const Pass&) { return Sizing{kAll, prompt}; };
  const Amount amount = recipe.size.value;
  const std::int64_t held = recipe.store ? recipe.store.value.entry_bytes : 0;
  TokenCount total = budget_tokens(
      amount, geometry, heads, held > 0 ? held : geometry.entry_bytes(), recipe.name + ": budget");
  if (amount.kind != Amount::Kind::bytes && recipe.size_factor != 1)
    total = static_cast<TokenCount>(static_cast<double>(total) * recipe.size_factor);
  const RowIndex of_rows = recipe.competing ? kCompeting : prompt;
  if (!recipe.chunked) return [total, of_rows](const Pass&) { return Sizing{total, of_rows}; };
  if (recipe.size_factor != 1) {
    throw ConfigError(fmt::format(
        "chunked({}): what a chunk keeps is a count of entries, and {} asks for more of "
        "them at lower precision; give both in one budget",
        recipe.name, recipe.store ? recipe.store.owner : recipe.name));
  }

  const Recipe::Chunked chunked = *recipe.chunked;
  const RowIndex window = recipe.scorer.value.window;
  const bool by_share = amount.kind == Amount::Kind::share;
  return [=](const Pass& pass) {
    if (!pass.is_prompt_chunk()) return Sizing{total, of_rows};
    const RowIndex rows = pass.rows();
    // The authors append the prompt's last `window` tokens to a patched chunk, and drop them afterwards.
    const bool patch = chunked.patched && !pass.is_evict_point();
    const TokenCount least =
        chunked.small_window && !patch ? std::min<TokenCount>(window, rows) : 0;
    if (chunked.compete_all) {
      TokenCount count = total;
      if (by_share) {
        count = 0;
        RowIndex begin = 0;
        for (const RowIndex end : pass.ends) {
          count += chunk_count(chunked, amount, window, end - begin);
          begin = end;
        }
      }
      return Sizing{std::max(count, least), kCompeting, 0, rows};
    }
    const TokenCount count = std::max(chunk_count(chunked, amount, window, rows), least);
    if (patch) return Sizing{count + window, rows + window, window};
    return Sizing{count, rows};
  };
}

// A closed form of bytes ends where other rules evict what it cannot follow.
void limit_payload(const Storing& store, Policy& policy) {
  const bool follows =
      store.exact == Storing::Exact::always ||
      std::none_of(policy.rules.begin(), policy.rules.end(), [&](const Rule& rule) {
        return store.exact == Storing::Exact::without_evictions || rule.schedule.decode_every > 0 ||
               rule.threshold;
      });
  if (follows) return;
  policy.payload = store.bound;
  policy.closed_form = false;
}

// True if the heads of a layer may keep different numbers of entries.
bool differs_by_head(const Budget& budget, const Rule& rule, const Geometry& geometry) {
  if (!budget.content_free()) return true;
  const RowIndex end = geometry.evict_at;
  Sizing sizing = rule.sizing({0, end, end, geometry.prompt, {&end, 1}});
  if (sizing.rows == kCompeting) sizing.rows = end;
  for (int l = 0; l < geometry.layers(); ++l) {
    const LayerShape shape = geometry.shape(l, false);
    for (int h = 1; h < shape.heads; ++h) {
      if (budget.capacity(shape, h, sizing) != budget.capacity(shape, 0, sizing)) return true;
    }
  }
  return false;
}

std::int64_t parse_count(const std::string& text, const std::string& what) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0) {
    throw ConfigError(fmt::format("{}: found '{}', expected a whole number", what, text));
  }
  return value;
}

double parse_real(const std::string& text, const std::string& what) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(value)) {
    throw ConfigError(fmt::format("{}: found '{}', expected a number", what, text));
  }
  return value;
}

void check_value(const Parameter& p, const std::string& text, const std::string& what) {
  // "auto" also stands where one way of giving a size replaces another.
  if (text == "auto" && (p.fallback == "auto" || p.sizes || p.kind == Parameter::Kind::amount))
    return;
  double number = p.lowest;
  switch (p.kind) {
    case Parameter::Kind::count:
      number = static_cast<double>(parse_count(text, what));
      break;
    case Parameter::Kind::real:
      number = parse_real(text, what);
      break;
    case Parameter::Kind::amount:
      (void)Amount::parse(text, what);
      break;
    case Parameter::Kind::word:
      if (std::find(p.choices.begin(), p.choices.end(), text) == p.choices.end()) {
        throw ConfigError(fmt::format("{}: found '{}', expected one of {}; {}", what, text,
                                      fmt::join(p.choices, ", "), nearest_hint(text, p.choices)));
      }
      break;
    case Parameter::Kind::text:
      break;
  }
  if (number < p.lowest || number > p.highest) {
    throw ConfigError(fmt::format("{}: found {}, expected {:g} to {:g}{}", what, text, p.lowest,
                                  p.highest, p.unit.empty() ? "" : " " + p.unit));
  }
}

Recipe make_recipe(const RecipeSpec& spec, const Geometry& geometry);

Recipe make_term(const Term& term, const Geometry& geometry) {
  const PolicyEntry& entry = find_policy(term.name);
  Arguments arguments(term, entry.parameters);
  if (entry.wrapper) {
    if (term.inner.empty()) {
      throw ConfigError(
          fmt::format("{} is a wrapper: it takes a policy first, as in {}(snapkv(budget=10%))",
                      entry.name, entry.name));
    }
    return entry.wrap(arguments, geometry, make_recipe(term.inner, geometry));
  }
  if (!term.inner.empty() && find_policy(term.name).klass.find("budget") == std::string::npos) {
    throw ConfigError(fmt::format("{} takes no policy inside its parentheses; found '{}'",
                                  entry.name, to_text(term.inner)));
  }
  Recipe recipe = entry.make(arguments, geometry);
  recipe.name = entry.name;
  recipe.klass = entry.klass;
  recipe.terms = {arguments.canonical()};
  const auto claim = [&](auto& slot) { slot.owner = entry.name; };
  claim(recipe.scorer);
  claim(recipe.size);
  claim(recipe.shape);
  claim(recipe.schedule);
  claim(recipe.protect);
  claim(recipe.pick);
  claim(recipe.admission);
  claim(recipe.prefill_reads);
  claim(recipe.selector);
  claim(recipe.store);
  // adakv(snapkv) is adakv+snapkv: a budget that is spread over another policy's entries.
  if (!term.inner.empty()) return merge(recipe, make_recipe(term.inner, geometry));
  return recipe;
}

Recipe make_recipe(const RecipeSpec& spec, const Geometry& geometry) {
  Recipe recipe = make_term(spec.front(), geometry);
  for (std::size_t t = 1; t < spec.size(); ++t)
    recipe = merge(recipe, make_term(spec[t], geometry));
  return recipe;
}

}  // namespace

LayerShape Geometry::shape(int layer, bool per_query_head) const {
  return {layer,       layers(), layer_ids[static_cast<std::size_t>(layer)], model_layers,
          query_heads, kv_heads, per_query_head ? query_heads : kv_heads,    k_dim,
          v_dim};
}

std::shared_ptr<const Budget> uniform_budget() { return std::make_shared<Uniform>(); }

TokenCount budget_tokens(const Amount& amount, const Geometry& geometry, int heads,
                         std::int64_t entry_bytes, const std::string& what) {
  if (amount.kind == Amount::Kind::tokens) return amount.mantissa;
  if (amount.kind == Amount::Kind::share) return amount.share_of(geometry.evict_at);
  const std::int64_t one = geometry.layers() * heads * entry_bytes;
  if (amount.mantissa < one) {
    throw ConfigError(
        fmt::format("{}={} is less than one entry a head: {} layers x {} heads x {} bytes need at "
                    "least {} B",
                    what, amount.text, geometry.layers(), heads, entry_bytes, one));
  }
  return amount.mantissa / one;
}

Recipe merge(const Recipe& a, const Recipe& b) {
  // Chunks ask the scorer and the size of their own policy only.
  for (const auto& [wrapped, other] : {std::pair(&a, &b), std::pair(&b, &a)}) {
    if (wrapped->chunked &&
        (other->chunked || other->scorer.filling == Slot<Scoring>::Filling::own ||
         other->size.filling == Slot<Amount>::Filling::own)) {
      throw ConfigError(
          fmt::format("'{}+{}' has no meaning: put the wrapper around the whole recipe, as in "
                      "chunked(a+b)",
                      a.name, b.name));
    }
  }
  Recipe out = a;
  out.name = a.name + "+" + b.name;
  out.klass = a.klass == b.klass ? a.klass : a.klass + " + " + b.klass;
  out.terms.insert(out.terms.end(), b.terms.begin(), b.terms.end());
  out.scorer = merge_slot(a.scorer, b.scorer, "scorer");
  out.size = merge_slot(a.size, b.size, "budget");
  out.shape = merge_slot(a.shape, b.shape, "budget shape");
  out.schedule = merge_slot(a.schedule, b.schedule, "schedule");
  out.protect = merge_slot(a.protect, b.protect, "protected entries");
  out.pick = merge_slot(a.pick, b.pick, "pick");
  out.admission = merge_slot(a.admission, b.admission, "admission");
  out.prefill_reads = merge_slot(a.prefill_reads, b.prefill_reads, "prefill mask");
  out.selector = merge_slot(a.selector, b.selector, "selector");
  out.store = merge_slot(a.store, b.store, "store");
  // State belongs to the scorer that keeps it; everything else adds up.
  const bool from_b = b.scorer.filling > a.scorer.filling;
  const bool replaced = a.scorer && b.scorer;
  if (replaced) out.charge.entry = from_b ? b.charge.entry : a.charge.entry;
  if (!replaced) out.charge.entry = a.charge.entry + b.charge.entry;
  out.charge.once = a.charge.once + b.charge.once;
  if (a.charge.during && b.charge.during) {
    out.charge.during = [x = a.charge.during, y = b.charge.during](RowIndex row) {
      return x(row) + y(row);
    };
  } else if (b.charge.during) {
    out.charge.during = b.charge.during;
  }
  out.more_rules.insert(out.more_rules.end(), b.more_rules.begin(), b.more_rules.end());
  out.size_factor = a.size_factor * b.size_factor;
  out.full_layers = std::max(a.full_layers, b.full_layers);
  out.reads_lower_layers = a.reads_lower_layers || b.reads_lower_layers;
  out.renumbers = a.renumbers || b.renumbers;
  out.role_bytes = a.role_bytes + b.role_bytes;
  out.competing = a.competing || b.competing;
  if (b.chunked) {
    out.chunked = b.chunked;
    out.size = b.size;
  } else if (a.chunked) {
    out.size = a.size;
  }
  out.cuts.insert(out.cuts.end(), b.cuts.begin(), b.cuts.end());
  out.notes.insert(out.notes.end(), b.notes.begin(), b.notes.end());
  out.bound = a.bound || b.bound;
  out.closed_form = a.closed_form && b.closed_form;
  out.knob = out.size.owner == b.name ? b.knob : a.knob;
  return out;
}

Policy bind(const Recipe& recipe, const Geometry& geometry) {
  Policy policy;
  policy.spec = fmt::format("{}", fmt::join(recipe.terms, "+"));
  policy.klass = recipe.klass;
  policy.bound = recipe.bound;
  policy.notes = recipe.notes;
  policy.charge = recipe.charge;
  if (const auto& state = recipe.scorer.value.state) {
    policy.charge.during = [state, other = recipe.charge.during](RowIndex row) {
      return state(row) + (other ? other(row) : 0);
    };
  }
  policy.cuts = recipe.cuts;
  policy.knob = recipe.knob;
  policy.closed_form = recipe.closed_form;
  policy.reads_lower_layers = recipe.reads_lower_layers;
  policy.renumbers = recipe.renumbers;
  policy.role_bytes = recipe.role_bytes;
  policy.full_layers = recipe.full_layers;
  policy.representations = {{"full precision", geometry.entry_bytes(), 0}};
  if (recipe.prefill_reads) policy.prefill_reads = recipe.prefill_reads.value;
  if (recipe.selector) policy.selector = recipe.selector.value;
  if (recipe.store) {
    const Storing& store = recipe.store.value;
    policy.store = store.make;
    policy.payload = store.payload;
    policy.alters_vectors = store.alters_vectors;
    policy.demotes = store.demotes;
    policy.representations.insert(policy.representations.end(), store.representations.begin(),
                                  store.representations.end());
  }
  if (recipe.admission) {
    const Admission& gate = recipe.admission.value;
    Rule rule;
    rule.schedule = Schedule::every_pass();
    rule.scorer = gate.make;
    rule.threshold = gate.threshold;
    rule.protect = [window = gate.window](const Pass&, TokenCount) { return Protect{0, window}; };
    policy.rules.push_back(std::move(rule));
    policy.closed_form = false;
  }
  const auto finish = [&] {
    policy.rules.insert(policy.rules.end(), recipe.more_rules.begin(), recipe.more_rules.end());
    if (recipe.store) limit_payload(recipe.store.value, policy);
    if (policy.alters_vectors && policy.per_query_head &&
        geometry.query_heads != geometry.kv_heads) {
      throw ConfigError(
          fmt::format("{}: {} holds one set of vectors per KV head, and group=none keeps one per "
                      "query head; take group=mean, max or sum",
                      policy.spec, recipe.store.owner));
    }
    return policy;
  };
  if (!recipe.scorer) {
    if (recipe.shape || recipe.size) {
      throw ConfigError(
          fmt::format("{} spreads a budget but ranks nothing: add a policy with a scorer, as in "
                      "{}+snapkv(budget=512)",
                      recipe.name, recipe.name));
    }
    return finish();
  }
  const Scoring& scoring = recipe.scorer.value;
  policy.per_query_head = scoring.per_query_head;
  const int heads = geometry.shape(0, scoring.per_query_head).heads;

  Rule rule;
  rule.axis = scoring.axis;
  rule.scorer = scoring.make;
  rule.budget = recipe.shape ? recipe.shape.value : uniform_budget();
  rule.sizing = [rule_sizing = sizing_rule(recipe, geometry, heads)](const Pass& pass) {
    Sizing sizing = rule_sizing(pass);
    sizing.born = pass.end;
    return sizing;
  };
  if (recipe.pick) rule.pick = recipe.pick.value;
  const ProtectRule protect = recipe.protect ? recipe.protect.value : ProtectRule();
  if (protect) rule.protect = [protect](const Pass&, TokenCount tokens) { return protect(tokens); };
  rule.schedule = recipe.schedule ? recipe.schedule.value : Schedule::prompt_end();
  policy.closed_form = policy.closed_form && rule.budget->content_free();
  if (rule.axis == Axis::layer && differs_by_head(*rule.budget, rule, geometry)) {
    throw ConfigError(fmt::format(
        "'{}' has no meaning: {} ranks one set for all heads of a layer, and {} gives every head a "
        "number of its own",
        recipe.name, recipe.scorer.owner, recipe.shape.owner));
  }
  if (!recipe.chunked) {
    policy.rules.push_back(std::move(rule));
    return finish();
  }

  Rule in_decode = rule;
  rule.schedule = {true, true, 0};
  rule.domain = recipe.chunked->compete_all ? Domain::all : Domain::newborn;
  rule.window_in_pass = true;
  if (protect) {  // the window is the chunk's own
    rule.protect = [protect, w = scoring.window](const Pass& pass, TokenCount tokens) {
      Protect out = protect(tokens);
      if (w > 0) out.recent = std::min<TokenCount>(out.recent, pass.rows());
      return out;
    };
  }
  policy.rules.push_back(rule);
  if (recipe.chunked->patched) {
    // Chunks before the last are scored by the prompt's last rows, and protect nothing; the last
    // chunk's own tail is the prompt's tail.
    policy.rules.back().schedule = {false, true, 0};
    rule.schedule = {true, false, 0};
    rule.probe_with_prompt_tail = true;
    rule.protect = nullptr;
    policy.rules.push_back(rule);
  }
  if (in_decode.schedule.decode_every > 0) {
    // Places of recent entries that died in their frozen chunk stay empty: how many, content decides.
    if (protect && !recipe.chunked->compete_all) policy.closed_form = false;
    in_decode.schedule.every_chunk = in_decode.schedule.evict_point = false;
    policy.rules.push_back(std::move(in_decode));
  }
  return finish();
}

// ---- Arguments -----------------------------------------------------------------------------------

Arguments::Arguments(const Term& term, const std::vector<Parameter>& parameters)
    : policy_(term.name), parameters_(&parameters) {
  std::vector<std::string> names;
  for (const Parameter& p : parameters) {
    names.push_back(p.name);
    values_[p.name] = p.fallback;
    given_[p.name] = false;
  }
  for (const Argument& arg : term.arguments) {
    const auto p = std::find_if(parameters.begin(), parameters.end(),
                                [&](const Parameter& known) { return known.name == arg.key; });
    if (p == parameters.end()) {
      throw ConfigError(
          fmt::format("{} has no parameter '{}'; {}", term.name, arg.key,
                      names.empty() ? "it takes none" : nearest_hint(arg.key, names)));
    }
    check_value(*p, arg.values.front(), fmt::format("{}({})", term.name, arg.key));
    values_[arg.key] = arg.values.front();
    given_[arg.key] = arg.values.front() != "auto";
  }
  for (const Parameter& p : parameters) {
    if (values_[p.name].empty()) {
      throw ConfigError(fmt::format("{} needs the parameter '{}' ({})", term.name, p.name, p.help));
    }
  }
}

bool Arguments::given(const std::string& name) const { return given_.at(name); }
bool Arguments::has(const std::string& name) const { return values_.at(name) != "auto"; }
std::int64_t Arguments::count(const std::string& name) const {
  return parse_count(text(name), name);
}
double Arguments::real(const std::string& name) const { return parse_real(text(name), name); }
Amount Arguments::amount(const std::string& name) const { return Amount::parse(text(name), name); }
const std::string& Arguments::text(const std::string& name) const { return values_.at(name); }

std::string Arguments::canonical() const {
  std::vector<std::string> parts;
  for (const Parameter& p : *parameters_) {
    parts.push_back(fmt::format("{}={}", p.name, quote_if_needed(values_.at(p.name))));
  }
  return parts.empty() ? policy_ : fmt::format("{}({})", policy_, fmt::join(parts, ","));
}

// ---- Registry look-ups ---------------------------------------------------------------------------

const PolicyEntry& find_policy(const std::string& name) {
  std::vector<std::string> names;
  for (const PolicyEntry& entry : registry()) {
    if (entry.name == name) return entry;
    names.push_back(entry.name);
  }
  throw ConfigError(fmt::format("unknown policy '{}'; {}", name, nearest_hint(name, names)));
}

Policy make_policy(const RecipeSpec& spec, const Geometry& geometry) {
  if (spec.size() == 1 && !find_policy(spec[0].name).alone.empty()) {
    throw ConfigError(
        fmt::format("{} cannot run alone: {}", spec[0].name, find_policy(spec[0].name).alone));
  }
  return bind(make_recipe(spec, geometry), geometry);
}

Policy make_policy(const std::string& spec, const Geometry& geometry) {
  return make_policy(parse_spec(spec), geometry);
}

std::vector<RecipeSpec> all_policies() {
  std::vector<RecipeSpec> out;
  for (const PolicyEntry& entry : registry()) {
    if (!entry.wrapper && !entry.needs_file && entry.alone.empty())
      out.push_back({Term{entry.name, {}, {}}});
  }
  return out;
}

void apply_budget(RecipeSpec& spec, const std::string& budget) {
  for (Term& term : spec) {
    apply_budget(term.inner, budget);
    bool takes_budget = false;
    bool sized = false;
    for (const Parameter& p : find_policy(term.name).parameters) {
      const bool given = std::any_of(term.arguments.begin(), term.arguments.end(),
                                     [&](const Argument& arg) { return arg.key == p.name; });
      takes_budget = takes_budget || p.name == "budget";
      sized = sized || (given && (p.sizes || p.name == "budget"));
    }
    if (takes_budget && !sized) term.arguments.push_back({"budget", {budget}});
  }
}

}  // namespace kvspan
