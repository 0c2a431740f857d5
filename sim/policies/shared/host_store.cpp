// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/host_store.h"

#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace kvspan::policies {
namespace {

class HostStore final : public Store {
 public:
  explicit HostStore(std::function<bool(const Pass&)> due) : due_(std::move(due)) {}
  void age(const View& view, Decision& out) override {
    const Pass& pass = view.pass();
    if (!due_(pass)) return;
    for (int head = 0; head < view.shape().heads; ++head) {
      std::vector<TokenIndex> gone;
      for (const Eviction& e : out.evictions) {
        if (e.head == head && e.token >= moved_) gone.push_back(e.token);
      }
      std::sort(gone.begin(), gone.end());
      const std::span<const TokenIndex> list = view.resident(head);
      for (auto t = std::lower_bound(list.begin(), list.end(), moved_); t != list.end(); ++t) {
        if (!std::binary_search(gone.begin(), gone.end(), *t))
          out.changes.push_back({pass.end, head, *t, 1});
      }
    }
    moved_ = static_cast<TokenIndex>(pass.end);
  }

 private:
  std::function<bool(const Pass&)> due_;
  TokenIndex moved_ = 0;  // entries before it have left
};

}  // namespace

Storing host_storing(std::function<bool(const Pass&)> due, const Geometry& geometry) {
  Storing storing;
  storing.make = [due](const LayerShape&) { return std::make_unique<HostStore>(due); };
  storing.representations = {{"host", 0, geometry.entry_bytes()}};
  storing.payload = [due, each = geometry.entry_bytes()](TokenCount entries, const Pass& pass) {
    return due(pass) ? 0 : entries * each;
  };
  return storing;
}

}  // namespace kvspan::policies
