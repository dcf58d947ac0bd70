// NMTileMatMul: two weights of every four neighbours (2:4), up to 64 rows of X at a time, on sparse tensor cores.
//
// Values and metadata lie in the order in which mma.sp.m16n8k32 wants them in registers, so a warp reads both with
// wide loads and nothing is decoded (the layout of Sparse-Marlin, Castro et al. 2025, serves the same end; PTX ISA,
// "Sparse matrix storage"). Memory-bound: 9 bits a weight.
#include <new>

#include "small_m.cuh"

namespace onnxprune {
namespace {

template <class T>
struct Args : FewArgs<T> {
  const uint4* values;   // [strip][group][tile of 32 columns][lane]
  const uint32_t* meta;  // [strip][group][pair of tiles][lane]
  int strips;
};

struct Fragment {  // a lane's part of a 16x128 group
  uint4 a[4];
  uint32_t meta[2];
};

template <int Tiles>
__host__ __device__ constexpr int shared_bytes(int stages) {
  return stages * Few<Tiles>::x_bytes > Few<Tiles>::sum_bytes ? stages * Few<Tiles>::x_bytes : Few<Tiles>::sum_bytes;
}

template <int Tiles, class T>
__global__ void __launch_bounds__(kThreads, 2) nm_tile(const Args<T> args) {
  using F = Few<Tiles>;
  ONNXPRUNE_SHARED(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int way = warp / F::strips, strip = blockIdx.x * F::strips + warp % F::strips;
  const int chunks = (args.groups + F::ways - 1) / F::ways;

  const auto x_of = [&](int chunk) { return reinterpret_cast<T*>(shared + chunk % args.stages * F::x_bytes); };
  const auto load = [&](Fragment& w, int chunk) {
    const int group = chunk * F::ways + way;
    if (strip >= args.strips || group >= args.groups) {
#pragma unroll
      for (int i = 0; i < 4; ++i) w.a[i] = make_uint4(0, 0, 0, 0);
      w.meta[0] = w.meta[1] = 0x44444444u;  // positions 0 and 1 of each four
      return;
    }
    const int64_t at = static_cast<int64_t>(strip) * args.groups + group;
#pragma unroll
    for (int i = 0; i < 4; ++i) w.a[i] = load_once(args.values + (at * 4 + i) * 32 + lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) w.meta[i] = load_once(args.meta + (at * 2 + i) * 32 + lane);
  };

  for (int i = 0; i + 1 < args.stages; ++i) {
    if (i < chunks) stage_x<Tiles>(x_of(i), args, i);
    commit_copies();
  }
  Fragment next;
  load(next, 0);
  float sum[F::tiles][4] = {};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const Fragment w = next;
    load(next, chunk + 1);  // on its way while this one is multiplied
    wait_stage(args.stages);
    const int ahead = chunk + args.stages - 1;
    if (ahead < chunks) stage_x<Tiles>(x_of(ahead), args, ahead);
    commit_copies();
    const T* x = x_of(chunk) + way * layout::kGroup;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int t = 0; t < F::tiles; ++t) {
        uint32_t b[4];
        load_b<Tiles>(b, x, i * 32, t, lane);
        if (i % 2 == 0)
          mma_sp<0>(sum[t], w.a[i], b, w.meta[i / 2], T{});
        else
          mma_sp<1>(sum[t], w.a[i], b, w.meta[i / 2], T{});
      }
  }
  finish<Tiles>(sum, reinterpret_cast<float*>(shared), args, [](int) { return 1.f; });
}

// found[0]: some positions do not ascend
__global__ void check_nm_tile(const uint32_t* meta, int64_t count, int* found) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  for (int shift = 0; shift < 32; shift += 4)
    if (!layout::nm_ordered(meta[i] >> shift & 15)) atomicExch(found, 1);
}

struct Plan {
  OnnxpruneCudaWeight weight;
  Device device;
};

int64_t groups_of(const OnnxpruneCudaWeight& w) {
  return layout::ceil_div(w.rows, layout::kStrip) * layout::ceil_div(w.cols, layout::kGroup);
}

