#include "many_rows.h"

#include <algorithm>
#include <map>
#include <new>
#include <tuple>
#include <utility>

#include "held.h"
#include "in_place.cuh"

namespace onnxprune {
namespace {

namespace lt = cusparselt;

constexpr int kUnit = 16;                    // rows and columns of a 16-bit structured matrix are multiples of it
constexpr int kRowUnit = 8;                  // and those of a dense one of this
constexpr size_t kMostPlans = 16;            // of a weight
constexpr size_t kMostWorkspace = 64 << 20;  // of a plan
constexpr float kOne = 1.f, kZero = 0.f;

const lt::Api& api() { return cusparse_lt().api; }

std::string failure(const char* what, int status) {
  const std::string text = std::string("cuSPARSELt fails to ") + what + ": status " + std::to_string(status);
  return api().GetErrorString ? text + ", " + api().GetErrorString(status) : text;
}

std::string text_of(const char* error) { return error ? error : ""; }

// One for each device, never destroyed
std::string handle_of(int device, const lt::Handle** handle) {
  static std::mutex mutex;
  static auto* handles = new std::map<int, std::unique_ptr<lt::Handle>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<lt::Handle>& found = (*handles)[device];
  if (!found) {
    auto made = std::make_unique<lt::Handle>();
    if (const int status = api().Init(made.get())) return failure("start", status);
    found = std::move(made);
  }
  *handle = found.get();
  return "";
}

// What a search finds; unset: what the library takes by itself
struct Choice {
  bool set = false;
  int config = 0, split_k = 1, split_k_mode = 0;
};

// Weights of one shape share what was found, and so do numbers of rows between two powers of two
using Sort = std::tuple<int, int, int64_t, int64_t, int, bool, bool>;
std::mutex choices_mutex;
std::map<Sort, Choice>& choices() {
  static auto* found = new std::map<Sort, Choice>;
  return *found;
}

int data_type(const OnnxpruneCudaWeight& w) { return w.type == kFloat16 ? lt::kReal16F : lt::kReal16BF; }

}  // namespace

struct ManyRows::Weight {
  const lt::Handle* handle = nullptr;
  Made<lt::Matrix> matrix;
  Room memory;
};

struct ManyRows::Product {
  Key key;
  Made<lt::Matrix> x, y;
  lt::Product matmul;
  std::unique_ptr<Made<lt::Algorithm>> algorithm;
  std::unique_ptr<Made<lt::Plan>> plan;  // refers to all before
  std::unique_ptr<Room> workspace;
  std::string problem;    // why it cannot be used
  bool in_graph = false;  // a graph holds its workspace, for as long as the session may live
  uint64_t last = 0;

  // A plan for a choice, with its workspace; replaces one that was made before
  std::string choose(const lt::Handle* handle, const Choice& choice) {
    workspace.reset(), plan.reset(), algorithm.reset();
    algorithm = std::make_unique<Made<lt::Algorithm>>();
    plan = std::make_unique<Made<lt::Plan>>();
    workspace = std::make_unique<Room>();
    lt::Algorithm* chosen = &*algorithm;
    if (const int s = algorithm->keep(api().MatmulAlgSelectionInit(handle, chosen, &matmul, lt::kDefault),
                                      api().MatmulAlgSelectionDestroy))
      return failure("choose an algorithm", s);
    const auto set = [&](int attribute, int value) {
      return api().MatmulAlgSetAttribute(handle, chosen, attribute, &value, sizeof value);
    };
    int status = choice.set ? set(lt::kConfigId, choice.config) : 0;
    if (!status && choice.set && choice.split_k > 1) {
      status = set(lt::kSplitK, choice.split_k);
      if (!status && choice.split_k_mode) status = set(lt::kSplitKMode, choice.split_k_mode);
    }
    if (status) return failure("take the algorithm that its search found", status);
    if (const int s = plan->keep(api().MatmulPlanInit(handle, &*plan, &matmul, chosen), api().MatmulPlanDestroy))
      return failure("make a plan", s);
    size_t bytes = 0;
    if (const int s = api().MatmulGetWorkspace(handle, &*plan, &bytes)) return failure("size its workspace", s);
    if (bytes > kMostWorkspace)
      return "cuSPARSELt wants a workspace of " + std::to_string(bytes) + " bytes, at most " +
             std::to_string(kMostWorkspace) + " are given";
    return workspace->make("the workspace of cuSPARSELt", bytes);
  }
};

ManyRows::ManyRows(const OnnxpruneCudaWeight& weight, int device, Unpack unpack)
    : weight_(weight), device_(device), unpack_(std::move(unpack)) {
  if (weight.rows % kUnit || weight.cols % kUnit)
    never_ = say("cuSPARSELt takes multiples of %d, the weight is %lld x %lld", kUnit,
                 static_cast<long long>(weight.rows), static_cast<long long>(weight.cols));
}

ManyRows::~ManyRows() {
  const OnDevice current(device_);
  products_.clear();  // before the weight that they refer to
  compressed_.reset();
}

std::string ManyRows::problem() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return problem_;
}

