// SPDX-License-Identifier: Apache-2.0
// Ends the program with exit code 77, CTest's "skipped", and the reason where there is no GPU.
#define CATCH_CONFIG_EXTERNAL_INTERFACES
#include <cstdio>
#include <cstdlib>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "tracegen/cuda/device.h"

namespace {

struct NeedsGpu final : Catch::TestEventListenerBase {
  using TestEventListenerBase::TestEventListenerBase;
  void testRunStarting(const Catch::TestRunInfo& /*info*/) override {
    try {
      std::printf("device: %s\n", kvspan::tracegen::device_name().c_str());
    } catch (const kvspan::DeviceError& error) {
      std::printf("skipped: %s\n", error.what());
      std::exit(77);
    }
  }
};
CATCH_REGISTER_LISTENER(NeedsGpu)

}  // namespace
