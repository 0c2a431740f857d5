// SPDX-License-Identifier: Apache-2.0
// How a policy's store writes entries, as its arguments say: what a ledger knows by name and bytes
// only.
#pragma once

#include <string>
#include <vector>

#include "gpu_replay/attention/entry_format.h"
#include "sim/ledger/ledger.h"

namespace kvspan::gpu_replay {

struct StoredForms {
  std::vector<EntryFormat> formats;  // [representations]
  RowIndex ranking_rows = 0;         // whose queries rank the channels that are pruned
  [[nodiscard]] bool all_whole() const { return formats.size() < 2; }
};

// Whether the store of a policy, in canonical text, writes in forms of VectorFormat.
[[nodiscard]] bool has_stored_forms(const std::string& policy);

// REQUIRES: has_stored_forms(), or nothing is held otherwise; element has as many bytes as the
// ledger's.
[[nodiscard]] StoredForms stored_forms(const std::string& policy, const Ledger& ledger, int k_dim,
                                       int v_dim, Element element);

}  // namespace kvspan::gpu_replay
