// SPDX-License-Identifier: Apache-2.0
#include "sim/model_geometry.h"

#include <catch2/catch.hpp>
#include <fmt/format.h>
using namespace kvspan;
TEST_CASE("x", "[model]") {
  for (const auto& name : known_models()) {
    auto m = load_model(name);
    fmt::print("{} {} {} {} | {}\n", name, m.weights.parameters(), m.weights.dtype, m.state_bytes,
               m.weights.refusal);
  }
  CHECK(true);
}
