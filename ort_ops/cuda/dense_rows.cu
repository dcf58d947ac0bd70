#include "dense_rows.h"

#include <new>
#include <utility>

#include "cublas.h"
#include "in_place.cuh"

namespace onnxprune {
namespace {

struct Library {
  Cublas api;
  std::string problem;
};
const Library& library() {
  static const auto* found = [] {
    auto* made = new Library;
    if (const char* problem = made->api.load()) made->problem = problem;
    return made;
  }();
  return *found;
}

}  // namespace

// All weights of a session share it; two streams must not, since products that run at once would share a workspace
struct Blas {
  Cublas::Handle handle = nullptr;
  Room workspace;
  std::mutex mutex;
  ~Blas() {
    if (handle) library().api.destroy(handle);
  }

  static std::string of(int device, cudaStream_t stream, std::shared_ptr<Blas>* to) {
    static std::mutex all_mutex;
    static auto* all = new std::map<std::pair<int, cudaStream_t>, std::weak_ptr<Blas>>;
    const std::lock_guard<std::mutex> lock(all_mutex);
    std::weak_ptr<Blas>& known = (*all)[{device, stream}];
    if ((*to = known.lock())) return "";
    auto made = std::make_shared<Blas>();
    if (const int status = library().api.create(&made->handle)) {
      made->handle = nullptr;
      return "cuBLAS cannot start: status " + std::to_string(status);
    }
    if (std::string reason = made->workspace.make("the workspace of cuBLAS", kCublasWorkspace); !reason.empty())
      return reason;
    // In this order: setting the stream takes the workspace away
    int status = library().api.set_stream(made->handle, stream);
    if (!status) status = library().api.set_workspace(made->handle, made->workspace.get(), kCublasWorkspace);
    if (status) return "cuBLAS cannot be set up: status " + std::to_string(status);
    known = made;
    *to = std::move(made);
    return "";
  }
};

DenseRows::DenseRows(const OnnxpruneCudaWeight& weight, int device, Unpack unpack)
    : weight_(weight), device_(device), unpack_(std::move(unpack)) {}

DenseRows::~DenseRows() {
  const OnDevice current(device_);
  blas_.clear();
  dense_.reset();
}

std::string DenseRows::prepare(cudaStream_t stream) {
  if (!library().problem.empty()) return library().problem;
  const Relaxed relaxed;
  if (std::string reason = Blas::of(device_, stream, &blas_[stream]); !reason.empty()) {
    blas_.erase(stream);
    return reason;
  }
  if (dense_) return "";
  auto made = std::make_unique<Room>();
  const auto bytes = static_cast<size_t>(weight_.rows * weight_.cols) * 2;
  if (std::string reason = made->make("a dense copy of the weight", bytes); !reason.empty()) return reason;
  if (const char* error = unpack_(made->get(), stream)) return error;
  // Other streams may read it next
  if (const char* error = cuda_error("a dense copy of the weight", cudaStreamSynchronize(stream))) return error;
  dense_ = std::move(made);
  return "";
}

std::string DenseRows::run(const OnnxpruneCudaRun& run) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto stream = static_cast<cudaStream_t>(run.stream);
  try {
    if (!never_.empty()) return never_;
    if (!dense_ || !blas_.count(stream)) {
      if (is_captured(stream)) return "a stream that is captured must not allocate: run once before";
      if (never_ = prepare(stream); !never_.empty()) return never_;
    }
    Blas& blas = *blas_.at(stream);
    const std::lock_guard<std::mutex> blas_lock(blas.mutex);
    const int status =
        library().api.multiply(blas.handle, cublas_type(weight_.type), false, static_cast<int>(weight_.rows),
                               static_cast<int>(weight_.cols), static_cast<int>(run.m), dense_->get(), run.x, run.y);
    if (status) return never_ = "cuBLAS fails: status " + std::to_string(status);
    if (!run.bias && !run.activation) return "";
    const char* error = end_all(weight_, run, run.m, true);
    return error ? error : "";
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
}

}  // namespace onnxprune
