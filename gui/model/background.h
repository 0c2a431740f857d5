// SPDX-License-Identifier: Apache-2.0
// Work beside the window: a function in a thread of its own, and its result back in the thread of
// the object that asked. Of several requests the latest wins.
#pragma once

#include <QMetaObject>
#include <QObject>
#include <QString>
#include <QThreadPool>
#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <utility>

#include "sim/base/error.h"

namespace kvspan::gui {

class Background : public QObject {
 public:
  using Cancelled = std::function<bool()>;  // polled by the work, from any thread

  explicit Background(QObject* parent) : QObject(parent) { pool_.setMaxThreadCount(1); }
  // Waits for what still runs, which it asks to stop.
  ~Background() override {
    cancel();
    pool_.waitForDone();
  }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  [[nodiscard]] bool busy() const { return request_ != nullptr; }
  void cancel() {
    if (request_) request_->store(true);
    request_.reset();
  }

  // work(cancelled) -> Value runs in the thread; then done(value), or failed(message) if it threw,
  // in this object's thread. Neither is called once a later request or cancel() came.
  template <class Work, class Done, class Failed>
  void run(Work work, Done done, Failed failed) {
    cancel();
    request_ = std::make_shared<std::atomic<bool>>(false);
    pool_.start([this, request = request_, work = std::move(work), done = std::move(done),
                 failed = std::move(failed)]() mutable {
      if (request->load()) return;
      std::function<void()> answer;
      try {
        auto value = std::make_shared<decltype(work(Cancelled()))>(
            work([request] { return request->load(); }));
        answer = [value, done = std::move(done)]() mutable { done(std::move(*value)); };
      } catch (const Interrupted&) {
        return;
      } catch (const std::exception& error) {
        answer = [what = QString::fromUtf8(error.what()), failed = std::move(failed)] {
          failed(what);
        };
      }
      QMetaObject::invokeMethod(this, [this, request, answer = std::move(answer)] {
        if (request->load()) return;
        request_.reset();
        answer();
      });
    });
  }

 private:
  QThreadPool pool_;
  std::shared_ptr<std::atomic<bool>> request_;  // null: idle; true inside: cancelled
};

}  // namespace kvspan::gui
