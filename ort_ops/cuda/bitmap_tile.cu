// BitmapTileMatMul: unstructured zeros, few rows of X. One bit a weight, in tiles of 8x8 that are decoded to
// tensor-core fragments; values of float16 or bfloat16, or bytes with a scale for each row (BitmapTileInt8).
//
// The idea is SpInfer's (Fan et al., EuroSys 2025): a lane of mma.m16n8k16 holds two neighbouring elements of each 8x8
// quarter of A, so with bits in that order the values in front of them are one popcount away. Here the counts of all
// tiles in front come from one scan over the warp for 32 tiles, and a lane reads only its half of a tile's bits.
#include <new>

#include "small_m.cuh"

namespace onnxprune {
namespace {

using layout::HalfTile;

// Tiles of a group, one a lane, as (bits, base) of both halves: bits are 64 bits of `tile`
__device__ __forceinline__ void share_tiles(uint4* table, uint64_t tile, int lane) {
  const uint32_t low = static_cast<uint32_t>(tile), high = static_cast<uint32_t>(tile >> 32);
  const int low_count = __popc(low), count = low_count + __popc(high);
  int before = count;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, before, distance);
    if (lane >= distance) before += other;
  }
  before -= count;
  table[lane] = make_uint4(low, static_cast<uint32_t>(before), high, static_cast<uint32_t>(before + low_count));
}

__device__ __forceinline__ HalfTile read_half(const uint4* table, int tile, int lane) {
  const uint2 half = reinterpret_cast<const uint2*>(table + tile)[layout::half_of(lane)];
  return {half.x, half.y};
}

// The lane's two weights of a tile, zero where there is none
template <class T>
__device__ __forceinline__ uint32_t decode(HalfTile half, const uint16_t* values, int lane, T) {
  const uint32_t mine = half.bits >> layout::pair_shift(lane);
  const uint16_t* at = values + layout::value_position(half, lane);
  const uint32_t first = mine & 1 ? at[0] : 0u;
  const uint32_t second = mine & 2 ? at[mine & 1] : 0u;
  return first | second << 16;
}

// Bytes are weights + 128. Behind a float's exponent of 2^23 a byte is 2^23 + byte, exact in both target types.
template <class T>
__device__ __forceinline__ uint32_t decode(HalfTile half, const uint8_t* values, int lane, T) {
  const uint32_t mine = half.bits >> layout::pair_shift(lane);
  const uint8_t* at = values + layout::value_position(half, lane);
  const uint32_t first = mine & 1 ? at[0] : 128u;
  const uint32_t second = mine & 2 ? at[mine & 1] : 128u;
  return pack_floats<T>(__uint_as_float(0x4b000000u | first) - 8388736.f,
                        __uint_as_float(0x4b000000u | second) - 8388736.f);
}

// V: uint16_t for the bits of a T, uint8_t for bytes with scales
template <class T, class V>
struct Args : FewArgs<T> {
  const uint64_t* mask;  // [strip][group][tile]
  const int* offsets;    // of a group's values, in units of 16 bytes; one more at the end
  const V* values;
  const float* scales;   // (n,), for bytes only
  int strips;            // of the weight
  int value_bytes;       // room for the values of a group
};

// Shared memory: [stage][X, then values of each warp], then per warp its table, then offsets of the block's strips
template <int Tiles, bool Image>
__host__ __device__ constexpr int stage_bytes(int value_bytes) {
  return Few<Tiles, Image>::x_bytes + kWarps * value_bytes;
}
constexpr int kTableBytes = kWarps * 32 * 16;

