// What the kernels share: types, tensor-core and copy instructions, the epilogue, checks on the host.
#pragma once

#if defined(ONNXPRUNE_EMULATOR)  // tests/kernels/emulator: the kernels on the host
#include "tensor_cores.h"
#define ONNXPRUNE_SHARED(name) char* const name = emulator::shared()
#else
#define ONNXPRUNE_SHARED(name) extern __shared__ __align__(16) char name[]
#endif
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "api.h"
#include "layout.h"

namespace onnxprune {

enum ElementType { kFloat32 = 1, kUint8 = 2, kInt32 = 6, kFloat16 = 10, kBfloat16 = 16 };

// ---------------------------------------------------------------- device

__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

__device__ __forceinline__ float2 pair_to_float(uint32_t bits, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
__device__ __forceinline__ float2 pair_to_float(uint32_t bits, __nv_bfloat16) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
}
template <class T>
__device__ __forceinline__ uint32_t pack_floats(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_floats<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack_floats<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

#if !defined(ONNXPRUNE_EMULATOR)
// D (16x8, fp32) += A (16x16) B (16x8)
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with A (16x32) of two values in four, and B (32x8). Selector: which lanes hold the metadata.
#define ONNXPRUNE_MMA_SP(TYPE)                                                                                      \
  asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE ".f32 {%0,%1,%2,%3}, "            \
      "{%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;"                                                    \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                              \
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(meta), "n"(Selector))
template <int Selector>
__device__ __forceinline__ void mma_sp(float (&d)[4], uint4 a, const uint32_t (&b)[4], uint32_t meta, __half) {
  ONNXPRUNE_MMA_SP("f16");
}
template <int Selector>
__device__ __forceinline__ void mma_sp(float (&d)[4], uint4 a, const uint32_t (&b)[4], uint32_t meta, __nv_bfloat16) {
  ONNXPRUNE_MMA_SP("bf16");
}
#undef ONNXPRUNE_MMA_SP

// 16 bytes to shared memory, past the L1 cache and the registers
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// The same of 8 bytes, which the L1 cache sees
__device__ __forceinline__ void copy_async8(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
template <int Left>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

// Weights are read once: keep them out of the L1 cache, which holds X
__device__ __forceinline__ uint4 load_once(const uint4* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}
__device__ __forceinline__ uint32_t load_once(const uint32_t* address) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(address));
  return v;
}

// Four 8x8 matrices of 16 bits from shared memory, each transposed: lane l gives the row l % 8 of matrix l / 8
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

#endif  // ONNXPRUNE_EMULATOR

struct Ending {  // what follows the product
  const void* bias;
  int activation;
  float low, high;
};

__device__ __forceinline__ float activate(float x, const Ending& ending) {
  switch (ending.activation) {
    case 1: return fmaxf(x, 0.f);
    case 2: return fminf(fmaxf(x, ending.low), ending.high);
    case 3: return 0.5f * x * (1.f + erff(x * 0.70710678f));
    case 4: return 0.5f * x * (1.f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case 5: return x / (1.f + expf(-x));
    case 6: return x * fminf(fmaxf(x / 6.f + 0.5f, 0.f), 1.f);
    default: return x;
  }
}

// Eight neighbouring elements of a row of X, from column k, to shared memory; zeros behind the last column.
// `wide`: rows begin at multiples of 16 bytes, so a copy may stay on its way.
template <class T>
__device__ __forceinline__ void stage8(T* shared, const T* row, int64_t k, int64_t cols, bool present, bool wide) {
  if (wide && present && k + 8 <= cols) {
    copy_async(shared, row + k);
    return;
  }
  T piece[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) piece[i] = present && k + i < cols ? row[k + i] : from_float<T>(0.f);
  *reinterpret_cast<uint4*>(shared) = *reinterpret_cast<const uint4*>(piece);
}

// Eight neighbouring pixels of a channel, from pixel p, to shared memory; zeros behind the last. Channels begin at
// multiples of `grain` pixels, 8 or 4 of which are a copy that may stay on its way.
template <class T>
__device__ __forceinline__ void stage_pixels(T* shared, const T* channel, int p, int pixels, bool present, int grain) {
  if (grain != 4 || !present || p + 8 > pixels) return stage8(shared, channel, p, pixels, present, grain == 8);
  copy_async8(shared, channel + p);
  copy_async8(shared + 4, channel + p + 4);
}

// Registers of B for 16 columns of W from k and the 8 pixels of `tile`, and of the tile behind, from staged channels
template <int Stride, class T>
__device__ __forceinline__ void load_pixels16(uint32_t (&b)[2][2], const T* shared, int k, int tile, int lane) {
  uint32_t four[4];
  load_transposed(four, shared + (k + layout::pixel_k16(lane)) * Stride + (tile + layout::pixel_tile16(lane)) * 8);
  b[0][0] = four[0], b[0][1] = four[1], b[1][0] = four[2], b[1][1] = four[3];
}

// ---------------------------------------------------------------- host

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
           const Arguments&... arguments) {
#if defined(ONNXPRUNE_EMULATOR)
  (void)stream;
  emulator::run(grid, block, shared, [&] { kernel(arguments...); });
#else
  kernel<<<grid, block, shared, stream>>>(arguments...);
#endif
}

