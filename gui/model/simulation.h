// SPDX-License-Identifier: Apache-2.0
// Runs from inside the viewer: what `kvspan run --out --timeline --lifetimes` does, in a thread of
// its own. Results reach the views through files, as any other result: there is one path from data
// to what is shown.
#pragma once

#include <QElapsedTimer>
#include <QObject>
#include <QString>
#include <QStringList>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gui/model/background.h"
#include "gui/model/result.h"
#include "sim/run/run.h"

namespace kvspan::gui {

struct SimulationRequest {
  std::string trace;                     // path
  std::vector<std::string> specs;        // as --policy takes them
  std::vector<std::string> budgets;      // as --budget takes them
  RowIndex chunk = 0;                    // tokens; 0: the prompt is one pass
  RowIndex prompt = 0, evict_point = 0;  // rows; 0: as the trace says, at the prompt's end
  std::string evict_at;                  // a span or row in place of evict_point; empty: unused
  bool coarse = false;  // measures no fidelity and keeps neither scores nor reads, for speed
  bool fidelity = true;
  RowIndex fidelity_rows = 0;  // per phase; 0: all, of long prompts a sample
  std::int64_t kv_bytes = 2;
  bool layerwise = false;
  std::string layout = "ideal";
  std::uint64_t seed = 0;
  // The command line that does the same.
  [[nodiscard]] std::vector<std::string> command() const;
  [[nodiscard]] EngineOptions options() const;
  // Errors: ConfigError in what is written as text.
  [[nodiscard]] RunRequest run() const;
};

// Words of a command as one line that a shell reads back.
[[nodiscard]] QString shell_text(const std::vector<std::string>& words);

// One simulation at a time; a later one ends an earlier one.
class Simulation : public QObject {
  Q_OBJECT
 public:
  // Writes name.json and its companions into a folder of this process, which is removed at its end.
  explicit Simulation(const QString& name, QObject* parent = nullptr);

  [[nodiscard]] bool busy() const { return background_.busy(); }
  // The file that the next result is opened from: of the same path, it takes the place of an
  // earlier one in a document.
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  void set_name(const QString& name);

  // Policies are replayed in batches of 1, 2, 4, ...: the first one is there at once, and
  // attention, which a batch shares, is computed a few times at most. After every batch grown()
  // hands over the result of all that is finished.
  void start(const SimulationRequest& request);
  // What grown() handed over stays.
  void cancel();

 signals:
  void progressed(double share, const QString& text);  // in [0, 1]
  void grown(const kvspan::gui::ResultPtr& result, int finished, int total);
  void finished(const kvspan::gui::ResultPtr& result);  // the last one that grown() had
  void failed(const QString& line);
  void cancelled();

 private:
  struct Worker;
  std::filesystem::path path_;
  std::shared_ptr<Worker> worker_;  // used by the thread only
  std::int64_t generation_ = 0;  // of requests: what the thread posts for an older one is dropped
  Background background_;
};

// Runs while a slider moves: the latest request wins, but one that was begun coarsely is not ended
// by the next, or nothing would be seen until the slider rests. At most one request waits.
class LiveSimulation : public QObject {
  Q_OBJECT
 public:
  explicit LiveSimulation(const QString& name, QObject* parent = nullptr);
  void show(SimulationRequest request, bool coarse);
  [[nodiscard]] bool busy() const { return simulation_.busy(); }
  [[nodiscard]] const std::filesystem::path& path() const { return simulation_.path(); }

 signals:
  void shown(const kvspan::gui::ResultPtr& result, bool coarse, qint64 milliseconds);
  void failed(const QString& line);

 private:
  struct Request {
    SimulationRequest request;
    bool coarse = false;
  };
  void start(const Request& request);
  void next();
  Simulation simulation_;
  Request running_;
  std::optional<Request> waiting_;
  QElapsedTimer clock_;
};

// True of results of this process that are gone at its end.
[[nodiscard]] bool is_temporary(const std::filesystem::path& result);

// Removes the files of a result of this process; what has them open keeps what it has.
void remove_temporary(const std::filesystem::path& result);

// Copies a result and the companions that it names to `target` (".json" is added if it has no
// ending), NAME.timeline.safetensors and NAME.lifetimes.safetensors; the copy names the copies.
// Errors: ConfigError when the result has no JSON; Error when the disk refuses.
void save_result(const Result& result, std::filesystem::path target);

// ---- Turning a policy's knob --------------------------------------------------------------------

// Where the knob stands in the spec; of a budget that is a share, of `prompt` rows.
[[nodiscard]] TokenCount knob_position(const Tunable& tunable, RowIndex prompt);
// "budget 102 (20 % of the prompt)"
[[nodiscard]] QString knob_text(const Tunable& tunable, TokenCount position, RowIndex prompt);

}  // namespace kvspan::gui
