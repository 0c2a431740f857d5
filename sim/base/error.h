// SPDX-License-Identifier: Apache-2.0
// Errors of kvspan. A program ends with one line on stderr and the exit code given here; the viewer
// shows the line and goes on. Whoever catches one on its way adds what it knows, or has another way
// to go.
#pragma once

#include <stdexcept>
#include <string>

namespace kvspan {

// Base of every error that a user can cause. exit_code() is the program's exit status.
class Error : public std::runtime_error {
 public:
  Error(const std::string& what, int exit_code) : std::runtime_error(what), exit_code_(exit_code) {}
  [[nodiscard]] int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

// Wrong arguments, policy specification, parameter value or configuration file.
class ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& what) : Error(what, 2) {}
};

// Wrong input data: a trace that is malformed, or that lacks what a policy needs.
class TraceError : public Error {
 public:
  explicit TraceError(const std::string& what) : Error(what, 3) {}
};

// A checkpoint, tokenizer or text that is malformed, or of a kind that is not supported.
class CheckpointError : public Error {
 public:
  explicit CheckpointError(const std::string& what) : Error(what, 3) {}
};

// No usable device, or one that failed.
class DeviceError : public Error {
 public:
  explicit DeviceError(const std::string& what) : Error(what, 5) {}
};

// A policy broke its contract (evicted an entry that is not resident, exceeded its capacity).
class PolicyError : public Error {
 public:
  explicit PolicyError(const std::string& what) : Error(what, 4) {}
};

// The run was interrupted (SIGINT); whatever was finished before has been kept.
class Interrupted : public Error {
 public:
  Interrupted() : Error("interrupted", 130) {}
};

}  // namespace kvspan