const char* sizes(const OnnxpruneCudaWeight* w) {
  if (const char* error = check_common(kNMTile, *w)) return error;
  // Eight zeros in front, for the function in the file
  if (const char* error = check_count(kNMTile, *w, 0, "meta", groups_of(*w) * 2 * 32 * 4)) return error;
  return check_count(kNMTile, *w, 1, "values", groups_of(*w) * 4 * 32 * 8 + 8);
}

template <int Tiles, class T>
const char* allow(const Device& device) {
  if (shared_bytes<Tiles>(2) > device.block_bytes)
    return say("a block would need %d bytes of shared memory, the device has %d", shared_bytes<Tiles>(2),
               device.block_bytes);
  return cuda_error("shared memory",
                    cudaFuncSetAttribute(nm_tile<Tiles, T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         device.block_bytes));
}

template <class T>
const char* allow_all(const Device& device) {
  if (const char* error = allow<0, T>(device)) return error;
  if (const char* error = allow<1, T>(device)) return error;
  if (const char* error = allow<2, T>(device)) return error;
  if (const char* error = allow<4, T>(device)) return error;
  return allow<8, T>(device);
}

const char* create(const OnnxpruneCudaWeight* w, void** plan) {
  if (const char* error = sizes(w)) return error;
  int id = 0;
  if (const char* error = check_on_device(kNMTile, *w, &id)) return error;
  const OnDevice current(id);
  Plan made{*w, {}};
  if (const char* error = read_device(&made.device)) return error;
  int found[4];
  const int64_t words = w->tensors[0].count / 4;
  const char* error = examine(found, [&](int* to) {
    start(check_nm_tile, static_cast<unsigned>(layout::ceil_div(words, 256)), 256, 0, nullptr,
          static_cast<const uint32_t*>(w->tensors[0].data), words, to);
  });
  if (error) return error;
  if (found[0]) return say("the metadata has positions that do not ascend");
  error = w->type == kFloat16 ? allow_all<__half>(made.device) : allow_all<__nv_bfloat16>(made.device);
  if (error) return error;
  *plan = new (std::nothrow) Plan(made);
  return *plan ? nullptr : say("not enough memory");
}

template <class T>
const char* launch(const Plan& plan, const OnnxpruneCudaRun& run) {
  return with_tiles<8>(run.m, [&](auto constant) {
    constexpr int tiles = decltype(constant)::value;
    const OnnxpruneCudaWeight& w = plan.weight;
    Args<T> a;
    a.x = static_cast<const T*>(run.x);
    a.y = static_cast<T*>(run.y);
    a.ending = {run.bias, run.activation, run.low, run.high};
    a.m = static_cast<int>(run.m), a.n = static_cast<int>(w.rows), a.k = static_cast<int>(w.cols);
    a.groups = static_cast<int>(layout::ceil_div(w.cols, layout::kGroup));
    a.stages = shared_bytes<tiles>(kMaxStages) <= plan.device.block_bytes ? kMaxStages : 2;
    a.wide = aligned(run.x, 16) && w.cols % 8 == 0;
    a.meta = static_cast<const uint32_t*>(w.tensors[0].data);
    a.values = static_cast<const uint4*>(w.tensors[1].data) + 1;
    a.strips = static_cast<int>(layout::ceil_div(w.rows, layout::kStrip));
    const dim3 grid(static_cast<unsigned>(layout::ceil_div(a.strips, Few<tiles>::strips)),
                    static_cast<unsigned>(layout::ceil_div(run.m, Few<tiles>::rows)));
    start(nm_tile<tiles, T>, grid, kThreads, shared_bytes<tiles>(a.stages), static_cast<cudaStream_t>(run.stream), a);
    return cuda_error("launch", cudaPeekAtLastError());
  });
}

const char* run(const void* opaque, const OnnxpruneCudaRun* run) {
  const auto& plan = *static_cast<const Plan*>(opaque);
  if (const char* error = check_run(plan.weight, *run)) return error;
  if (!run->m) return nullptr;
  const OnDevice current(plan.device.id);
  return plan.weight.type == kFloat16 ? launch<__half>(plan, *run) : launch<__nv_bfloat16>(plan, *run);
}

void destroy(void* plan) { delete static_cast<Plan*>(plan); }

}  // namespace

const OnnxpruneCudaOp kNMTile = {"NMTile", 2, {kUint8, 0, 0, 0}, sizes, create, run, destroy};

}  // namespace onnxprune
