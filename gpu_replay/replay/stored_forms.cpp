// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/replay/stored_forms.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdlib>
#include <string_view>

#include "sim/policy/spec.h"

namespace kvspan::gpu_replay {
namespace {

using Kind = VectorFormat::Kind;

constexpr std::array<std::string_view, 3> kStores = {"kivi", "think", "qpruningkv"};

// The term of a store, wherever it stands; null: there is none.
const Term* store_of(const RecipeSpec& spec) {
  for (const Term& term : spec) {
    if (std::find(kStores.begin(), kStores.end(), term.name) != kStores.end()) return &term;
    if (const Term* const inner = store_of(term.inner)) return inner;
  }
  return nullptr;
}

std::int32_t number(const Term& term, std::string_view key) {
  const auto at = std::find_if(term.arguments.begin(), term.arguments.end(),
                               [&](const Argument& argument) { return argument.key == key; });
  assert(at != term.arguments.end());
  return static_cast<std::int32_t>(std::strtol(at->values.at(0).c_str(), nullptr, 10));
}

}  // namespace

bool has_stored_forms(const std::string& policy) { return store_of(parse_spec(policy)) != nullptr; }

StoredForms stored_forms(const std::string& policy, const Ledger& ledger, int k_dim, int v_dim,
                         Element element) {
  StoredForms out;
  out.formats = {{}};
  if (ledger.representations.size() < 2) return out;
  const RecipeSpec spec = parse_spec(policy);
  const Term& store = *store_of(spec);
  if (store.name == "kivi") {
    const VectorFormat keys{Kind::entry_groups, number(store, "bits"), number(store, "group")};
    const VectorFormat values{Kind::channel_groups, keys.bits, keys.group};
    out.formats = {{}, {keys, {}}, {{}, values}, {keys, values}};
  } else if (store.name == "think") {
    const std::int64_t gone =
        ledger.representations[0].device_bytes - ledger.representations[1].device_bytes;
    VectorFormat keys{Kind::channels};
    keys.left = k_dim - static_cast<std::int32_t>(gone / bytes_of(element));
    out.formats.push_back({keys, {}});
    out.ranking_rows = number(store, "window");
  } else {
    const VectorFormat both{Kind::channel_groups, number(store, "bits"), number(store, "q_group")};
    out.formats.push_back({both, both});
  }
  assert(out.formats.size() == ledger.representations.size());
  for (std::size_t r = 0; r < out.formats.size(); ++r) {
    assert(bytes_of(out.formats[r].k, k_dim, element) +
               bytes_of(out.formats[r].v, v_dim, element) ==
           ledger.representations[r].device_bytes);
  }
  return out;
}

}  // namespace kvspan::gpu_replay
