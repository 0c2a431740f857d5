// SPDX-License-Identifier: Apache-2.0
#include "tracegen/model/checkpoint.h"

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/trace/safetensors.h"
#include "tracegen/model/loader.h"

namespace kvspan::tracegen {

namespace fs = std::filesystem;

namespace {

loading::Model open_model(const fs::path& path) {
  if (fs::is_directory(path)) return loading::open_folder(path);
  if (!fs::exists(path)) {
    throw CheckpointError(
        fmt::format("{} does not exist; expected a folder with config.json and safetensors, or a "
                    "GGUF file",
                    path_text(path)));
  }
  return loading::open_gguf(path);
}

}  // namespace

struct Checkpoint::Impl : loading::Model {};

Checkpoint Checkpoint::open(const fs::path& path) {
  try {
    Checkpoint checkpoint;
    checkpoint.impl_ = std::make_shared<const Impl>(Impl{open_model(path)});
    return checkpoint;
  } catch (const TraceError& error) {
    throw CheckpointError(error.what());
  } catch (const ConfigError& error) {
    throw CheckpointError(error.what());
  } catch (const fs::filesystem_error& error) {
    throw CheckpointError(
        fmt::format("{} cannot be opened ({})", path_text(path), error.code().message()));
  }
}

const ModelSpec& Checkpoint::spec() const { return impl_->spec; }
const LayerWeights& Checkpoint::layer(int layer) const {
  return impl_->layers.at(static_cast<std::size_t>(layer));
}
const WeightMatrix& Checkpoint::embedding() const { return impl_->embedding; }
const WeightMatrix& Checkpoint::head() const { return impl_->head; }
const std::vector<float>& Checkpoint::final_norm() const { return impl_->final_norm; }
const std::vector<fs::path>& Checkpoint::files() const { return impl_->files; }
std::int64_t Checkpoint::bytes() const { return impl_->bytes; }

void Checkpoint::release(int layer) const {
  const LayerWeights& w = this->layer(layer);
  for (const WeightMatrix* m : {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down})
    release_pages(m->bytes);
}

}  // namespace kvspan::tracegen
