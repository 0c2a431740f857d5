// SPDX-License-Identifier: Apache-2.0
#include "sim/ledger/layouts.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <charconv>
#include <cstddef>
#include <string>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policy/spec.h"

namespace kvspan {
namespace {

// Larger blocks are a slip of the keyboard, and byte counts must stay far from overflow.
constexpr std::int64_t kLargestBlock = std::int64_t{1} << 20;

constexpr std::int64_t kOpenvinoBlock = 32;  // on a CPU; 16 on a GPU

// ceil(n / size). A shift for powers of two: this runs once for every (layer, head, row).
class BlockCount {
 public:
  explicit BlockCount(std::int64_t size)
      : size_(size),
        shift_(std::has_single_bit(static_cast<std::uint64_t>(size))
                   ? std::countr_zero(static_cast<std::uint64_t>(size))
                   : -1) {}
  [[nodiscard]] std::int64_t operator()(std::int64_t entries) const {
    const std::int64_t up = entries + size_ - 1;
    return shift_ >= 0 ? up >> shift_ : up / size_;
  }

 private:
  std::int64_t size_;
  int shift_;
};

// ideal, and query_head: every query head has a copy of the KV of its stored head.
class SummedLayout final : public LayerLayout {
 public:
  SummedLayout(const LayerGeometry& geometry, std::int64_t copies)
      : LayerLayout(geometry),
        copies_(copies),
        bytes_(static_cast<std::size_t>(geometry.tokens), 0) {}

  void add_head(const HeadRows& head) override {
    for (std::size_t x = 0; x < bytes_.size(); ++x) bytes_[x] += head.bytes[x];
  }

  void finish(LayerRows& out) override {
    const std::int64_t newborns = geometry_.heads * geometry_.entry_bytes;
    for (std::size_t x = 0; x < bytes_.size(); ++x) {
      out.before[x] = copies_ * bytes_[x];
      out.during[x] = copies_ * (bytes_[x] + newborns);
      bytes_[x] = 0;
    }
  }

 private:
  std::int64_t copies_;
  std::vector<std::int64_t> bytes_;
};

// Every head as long as the longest: in bytes, so that changes of representation count.
class PaddedLayout final : public LayerLayout {
 public:
  explicit PaddedLayout(const LayerGeometry& geometry)
      : LayerLayout(geometry), longest_(static_cast<std::size_t>(geometry.tokens), 0) {}

  void add_head(const HeadRows& head) override {
    for (std::size_t x = 0; x < longest_.size(); ++x) {
      longest_[x] = std::max(longest_[x], head.bytes[x]);
    }
  }

  void finish(LayerRows& out) override {
    for (std::size_t x = 0; x < longest_.size(); ++x) {
      out.before[x] = geometry_.heads * longest_[x];
      out.during[x] = geometry_.heads * (longest_[x] + geometry_.entry_bytes);
      longest_[x] = 0;
    }
  }

 private:
  std::vector<std::int64_t> longest_;
};

// Blocks that are filled in order of birth and never compacted. With blocks of 4:
//
//   slot     0 1 2 3   4 5 6 7   8
//   dies at  9 4 4 4   6 6 9 8   9     block 0 lives in rows [0, 9), block 1 in [4, 9)
//
// so a block is an interval, and only the last death in it is needed. A slot is of
// representation 0's size whatever an entry becomes, and stays occupied until its token has left
// the device for good: a block neither shrinks nor comes back.
class PagedLayout final : public LayerLayout {
 public:
  PagedLayout(const LayerGeometry& geometry, const Layout& layout)
      : LayerLayout(geometry),
        size_(layout.block_size),
        per_layer_(layout.per_layer),
        last_(static_cast<std::size_t>((geometry.tokens + size_ - 1) / size_), 0),
        opened_(last_.size(), 0),
        freed_(static_cast<std::size_t>(geometry.tokens) + 1, 0) {}

  void add_head(const HeadRows& head) override {
    const std::size_t size = static_cast<std::size_t>(size_);
    for (std::size_t block = 0, slot = 0; block < last_.size(); ++block) {
      const std::size_t end = std::min(slot + size, head.gone.size());
      for (; slot < end; ++slot) last_[block] = std::max(last_[block], head.gone[slot]);
    }
    if (!per_layer_) close_blocks(1);
  }

  void finish(LayerRows& out) override {
    if (per_layer_) close_blocks(geometry_.heads);
    const std::int64_t bytes = size_ * geometry_.entry_bytes;
    std::int64_t blocks = 0;
    for (RowIndex x = 0; x < geometry_.tokens; ++x) {
      const std::size_t row = static_cast<std::size_t>(x);
      blocks -= freed_[row];
      out.before[row] = blocks * bytes;
      if (x % size_ == 0) blocks += opened_[static_cast<std::size_t>(x / size_)];
      out.during[row] = blocks * bytes;
    }
    std::fill(opened_.begin(), opened_.end(), 0);
    std::fill(freed_.begin(), freed_.end(), 0);
  }

