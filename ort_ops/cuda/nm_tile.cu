// NMTileMatMul: two weights of every four neighbours (2:4), up to 64 rows of X at a time, on sparse tensor cores.
//
// Values and metadata lie in the order in which mma.sp.m16n8k32 wants them in registers, so a warp reads both with
// wide loads and nothing is decoded (the layout of Sparse-Marlin, Castro et al. 2025, serves the same end; PTX ISA,
// "Sparse matrix storage"). Memory-bound: 9 bits a weight. Many rows of X are for cuSPARSELt, where it is found, else for
// cuBLAS.
#include <memory>
#include <new>
#include <utility>

#include "dense_rows.h"
#include "many_rows.h"
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

template <int Tiles, bool Image>
__host__ __device__ constexpr int shared_bytes(int stages) {
  using F = Few<Tiles, Image>;
  return stages * F::x_bytes > F::sum_bytes ? stages * F::x_bytes : F::sum_bytes;
}

template <int Tiles, bool Image, class T>
__global__ void __launch_bounds__(kThreads, 2) nm_tile(const Args<T> args) {
  using F = Few<Tiles, Image>;
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
    if (i < chunks) stage_x<Tiles, Image>(x_of(i), args, i);
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
    if (ahead < chunks) stage_x<Tiles, Image>(x_of(ahead), args, ahead);
    commit_copies();
    const T* x = x_of(chunk) + way_offset<Tiles, Image>(way);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int t = 0; t < F::tiles; ++t) {
        uint32_t b[4];
        if constexpr (Image)
          load_pixels32<Tiles>(b, x, i * 32, t, lane);
        else
          load_b<Tiles>(b, x, i * 32, t, lane);
        if (i % 2 == 0)
          mma_sp<0>(sum[t], w.a[i], b, w.meta[i / 2], T{});
        else
          mma_sp<1>(sum[t], w.a[i], b, w.meta[i / 2], T{});
      }
  }
  finish<Tiles, Image>(sum, reinterpret_cast<float*>(shared), args, [](int) { return 1.f; });
}

// found[0]: some positions do not ascend
__global__ void check_nm_tile(const uint32_t* meta, int64_t count, int* found) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  for (int shift = 0; shift < 32; shift += 4)
    if (!layout::nm_ordered(meta[i] >> shift & 15)) atomicExch(found, 1);
}

// W (rows, cols), row-major: a thread writes four columns; pairs: the two values that are kept of them
__global__ void unpack_nm_tile(const uint32_t* meta, const uint32_t* pairs, uint16_t* dense, int rows, int cols) {
  const int quads = static_cast<int>(layout::ceil_div(cols, 4));
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= static_cast<int64_t>(rows) * quads) return;
  const int row = static_cast<int>(at / quads), quad = static_cast<int>(at % quads);
  constexpr int tile_quads = 8, group_quads = layout::kGroup / 4;
  const int64_t groups = layout::ceil_div(quads, group_quads);
  const int64_t group = row / layout::kStrip * groups + quad / group_quads;
  const int tile = quad % group_quads / tile_quads, inside = row % layout::kStrip;
  const int lane = layout::nm_lane(inside, quad % tile_quads), first = layout::nm_first(inside, quad % tile_quads);
  const uint32_t word = meta[(group * 2 + tile / 2) * 32 + layout::nm_meta_lane(lane, first, tile % 2)];
  const uint32_t positions = word >> layout::nm_meta_shift(lane, first);
  const uint32_t pair = pairs[(((group * 4 + tile) * 32 + lane) * 8 + first) / 2];
  uint64_t four = static_cast<uint64_t>(pair & 0xffff) << (16 * (positions & 3));
  four |= static_cast<uint64_t>(pair >> 16) << (16 * (positions >> 2 & 3));
  uint16_t* to = dense + static_cast<int64_t>(row) * cols + 4 * quad;
  if (cols % 4 == 0) {
    *reinterpret_cast<uint2*>(to) = make_uint2(static_cast<uint32_t>(four), static_cast<uint32_t>(four >> 32));
  } else {
    for (int i = 0; i < 4 && 4 * quad + i < cols; ++i) to[i] = static_cast<uint16_t>(four >> (16 * i));
  }
}

