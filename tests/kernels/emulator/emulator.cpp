#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#include "cuda/api.h"

namespace emulator {

Thread* current = nullptr;
uint3 block;
dim3 grid, size;

namespace {

constexpr size_t kStack = 128 << 10;
constexpr size_t kCanary = 4096;
constexpr unsigned char kPattern = 0xa5;

struct Fiber : Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  const int* waits = nullptr;  // goes on when *waits is no longer `since`
  int since = 0;
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
char* shared_memory = nullptr;
int block_arrived = 0, block_generation = 0;
const std::function<void()>* body = nullptr;

void wait(const int& generation) {
  auto* self = static_cast<Fiber*>(current);
  self->waits = &generation, self->since = generation;
  swapcontext(&self->context, &scheduler);
}

void start() {
  auto* self = static_cast<Fiber*>(current);
  (*body)();
  self->done = true;
  swapcontext(&self->context, &scheduler);
}

// A thread that has returned counts as arrived, as on a GPU
int alive(const Warp* warp) {
  int count = 0;
  for (const Fiber& fiber : fibers) count += !fiber.done && (!warp || fiber.warp == warp);
  return count;
}

void release() {
  if (block_arrived && block_arrived == alive(nullptr)) block_arrived = 0, ++block_generation;
}

void run_block(size_t threads, size_t bytes) {
  std::vector<Warp> warps((threads + 31) / 32);
  std::memset(shared_memory, 0xff, bytes);
  std::memset(shared_memory + bytes, kPattern, kCanary);
  block_arrived = 0;
  for (size_t i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.index = {static_cast<unsigned>(i), 0, 0};
    fiber.warp = &warps[i / 32], fiber.lane = static_cast<int>(i % 32);
    fiber.groups.clear(), fiber.open.clear();
    fiber.done = false, fiber.waits = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, kStack};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  for (bool forward = true;; forward = !forward) {
    bool moved = false;
    for (size_t i = 0; i < threads; ++i) {
      Fiber& fiber = fibers[forward ? i : threads - 1 - i];
      if (fiber.done || (fiber.waits && *fiber.waits == fiber.since)) continue;
      fiber.waits = nullptr;
      current = &fiber;
      swapcontext(&scheduler, &fiber.context);
      moved = true;
    }
    release();
    if (!alive(nullptr)) break;
    if (!moved && !block_arrived) {
      bool stuck = true;
      for (const Fiber& fiber : fibers) stuck &= fiber.done || (fiber.waits && *fiber.waits == fiber.since);
      if (stuck) std::fprintf(stderr, "emulator: threads wait for each other\n"), std::abort();
    }
  }
  for (size_t i = 0; i < kCanary; ++i)
    if (static_cast<unsigned char>(shared_memory[bytes + i]) != kPattern)
      std::fprintf(stderr, "emulator: a write behind shared memory, at %zu of %zu\n", bytes + i, bytes), std::abort();
  for (const Fiber& fiber : fibers)
    for (const auto& group : fiber.groups)
      if (!group.empty()) std::fprintf(stderr, "emulator: a copy that nobody waited for\n"), std::abort();
}

}  // namespace

char* shared() { return shared_memory; }

void block_barrier() {
  ++block_arrived;
  const int generation = block_generation;
  release();
  if (generation == block_generation) wait(block_generation);
}

void warp_barrier() {
  Warp& warp = *current->warp;
  if (++warp.arrived == 32) {
    warp.arrived = 0, ++warp.generation;
    return;
  }
  wait(warp.generation);
}

void run(dim3 blocks, dim3 threads, size_t bytes, const std::function<void()>& what) {
  grid = blocks, size = threads, body = &what;
  fibers.resize(threads.x);
  for (Fiber& fiber : fibers)
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  std::unique_ptr<char, void (*)(void*)> memory(static_cast<char*>(std::aligned_alloc(4096, (bytes + 2 * kCanary + 4095) / 4096 * 4096)), std::free);
  shared_memory = memory.get();
  for (block.z = 0; block.z < blocks.z; ++block.z)
    for (block.y = 0; block.y < blocks.y; ++block.y)
      for (block.x = 0; block.x < blocks.x; ++block.x) run_block(threads.x, bytes);
  fibers.clear();
}

}  // namespace emulator