 private:
  void close_blocks(std::int64_t count) {
    for (std::size_t block = 0; block < last_.size(); ++block) {
      // A block that was never on the device is not opened.
      if (last_[block] > static_cast<RowIndex>(block) * size_) {
        opened_[block] += count;
        freed_[static_cast<std::size_t>(last_[block])] += count;
      }
      last_[block] = 0;
    }
  }

  std::int64_t size_;
  bool per_layer_;
  std::vector<RowIndex> last_;        // [blocks] row at which the last token of it is gone
  std::vector<std::int64_t> opened_;  // [blocks] heads that hold it
  std::vector<std::int64_t> freed_;   // [tokens + 1]
};

// Blocks as if every eviction were followed by compaction. Slots are of representation 0's size:
// a pool has one block format, and what else a runtime does with narrow entries is its own matter.
class CompactLayout final : public LayerLayout {
 public:
  CompactLayout(const LayerGeometry& geometry, const Layout& layout)
      : LayerLayout(geometry),
        block_bytes_(layout.block_size * geometry.entry_bytes),
        blocks_of_(layout.block_size),
        per_layer_(layout.per_layer),
        before_(static_cast<std::size_t>(geometry.tokens), 0),
        during_(per_layer_ ? 0 : before_.size(), 0) {}

  void add_head(const HeadRows& head) override {
    if (per_layer_) {
      for (std::size_t x = 0; x < before_.size(); ++x) {
        before_[x] = std::max(before_[x], head.entries[x]);
      }
      return;
    }
    for (std::size_t x = 0; x < before_.size(); ++x) {
      before_[x] += blocks_of_(head.entries[x]);
      during_[x] += blocks_of_(head.entries[x] + geometry_.newborn);
    }
  }

  void finish(LayerRows& out) override {
    const std::int64_t all_heads = geometry_.heads * block_bytes_;
    for (std::size_t x = 0; x < before_.size(); ++x) {
      if (per_layer_) {
        out.before[x] = all_heads * blocks_of_(before_[x]);
        out.during[x] = all_heads * blocks_of_(before_[x] + geometry_.newborn);
      } else {
        out.before[x] = block_bytes_ * before_[x];
        out.during[x] = block_bytes_ * during_[x];
        during_[x] = 0;
      }
      before_[x] = 0;
    }
  }

 private:
  std::int64_t block_bytes_;
  BlockCount blocks_of_;
  bool per_layer_;
  std::vector<std::int64_t> before_;  // [tokens] blocks of all heads; per_layer: longest, entries
  std::vector<std::int64_t> during_;  // [tokens] blocks of all heads
};

// Blocks that all heads share and that leave whole, as OpenVINO's cache eviction has them: with
// blocks of 4 and a policy that holds 12 entries after every row,
//
//   row      12 13 14 15 16 17      a block can leave when 16 tokens are there: 4 beyond the limit
//   tokens   13 14 15 16 13 14      of 12
//
// Which blocks these are does not matter for bytes.
class OpenvinoLayout final : public LayerLayout {
 public:
  OpenvinoLayout(const LayerGeometry& geometry, const Layout& layout)
      : LayerLayout(geometry),
        size_(layout.block_size),
        blocks_of_(layout.block_size),
        longest_(static_cast<std::size_t>(geometry.tokens) + 1, 0) {}

  void add_head(const HeadRows& head) override {
    for (std::size_t x = 0; x < head.entries.size(); ++x) {
      longest_[x] = std::max(longest_[x], head.entries[x]);
    }
  }

  void finish(LayerRows& out) override {
    const std::int64_t block_bytes = geometry_.heads * size_ * geometry_.entry_bytes;
    std::int64_t held = 0;
    auto end = geometry_.ends.begin();
    for (std::size_t x = 0; x < out.before.size(); ++x) {
      out.before[x] = block_bytes * blocks_of_(held);
      held += geometry_.newborn;
      out.during[x] = block_bytes * blocks_of_(held);
      // What comes back from the host needs a place, too.
      held = std::max(held, longest_[x + 1]);
      if (static_cast<RowIndex>(x) + 1 != *end) continue;
      ++end;
      held = openvino_held(held, longest_[x + 1], size_);
    }
    std::fill(longest_.begin(), longest_.end(), 0);
  }

 private:
  std::int64_t size_;
  BlockCount blocks_of_;
  std::vector<std::int64_t> longest_;  // [tokens + 1] entries
};

// An evicted entry is only masked out, whatever representation it had: nothing is ever freed.
class MaskedLayout final : public LayerLayout {
 public:
  using LayerLayout::LayerLayout;

  void add_head(const HeadRows& /*head*/) override {}