template <int Tiles, bool Image, class T, class V>
__global__ void __launch_bounds__(kThreads, 2) bitmap_tile(const Args<T, V> a) {
  using F = Few<Tiles, Image>;
  ONNXPRUNE_SHARED(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = warp % F::strips, way = warp / F::strips;
  const int strip = blockIdx.x * F::strips + part;
  const int size = stage_bytes<Tiles, Image>(a.value_bytes);
  uint4* table = reinterpret_cast<uint4*>(shared + a.stages * size) + warp * 32;
  int* offsets = reinterpret_cast<int*>(shared + a.stages * size + kTableBytes);
  const int chunks = (a.groups + F::ways - 1) / F::ways;

  const auto bring_x = [&](int chunk) {
    if (chunk < chunks) stage_x<Tiles, Image>(reinterpret_cast<T*>(shared + chunk % a.stages * size), a, chunk);
  };
  const auto bring_values = [&](int chunk) {
    char* to = shared + chunk % a.stages * size;
    const int group = chunk * F::ways + way;
    if (strip >= a.strips || group >= a.groups) return;
    const int begin = offsets[part * a.groups + group], count = offsets[part * a.groups + group + 1] - begin;
    char* own = to + F::x_bytes + warp * a.value_bytes;
    const char* values = reinterpret_cast<const char*>(a.values) + static_cast<int64_t>(begin) * 16;
    for (int i = lane; i < count; i += 32) copy_async(own + i * 16, values + i * 16);
  };
  const auto tile_of = [&](int chunk) -> uint64_t {
    const int group = chunk * F::ways + way;
    if (strip >= a.strips || group >= a.groups) return 0;
    return __ldg(a.mask + (static_cast<int64_t>(strip) * a.groups + group) * 32 + lane);
  };

  // What needs no offsets goes first
  uint64_t tile = tile_of(0);
  for (int i = 0; i + 1 < a.stages; ++i) bring_x(i);
  const int first = blockIdx.x * F::strips;
  const int groups_here = min(F::strips, a.strips - first) * a.groups;
  for (int i = threadIdx.x; i <= groups_here; i += kThreads)
    offsets[i] = a.offsets[static_cast<int64_t>(first) * a.groups + i];
  __syncthreads();
  for (int i = 0; i + 1 < a.stages; ++i) {
    bring_values(i);
    commit_copies();
  }
  float sum[F::tiles][4] = {};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    share_tiles(table, tile, lane);
    tile = tile_of(chunk + 1);
    wait_stage(a.stages);  // and everyone has done with the stage that is filled next
    bring_x(chunk + a.stages - 1);
    bring_values(chunk + a.stages - 1);
    commit_copies();
    const char* from = shared + chunk % a.stages * size;
    const T* x = reinterpret_cast<const T*>(from) + way_offset<Tiles, Image>(way);
    const V* values = reinterpret_cast<const V*>(from + F::x_bytes + warp * a.value_bytes);
#pragma unroll
    for (int step = 0; step < layout::kSteps; ++step) {
      uint32_t w[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) w[r] = decode(read_half(table, step * 4 + r, lane), values, lane, T{});
      if constexpr (Image) {
#pragma unroll
        for (int t = 0; t < F::tiles; t += 2) {
          uint32_t b[2][2];
          load_pixels16<F::stride>(b, x, step * 16, t, lane);
          mma(sum[t], w, b[0], T{});
          mma(sum[t + 1], w, b[1], T{});
        }
      } else {
#pragma unroll
        for (int t = 0; t < F::tiles; ++t) {
          uint32_t b[2];
          load_b<Tiles>(b, x, step * 16, t, lane);
          mma(sum[t], w, b, T{});
        }
      }
    }
    __syncwarp();  // before the table is written again
  }
  finish<Tiles, Image>(sum, reinterpret_cast<float*>(shared), a,
                       [&](int row) { return sizeof(V) == 1 ? a.scales[row] : 1.f; });
}

// found[0]: 1 offsets do not begin at 1, 2 a group's count is not what its bits say, 3 offsets do not end with the
// values; found[1]: largest count of a group, in 16 bytes
__global__ void check_bitmap_tile(const uint64_t* mask, const int* offsets, int64_t groups, int64_t units, int per_unit,
                                  int* found) {
  const int64_t group = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (group >= groups) return;
  int bits = __popcll(mask[group * 32 + lane]);
  for (int distance = 16; distance; distance /= 2) bits += __shfl_xor_sync(0xffffffffu, bits, distance);
  if (lane) return;
  const int64_t begin = offsets[group], end = offsets[group + 1];
  if (group == 0 && begin != 1) atomicExch(found, 1);
  if (end - begin != (bits + per_unit - 1) / per_unit) atomicExch(found, 2);
  if (group == groups - 1 && end != units) atomicExch(found, 3);
  atomicMax(found + 1, (bits + per_unit - 1) / per_unit);
}

struct Plan {
  OnnxpruneCudaWeight weight;
  Device device;
  int value_bytes;
};

template <class V>
const OnnxpruneCudaOp& op_of() {
  return sizeof(V) == 1 ? kBitmapTileInt8 : kBitmapTile;
}

template <class V>
const char* sizes(const OnnxpruneCudaWeight* w) {
  const OnnxpruneCudaOp& op = op_of<V>();
  if (const char* error = check_common(op, *w)) return error;
  const int64_t groups = layout::ceil_div(w->rows, layout::kStrip) * layout::ceil_div(w->cols, layout::kGroup);
  if (const char* error = check_count(op, *w, 0, "mask", groups * 256)) return error;
  if (const char* error = check_count(op, *w, 1, "offsets", groups + 1)) return error;
  const int64_t values = w->tensors[2].count;
  if (values % (16 / sizeof(V)) || !values || values / (16 / sizeof(V)) > INT32_MAX)
    return say("there are %lld values, wanted a multiple of %d", static_cast<long long>(values), int(16 / sizeof(V)));
  if (sizeof(V) == 1) return check_count(op, *w, 3, "scales", w->rows);
  return nullptr;
}