// ---------------------------------------------------------------- the part of CUDA's runtime that creation uses

namespace {
std::map<void*, size_t> pages;  // beginning of a mapping -> bytes
int shared_limit = 227 << 10;
bool capturing = false;
int allocations_left = -1;  // until one fails; negative: none does

// What would break a graph that is being captured
cudaError_t unless_capturing() {
  if (!capturing) return cudaSuccess;
  std::fprintf(stderr, "emulator: an allocation or a wait while a stream is captured\n"), std::abort();
}
}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** to, size_t bytes) {
  unless_capturing();
  if (allocations_left >= 0 && allocations_left-- == 0) return cudaErrorMemoryAllocation;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), room = (bytes + 15) / 16 * 16;
  const size_t whole = (room + page - 1) / page * page;
  auto* memory = static_cast<char*>(mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(memory + whole, page, PROT_NONE);
  *to = memory + whole - room;
  pages[*to] = whole + page;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  unless_capturing();
  const auto found = pages.find(memory);
  if (found == pages.end()) return cudaSuccess;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(memory) / page * page), found->second);
  pages.erase(found);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) { return std::memcpy(to, from, bytes), cudaSuccess; }
cudaError_t cudaMemset(void* to, int value, size_t bytes) { return std::memset(to, value, bytes), cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return unless_capturing(); }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return unless_capturing(); }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t status) { return status ? "out of memory" : "no error"; }
cudaError_t cudaGetDevice(int* id) { return *id = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = 0, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  std::memset(p, 0, sizeof *p);
  std::strcpy(p->name, "emulator");
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  switch (what) {
    case cudaDevAttrMultiProcessorCount: *value = 2; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_limit; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = shared_limit + 1024; break;
    default: *value = 9;
  }
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void*) {
  found->type = cudaMemoryTypeDevice, found->device = 0;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

// Shared memory of a block on the emulated device, so that kernels can be seen with fewer stages
__attribute__((visibility("default"))) void onnxprune_emulator_shared(int bytes) { shared_limit = bytes; }

// From now on streams are captured, or no longer; what must not happen then ends the process
__attribute__((visibility("default"))) void onnxprune_emulator_capture(int on) { capturing = on; }
// The allocation after so many more fails, once
__attribute__((visibility("default"))) void onnxprune_emulator_fail_after(int count) { allocations_left = count; }
__attribute__((visibility("default"))) int onnxprune_emulator_allocated() { return static_cast<int>(pages.size()); }

// As in cuda/measure.cu
__attribute__((visibility("default"))) const char* onnxprune_cuda_try(const OnnxpruneCudaOp* op,
                                                                     const OnnxpruneCudaWeight* host,
                                                                     const OnnxpruneCudaRun* given, int64_t guard,
                                                                     int32_t) {
  std::vector<void*> held;
  const auto upload = [&](const void* from, size_t bytes) {
    void* to = nullptr;
    cudaMalloc(&to, bytes);
    held.push_back(to);
    return from ? std::memcpy(to, from, bytes) : std::memset(to, 0xff, bytes);
  };
  OnnxpruneCudaWeight weight = *host;
  OnnxpruneCudaRun run = *given;
  const char* error = op->sizes(host);
  void* plan = nullptr;
  if (!error) {
    for (int i = 0; i < op->tensor_count; ++i) {
      const int type = host->tensors[i].type;
      const size_t each = type == 2 ? 1 : type == 1 || type == 6 ? 4 : 2;
      weight.tensors[i].data = upload(host->tensors[i].data, static_cast<size_t>(host->tensors[i].count) * each);
    }
    error = op->create(&weight, &plan);
  }
  if (!error) {
    const size_t bytes = static_cast<size_t>(run.m * weight.rows + guard) * 2;
    run.x = upload(given->x, static_cast<size_t>(run.m * weight.cols) * 2);
    if (given->bias) run.bias = upload(given->bias, static_cast<size_t>(weight.rows) * 2);
    run.y = upload(nullptr, bytes);
    error = op->run(plan, &run);
    std::memcpy(given->y, run.y, bytes);
    if (!error && host->many_rows > 0 && run.m >= host->many_rows && op->many_problem) error = op->many_problem(plan);
    op->destroy(plan);
  }
  for (void* memory : held) cudaFree(memory);
  return error;
}

}  // extern "C"
