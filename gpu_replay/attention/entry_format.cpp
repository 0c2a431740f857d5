// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/attention/entry_format.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include <Eigen/Core>

#include "sim/base/half.h"
#include "sim/base/types.h"

namespace kvspan::gpu_replay {
namespace {

using Kind = VectorFormat::Kind;

constexpr std::size_t kPair = 4;  // bytes of a scale and a zero
constexpr float kLargestHalf = 65504;

float rounded_to_half(float x) {
  return static_cast<float>(Eigen::half(std::clamp(x, -kLargestHalf, kLargestHalf)));
}

// What numbers of one group are written with.
struct Steps {
  float scale = 0, zero = 0;
  [[nodiscard]] unsigned code(float x, int bits) const {
    const auto most = static_cast<float>((1 << bits) - 1);
    return scale > 0
               ? static_cast<unsigned>(std::clamp(std::nearbyint((x - zero) / scale), 0.0F, most))
               : 0;
  }
  void put(std::byte* to) const {
    for (const float x : {scale, zero}) {
      const Eigen::half half(x);
      std::memcpy(to, &half, sizeof half);
      to += sizeof half;
    }
  }
  [[nodiscard]] static Steps at(const std::byte* from) {
    std::uint16_t both[2];
    std::memcpy(both, from, sizeof both);
    return {half_to_float(both[0]), half_to_float(both[1])};
  }
};

// From the smallest to the largest of them in equal steps.
class Range {
 public:
  void add(float x) {
    low_ = empty_ ? x : std::min(low_, x);
    high_ = empty_ ? x : std::max(high_, x);
    empty_ = false;
  }
  [[nodiscard]] Steps steps(int bits) const {
    return {rounded_to_half((high_ - low_) / static_cast<float>((1 << bits) - 1)),
            rounded_to_half(low_)};
  }

 private:
  float low_ = 0, high_ = 0;
  bool empty_ = true;
};

void put_code(std::span<std::byte> codes, std::size_t i, int bits, unsigned code) {
  const std::size_t bit = i * index(bits);
  codes[bit / 8] |= static_cast<std::byte>(code << (bit % 8));
}

unsigned code_at(std::span<const std::byte> codes, std::size_t i, int bits) {
  const std::size_t bit = i * index(bits);
  return std::to_integer<unsigned>(codes[bit / 8]) >> (bit % 8) & ((1U << bits) - 1U);
}

void encode_channel_groups(std::span<const float> x, const VectorFormat& format,
                           std::span<std::byte> out) {
  std::fill(out.begin(), out.end(), std::byte{0});
  std::byte* pair = out.data() + code_bytes(format, std::ssize(x));
  for (std::size_t first = 0; first < x.size(); first += index(format.group), pair += kPair) {
    const auto group = x.subspan(first, std::min(index(format.group), x.size() - first));
    Range range;
    for (const float value : group) range.add(value);
    const Steps steps = range.steps(format.bits);
    steps.put(pair);
    for (std::size_t i = 0; i < group.size(); ++i)
      put_code(out, first + i, format.bits, steps.code(group[i], format.bits));
  }
}

}  // namespace

std::int64_t code_bytes(const VectorFormat& format, std::int64_t dim) {
  return (dim * format.bits + 7) / 8;
}

std::int64_t bytes_of(const VectorFormat& format, std::int64_t dim, Element element) {
  constexpr auto kBytes = static_cast<std::int64_t>(kPair);
  switch (format.kind) {
    case Kind::whole:
      break;
    case Kind::channels:
      return format.left * bytes_of(element);
    case Kind::channel_groups:
      return code_bytes(format, dim) + (dim + format.group - 1) / format.group * kBytes;
    case Kind::entry_groups:
      return code_bytes(format, dim) + dim * kBytes / format.group;
  }
  return dim * bytes_of(element);
}

void encode(std::span<const float> x, const VectorFormat& format, const VectorCoding& coding,
            std::span<std::byte> out) {
  assert(format.kind != Kind::entry_groups);
  assert(std::ssize(out) == bytes_of(format, std::ssize(x), coding.element));
  if (format.kind == Kind::whole) {
    encode(x, coding.element, coding.scale, out);
  } else if (format.kind == Kind::channels) {
    std::vector<float> left(index(format.left));
    for (std::size_t c = 0; c < x.size(); ++c) {
      if (coding.channel[c] >= 0) left[index(coding.channel[c])] = x[c];
    }
    encode(left, coding.element, coding.scale, out);
  } else {
    encode_channel_groups(x, format, out);
  }
}

void decode(std::span<const std::byte> bytes, const VectorFormat& format,
            const VectorCoding& coding, std::span<float> out) {
  assert(format.kind != Kind::entry_groups);
  if (format.kind == Kind::whole) {
    decode(bytes, coding.element, coding.scale, out);
  } else if (format.kind == Kind::channels) {
    std::vector<float> left(index(format.left));
    decode(bytes, coding.element, coding.scale, left);
    for (std::size_t c = 0; c < out.size(); ++c)
      out[c] = coding.channel[c] < 0 ? 0 : left[index(coding.channel[c])];
  } else {
    const std::byte* const pairs = bytes.data() + code_bytes(format, std::ssize(out));
    for (std::size_t i = 0; i < out.size(); ++i) {
      const Steps steps = Steps::at(pairs + i / index(format.group) * kPair);
      out[i] = static_cast<float>(code_at(bytes, i, format.bits)) * steps.scale + steps.zero;
    }
  }
}

std::vector<std::vector<std::byte>> encode_group(std::span<const std::span<const float>> vectors,
                                                 const VectorFormat& format) {
  assert(format.kind == Kind::entry_groups && std::ssize(vectors) == format.group);
  const std::size_t dim = vectors[0].size();
  const auto codes = index(code_bytes(format, std::ssize(vectors[0])));
  const std::size_t share = dim * kPair / vectors.size();
  assert(share * vectors.size() == dim * kPair);
  std::vector<std::vector<std::byte>> out(vectors.size(), std::vector<std::byte>(codes + share));
  std::vector<std::byte> table(dim * kPair);
  for (std::size_t c = 0; c < dim; ++c) {
    Range range;
    for (const auto& vector : vectors) range.add(vector[c]);
    const Steps steps = range.steps(format.bits);
    steps.put(table.data() + c * kPair);
    for (std::size_t i = 0; i < vectors.size(); ++i)
      put_code(out[i], c, format.bits, steps.code(vectors[i][c], format.bits));
  }
  for (std::size_t i = 0; i < vectors.size(); ++i)
    std::memcpy(out[i].data() + codes, table.data() + i * share, share);
  return out;
}

void decode_grouped(std::span<const std::byte> codes, std::span<const std::byte> table, int bits,
                    std::span<float> out) {
  for (std::size_t c = 0; c < out.size(); ++c) {
    const Steps steps = Steps::at(table.data() + c * kPair);
    out[c] = static_cast<float>(code_at(codes, c, bits)) * steps.scale + steps.zero;
  }
}

}  // namespace kvspan::gpu_replay
