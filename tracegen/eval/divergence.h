// SPDX-License-Identifier: Apache-2.0
// How far one prediction is from another.
#pragma once

#include <span>

namespace kvspan::tracegen {

// KL(p || q) in nats of softmax(p_logits) and softmax(q_logits), summed in double; 0 for equal
// logits. Both [vocabulary], finite.
[[nodiscard]] double divergence(std::span<const float> p_logits, std::span<const float> q_logits);

}  // namespace kvspan::tracegen
