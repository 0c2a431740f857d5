// SPDX-License-Identifier: Apache-2.0
// Internal to the engine: fidelity of a layer that has been decided, from its death rows.
#pragma once

#include <functional>
#include <vector>

#include "sim/replay/fidelity.h"
#include "sim/replay/score_pass.h"

namespace kvspan {

// Of one layer under many policies, whose ledgers have its death rows. `check` is called now and
// then, and may throw.
// REQUIRES: a qkv trace; all policies read what they hold, as it was born.
[[nodiscard]] std::vector<LayerFidelity> measure_apart(ScorePass& pass, const Trace& trace,
                                                       const FidelityPlan& plan, int layer,
                                                       const std::vector<const Ledger*>& ledgers,
                                                       const std::function<void()>& check);

}  // namespace kvspan
