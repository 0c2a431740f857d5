// SPDX-License-Identifier: Apache-2.0
// What leaves a cache at the end of a pass, and how each store holds what stays.
#pragma once

#include <vector>

#include "tests/twin/stores_world.h"

namespace kvspan::twin::stores {

// What leaves a head (or is demoted) at the end of a pass.
[[nodiscard]] std::vector<int> victims(const Setup& u, const LayerState& s, int h, Pass pass,
                                       const std::vector<int>& given, bool& near);

void age_kivi(const Setup& u, LayerState& s, int b, Outcome& out);

void age_qpruningkv(const Setup& u, LayerState& s, int b, Outcome& out);

void age_think(const Setup& u, LayerState& s, int b, Outcome& out);

// `lost`: what the evictor would evict at the end of this pass.
void age_mikv(const Setup& u, LayerState& s, int b, const std::vector<std::vector<int>>& lost,
              Outcome& out);

// Folds in what has left for good.
void age_less(const Setup& u, LayerState& s, const std::vector<std::vector<int>>& lost,
              Outcome& out);

void age_kvquant(const Setup& u, LayerState& s, Pass pass, Outcome& out);

// Folds what leaves into what stays, before it leaves.
void fold_cam(const Setup& u, LayerState& s, int h, Pass pass, const std::vector<int>& lost,
              Outcome& out);
void fold_merge(const Setup& u, LayerState& s, int h, int b, const std::vector<int>& lost,
                Outcome& out);

// Bits of keys (8: FP8) and values, and bytes of an entry.
struct TurboBits {
  int key = 0, value = 0;
};
[[nodiscard]] TurboBits turbo_bits(const Setup& u);
[[nodiscard]] long long turbo_bytes(const Setup& u);
void age_turboquant(const Setup& u, LayerState& s, int b, Outcome& out);

// All of that for one layer: who leaves, then how what stays is held from here on.
void end_pass(const Setup& u, LayerState& s, Pass pass, const std::vector<int>& given,
              Outcome& out);

}  // namespace kvspan::twin::stores
