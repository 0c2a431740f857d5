// SPDX-License-Identifier: Apache-2.0
// What a run is, in parts that a program can group by: method, budget, parameters.
#pragma once

#include <optional>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace kvspan {

// The label without its numbers: "chunked(snapkv(budget=20%),variant=patched)" ->
// "chunked(snapkv,variant=patched)". A text that is no specification is returned as it is.
[[nodiscard]] std::string method_of(const std::string& label);

// `budget` of a canonical spec, of the innermost policy that has one; nullopt: sized otherwise.
[[nodiscard]] std::optional<std::string> budget_of(const std::string& spec);

// {"snapkv": {"budget": "20%", "window": 8, ...}} of a canonical spec: every parameter of every
// policy, numbers and truth values as such; a name that occurs again is numbered, "snapkv_2".
[[nodiscard]] nlohmann::json parameters_json(const std::string& spec);

}  // namespace kvspan