// A sentence that lives until the next one in this thread
inline const char* say(const char* format, ...) {
  static thread_local char text[320];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  return text;
}

inline const char* cuda_error(const char* what, cudaError_t status) {
  return status == cudaSuccess ? nullptr : say("%s: %s", what, cudaGetErrorString(status));
}

// What a launch may use, read once when a plan is made
struct Device {
  int id = 0;
  int processors = 0;       // SMs
  int block_bytes = 0;      // shared memory of a block
  int processor_bytes = 0;  // of an SM
};
const char* read_device(Device* device);  // the current one

// Makes a device the thread's current one for a while: a runtime with several sets it when it likes
class OnDevice {
 public:
  explicit OnDevice(int id) {
    if (cudaGetDevice(&before_) == cudaSuccess && before_ != id) changed_ = cudaSetDevice(id) == cudaSuccess;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

constexpr int64_t kMaxSide = int64_t{1} << 20;  // rows or columns; 32 rows a block of threads stay below 65535 blocks

// Of every op: sides, type, and that what should be initializers in device memory is
const char* check_common(const OnnxpruneCudaOp& op, const OnnxpruneCudaWeight& w);
const char* check_count(const OnnxpruneCudaOp& op, const OnnxpruneCudaWeight& w, int tensor, const char* what,
                        int64_t wanted);
// Which device that is goes to `id`
const char* check_on_device(const OnnxpruneCudaOp& op, const OnnxpruneCudaWeight& w, int* id);
const char* check_run(const OnnxpruneCudaOp& op, const OnnxpruneCudaRun& run);

// Of every op: launch(plan, T{}) with the type of X, on the plan's device, when there is something to multiply
template <class Plan, class Launch>
const char* run_plan(const OnnxpruneCudaOp& op, const void* opaque, const OnnxpruneCudaRun& run,
                     const Launch& launch) {
  const auto& plan = *static_cast<const Plan*>(opaque);
  if (const char* error = check_run(op, run)) return error;
  if (!run.m) return nullptr;
  const OnDevice current(plan.device.id);
  return plan.weight.type == kFloat16 ? launch(plan, __half{}) : launch(plan, __nv_bfloat16{});
}

// What the arguments of all kernels begin with
template <class T, class Args>
void set_operands(Args& a, const OnnxpruneCudaWeight& w, const OnnxpruneCudaRun& run) {
  a.x = static_cast<const T*>(run.x);
  a.y = static_cast<T*>(run.y);
  a.ending = {run.bias, run.activation, run.low, run.high};
  a.m = static_cast<int>(run.m), a.n = static_cast<int>(w.rows), a.k = static_cast<int>(w.cols);
}

// What the arguments of kernels for images have beside them. An image of one pixel is a row of X.
struct Pixels {
  int pixels;
  int grain;  // pixels that a copy moves at once: 8, 4 or 1
};
inline bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }
inline Pixels pixels_of(const OnnxpruneCudaRun& run) {
  const int grain = run.pixels % 8 == 0 && aligned(run.x, 16) ? 8 : run.pixels % 4 == 0 && aligned(run.x, 8) ? 4 : 1;
  return {static_cast<int>(run.pixels), grain};
}

// Lets a kernel that needs `bytes` of shared memory have all that a block can have; `why` follows a refusal
template <class... Parameters>
const char* allow(void (*kernel)(Parameters...), int64_t bytes, const Device& device, const char* why = "") {
  if (bytes > device.block_bytes)
    return say("a block would need %lld bytes of shared memory, the device has %d%s", static_cast<long long>(bytes),
               device.block_bytes, why);
  return cuda_error("shared memory", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                          device.block_bytes));
}

// Runs `launch(int* found)` on four zeroed integers of the device and copies them back: creation only.
template <class Launch>
const char* examine(int (&found)[4], Launch&& launch) {
  int* device = nullptr;
  // The tensors may still be on their way
  if (const char* error = cuda_error("before the check of the weight", cudaDeviceSynchronize())) return error;
  if (const char* error = cuda_error("memory for the check", cudaMalloc(&device, sizeof found))) return error;
  cudaError_t status = cudaMemset(device, 0, sizeof found);
  if (status == cudaSuccess) {
    launch(device);
    status = cudaGetLastError();
  }
  if (status == cudaSuccess) status = cudaMemcpy(found, device, sizeof found, cudaMemcpyDeviceToHost);
  cudaFree(device);
  return cuda_error("the check of the weight", status);
}

extern const OnnxpruneCudaOp kBitmapTile, kBitmapTileInt8, kBlockSparse, kNMTile, kDelta;

}  // namespace onnxprune
