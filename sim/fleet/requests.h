// SPDX-License-Identifier: Apache-2.0
// What arrives at a fleet of GPUs: requests over time, from a public trace or drawn at random.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace kvspan {

struct FleetRequest {
  double arrival = 0;  // seconds after the first
  std::int64_t prompt = 1, generated = 0;
  std::vector<std::int64_t> blocks;  // hashes of its prompt's blocks, the last one maybe shorter
};

inline constexpr std::int64_t kHashBlock = 512;  // tokens of a hashed block (Mooncake)

// Requests of a file, ascending by arrival. What the columns are called tells the formats apart:
//   TIMESTAMP,ContextTokens,GeneratedTokens                      Azure LLM inference, 2023 and 2024
//   Timestamp,...,Request tokens,Response tokens,...             BurstGPT, seconds
//   {"timestamp":ms,"input_length":..,"output_length":..,"hash_ids":[..]}   Mooncake, one a line
// Requests without a prompt (failed ones) are left out, and counted in `skipped`.
// Errors: TraceError naming file and line.
[[nodiscard]] std::vector<FleetRequest> read_requests(const std::filesystem::path& file,
                                                      std::int64_t* skipped);

// How long prompts or answers are: "1024", "uniform(512,2048)", "exponential(300)" by its mean,
// "lognormal(1024,0.8)" by its median and sigma; rounded, at least 1, at most kLongest.
class LengthDistribution {
 public:
  // Errors: ConfigError naming `what`.
  LengthDistribution(const std::string& text, const std::string& what);
  [[nodiscard]] std::int64_t draw(double u, double v) const;  // u, v uniform in (0, 1)

 private:
  enum class Kind : std::uint8_t { fixed, uniform, exponential, lognormal };
  Kind kind_ = Kind::fixed;
  double a_ = 0, b_ = 0;
};
inline constexpr std::int64_t kLongest = 1 << 24;  // tokens

// `count` requests of a Poisson process of `rate` a second.
struct DrawnRequests {
  std::int64_t count = 0;
  double rate = 1;
  LengthDistribution prompt, generated;
  std::uint64_t seed = 0;
};
[[nodiscard]] std::vector<FleetRequest> draw_requests(const DrawnRequests& wanted);

}  // namespace kvspan
