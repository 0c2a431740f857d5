// SPDX-License-Identifier: Apache-2.0
// Shared by snapkv and pyramidkv: the settings of the baselines of arXiv 2506.17121.
//
// Source: princeton-pli/PruLong, eval/model_utils.py and MInference/minference/modules/snapkv.py,
// pyramidkv.py. Window 64, average pooling of 5, one set per query head (group=mean: its
// compress_group_kvs, pooled before the mean). All tokens but the prompt's last are prefilled, and
// the rule acts behind them. A prompt in one pass keeps 64 ceil(max(int(share n), window) / 64) a
// head; a chunk int(share length), and never less than its window.
#pragma once

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

[[nodiscard]] Parameter preset_parameter();
// Fills in what the user left open of votes_parameters(). REQUIRES: preset_parameter() is one, too.
void apply_preset(Arguments& arguments);
// What the settings alone do not say, of a recipe whose arguments were filled in.
void finish_preset(const Arguments& arguments, const Geometry& geometry, Recipe& recipe);

}  // namespace kvspan::policies
