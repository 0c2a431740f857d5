// SPDX-License-Identifier: Apache-2.0
// Queries that stand for an answer, and the attention that they give: what Judge Q fits and scores
// by.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "sim/policies/shared/fitted.h"

namespace kvspan {
struct TraceMeta;
}

namespace kvspan::policies {

inline constexpr RowIndex kLastQueries = 32;    // of the ridge's first feature, and of its target
inline constexpr RowIndex kMostQueries = 1024;  // rows that centres and means are taken of

using Queries = std::vector<std::vector<float>>;

// Adds the softmax over the keys [n, dim] of each query. visible: keys from that one on, by the
// model's own sliding window.
//   keys [n, dim], out [n]
void add_softmax(std::span<const float> keys, const Queries& queries, const TraceMeta& m,
                 std::span<const std::size_t> visible, std::span<double> out);
// Queries before rotary, rotated to `first` and the positions after it.
[[nodiscard]] Queries rotated(const TraceMeta& m, Queries queries, RowIndex first);

// The queries that a fitted model stands for: its centres, or `count` times what it predicts.
[[nodiscard]] Queries centres_of(const Regressor& model);
[[nodiscard]] Queries predicted(const Regressor& model, std::span<const float> features,
                                std::size_t count);
// [mean of the last 32; mean of all] of queries before rotary [rows, dim].
[[nodiscard]] std::vector<float> query_means(std::span<const float> rows, std::size_t dim);

}  // namespace kvspan::policies