struct Plan {
  OnnxpruneCudaWeight weight;
  Device device;
  std::unique_ptr<ManyRows> many;    // null where many_rows is 0
  std::unique_ptr<DenseRows> dense;  // the same
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

template <class T>
const char* allow_all(const Device& device) {
  return for_each_few<8>([&](auto constant) {
    constexpr int tiles = decltype(constant)::tiles;
    constexpr bool image = decltype(constant)::image;
    return allow(nm_tile<tiles, image, T>, shared_bytes<tiles, image>(2), device);
  });
}

const char* unpack(const OnnxpruneCudaWeight& w, void* dense, cudaStream_t stream) {
  const int64_t quads = layout::ceil_div(w.cols, 4);
  start(unpack_nm_tile, static_cast<unsigned>(layout::ceil_div(w.rows * quads, 256)), 256, 0, stream,
        static_cast<const uint32_t*>(w.tensors[0].data), static_cast<const uint32_t*>(w.tensors[1].data) + 4,
        static_cast<uint16_t*>(dense), static_cast<int>(w.rows), static_cast<int>(w.cols));
  return cuda_error("launch", cudaPeekAtLastError());
}

const char* create(const OnnxpruneCudaWeight* w, void** plan) {
  if (const char* error = sizes(w)) return error;
  int id = 0;
  if (const char* error = check_on_device(kNMTile, *w, &id)) return error;
  const OnDevice current(id);
  Plan made{*w, {}, nullptr, nullptr};
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
  try {
    const auto write = [w = *w](void* dense, cudaStream_t stream) { return unpack(w, dense, stream); };
    if (w->many_rows > 0) {
      made.many = std::make_unique<ManyRows>(*w, made.device.id, write);
      made.dense = std::make_unique<DenseRows>(*w, made.device.id, write);
    }
    *plan = new Plan(std::move(made));
  } catch (const std::bad_alloc&) {
    return say("not enough memory");
  }
  return nullptr;
}

template <class T>
const char* launch(const Plan& plan, const OnnxpruneCudaRun& run) {
  return with_tiles<8>(run, [&](auto constant) {
    constexpr int tiles = decltype(constant)::tiles;
    constexpr bool image = decltype(constant)::image;
    const OnnxpruneCudaWeight& w = plan.weight;
    Args<T> a;
    set_operands<T>(a, w, run);
    a.groups = static_cast<int>(layout::ceil_div(w.cols, layout::kGroup));
    a.stages = shared_bytes<tiles, image>(kMaxStages) <= plan.device.block_bytes ? kMaxStages : 2;
    a.wide = aligned(run.x, 16) && w.cols % 8 == 0;
    a.image = pixels_of(run);
    a.meta = static_cast<const uint32_t*>(w.tensors[0].data);
    a.values = static_cast<const uint4*>(w.tensors[1].data) + 1;
    a.strips = static_cast<int>(layout::ceil_div(w.rows, layout::kStrip));
    start(nm_tile<tiles, image, T>, grid_of<tiles, image>(a.strips, run), kThreads,
          shared_bytes<tiles, image>(a.stages), static_cast<cudaStream_t>(run.stream), a);
    return cuda_error("launch", cudaPeekAtLastError());
  });
}

// Without its first `rows`
OnnxpruneCudaRun rest_of(const OnnxpruneCudaWeight& w, OnnxpruneCudaRun run, int64_t rows) {
  run.x = static_cast<const uint16_t*>(run.x) + rows * w.cols;
  run.y = static_cast<uint16_t*>(run.y) + rows * w.rows;
  run.m -= rows;
  return run;
}

const char* run(const void* opaque, const OnnxpruneCudaRun* run) {
  return run_plan<Plan>(kNMTile, opaque, *run, [&](const Plan& plan, auto type) -> const char* {
    const bool many = plan.many && run->pixels == 1 && run->m >= plan.weight.many_rows;
    const int64_t done = many ? plan.many->run(*run) : 0;
    if (many && !done && plan.dense->run(*run).empty()) return nullptr;
    const OnnxpruneCudaRun rest = rest_of(plan.weight, *run, done);
    return rest.m ? launch<decltype(type)>(plan, rest) : nullptr;
  });
}

const char* many_problem(const void* opaque) {
  const auto& plan = *static_cast<const Plan*>(opaque);
  const std::string problem = plan.many ? plan.many->problem() : "";
  return problem.empty() ? nullptr : say("%s", problem.c_str());
}

const char* many_missing() {
  const std::string& problem = cusparse_lt().problem;
  return problem.empty() ? nullptr : problem.c_str();
}

void destroy(void* plan) { delete static_cast<Plan*>(plan); }

}  // namespace

const OnnxpruneCudaOp kNMTile = {"NMTile", 2, {kUint8, 0, 0, 0}, 1, sizes, create, run, destroy,
                                 many_problem, many_missing};

}  // namespace onnxprune
