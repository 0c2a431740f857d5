// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdlib>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <ucontext.h>
#include <utility>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace kvspan::cuda_on_cpu {
namespace {

constexpr std::size_t kStackBytes = std::size_t{256} << 10;

// Where threads meet: whoever waits goes on when `meetings` has grown.
struct Meeting {
  std::size_t arrived = 0;
  std::uint64_t meetings = 0;
  Lanes lanes{};
  void (*operation)(const Lanes&) = nullptr;
};

struct Copy {
  void* to;
  const void* from;
  bool there;
};

void run(const Copy& copy) {
  if (copy.there)
    std::memcpy(copy.to, copy.from, 16);
  else
    std::memset(copy.to, 0, 16);
}

struct Thread {
  ucontext_t context{};
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool done = true;
  const std::uint64_t* awaited = nullptr;  // unless null, runs on once it is not `seen`
  std::uint64_t seen = 0;
  std::deque<std::vector<Copy>> copies;  // groups; the last is open
};

struct Machine {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Meeting> warps;
  Meeting block;
  std::vector<unsigned char> shared;
  const std::function<void()>* kernel = nullptr;
  ucontext_t scheduler{};
  std::size_t current = 0;
  std::uint64_t seed = 0;
  std::string failure;
};
Machine machine;

void wait_for(Meeting& meeting) {
  Thread& me = *machine.threads[machine.current];
  me.awaited = &meeting.meetings;
  me.seen = meeting.meetings;
  swapcontext(&me.context, &machine.scheduler);
  me.awaited = nullptr;
}

void run_thread() {
  for (;;) {
    (*machine.kernel)();
    Thread& me = *machine.threads[machine.current];
    me.done = true;
    swapcontext(&me.context, &machine.scheduler);
  }
}

std::vector<std::size_t> schedule(std::size_t threads) {
  std::vector<std::size_t> order(threads);
  std::iota(order.begin(), order.end(), 0);
  if (machine.seed == 1) std::reverse(order.begin(), order.end());
  if (machine.seed > 1) std::shuffle(order.begin(), order.end(), std::mt19937_64(machine.seed));
  return order;
}

void run_block(std::size_t threads, const std::vector<std::size_t>& order) {
  std::fill(machine.shared.begin(), machine.shared.end(), static_cast<unsigned char>(0xff));
  machine.warps.assign(threads / kLanes, {});
  machine.block = {};
  for (std::size_t i = 0; i < threads; ++i) {
    Thread& thread = *machine.threads[i];
    thread.done = false;
    thread.awaited = nullptr;
    thread.copies.assign(1, {});
  }
  for (std::size_t left = threads; left > 0;) {
    bool moved = false;
    for (const std::size_t i : order) {
      Thread& thread = *machine.threads[i];
      if (thread.done || (thread.awaited != nullptr && *thread.awaited == thread.seen)) continue;
      moved = true;
      machine.current = i;
      threadIdx.x = static_cast<unsigned>(i);
      swapcontext(&machine.scheduler, &thread.context);
      if (!machine.failure.empty()) {
        for (auto& t : machine.threads) t.reset();
        machine.threads.clear();
        throw std::logic_error(std::exchange(machine.failure, {}));
      }
      if (thread.done) --left;
    }
    if (!moved) {
      machine.threads.clear();
      throw std::logic_error("threads of a block wait for others that do not come");
    }
  }
}

}  // namespace

void set_schedule(std::uint64_t seed) { machine.seed = seed; }

unsigned char* shared_memory() { return machine.shared.data(); }

void meet_warp(void* mine, void (*all)(const Lanes&)) {
  Meeting& warp = machine.warps[machine.current / kLanes];
  if (warp.arrived > 0 && warp.operation != all) {
    machine.failure = "lanes of a warp meet at different operations";
    wait_for(warp);
  }
  warp.operation = all;
  warp.lanes[machine.current % kLanes] = mine;
  if (++warp.arrived < kLanes) return wait_for(warp);
  all(warp.lanes);
  warp.arrived = 0;
  ++warp.meetings;
}

