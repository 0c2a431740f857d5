// SPDX-License-Identifier: Apache-2.0
// What both kinds of checkpoint are loaded with: a list of stored tensors, from which each is taken
// under the name that its kind of file gives it, and checked. Private to tracegen/model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen::loading {

struct Model {
  ModelSpec spec;
  std::vector<LayerWeights> layers;
  WeightMatrix embedding, head;
  std::vector<float> final_norm;
  std::vector<std::filesystem::path> files;
  std::int64_t bytes = 0;
  std::vector<std::shared_ptr<const void>> owners;
};

struct Stored {
  std::optional<WeightType> type;  // none: one that we do not read
  std::string type_name;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

// A setting that the forward pass does without: its value where the model does, too.
struct Neutral {
  const char* key;
  double none;
  const char* what;  // the model would have otherwise, and what is expected
};

// What the tensors of a model are called.
struct Names {
  std::string embedding, head, final_norm, layer;  // the number of a layer follows
  const char *q, *k, *v, *o, *gate, *up, *down;    // of a layer, without .weight and .bias
  const char *q_norm, *k_norm, *attention_norm, *mlp_norm;
};

enum class Presence : std::uint8_t { required, absent, optional };

// Which vectors a model has beside its matrices and norms.
struct Extras {
  Presence qkv_bias = Presence::absent;
  Presence o_bias = Presence::absent;
  Presence mlp_bias = Presence::absent;
  Presence qk_norm = Presence::absent;
};

// Takes tensors out of the file's list, checking each against the shape that the model needs.
// Errors: CheckpointError naming file and tensor.
class Loader {
 public:
  Loader(std::string where, std::map<std::string, Stored> tensors)
      : where_(std::move(where)), tensors_(std::move(tensors)) {}

  [[nodiscard]] bool has(const std::string& name) const { return tensors_.contains(name); }
  // Two tensors that are there, of the same type, shape and bytes.
  [[nodiscard]] bool same(const std::string& a, const std::string& b) const;
  // Outermost extent, 0 if there is no such tensor.
  [[nodiscard]] std::int64_t rows(const std::string& name) const;

  WeightMatrix matrix(const std::string& name, std::int64_t rows, std::int64_t columns,
                      int rope_heads = 0);
  // fp32 values; rows of heads put into Hugging Face's order, as for a matrix. Empty: not there.
  std::vector<float> vector(const std::string& name, std::int64_t size, Presence presence,
                            int rope_heads = 0);

  // A tensor that is neither taken nor dropped.
  [[nodiscard]] const std::string* left() const {
    return tensors_.empty() ? nullptr : &tensors_.begin()->first;
  }
  void drop(const std::string& name) { tensors_.erase(name); }

  // Bytes of all that was taken, and the types by falling share: "Q4_1, Q6_K and F32".
  [[nodiscard]] std::int64_t bytes() const;
  [[nodiscard]] std::string types() const;

  [[noreturn]] void fail(const std::string& tensor, const std::string& found,
                         const std::string& expected) const;

 private:
  // The reference is valid until the next call.
  const Stored& take(const std::string& name, const std::vector<std::int64_t>& shape);

  std::string where_;
  std::map<std::string, Stored> tensors_;
  Stored taken_;
  std::map<std::string_view, std::int64_t> bytes_of_type_;
};

// `model.spec` is complete but for `weights`; the files and their owners are there.
//   interleaved   rows of q and k, as GGUF's "llama" has them
void load(Model& model, const Extras& extras, const Names& names, Loader& tensors,
          bool interleaved = false);

// "FILE: 'KEY' FOUND; expected EXPECTED", a CheckpointError.
[[noreturn]] void fail_key(const std::string& file, std::string_view key, const std::string& found,
                           const std::string& expected);
// `scaling` is the rope_scaling object of a Hugging Face config, empty for none.
void set_rope(ModelSpec& spec, double theta, const nlohmann::json& scaling,
              const std::string& file);
void check_head_dim(const ModelSpec& spec, const std::string& file);

// The two kinds. Errors: those of Checkpoint::open.
[[nodiscard]] Model open_folder(const std::filesystem::path& folder);
[[nodiscard]] Model open_gguf(const std::filesystem::path& path);

}  // namespace kvspan::tracegen::loading
