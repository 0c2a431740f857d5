// SPDX-License-Identifier: Apache-2.0
#include "tracegen/forward/stable_dense.h"

#include <algorithm>

#include <tbb/parallel_for.h>

#include "sim/attention/kernels.h"
#include "tracegen/forward/packed_weights.h"

namespace kvspan::tracegen {
namespace {

namespace panels = kvspan::kernels;

constexpr std::int64_t kOutputs = 4 * panels::kPanel;  // of W in one tile
constexpr std::int64_t kMostRows = 256;                // so that a tile's sums stay in the cache

std::int64_t tiles_of(const WeightMatrix& w) { return (w.rows + kOutputs - 1) / kOutputs; }

// What is kept of a tile, in floats: panels, or the same packed.
std::int64_t kept_floats(const WeightMatrix& w) {
  if (!stays_packed(w.type)) return kOutputs * w.columns;
  return kOutputs / panels::kPanel * packed_panel_bytes(w) /
         static_cast<std::int64_t>(sizeof(float));
}

// Panels of the outputs [first, first + count), packed.
void keep_packed(const WeightMatrix& w, std::int64_t first, std::int64_t count, float* out) {
  auto* to = reinterpret_cast<std::byte*>(out);
  for (std::int64_t o = 0; o < count; o += panels::kPanel, to += packed_panel_bytes(w))
    pack_panel(w, first + o, to);
}

void widen_packed(const WeightMatrix& w, const float* kept, std::int64_t count, float* out) {
  const auto* from = reinterpret_cast<const std::byte*>(kept);
  for (std::int64_t o = 0; o < count; o += panels::kPanel, from += packed_panel_bytes(w))
    widen_panel(w, from, out + o * w.columns);
}

// Outputs [first, first + count) of W. Weights stand where keys stand in attention: packed in
// panels, whose products have one order.
void pack(const WeightMatrix& w, std::int64_t first, std::int64_t count,
          std::vector<float>& widened, float* out) {
  widened.resize(static_cast<std::size_t>(kOutputs * w.columns));
  widen_rows(w, first, count, widened.data());
  panels::pack_keys(widened.data(), count, w.columns, static_cast<int>(w.columns), out);
}

struct Product {
  const float* x;  // [rows, columns]
  std::int64_t rows;
  const float* packed;  // of the tile
  float* y;             // its outputs of the first row, rows `ldy` apart
  std::int64_t ldy;
  const float* bias;  // of the tile's outputs; null: none
};

void multiply(const Product& p, std::int64_t columns, std::int64_t count,
              std::vector<float>& sums) {
  const std::int64_t width = panels::padded(count);
  sums.resize(static_cast<std::size_t>(kMostRows * kOutputs));
  std::vector<const float*> from;
  std::vector<float*> to;
  for (std::int64_t begin = 0; begin < p.rows; begin += kMostRows) {
    const std::int64_t rows = std::min(kMostRows, p.rows - begin);
    from.clear();
    to.clear();
    for (std::int64_t r = 0; r < rows; ++r) {
      from.push_back(p.x + (begin + r) * columns);
      to.push_back(sums.data() + r * width);
    }
    panels::logits(from.data(), rows, static_cast<int>(columns), p.packed, 0,
                   width / panels::kPanel, 1, 0, to.data());
    for (std::int64_t r = 0; r < rows; ++r) {
      float* out = p.y + (begin + r) * p.ldy;
      std::copy_n(to[static_cast<std::size_t>(r)], count, out);
      for (std::int64_t i = 0; i < count && p.bias != nullptr; ++i) out[i] += p.bias[i];
    }
  }
}

}  // namespace

void StableDense::operator()(const float* x, std::int64_t rows, const WeightMatrix& w,
                             const std::vector<float>& bias, float* y, std::int64_t ldy) {
  const auto tile_floats = static_cast<std::size_t>(kOutputs * w.columns);
  const auto kept_tile = static_cast<std::size_t>(kept_floats(w));
  const bool packs = stays_packed(w.type);
  std::unique_lock lock(fresh_, std::defer_lock);
  if (keeps_) lock.lock();
  std::vector<float>* kept = keeps_ ? &kept_[w.bytes.data()] : nullptr;
  const bool fresh = kept == nullptr || kept->empty();
  if (kept != nullptr && fresh) kept->resize(static_cast<std::size_t>(tiles_of(w)) * kept_tile);
  if (!fresh) lock.unlock();
  tbb::parallel_for(std::int64_t{0}, tiles_of(w), [&](std::int64_t t) {
    Room& room = rooms_.local();
    const std::int64_t first = t * kOutputs;
    const std::int64_t count = std::min(kOutputs, w.rows - first);
    float* own = kept == nullptr ? nullptr : kept->data() + static_cast<std::size_t>(t) * kept_tile;
    if (own == nullptr || packs) room.packed.resize(tile_floats);
    float* tile = own == nullptr || packs ? room.packed.data() : own;
    if (own != nullptr && packs) {
      if (fresh) keep_packed(w, first, count, own);
      widen_packed(w, own, count, tile);
    } else if (fresh) {
      pack(w, first, count, room.widened, tile);
    }
    multiply({x, rows, tile, y + first, ldy, bias.empty() ? nullptr : bias.data() + first},
             w.columns, count, room.sums);
  });
}

std::int64_t StableDense::kept_bytes(const Checkpoint& checkpoint) {
  const auto bytes = [](const WeightMatrix& w) {
    return tiles_of(w) * kept_floats(w) * static_cast<std::int64_t>(sizeof(float));
  };
  std::int64_t out = bytes(checkpoint.head());
  for (int l = 0; l < checkpoint.spec().layers; ++l) {
    const LayerWeights& w = checkpoint.layer(l);
    for (const WeightMatrix* matrix : {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down})
      out += bytes(*matrix);
  }
  return out;
}

}  // namespace kvspan::tracegen