void meet_block() {
  Meeting& block = machine.block;
  if (++block.arrived < blockDim.x) return wait_for(block);
  block.arrived = 0;
  ++block.meetings;
}

void copy_later(void* to, const void* from, bool there) {
  const Copy copy{to, from, there};
  if (machine.seed % 2 == 0) return run(copy);  // hardware may deliver at once, or when waited for
  machine.threads[machine.current]->copies.back().push_back(copy);
}
void close_copies() { machine.threads[machine.current]->copies.emplace_back(); }
void finish_copies(std::size_t pending) {
  auto& copies = machine.threads[machine.current]->copies;
  while (copies.size() > pending + 1) {
    for (const Copy& copy : copies.front()) run(copy);
    copies.pop_front();
  }
}

void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes,
              const std::function<void()>& thread) {
  if (block.x % kLanes != 0) throw std::logic_error("a block is not whole warps");
  gridDim = grid;
  blockDim = block;
  machine.kernel = &thread;
  machine.shared.resize(shared_bytes);
  while (machine.threads.size() < block.x) {
    Thread& fresh = *machine.threads.emplace_back(std::make_unique<Thread>());
    getcontext(&fresh.context);
    fresh.context.uc_stack.ss_sp = fresh.stack.get();
    fresh.context.uc_stack.ss_size = kStackBytes;
    makecontext(&fresh.context, run_thread, 0);
  }
  const std::vector<std::size_t> order = schedule(block.x);
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(block.x, order);
}

}  // namespace kvspan::cuda_on_cpu

// NOLINTBEGIN: the names are CUDA's.
// ---- Streams, events, memory --------------------------------------------------------------------

struct CUstream_st {
  std::deque<std::function<void()>> queue;
  std::uint64_t given = 0, done = 0;

  void run_until(std::uint64_t position) {
    while (done < position) {
      const std::function<void()> work = std::move(queue.front());
      queue.pop_front();
      ++done;
      work();
    }
  }
};
struct CUevent_st {
  CUstream_st* stream = nullptr;
  std::uint64_t position = 0;
};

namespace {

std::set<CUstream_st*> streams;
std::map<void*, std::size_t> allocations, pinned;
int shared_bytes = 163 * 1024;
std::size_t device_bytes = std::size_t{1} << 30;
std::size_t used_bytes = 0;

void* fresh_memory(std::size_t bytes) {
  void* const data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(data, 0xff, bytes);
  return data;
}

}  // namespace

namespace kvspan::cuda_on_cpu {
void set_device_memory(std::size_t bytes) { device_bytes = bytes; }
bool take_device_memory(std::int64_t bytes) {
  if (bytes > static_cast<std::int64_t>(device_bytes - used_bytes)) return false;
  used_bytes += static_cast<std::size_t>(bytes);
  return true;
}
void set_shared_memory(int bytes) { shared_bytes = bytes; }
std::size_t pinned_memory() {
  return std::accumulate(pinned.begin(), pinned.end(), std::size_t{0},
                         [](std::size_t sum, const auto& entry) { return sum + entry.second; });
}
}  // namespace kvspan::cuda_on_cpu

void enqueue_cuda(cudaStream_t stream, std::function<void()> work) {
  stream->queue.push_back(std::move(work));
  ++stream->given;
}

const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess                 ? "no error"
         : status == cudaErrorMemoryAllocation ? "out of memory"
                                               : "invalid argument";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int /*device*/) {
  *properties = {.name = "emulated device", .major = 8, .minor = 0};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr /*attribute*/, int /*device*/) {
  *value = shared_bytes;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = device_bytes - used_bytes;
  *total = device_bytes;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  if (bytes > device_bytes - used_bytes) return cudaErrorMemoryAllocation;
  *data = fresh_memory(bytes);
  allocations[*data] = bytes;
  used_bytes += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  for (CUstream_st* stream : streams) stream->run_until(stream->given);
  used_bytes -= allocations.at(data);
  allocations.erase(data);
  std::free(data);
  return cudaSuccess;
}