int64_t ManyRows::run(const OnnxpruneCudaRun& run) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t m = run.m / kRowUnit * kRowUnit;
  try {
    problem_ = multiply({m, run.bias, run.activation == 1, static_cast<cudaStream_t>(run.stream)}, run);
  } catch (const std::bad_alloc&) {
    problem_ = "out of memory";
  }
  return problem_.empty() ? m : 0;
}

std::string ManyRows::unsuited(const Key& key, const OnnxpruneCudaRun& run) const {
  if (!never_.empty()) return never_;
  if (!cusparse_lt().problem.empty()) return cusparse_lt().problem;
  constexpr int64_t most = INT32_MAX;
  if (!key.m || key.m > most / weight_.cols || key.m > most / weight_.rows)
    return say("cuSPARSELt takes matrices of 1 to 2**31 - 1 elements, X has %lld rows", static_cast<long long>(run.m));
  if (!aligned(run.x, 16) || !aligned(run.y, 16) || !aligned(run.bias, 16))
    return "cuSPARSELt takes X, Y and a bias that begin at multiples of 16 bytes";
  return "";
}

std::string ManyRows::multiply(const Key& key, const OnnxpruneCudaRun& run) {
  if (std::string reason = unsuited(key, run); !reason.empty()) return reason;
  const bool captured = is_captured(key.stream);
  Product* product = find(key);
  if (!product) {
    if (captured)
      return say("X with %lld rows is new to cuSPARSELt, and a stream that is captured must not allocate: run once before",
                 static_cast<long long>(key.m));
    if (std::string reason = add(key, run, &product); !reason.empty()) return reason;
  }
  if (!product->problem.empty()) return product->problem;
  product->last = ++runs_;
  product->in_graph |= captured;
  lt::Stream stream = key.stream;
  const int status = api().Matmul(compressed_->handle, &*product->plan, &kOne, compressed_->memory.get(), run.x,
                                   &kZero, run.y, run.y, product->workspace->get(), &stream, 1);
  if (status) return product->problem = failure("multiply", status);
  if (run.activation < 2) return "";  // ReLU is the plan's
  return text_of(end_all(weight_, run, key.m, false));
}

ManyRows::Product* ManyRows::find(const Key& key) {
  for (const auto& product : products_)
    if (product->key == key) return product.get();
  return nullptr;
}

// A product that fails is kept with its reason, so that it is not tried at every run
std::string ManyRows::add(const Key& key, const OnnxpruneCudaRun& run, Product** made) {
  const Relaxed relaxed;
  if (!compressed_) never_ = make_weight(key.stream);
  if (!never_.empty()) return never_;
  if (products_.size() == kMostPlans) {
    const auto oldest = std::min_element(products_.begin(), products_.end(), [](const auto& a, const auto& b) {
      return std::make_pair(a->in_graph, a->last) < std::make_pair(b->in_graph, b->last);
    });
    if ((*oldest)->in_graph)
      return say("all %d plans for cuSPARSELt belong to CUDA graphs", static_cast<int>(kMostPlans));
    products_.erase(oldest);  // freeing its workspace waits for the device
  }
  products_.push_back(std::make_unique<Product>());
  *made = products_.back().get();
  (*made)->key = key;
  (*made)->problem = make_product(**made, run);
  return "";
}

