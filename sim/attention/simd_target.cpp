// SPDX-License-Identifier: Apache-2.0
#include "sim/attention/simd_target.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <hwy/targets.h>

#include "sim/base/error.h"
#include "sim/base/text.h"

namespace kvspan::kernels {
namespace {

struct Target {
  std::string name;
  std::int64_t better;  // Highway's targets beyond it
  std::int64_t any_of;  // the machine needs one of them
  const char* one_dnn;  // the same cap for oneDNN; null: none
};

// Highway's better targets have lower bits.
std::vector<Target> known_targets() {
#if HWY_ARCH_X86
  return {{"avx512", 0, HWY_AVX2 - 1, nullptr},
          {"avx2", HWY_AVX2 - 1, HWY_AVX2, "AVX2"},
          {"sse4", HWY_SSE4 - 1, HWY_SSE4, "SSE41"}};
#else
  return {};
#endif
}

}  // namespace

void choose_simd_target() {
  const char* const set = std::getenv("KVSPAN_SIMD");
  std::string wanted = set == nullptr ? "" : set;
  if (wanted.empty()) return;
  std::transform(wanted.begin(), wanted.end(), wanted.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });

  const std::vector<Target> known = known_targets();
  if (known.empty()) {
    throw ConfigError(fmt::format(
        "KVSPAN_SIMD: found '{}', but only x86-64 processors leave a choice; unset it", set));
  }
  const auto target =
      std::find_if(known.begin(), known.end(), [&](const Target& t) { return t.name == wanted; });
  if (target == known.end()) {
    std::vector<std::string> names;
    for (const Target& t : known) names.push_back(t.name);
    const std::string hint = nearest_hint(wanted, names);
    throw ConfigError(fmt::format("KVSPAN_SIMD: found '{}', expected one of {}{}", set,
                                  fmt::join(names, ", "),
                                  hint.starts_with("did") ? "; " + hint : ""));
  }
  if ((hwy::SupportedTargets() & target->any_of) == 0) {
    throw DeviceError(fmt::format(
        "KVSPAN_SIMD={}: this machine lacks these instructions; unset it for the best that it has",
        set));
  }
  hwy::DisableTargets(target->better);
  const bool capped =
      std::getenv("ONEDNN_MAX_CPU_ISA") != nullptr || std::getenv("DNNL_MAX_CPU_ISA") != nullptr;
  if (target->one_dnn != nullptr && !capped) setenv("ONEDNN_MAX_CPU_ISA", target->one_dnn, 0);
}

}  // namespace kvspan::kernels
