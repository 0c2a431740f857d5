// SPDX-License-Identifier: Apache-2.0
#include "tracegen/cuda/load.h"

#include <dlfcn.h>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/modules.h"
#include "sim/base/text.h"

namespace kvspan::tracegen {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModule = "kvspan_cuda.so";
constexpr const char* kRemedy = "`./build.sh cuda` builds it; --device cpu needs none";

std::string last_error() {
  const char* error = dlerror();
  return error == nullptr ? "no reason given" : one_line(std::string_view(error));
}

// Null with dlerror() set where there is no such function.
template <typename Function>
Function* function_of(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

}  // namespace

std::string why_no_gpu() {
  // Stays open: a process has one driver.
  void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) return fmt::format("no GPU driver was found ({})", last_error());
  auto* const start = function_of<int(unsigned)>(driver, "cuInit");
  auto* const count = function_of<int(int*)>(driver, "cuDeviceGetCount");
  if (start == nullptr || count == nullptr) return "libcuda.so.1 is no driver of CUDA";
  int devices = 0;
  int status = start(0);
  if (status == 0) status = count(&devices);
  if (status != 0) return fmt::format("the GPU driver finds no device (CUDA error {})", status);
  return devices > 0 ? "" : "the GPU driver finds no device";
}

std::vector<fs::path> cuda_module_places() { return module_places(kModule); }

const CudaModule& load_cuda_module(const fs::path& file) {
  const std::string name = path_text(file);
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    throw DeviceError(
        fmt::format("the CUDA module cannot be loaded: {}; {}", last_error(), kRemedy));
  auto* const entry = function_of<const CudaModule*()>(library, "kvspan_cuda_module");
  if (entry == nullptr) throw DeviceError(fmt::format("'{}' is no CUDA module of kvspan", name));
  const CudaModule* const module = entry();
  const std::string mine = cuda_module_build();
  if (module->build != mine) {
    throw DeviceError(fmt::format("'{}' is of another build: {}, and this program is {}; {}", name,
                                  module->build, mine, kRemedy));
  }
  return *module;
}

std::unique_ptr<Runner> make_cuda_runner(const Checkpoint& checkpoint,
                                         const RunnerOptions& options) {
  if (const std::string why = why_no_gpu(); !why.empty())
    throw DeviceError(why + "; --device cpu needs none");
  std::vector<std::string> looked;
  for (const fs::path& file : cuda_module_places()) {
    if (fs::exists(file)) return load_cuda_module(file).make_runner(checkpoint, options);
    looked.push_back(fmt::format("'{}'", path_text(file)));
  }
  throw DeviceError(fmt::format("there is no CUDA module: looked for {}; {}",
                                fmt::join(looked, " and "), kRemedy));
}

}  // namespace kvspan::tracegen
