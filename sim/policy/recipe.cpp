// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/recipe.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan {
namespace {

template <class T>
Slot<T> merge_slot(const Slot<T>& a, const Slot<T>& b, const char* slot) {
  if (a.is_own() && b.is_own()) {
    throw ConfigError(
        fmt::format("'{}+{}' has no meaning: both bring their own {}", a.owner, b.owner, slot));
  }
  return b.filling > a.filling ? b : a;
}

// A budget shape protects entries beside those of the scorer (lukv).
void protect_both(const Recipe& shape, const Recipe& other, Recipe& out) {
  const bool beside = shape.protect && !shape.protect.is_own() && other.protect.is_own() &&
                      shape.kinds == std::vector{MethodKind::budget_shape};
  if (!beside) return;
  out.protect.value = [a = shape.protect.value, b = other.protect.value](TokenCount tokens) {
    const Protect x = a(tokens), y = b ? b(tokens) : Protect{};
    return Protect{std::max(x.sinks, y.sinks), std::max(x.recent, y.recent)};
  };
}

}  // namespace

Recipe merge(const Recipe& a, const Recipe& b) {
  // Chunks ask the scorer and the size of their own policy only.
  for (const auto& [wrapped, other] : {std::pair(&a, &b), std::pair(&b, &a)}) {
    if (wrapped->chunked && (other->chunked || other->scorer.is_own() || other->size.is_own())) {
      throw ConfigError(
          fmt::format("'{}+{}' has no meaning: put the wrapper around the whole recipe, as in "
                      "chunked(a+b)",
                      a.name, b.name));
    }
  }
  Recipe out = a;
  out.name = a.name + "+" + b.name;
  static_cast<Traits&>(out) = merge_traits(a, b);
  if (a.kinds != b.kinds) out.kinds.insert(out.kinds.end(), b.kinds.begin(), b.kinds.end());
  out.terms.insert(out.terms.end(), b.terms.begin(), b.terms.end());
  out.scorer = merge_slot(a.scorer, b.scorer, "scorer");
  out.size = merge_slot(a.size, b.size, "budget");
  out.layers = merge_slot(a.layers, b.layers, "budget shape");
  out.shape = merge_slot(a.shape, b.shape, "budget shape");
  if (out.layers.is_own() && out.shape.is_own() && !out.shape.value->within_layer()) {
    throw ConfigError(fmt::format("'{}+{}' has no meaning: both bring their own budget shape",
                                  out.layers.owner, out.shape.owner));
  }
  out.schedule = merge_slot(a.schedule, b.schedule, "schedule");
  out.protect = merge_slot(a.protect, b.protect, "protected entries");
  protect_both(a, b, out);
  protect_both(b, a, out);
  out.pick = merge_slot(a.pick, b.pick, "pick");
  out.admission = merge_slot(a.admission, b.admission, "admission");
  out.prefill_reads = merge_slot(a.prefill_reads, b.prefill_reads, "prefill mask");
  out.selector = merge_slot(a.selector, b.selector, "selector");
  out.store = merge_slot(a.store, b.store, "store");
  // State belongs to the scorer that keeps it; everything else adds up.
  if (a.scorer && b.scorer) {
    out.charge.entry = b.scorer.filling > a.scorer.filling ? b.charge.entry : a.charge.entry;
  }
  out.more_rules.insert(out.more_rules.end(), b.more_rules.begin(), b.more_rules.end());
  if (b.paged) out.paged = b.paged;
  if (b.chunked) {
    out.chunked = b.chunked;
    out.size = b.size;
  } else if (a.chunked) {
    out.size = a.size;
  }
  out.knob = out.size.owner == b.name ? b.knob : a.knob;
  return out;
}

}  // namespace kvspan
