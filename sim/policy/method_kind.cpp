// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/method_kind.h"

#include <array>
#include <cstddef>

namespace kvspan {
namespace {

// In the order of MethodKind.
constexpr std::array<std::string_view, 17> kTexts = {
    "baseline",         "recency eviction", "eviction",        "post-fill eviction", "head budget",
    "layer budget",     "budget shape",     "admission",       "selection",          "offload",
    "prefill sparsity", "quantisation",     "mixed precision", "channel pruning",    "merging",
    "external",         "wrapper"};
static_assert(kTexts.size() == static_cast<std::size_t>(MethodKind::wrapper) + 1);

}  // namespace

std::string_view text_of(MethodKind kind) { return kTexts[static_cast<std::size_t>(kind)]; }

std::string text_of(const std::vector<MethodKind>& kinds) {
  std::string out;
  for (const MethodKind kind : kinds) {
    if (!out.empty()) out += " + ";
    out += text_of(kind);
  }
  return out;
}

bool spreads_a_budget(MethodKind kind) {
  return kind == MethodKind::head_budget || kind == MethodKind::layer_budget ||
         kind == MethodKind::budget_shape;
}

}  // namespace kvspan
