// SPDX-License-Identifier: Apache-2.0
// The registry, made of the one list. Explicit: self-registration silently fails in static
// libraries.
#include "sim/policy/registry.h"

namespace kvspan {
namespace policies {
#define KVSPAN_POLICY(name) PolicyEntry name();
#include "sim/policies/list.inc"
#undef KVSPAN_POLICY
}  // namespace policies

const std::vector<PolicyEntry>& registry() {
  static const std::vector<PolicyEntry> entries = {
#define KVSPAN_POLICY(name) policies::name(),
#include "sim/policies/list.inc"
#undef KVSPAN_POLICY
  };
  return entries;
}

}  // namespace kvspan
