// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/cuda/attend.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <cuda_runtime.h>
#include <vector>

#include <fmt/format.h>

#include "gpu_replay/cuda/check.h"
#include "gpu_replay/cuda/decode_row.h"
#include "sim/base/error.h"
#include "sim/base/types.h"

namespace kvspan::gpu_replay {
namespace {

constexpr std::int64_t kEntriesOfPart = 64;  // a warp's, until there are many of them
constexpr std::int64_t kMostParts = 1024;

// Arrays of one row, side by side in one allocation: first on the host, then on the device.
class Arrays {
 public:
  // A place of so many values; its pointer is known once all are placed.
  template <typename T>
  std::size_t place(std::size_t values) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + (values * sizeof(T) + 255) / 256 * 256);
    return at;
  }
  template <typename T>
  std::size_t place(std::span<T> values) {
    const std::size_t at = place<T>(values.size());
    if (!values.empty()) std::memcpy(bytes_.data() + at, values.data(), values.size_bytes());
    return at;
  }
  [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

struct DeviceBuffer {
  explicit DeviceBuffer(std::size_t bytes) { KVSPAN_REPLAY_CHECK(cudaMalloc(&data, bytes)); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data); }
  template <typename T>
  [[nodiscard]] T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data) + offset);
  }
  void* data = nullptr;
};

struct Stream {
  Stream() { KVSPAN_REPLAY_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream); }
  cudaStream_t stream = nullptr;
};

void check_shape(const DecodeRow& row) {
  const int group = row.query_heads / row.heads;
  const int dim = std::max(row.k_dim, row.v_dim);
  if (group > kMostGroup || dim > kMostHeadDim) {
    throw DeviceError(
        fmt::format("attention on a GPU: found {} query heads a KV head and vectors of "
                    "{}, expected at most {} and {}; --device host takes them",
                    group, dim, kMostGroup, kMostHeadDim));
  }
}

// Tables of all heads, one after another.
struct Lists {
  std::vector<std::int64_t> blocks, block_begin{0}, slot_begin{0}, read_begin;
  std::vector<std::int32_t> slots, place;
  std::vector<std::uint8_t> format;
  std::vector<std::int16_t> channel;
  std::int64_t longest = 0;  // of what is read of a head
};

template <typename T>
void append(const std::vector<T>& from, std::vector<T>& to) {
  to.insert(to.end(), from.begin(), from.end());
}

Lists lists_of(const DecodeRow& row) {
  Lists out;
  for (std::size_t head = 0; head < row.tables.size(); ++head) {
    const HeadTable& table = row.tables[head];
    const std::int64_t first = row.first.empty() ? 0 : row.first[head];
    append(table.blocks, out.blocks);
    append(table.slots, out.slots);
    out.read_begin.push_back(out.slot_begin.back() + first);
    out.block_begin.push_back(std::ssize(out.blocks));
    out.slot_begin.push_back(std::ssize(out.slots));
    out.longest = std::max(out.longest, std::ssize(table.slots) - first);
    if (row.codings.empty()) continue;
    append(row.codings[head].format, out.format);
    append(row.codings[head].place, out.place);
    append(row.codings[head].channel, out.channel);
  }
  return out;
}

}  // namespace

double attend_on_cuda(const DecodeRow& row, DecodeResult& out) {
  check_shape(row);
  const Lists lists = lists_of(row);
  DeviceRow device{.query_heads = row.query_heads,
                   .heads = row.heads,
                   .k_dim = row.k_dim,
                   .v_dim = row.v_dim,
                   .element = row.element,
                   .scale = static_cast<float>(row.scale),
                   .softcap = static_cast<float>(row.softcap),
                   .block_size = row.tables[0].block_size,
                   .slot_bytes = row.tables[0].slot_bytes};
  device.parts = static_cast<int>(std::clamp<std::int64_t>(
      (lists.longest + kEntriesOfPart - 1) / kEntriesOfPart, 1, kMostParts));
  const std::size_t outputs = index(row.query_heads) * index(row.v_dim);
  Arrays arrays;
  const std::size_t q = arrays.place(row.q);
  const std::size_t blocks = arrays.place(std::span(lists.blocks));
  const std::size_t slots = arrays.place(std::span(lists.slots));
  const std::size_t block_begin = arrays.place(std::span(lists.block_begin));
  const std::size_t slot_begin = arrays.place(std::span(lists.slot_begin));
  const std::size_t read_begin = arrays.place(std::span(lists.read_begin));
  const std::size_t k_scale = arrays.place(row.k_scale);
  const std::size_t v_scale = arrays.place(row.v_scale);
  const std::size_t sinks = arrays.place(row.sinks);
  const std::size_t formats = arrays.place(row.formats);
  const std::size_t format = arrays.place(std::span(lists.format));
  const std::size_t place = arrays.place(std::span(lists.place));
  const std::size_t channel = arrays.place(std::span(lists.channel));
  const std::size_t uploaded = arrays.bytes().size();
  const std::size_t output = arrays.place<float>(outputs);
  const std::size_t lse = arrays.place<float>(index(row.query_heads));
  const std::size_t partial =
      arrays.place<float>(index(row.query_heads) * index(device.parts) * index(row.v_dim + 2));

  const DeviceBuffer buffer(arrays.bytes().size());
  device.q = buffer.at<float>(q);
  device.blocks = buffer.at<std::int64_t>(blocks);
  device.slots = buffer.at<std::int32_t>(slots);
  device.block_begin = buffer.at<std::int64_t>(block_begin);
  device.slot_begin = buffer.at<std::int64_t>(slot_begin);
  device.read_begin = buffer.at<std::int64_t>(read_begin);
  device.k_scale = buffer.at<float>(k_scale);
  device.v_scale = buffer.at<float>(v_scale);
  device.sinks = row.sinks.empty() ? nullptr : buffer.at<float>(sinks);
  if (!row.codings.empty()) {
    device.formats = buffer.at<EntryFormat>(formats);
    device.format = buffer.at<std::uint8_t>(format);
    device.place = buffer.at<std::int32_t>(place);
    if (!lists.channel.empty()) device.channel = buffer.at<std::int16_t>(channel);
  }
  device.partial = buffer.at<float>(partial);
  device.output = buffer.at<float>(output);
  device.lse = buffer.at<float>(lse);

  const Stream stream;
  KVSPAN_REPLAY_CHECK(cudaMemcpyAsync(buffer.data, arrays.bytes().data(), uploaded,
                                      cudaMemcpyHostToDevice, stream.stream));
  KVSPAN_REPLAY_CHECK(cudaStreamSynchronize(stream.stream));
  const auto begin = std::chrono::steady_clock::now();
  launch_decode_row(device, stream.stream);
  KVSPAN_REPLAY_CHECK(cudaStreamSynchronize(stream.stream));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  out.output.resize(outputs);
  out.lse.resize(index(row.query_heads));
  KVSPAN_REPLAY_CHECK(cudaMemcpyAsync(out.output.data(), device.output, outputs * sizeof(float),
                                      cudaMemcpyDeviceToHost, stream.stream));
  KVSPAN_REPLAY_CHECK(cudaMemcpyAsync(out.lse.data(), device.lse, out.lse.size() * sizeof(float),
                                      cudaMemcpyDeviceToHost, stream.stream));
  KVSPAN_REPLAY_CHECK(cudaStreamSynchronize(stream.stream));
  return took.count();
}

}  // namespace kvspan::gpu_replay
