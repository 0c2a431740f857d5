// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/memo.h"

#include <utility>

#include <tbb/task_arena.h>
#include <tbb/task_group.h>

#include "sim/base/error.h"

namespace kvspan {

std::any Memo::find(const std::string& key, const std::function<std::any()>& make) {
  std::shared_ptr<Value> value;
  {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<Value>& known = values_[key];
    if (!known) known = std::make_shared<Value>();
    value = known;
  }
  const std::lock_guard lock(value->mutex);
  // Isolated: while it waits for its own tasks, this thread takes up none that asks for the same.
  if (value->known.has_value()) return value->known;
  std::any made;
  tbb::this_task_arena::isolate([&] { made = make(); });
  // Where somebody else has failed, loops end early, and what was made may be half of it.
  if (tbb::is_current_task_group_canceling()) throw Interrupted();
  return value->known = std::move(made);
}

}  // namespace kvspan
