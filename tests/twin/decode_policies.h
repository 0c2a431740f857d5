// SPDX-License-Identifier: Apache-2.0
// The decode-time twins by name.
#pragma once

#include <memory>
#include <string>

#include "tests/twin/decode_world.h"

namespace kvspan::twin::decode {

[[nodiscard]] std::unique_ptr<Policy> streaming(World& w, bool lambda);
[[nodiscard]] std::unique_ptr<Policy> scissorhands(World& w);
[[nodiscard]] std::unique_ptr<Policy> keyformer(World& w);
[[nodiscard]] std::unique_ptr<Policy> h2o(World& w);
[[nodiscard]] std::unique_ptr<Policy> r_kv(World& w);
[[nodiscard]] std::unique_ptr<Policy> sagekv(World& w);
[[nodiscard]] std::unique_ptr<Policy> fastgen(World& w);
[[nodiscard]] std::unique_ptr<Policy> quest(World& w,
                                            const std::string& prefix);  // of its parameters
[[nodiscard]] std::unique_ptr<Policy> rocketkv(World& w);
[[nodiscard]] std::unique_ptr<Policy> retroattention(World& w);
[[nodiscard]] std::unique_ptr<Policy> refreshkv(World& w);
[[nodiscard]] std::unique_ptr<Policy> infinigen(World& w);
[[nodiscard]] std::unique_ptr<Policy> minference(World& w);
[[nodiscard]] std::unique_ptr<Policy> clusterkv(World& w);

}  // namespace kvspan::twin::decode
