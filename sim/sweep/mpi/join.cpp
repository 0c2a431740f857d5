// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/mpi/join.h"

#include <algorithm>
#include <dlfcn.h>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/modules.h"
#include "sim/base/text.h"
#include "sim/sweep/grid.h"
#include "sim/sweep/mpi/module.h"

namespace kvspan::sweep {
namespace {

namespace fs = std::filesystem;

class MpiTeam final : public Team {
 public:
  MpiTeam(const MpiModule& module, int rank, int size)
      : module_(module), rank_(rank), size_(size) {}
  ~MpiTeam() override {
    if (!left_) module_.desert();
  }
  MpiTeam(const MpiTeam&) = delete;
  MpiTeam& operator=(const MpiTeam&) = delete;

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] std::string share(const std::string& text) override {
    auto size = static_cast<std::int64_t>(text.size());
    module_.share(&size, sizeof(size));
    std::string shared = rank_ == 0 ? text : std::string(static_cast<std::size_t>(size), '\0');
    module_.share(shared.data(), size);
    return shared;
  }
  [[nodiscard]] std::int64_t take(std::int64_t count) override { return module_.take(count); }
  void wait() override { module_.wait(); }
  void leave() override {
    module_.leave();
    left_ = true;
  }

 private:
  const MpiModule& module_;
  int rank_, size_;
  bool left_ = false;
};

// Null, or the module; `why` says why not.
const MpiModule* load(const fs::path& file, std::string& why) {
  // MPI loads parts of itself, which look for the others among the global names.
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
  auto* const entry =
      library == nullptr
          ? nullptr
          : reinterpret_cast<const MpiModule* (*)()>(dlsym(library, "kvspan_mpi_module"));
  if (entry == nullptr) {
    const char* error = dlerror();
    why = error == nullptr ? "no reason given" : one_line(std::string_view(error));
    return nullptr;
  }
  if (entry()->version == MpiModule::kVersion) return entry();
  why = fmt::format("'{}' is of another version of kvspan", path_text(file));
  return nullptr;
}

}  // namespace

Joined join_mpi(const std::function<const char*(const char*)>& variable) {
  const bool launched = variable("PMIX_RANK") != nullptr || variable("PMI_RANK") != nullptr;
  const Shard started = launch_of(variable).rank;
  if (!launched || started.count == 1) return {};
  const std::vector<fs::path> places = module_places("kvspan_mpi.so");
  const auto file = std::ranges::find_if(places, [](const fs::path& p) { return fs::exists(p); });
  if (file == places.end()) return {{}, {}, "this kvspan was built without MPI"};
  std::string why;
  const MpiModule* const module = load(*file, why);
  if (module == nullptr) return {{}, {}, why};
  if (!module->started())
    return {{}, {}, fmt::format("{} did not start this process", module->library)};
  int rank = 0, size = 0;
  if (const char* failed = module->enter(&rank, &size)) return {{}, {}, failed};
  auto team = std::make_unique<MpiTeam>(*module, rank, size);
  if (static_cast<std::size_t>(size) == started.count)
    return {std::move(team), module->library, {}};
  team->leave();
  return {{}, {}, fmt::format("{} sees {} of {} processes", module->library, size, started.count)};
}

}  // namespace kvspan::sweep
