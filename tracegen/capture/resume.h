// SPDX-License-Identifier: Apache-2.0
// Whether a capture can go on from what an earlier process left.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "tracegen/capture/capture.h"
#include "tracegen/capture/recorder.h"
#include "tracegen/capture/work_folder.h"
#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

// Everything that the result depends on.
[[nodiscard]] nlohmann::json identity_of(const ModelSpec& model, const CaptureOptions& options);
// Changes whenever the machine starts; "" where the system does not tell.
[[nodiscard]] std::string boot_id();
// The file of the states that layer `layer` reads; it writes the other one.
[[nodiscard]] std::string hidden_name(int layer);

class Leftovers {
 public:
  Leftovers(const ModelSpec& model, const CaptureOptions& options, const WorkFolder& work,
            const Recorder& recorder)
      : model_(model), options_(options), work_(work), recorder_(recorder) {}

  // Why the work that the journal `found` tells of cannot be used by a capture of identity `mine`;
  // empty: it can.
  [[nodiscard]] std::string obstacle(const nlohmann::json& found, const nlohmann::json& mine) const;

 private:
  [[nodiscard]] std::string missing_of_layers(const nlohmann::json& found) const;
  [[nodiscard]] std::string missing_of_traces(const nlohmann::json& found) const;

  const ModelSpec& model_;
  const CaptureOptions& options_;
  const WorkFolder& work_;
  const Recorder& recorder_;
};

}  // namespace kvspan::tracegen
