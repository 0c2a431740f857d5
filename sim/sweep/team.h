// SPDX-License-Identifier: Apache-2.0
// Processes that were started together and share one sweep: who hands out its units.
#pragma once

#include <cstdint>
#include <string>

namespace kvspan::sweep {

// A team has one counter, from which its members take units, and no leader: rank 0 only reads what
// all have to know, and says it. Who ends without leave() takes the others along.
class Team {
 public:
  virtual ~Team() = default;
  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  // The text of rank 0, in all of them. Everybody has to call it.
  [[nodiscard]] virtual std::string share(const std::string& text) = 0;
  // Adds to the counter, which begins at 0; what it was before. From any thread, at any time.
  [[nodiscard]] virtual std::int64_t take(std::int64_t count) = 0;
  // Returns when everybody has called it.
  virtual void wait() = 0;
  // The last call. Everybody has to call it.
  virtual void leave() = 0;
};

}  // namespace kvspan::sweep
