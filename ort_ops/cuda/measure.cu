// For tests and measurements, from the host's memory: an op run once with a poisoned output, and timed by itself.
//
// Timed as it is used: a CUDA graph of one product after another, each with weights of its own, so many that they do
// not fit into the L2 cache. The graph is replayed; the median of the replays counts.
#include <algorithm>
#include <vector>

#include "common.cuh"
#include "cublas.h"

#define ONNXPRUNE_EXPORT extern "C" __attribute__((visibility("default")))

namespace onnxprune {
namespace {

constexpr int kReplays = 21;
constexpr int kWarmUp = 4;

int64_t bytes_of(int type) { return type == kUint8 ? 1 : type == kFloat32 || type == kInt32 ? 4 : 2; }

// Device memory and plans of one call
class Session {
 public:
  ~Session() {
    for (void* plan : plans_) op_->destroy(plan);
    for (void* memory : memory_) cudaFree(memory);
    if (stream_) cudaStreamDestroy(stream_);
  }

  const char* start() { return cuda_error("stream", cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  cudaStream_t stream() const { return stream_; }

  const char* room(void** to, int64_t bytes) {
    if (const char* error = cuda_error("device memory", cudaMalloc(to, std::max<int64_t>(bytes, 16)))) return error;
    memory_.push_back(*to);
    return nullptr;
  }

  const char* upload(const void** to, const void* from, int64_t bytes) {
    void* made = nullptr;
    if (const char* error = room(&made, bytes)) return error;
    *to = made;
    return cuda_error("upload", cudaMemcpy(made, from, bytes, cudaMemcpyHostToDevice));
  }

  const char* plan(const OnnxpruneCudaOp* op, const OnnxpruneCudaWeight& host, void** made) {
    op_ = op;
    if (const char* error = op->sizes(&host)) return error;
    OnnxpruneCudaWeight device = host;
    for (int i = 0; i < op->tensor_count; ++i)
      if (const char* error = upload(&device.tensors[i].data, host.tensors[i].data,
                                     host.tensors[i].count * bytes_of(host.tensors[i].type)))
        return error;
    if (const char* error = op->create(&device, made)) return error;
    plans_.push_back(*made);
    return nullptr;
  }

 private:
  const OnnxpruneCudaOp* op_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> memory_, plans_;
};

// Values from -1 to 1 of both 16-bit types, none of them zero
__global__ void fill(uint16_t* to, int64_t count, int type, uint32_t seed) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    const float value = (static_cast<float>(x >> 8) + 0.5f) * (2.f / 16777216.f) - 1.f;
    to[i] = type == kFloat16 ? __half_as_ushort(__float2half_rn(value))
                             : __bfloat16_as_ushort(__float2bfloat16_rn(value));
  }
}

const char* random(Session& session, void** to, int64_t count, int type, uint32_t seed) {
  if (const char* error = session.room(to, count * 2)) return error;
  fill<<<1024, 256>>>(static_cast<uint16_t*>(*to), count, type, seed);
  return cuda_error("random values", cudaDeviceSynchronize());
}

// Milliseconds of one of `products` calls of launch(i), as a replayed graph or one launch after the other
template <class Launch>
const char* time_products(cudaStream_t stream, int products, bool graph, float* milliseconds, const Launch& launch) {
  cudaGraph_t captured = nullptr;
  cudaGraphExec_t ready = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  const char* error = nullptr;
  const auto all = [&]() -> const char* {
    for (int i = 0; i < products; ++i)
      if (const char* failure = launch(i)) return failure;
    return nullptr;
  };
  const auto ok = [&](const char* what, cudaError_t status) { return !error && !(error = cuda_error(what, status)); };
  error = all();  // loads the kernel, which cannot be captured
  ok("warm-up", cudaStreamSynchronize(stream));
  if (graph && ok("capture", cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal))) {
    const char* failure = all();
    const cudaError_t status = cudaStreamEndCapture(stream, &captured);
    error = failure;
    ok("capture", status);
    ok("graph", error ? cudaSuccess : cudaGraphInstantiate(&ready, captured, 0));
  }
  ok("event", cudaEventCreate(&begin));
  ok("event", cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; !error && i < kReplays + kWarmUp; ++i) {
    float elapsed = 0;
    ok("event", cudaEventRecord(begin, stream));
    if (graph)
      ok("replay", cudaGraphLaunch(ready, stream));
    else if (!error)
      error = all();
    ok("event", cudaEventRecord(end, stream));
    ok("replay", cudaEventSynchronize(end));
    ok("time", cudaEventElapsedTime(&elapsed, begin, end));
    if (i >= kWarmUp) times.push_back(elapsed);
  }
  if (!error) {
    std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
    *milliseconds = times[kReplays / 2] / static_cast<float>(products);
  }
  if (begin) cudaEventDestroy(begin);
  if (end) cudaEventDestroy(end);
  if (ready) cudaGraphExecDestroy(ready);
  if (captured) cudaGraphDestroy(captured);
  return error;
}

// So many copies of a weight that together they take `total` bytes
int copies(int64_t bytes, int64_t total) {
  return static_cast<int>(std::clamp<int64_t>(layout::ceil_div(total, std::max<int64_t>(bytes, 1)), 2, 256));
}

// Who asks for cuSPARSELt gets it or the reason: nobody takes the other variant for it
const char* check_variant(const OnnxpruneCudaOp& op, const OnnxpruneCudaWeight& weight, const void* plan, int64_t m) {
  return weight.many_rows > 0 && m >= weight.many_rows && op.many_problem ? op.many_problem(plan) : nullptr;
}

}  // namespace
}  // namespace onnxprune

