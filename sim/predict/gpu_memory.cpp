// SPDX-License-Identifier: Apache-2.0
#include "sim/predict/gpu_memory.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <string_view>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/text.h"

namespace kvspan {
namespace {

struct Gpu {
  std::string_view name;
  double gib;
};

// The "total capacity" that PyTorch's out-of-memory messages state in public reports (what
// cudaGetDeviceProperties gives: nvidia-smi shows a little more, a data sheet 7 % more). Drivers
// differ by up to 0.3 GiB: the lowest that was seen often.
constexpr std::array<Gpu, 13> kGpus{{{"H100", 79.1},
                                     {"H200", 139.8},
                                     {"B200", 178.3},
                                     {"A100-80GB", 79.1},
                                     {"A100-40GB", 39.4},
                                     {"L40S", 44.4},
                                     {"L4", 22.0},
                                     {"A10G", 22.0},
                                     {"T4", 14.7},
                                     {"RTX-5090", 31.3},
                                     {"RTX-4090", 23.6},
                                     {"RTX-3090", 23.6},
                                     {"MI300X", 191.6}}};

struct Unit {
  std::string_view name;
  double bytes;
};
constexpr std::array<Unit, 9> kUnits{{{"MiB", 0x1p20},
                                      {"GiB", 0x1p30},
                                      {"TiB", 0x1p40},
                                      {"M", 0x1p20},
                                      {"G", 0x1p30},
                                      {"T", 0x1p40},
                                      {"MB", 1e6},
                                      {"GB", 1e9},
                                      {"TB", 1e12}}};

// "rtx 4090" is RTX-4090.
bool is_named(const Gpu& gpu, const std::string& name) {
  return std::equal(gpu.name.begin(), gpu.name.end(), name.begin(), name.end(),
                    [](unsigned char known, unsigned char found) {
                      return std::tolower(known) == std::tolower(found) ||
                             (known == '-' && (found == ' ' || found == '_'));
                    });
}

}  // namespace

std::vector<std::string> gpu_names() {
  std::vector<std::string> names;
  for (const Gpu& gpu : kGpus) names.emplace_back(gpu.name);
  return names;
}

std::int64_t gpu_memory(const std::string& name) {
  for (const Gpu& gpu : kGpus) {
    if (is_named(gpu, name))
      return std::llround(gpu.gib * static_cast<double>(std::int64_t{1} << 30));
  }
  throw ConfigError(fmt::format("gpu: '{}' is not known; {}; or give --gpu-memory",
                                shorten_middle(one_line(name), 40),
                                nearest_hint(name, gpu_names())));
}

std::int64_t parse_gpu_memory(const std::string& text, const std::string& what) {
  const auto refuse = [&](const std::string& found) {
    throw ConfigError(fmt::format(
        "{}: found '{}'{}, expected memory such as 80GiB or 80G (powers of two) or 80GB "
        "(powers of ten)",
        what, shorten_middle(one_line(text), 40), found));
  };
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || !std::isfinite(number) || number < 0) refuse("");
  std::string unit(rest, end);
  std::erase(unit, ' ');
  if (unit.empty()) refuse(" without a unit");
  const auto* found = std::find_if(kUnits.begin(), kUnits.end(),
                                   [&](const Unit& known) { return known.name == unit; });
  if (found == kUnits.end()) refuse("");
  const double bytes = number * found->bytes;
  if (bytes > 1e18) refuse("");
  return std::llround(bytes);
}

}  // namespace kvspan
