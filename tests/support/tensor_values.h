// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/trace/trace.h"

namespace kvspan::test {

// A tensor of a trace, widened.
inline std::vector<float> values_of(const Trace& trace, const std::string& name) {
  const TensorView* view = trace.tensors().find(name);
  REQUIRE(view != nullptr);
  std::vector<float> out(static_cast<std::size_t>(view->elements()));
  widen(*view, 0, out, name);
  return out;
}

}  // namespace kvspan::test
