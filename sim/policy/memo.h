// SPDX-License-Identifier: Apache-2.0
// What policies of one replay compute once for all of them: fits, and numbers taken from the whole
// trace, that do not depend on the budget.
#pragma once

#include <any>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace kvspan {

// Values by the text of what they depend on. May be called from several threads: whoever comes
// second waits for the first.
class Memo {
 public:
  // REQUIRES: the same T for the same key.
  template <class T>
  [[nodiscard]] std::shared_ptr<const T> get(const std::string& key,
                                             const std::function<T()>& make) {
    return std::any_cast<std::shared_ptr<const T>>(
        find(key, [&make] { return std::any(std::make_shared<const T>(make())); }));
  }

 private:
  struct Value {
    std::mutex mutex;
    std::any known;
  };
  std::any find(const std::string& key, const std::function<std::any()>& make);

  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Value>> values_;
};

// The same, where there is a memo.
template <class T>
[[nodiscard]] std::shared_ptr<const T> remembered(const std::shared_ptr<Memo>& memo,
                                                  const std::string& key,
                                                  const std::function<T()>& make) {
  return memo ? memo->get<T>(key, make) : std::make_shared<const T>(make());
}

}  // namespace kvspan