// Takes pieces of 64 KiB from the device, and gives all of them back when none is in use.
struct CUmemPoolHandle_st {
  std::map<void*, std::size_t> used;
  std::size_t used_bytes = 0, reserved = 0;
  [[nodiscard]] bool reserve(std::size_t bytes) {
    constexpr std::size_t kPiece = std::size_t{64} << 10;
    const std::size_t wanted = (bytes + kPiece - 1) / kPiece * kPiece;
    if (wanted > reserved &&
        !kvspan::cuda_on_cpu::take_device_memory(static_cast<std::int64_t>(wanted - reserved)))
      return false;
    reserved = std::max(reserved, wanted);
    return true;
  }
};

namespace {
std::map<void*, cudaMemPool_t> pool_of;
}  // namespace

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  if (properties->allocType != cudaMemAllocationTypePinned ||
      properties->location.type != cudaMemLocationTypeDevice)
    return cudaErrorInvalidValue;
  *pool = new CUmemPoolHandle_st;
  return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  (void)kvspan::cuda_on_cpu::take_device_memory(-static_cast<std::int64_t>(pool->reserved));
  const bool leaks = !pool->used.empty();
  delete pool;
  return leaks ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr /*attribute*/,
                                    void* value) {
  *static_cast<std::uint64_t*>(value) = pool->reserved;
  return cudaSuccess;
}
cudaError_t cudaMallocFromPoolAsync(void** data, std::size_t bytes, cudaMemPool_t pool,
                                    cudaStream_t /*stream*/) {
  if (!pool->reserve(pool->used_bytes + bytes)) return cudaErrorMemoryAllocation;
  *data = fresh_memory(bytes);
  pool->used[*data] = bytes;
  pool->used_bytes += bytes;
  pool_of[*data] = pool;
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  enqueue_cuda(stream, [data] {
    const cudaMemPool_t pool = pool_of.at(data);
    pool_of.erase(data);
    pool->used_bytes -= pool->used.at(data);
    pool->used.erase(data);
    std::free(data);
    if (!pool->used.empty()) return;
    (void)kvspan::cuda_on_cpu::take_device_memory(-static_cast<std::int64_t>(pool->reserved));
    pool->reserved = 0;
  });
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned /*flags*/) {
  *data = fresh_memory(bytes);
  pinned[*data] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  pinned.erase(data);
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned /*flags*/) {
  streams.insert(*stream = new CUstream_st);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  stream->run_until(stream->given);
  streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  stream->run_until(stream->given);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  enqueue_cuda(stream, [e = *event] {
    if (e.stream != nullptr) e.stream->run_until(e.position);
  });
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {.stream = stream, .position = stream->given};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->stream != nullptr) event->stream->run_until(event->position);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind /*kind*/,
                            cudaStream_t stream) {
  enqueue_cuda(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  enqueue_cuda(stream, [=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}

// ---- cuBLAS -------------------------------------------------------------------------------------

struct cublasContext {
  cudaStream_t stream = nullptr;
};

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new cublasContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                            int m, int n, int k, const void* alpha, const void* a,
                            cudaDataType_t a_type, int lda, const void* b, cudaDataType_t b_type,
                            int ldb, const void* beta, void* c, cudaDataType_t c_type, int ldc,
                            cublasComputeType_t /*compute*/, cublasGemmAlgo_t /*algorithm*/) {
  if (op_a != CUBLAS_OP_T || op_b != CUBLAS_OP_N || c_type != CUDA_R_32F || lda < k || ldb < k ||
      ldc < m)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const auto element = [](const void* data, cudaDataType_t type, std::int64_t i) {
    return type == CUDA_R_32F ? static_cast<const float*>(data)[i]
                              : __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
  };
  const float factor = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  enqueue_cuda(handle->stream, [=] {
    for (std::int64_t column = 0; column < n; ++column) {
      for (std::int64_t row = 0; row < m; ++row) {
        float sum = 0;
        for (std::int64_t i = 0; i < k; ++i)
          sum += element(a, a_type, row * lda + i) * element(b, b_type, column * ldb + i);
        float& to = static_cast<float*>(c)[column * ldc + row];
        to = factor * sum + (keep == 0 ? 0 : keep * to);
      }
    }
  });
  return CUBLAS_STATUS_SUCCESS;
}
// NOLINTEND