  void finish(LayerRows& out) override {
    const std::int64_t newborns = geometry_.heads * geometry_.entry_bytes;
    for (RowIndex x = 0; x < geometry_.tokens; ++x) {
      out.before[static_cast<std::size_t>(x)] = x * newborns;
      out.during[static_cast<std::size_t>(x)] = (x + 1) * newborns;
    }
  }
};

// "16", of a block size. Names are keys of a result, so "016" must not be another name of 16. False
// if it begins with none; `text` becomes what follows.
bool parse_block(std::string_view& text, std::int64_t& block_size) {
  const char* const end = text.data() + text.size();
  if (text.empty() || text[0] < '1' || text[0] > '9') return false;
  const auto [rest, error] = std::from_chars(text.data(), end, block_size);
  if (error != std::errc() || block_size > kLargestBlock) return false;
  text = std::string_view(rest, static_cast<std::size_t>(end - rest));
  return true;
}

// "16_per_head_compact": what follows "paged". False if it is none.
bool parse_paged(std::string_view suffix, Layout& out) {
  if (!parse_block(suffix, out.block_size)) return false;
  constexpr std::string_view compact = "_compact";
  if (suffix.ends_with(compact)) {
    out.compact = true;
    suffix.remove_suffix(compact.size());
  }
  out.per_layer = suffix == "_per_layer";
  return out.per_layer || suffix == "_per_head";
}

// "" or "16": what follows "openvino".
bool parse_openvino(std::string_view suffix, Layout& out) {
  out.block_size = kOpenvinoBlock;
  if (suffix.empty()) return true;
  return parse_block(suffix, out.block_size) && suffix.empty() && out.block_size != kOpenvinoBlock;
}

}  // namespace

const std::vector<std::string>& standard_layouts() {
  static const std::vector<std::string> names = {"ideal",
                                                 "query_head",
                                                 "padded",
                                                 "paged16_per_head",
                                                 "paged16_per_layer",
                                                 "paged16_per_head_compact",
                                                 "paged16_per_layer_compact",
                                                 "openvino",
                                                 "masked"};
  return names;
}

Layout parse_layout(const std::string& name) {
  Layout layout;
  if (name == "ideal") return layout;
  if (name == "query_head") {
    layout.kind = Layout::Kind::query_head;
    return layout;
  }
  if (name == "padded") {
    layout.kind = Layout::Kind::padded;
    return layout;
  }
  if (name == "masked") {
    layout.kind = Layout::Kind::masked;
    return layout;
  }
  constexpr std::string_view openvino = "openvino";
  layout.kind = Layout::Kind::openvino;
  if (name.starts_with(openvino) &&
      parse_openvino(std::string_view(name).substr(openvino.size()), layout)) {
    return layout;
  }
  constexpr std::string_view paged = "paged";
  layout.kind = Layout::Kind::paged;
  if (name.starts_with(paged) && parse_paged(std::string_view(name).substr(paged.size()), layout)) {
    return layout;
  }
  throw ConfigError(
      fmt::format("layout: found '{}'; {} (paged<block>: 1 to {} tokens, _per_head or _per_layer; "
                  "openvino<block>)",
                  name, nearest_hint(name, standard_layouts()), kLargestBlock));
}

std::int64_t openvino_held(std::int64_t held, std::int64_t longest, std::int64_t block_size) {
  constexpr std::int64_t kAreas = 3;  // none of them is empty
  const std::int64_t blocks = std::max(kAreas, (longest + block_size - 1) / block_size);
  const std::int64_t beyond = held - blocks * block_size;
  return beyond < block_size ? held : held - beyond / block_size * block_size;
}

std::unique_ptr<LayerLayout> make_layer_layout(const Layout& layout,
                                               const LayerGeometry& geometry) {
  switch (layout.kind) {
    case Layout::Kind::ideal:
      break;
    case Layout::Kind::query_head:
      assert(geometry.query_heads % geometry.heads == 0);
      return std::make_unique<SummedLayout>(geometry, geometry.query_heads / geometry.heads);
    case Layout::Kind::padded:
      return std::make_unique<PaddedLayout>(geometry);
    case Layout::Kind::paged:
      if (layout.compact) return std::make_unique<CompactLayout>(geometry, layout);
      return std::make_unique<PagedLayout>(geometry, layout);
    case Layout::Kind::openvino:
      return std::make_unique<OpenvinoLayout>(geometry, layout);
    case Layout::Kind::masked:
      return std::make_unique<MaskedLayout>(geometry);
  }
  return std::make_unique<SummedLayout>(geometry, 1);
}

bool copies_survivors(const Layout& layout) {
  return layout.kind != Layout::Kind::masked && layout.kind != Layout::Kind::openvino &&
         (layout.kind != Layout::Kind::paged || layout.compact);
}

}  // namespace kvspan