// Y of an op whose weight, X, bias and Y are in the host's memory. The output is poisoned with NaN before, and so are
// the `guard` elements behind it, which must stay as they are: y has m * rows + guard elements.
ONNXPRUNE_EXPORT const char* onnxprune_cuda_try(const OnnxpruneCudaOp* op, const OnnxpruneCudaWeight* weight,
                                                const OnnxpruneCudaRun* run, int64_t guard, int32_t graph) {
  using namespace onnxprune;
  Session session;
  void* plan = nullptr;
  if (const char* error = session.start()) return error;
  if (const char* error = session.plan(op, *weight, &plan)) return error;
  OnnxpruneCudaRun device = *run;
  const int64_t bytes = (run->m * weight->rows + guard) * 2;
  if (const char* error = session.upload(&device.x, run->x, run->m * weight->cols * 2)) return error;
  if (run->bias)
    if (const char* error = session.upload(&device.bias, run->bias, weight->rows * 2)) return error;
  if (const char* error = session.room(&device.y, bytes)) return error;
  if (const char* error = cuda_error("poison", cudaMemset(device.y, 0xff, bytes))) return error;  // NaN in both types
  if (const char* error = cuda_error("poison", cudaDeviceSynchronize())) return error;
  device.stream = session.stream();
  if (graph) {
    float unused = 0;
    if (const char* error =
            time_products(session.stream(), 1, true, &unused, [&](int) { return op->run(plan, &device); }))
      return error;
  } else if (const char* error = op->run(plan, &device)) {
    return error;
  }
  if (const char* error = cuda_error("the kernel", cudaStreamSynchronize(session.stream()))) return error;
  if (const char* error = check_variant(*op, *weight, plan, run->m)) return error;
  return cuda_error("download", cudaMemcpy(run->y, device.y, bytes, cudaMemcpyDeviceToHost));
}