template <int Tiles, bool Image>
int shared_bytes(const Plan& plan, int stages) {
  using F = Few<Tiles, Image>;
  const int groups = static_cast<int>(layout::ceil_div(plan.weight.cols, layout::kGroup));
  const int working = stages * stage_bytes<Tiles, Image>(plan.value_bytes) + kTableBytes + (F::strips * groups + 1) * 4;
  return working > F::sum_bytes ? working : F::sum_bytes;
}

template <class T, class V>
const char* allow_all(const Plan& plan) {
  return for_each_few<4>([&](auto constant) {
    constexpr int tiles = decltype(constant)::tiles;
    constexpr bool image = decltype(constant)::image;
    return allow(bitmap_tile<tiles, image, T, V>, shared_bytes<tiles, image>(plan, 2), plan.device,
                 ": the weight is too dense or too wide");
  });
}

template <class V>
const char* create(const OnnxpruneCudaWeight* w, void** plan) {
  if (const char* error = sizes<V>(w)) return error;
  int id = 0;
  if (const char* error = check_on_device(op_of<V>(), *w, &id)) return error;
  const OnDevice current(id);
  Plan made{*w, {}, 0};
  if (const char* error = read_device(&made.device)) return error;
  const int64_t groups = w->tensors[1].count - 1;
  int found[4];
  const char* error = examine(found, [&](int* to) {
    start(check_bitmap_tile, static_cast<unsigned>(layout::ceil_div(groups, 8)), 256, 0, nullptr,
          static_cast<const uint64_t*>(w->tensors[0].data), static_cast<const int*>(w->tensors[1].data), groups,
          static_cast<int64_t>(w->tensors[2].count / (16 / sizeof(V))), static_cast<int>(16 / sizeof(V)), to);
  });
  if (error) return error;
  if (found[0] == 1) return say("the offsets do not begin at 1");
  if (found[0]) return say("the offsets do not agree with the mask and the values");
  made.value_bytes = found[1] * 16;
  error = w->type == kFloat16 ? allow_all<__half, V>(made) : allow_all<__nv_bfloat16, V>(made);
  if (error) return error;
  *plan = new (std::nothrow) Plan(made);
  return *plan ? nullptr : say("not enough memory");
}

template <class T, class V>
const char* launch(const Plan& plan, const OnnxpruneCudaRun& run) {
  return with_tiles<4>(run, [&](auto constant) {
    constexpr int tiles = decltype(constant)::tiles;
    constexpr bool image = decltype(constant)::image;
    const OnnxpruneCudaWeight& w = plan.weight;
    Args<T, V> a;
    set_operands<T>(a, w, run);
    a.groups = static_cast<int>(layout::ceil_div(w.cols, layout::kGroup));
    a.stages = shared_bytes<tiles, image>(plan, kMaxStages) <= plan.device.block_bytes ? kMaxStages : 2;
    a.wide = aligned(run.x, 16) && w.cols % 8 == 0;
    a.image = pixels_of(run);
    a.mask = static_cast<const uint64_t*>(w.tensors[0].data);
    a.offsets = static_cast<const int*>(w.tensors[1].data);
    a.values = static_cast<const V*>(w.tensors[2].data);
    a.scales = static_cast<const float*>(w.tensors[3].data);
    a.strips = static_cast<int>(layout::ceil_div(w.rows, layout::kStrip));
    a.value_bytes = plan.value_bytes;
    start(bitmap_tile<tiles, image, T, V>, grid_of<tiles, image>(a.strips, run), kThreads,
          shared_bytes<tiles, image>(plan, a.stages), static_cast<cudaStream_t>(run.stream), a);
    return cuda_error("launch", cudaPeekAtLastError());
  });
}

template <class V>
const char* run(const void* opaque, const OnnxpruneCudaRun* run) {
  return run_plan<Plan>(op_of<V>(), opaque, *run,
                        [&](const Plan& plan, auto type) { return launch<decltype(type), V>(plan, *run); });
}

void destroy(void* plan) { delete static_cast<Plan*>(plan); }

}  // namespace

const OnnxpruneCudaOp kBitmapTile = {"BitmapTile", 3, {kUint8, kInt32, 0, 0}, 1, sizes<uint16_t>, create<uint16_t>,
                                     run<uint16_t>, destroy};
const OnnxpruneCudaOp kBitmapTileInt8 = {"BitmapTileInt8", 4, {kUint8, kInt32, kUint8, kFloat32}, 1, sizes<uint8_t>,
                                         create<uint8_t>, run<uint8_t>, destroy};

}  // namespace onnxprune
