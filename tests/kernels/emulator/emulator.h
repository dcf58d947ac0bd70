// CUDA on one host thread, enough for the kernels of ort_ops/cuda: their own sources compile against this with g++.
//
// The threads of a block are fibers that change at barriers and warp operations, in an order that turns around every
// time. Copies that a kernel leaves on their way (cp.async) are made when it waits for them, not before. Shared memory
// begins as NaN and has canaries behind it; memory of the "device" ends at a page that cannot be touched. So wrong
// indices, missing waits and missing barriers show; what a memory model or a real tensor core does, does not.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#undef __shared__
#define __shared__ static  // blocks run one after the other
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace emulator {

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Warp {
  int arrived = 0, generation = 0;
  uint32_t value[32];
  uint32_t a[32][4], b[32][4], meta[32];
  const uint16_t* row[32];
};

struct Thread {
  uint3 index;
  Warp* warp = nullptr;
  int lane = 0;
  std::vector<std::vector<Copy>> groups;  // committed and not waited for, oldest first
  std::vector<Copy> open;
};

extern Thread* current;
extern uint3 block;
extern dim3 grid, size;
char* shared();
void block_barrier();
void warp_barrier();
void run(dim3 grid, dim3 block, size_t bytes, const std::function<void()>& body);

// Everyone's value, in everyone's hands
template <class Get>
auto exchange(uint32_t mine, const Get& get) {
  current->warp->value[current->lane] = mine;
  warp_barrier();
  const auto found = get(current->warp->value);
  warp_barrier();
  return found;
}

template <class T>
uint32_t bits_of(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
template <class T>
T from_bits(uint32_t bits) {
  T value{};
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block)
#define gridDim (emulator::grid)
#define blockDim (emulator::size)

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() { emulator::warp_barrier(); }
// Of 4 bytes; the sums of the checks of weights fit as well
template <class T>
T __shfl_sync(uint32_t, T value, int lane) {
  return emulator::exchange(emulator::bits_of(value), [&](const uint32_t* all) { return emulator::from_bits<T>(all[lane]); });
}
template <class T>
T __shfl_up_sync(uint32_t, T value, int distance) {
  const int lane = emulator::current->lane;
  return emulator::exchange(emulator::bits_of(value), [&](const uint32_t* all) {
    return emulator::from_bits<T>(all[lane >= distance ? lane - distance : lane]);
  });
}
template <class T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
  const int lane = emulator::current->lane;
  return emulator::exchange(emulator::bits_of(value),
                            [&](const uint32_t* all) { return emulator::from_bits<T>(all[lane ^ mask]); });
}
inline uint32_t __ballot_sync(uint32_t, bool value) {
  return emulator::exchange(value, [](const uint32_t* all) {
    uint32_t set = 0;
    for (int lane = 0; lane < 32; ++lane) set |= (all[lane] ? 1u : 0u) << lane;
    return set;
  });
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __popcll(uint64_t x) { return __builtin_popcountll(x); }
inline float __uint_as_float(uint32_t x) { return emulator::from_bits<float>(x); }
template <class T>
T __ldg(const T* address) { return *address; }
inline int atomicExch(int* to, int value) { return std::exchange(*to, value); }
inline int atomicMax(int* to, int value) { return std::exchange(*to, std::max(*to, value)); }
using std::min;
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int) {
  return cudaSuccess;
}

namespace onnxprune {

inline float widen(uint32_t bits, __half) { return __half2float(__ushort_as_half(static_cast<unsigned short>(bits))); }
inline float widen(uint32_t bits, __nv_bfloat16) {
  return __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(bits)));
}

inline void copy_async_of(void* shared, const void* global, size_t bytes) {
  for (const void* pointer : {static_cast<const void*>(shared), global})
    if (reinterpret_cast<uintptr_t>(pointer) % bytes)
      std::fprintf(stderr, "emulator: a copy of %zu bytes that is not aligned\n", bytes), std::abort();
  emulator::current->open.push_back({shared, global, bytes});
}
inline void copy_async(void* shared, const void* global) { copy_async_of(shared, global, 16); }
inline void copy_async8(void* shared, const void* global) { copy_async_of(shared, global, 8); }
inline void commit_copies() { emulator::current->groups.push_back(std::exchange(emulator::current->open, {})); }
template <int Left>
void wait_copies() {
  auto& groups = emulator::current->groups;
  while (groups.size() > Left) {
    for (const emulator::Copy& copy : groups.front()) __builtin_memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
}
template <class T>
T load_once(const T* address) { return *address; }

}  // namespace onnxprune