// Milliseconds of a product with rows[i] rows of X, for each i < count; copies of the weight take `total` bytes
// together. With more pixels than one X is images, and rows are multiples of it.
ONNXPRUNE_EXPORT const char* onnxprune_cuda_time(const OnnxpruneCudaOp* op, const OnnxpruneCudaWeight* weight,
                                                 const int64_t* rows, int32_t count, int64_t pixels, int64_t total,
                                                 int32_t graph, float* milliseconds) {
  using namespace onnxprune;
  Session session;
  if (const char* error = session.start()) return error;
  int64_t bytes = 0;
  for (int i = 0; i < op->tensor_count; ++i) bytes += weight->tensors[i].count * bytes_of(weight->tensors[i].type);
  std::vector<void*> plans(copies(bytes, total));
  for (void*& plan : plans)
    if (const char* error = session.plan(op, *weight, &plan)) return error;
  void *x = nullptr, *y = nullptr;
  const int64_t most = *std::max_element(rows, rows + count);
  if (const char* error = random(session, &x, most * weight->cols, weight->type, 1)) return error;
  if (const char* error = session.room(&y, most * weight->rows * 2)) return error;
  for (int32_t which = 0; which < count; ++which) {
    const OnnxpruneCudaRun run = {x, y, nullptr, rows[which], pixels, 0, 0.f, 0.f, session.stream()};
    const char* error = time_products(session.stream(), static_cast<int>(plans.size()), graph, milliseconds + which,
                                      [&](int i) { return op->run(plans[i], &run); });
    if (!error) error = check_variant(*op, *weight, plans.back(), rows[which]);
    if (error) return error;
  }
  return nullptr;
}

// The same for a dense weight and cuBLAS; transposed: stored (cols, rows), as MatMul of ONNX has it. Of images W is
// (rows, cols) and multiplied with each, which is the least that cuDNN has to do for a 1x1 convolution.
ONNXPRUNE_EXPORT const char* onnxprune_cuda_time_dense(const char* cublas_path, int32_t type, int64_t rows,
                                                       int64_t cols, const int64_t* x_rows, int32_t count,
                                                       int64_t pixels, int64_t total, int32_t transposed,
                                                       int32_t graph, float* milliseconds) {
  using namespace onnxprune;
  Session session;
  Cublas cublas;
  if (const char* error = cublas.load(cublas_path)) return error;
  if (const char* error = session.start()) return error;
  std::vector<void*> weights(copies(rows * cols * 2, total));
  uint32_t seed = 7;
  for (void*& weight : weights)
    if (const char* error = random(session, &weight, rows * cols, type, seed++)) return error;
  void *x = nullptr, *y = nullptr, *workspace = nullptr;
  const int64_t most = *std::max_element(x_rows, x_rows + count);
  if (const char* error = random(session, &x, most * cols, type, 1)) return error;
  if (const char* error = session.room(&y, most * rows * 2)) return error;
  if (const char* error = session.room(&workspace, kCublasWorkspace)) return error;
  Cublas::Handle handle = nullptr;
  if (cublas.create(&handle)) return say("cuBLAS cannot start");
  cublas.set_stream(handle, session.stream());
  cublas.set_workspace(handle, workspace, kCublasWorkspace);
  const int n = static_cast<int>(rows), k = static_cast<int>(cols), p = static_cast<int>(pixels);
  const auto multiply = [&](const void* weight, int m) {
    return p == 1 ? cublas.multiply(handle, cublas_type(type), transposed, n, k, m, weight, x, y)
                  : cublas.multiply_images(handle, cublas_type(type), n, k, m / p, p, weight, x, y);
  };
  const char* error = nullptr;
  for (int32_t which = 0; which < count && !error; ++which)
    error = time_products(
        session.stream(), static_cast<int>(weights.size()), graph, milliseconds + which, [&](int i) -> const char* {
          const int status = multiply(weights[i], static_cast<int>(x_rows[which]));
          return status ? say("cuBLAS fails with status %d", status) : nullptr;
        });
  cublas.destroy(handle);
  return error;
}

// GB/s of a copy from device memory to device memory, bytes read and written: what "bound by memory" means here
ONNXPRUNE_EXPORT const char* onnxprune_cuda_bandwidth(double* gigabytes) {
  using namespace onnxprune;
  constexpr int64_t bytes = int64_t{1} << 30;
  Session session;
  void *from = nullptr, *to = nullptr;
  float milliseconds = 0;
  if (const char* error = session.start()) return error;
  if (const char* error = random(session, &from, bytes / 2, kFloat16, 1)) return error;
  if (const char* error = session.room(&to, bytes)) return error;
  const char* error = time_products(session.stream(), 1, false, &milliseconds, [&](int) {
    return cuda_error("copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, session.stream()));
  });
  if (!error) *gigabytes = 2. * bytes / 1e6 / milliseconds;
  return error;
}