std::string ManyRows::make_weight(cudaStream_t stream) {
  auto made = std::make_unique<Weight>();
  if (std::string reason = handle_of(device_, &made->handle); !reason.empty()) return reason;
  lt::Matrix* matrix = &made->matrix;
  int status = made->matrix.keep(
      api().StructuredDescriptorInit(made->handle, matrix, weight_.rows, weight_.cols, weight_.cols, 16,
                                     data_type(weight_), lt::kRows, lt::kHalf),
      api().MatDescriptorDestroy);
  if (status) return failure("describe the weight", status);
  size_t bytes = 0, buffer_bytes = 0;
  status = api().SpMMACompressedSize2(made->handle, matrix, &bytes, &buffer_bytes);
  if (status) return failure("size the compressed weight", status);
  Room dense, buffer;
  std::string reason = dense.make("the weight for cuSPARSELt", static_cast<size_t>(weight_.rows * weight_.cols) * 2);
  if (reason.empty()) reason = buffer.make("a buffer for cuSPARSELt", buffer_bytes);
  if (reason.empty()) reason = made->memory.make("the compressed weight of cuSPARSELt", bytes);
  if (reason.empty()) reason = text_of(unpack_(dense.get(), stream));
  if (!reason.empty()) return reason;
  status = api().SpMMACompress2(made->handle, matrix, 1, lt::kAsIs, dense.get(), made->memory.get(), buffer.get(),
                                stream);
  if (status) return failure("compress the weight", status);
  // Other streams may read it next, and the dense copy goes
  if (const char* error = cuda_error("compressing for cuSPARSELt", cudaStreamSynchronize(stream))) return error;
  compressed_ = std::move(made);
  return "";
}

// Y^T (rows, m) = W (rows, cols) X^T: row-major Y is column-major Y^T
std::string ManyRows::make_product(Product& p, const OnnxpruneCudaRun& run) const {
  const lt::Handle* handle = compressed_->handle;
  const int type = data_type(weight_);
  lt::Matrix *w = &compressed_->matrix, *x = &p.x, *y = &p.y;
  int status = p.x.keep(
      api().DenseDescriptorInit(handle, x, p.key.m, weight_.cols, weight_.cols, 16, type, lt::kRows),
      api().MatDescriptorDestroy);
  if (!status)
    status = p.y.keep(
        api().DenseDescriptorInit(handle, y, weight_.rows, p.key.m, weight_.rows, 16, type, lt::kColumns),
        api().MatDescriptorDestroy);
  if (status) return failure("describe X and Y", status);
  status = api().MatmulDescriptorInit(handle, &p.matmul, lt::kAsIs, lt::kTransposed, w, x, y, y, lt::kCompute32F);
  if (!status && run.bias)
    status = api().MatmulDescSetAttribute(handle, &p.matmul, lt::kBiasPointer, &run.bias, sizeof run.bias);
  if (const int relu = 1; !status && p.key.relu)
    status = api().MatmulDescSetAttribute(handle, &p.matmul, lt::kRelu, &relu, sizeof relu);
  if (status) return failure("describe the product", status);

  int power = 0;
  while (p.key.m >> (power + 1)) ++power;
  const Sort sort{device_, type, weight_.rows, weight_.cols, power, p.key.bias != nullptr, p.key.relu};
  const std::lock_guard<std::mutex> lock(choices_mutex);
  const auto known = choices().find(sort);
  if (known != choices().end() && known->second.set && p.choose(handle, known->second).empty()) return "";
  if (std::string reason = p.choose(handle, {}); !reason.empty()) return reason;
  if (known != choices().end()) return "";
  // The search takes what workspace the plan has; where it fails, the library's own choice stays
  Choice& choice = choices()[sort];
  lt::Stream stream = p.key.stream;
  lt::Algorithm* found = &*p.algorithm;
  const auto get = [&](int attribute, int* value) {
    return !api().MatmulAlgGetAttribute(handle, found, attribute, value, sizeof *value);
  };
  if (!api().MatmulSearch(handle, &*p.plan, &kOne, compressed_->memory.get(), run.x, &kZero, run.y, run.y,
                          p.workspace->get(), &stream, 1))
    choice.set = get(lt::kConfigId, &choice.config) && get(lt::kSplitK, &choice.split_k) &&
                 get(lt::kSplitKMode, &choice.split_k_mode);
  cudaGetLastError();  // a failed search may have left one
  if (choice.set && p.choose(handle, choice).empty()) return "";
  choice.set = false;
  return p.choose(handle, {});
}

}  // namespace onnxprune
