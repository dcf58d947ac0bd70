#include "device_op.h"

#include <atomic>
#include <limits>
#include <memory>
#include <new>

#include "infer.h"
#include "op.h"
#include "op_slots.h"
#include "ort_info.h"

namespace onnxprune {
namespace {

constexpr size_t max_rank = 16;
std::string& provider() {
  static auto* name = new std::string("CUDAExecutionProvider");
  return *name;
}

// A node of a session: its weight checked on host and device at creation, its inputs' shapes at every run
class DeviceNode {
 public:
  DeviceNode(const DeviceOp& op, const ort::Functions& ort, const Info& info) : op_(op), ort_(ort) {
    if (info.inputs() != op.bias() + 1)
      throw Refusal("there are " + std::to_string(info.inputs()) + " inputs, wanted " + std::to_string(op.bias() + 1));
    const std::vector<int64_t> shape = info.integers("shape", {});
    if (shape.size() != 2) throw Refusal("attribute shape is " + to_string(shape) + ", wanted two sizes");
    OnnxpruneCudaWeight weight{};
    weight.rows = shape[1], weight.cols = shape[0];
    weight.type = op.type;
    weight.block_rows = info.integer("block_rows", 0);
    weight.many_rows = op.conv ? 0 : info.integer("many_rows", many_rows);
    for (int32_t i = 0; i < op.kernel->tensor_count; ++i) {
      const Tensor tensor = info.initializer(static_cast<size_t>(i) + 1, "the weight");
      weight.tensors[i] = {tensor.data, tensor.count, tensor.type};
    }
    if (op.activation == Activation::clip) {
      low_ = info.real("low", std::numeric_limits<float>::lowest());
      high_ = info.real("high", std::numeric_limits<float>::max());
    }
    rows_ = weight.rows, cols_ = weight.cols, many_rows_ = weight.many_rows;
    node_ = info.name();
    if (const char* error = op.kernel->sizes(&weight)) throw Refusal(error);
    if (const char* error = op.kernel->create(&weight, &plan_)) throw Refusal(error);
  }
  ~DeviceNode() {
    if (plan_) op_.kernel->destroy(plan_);
  }
  DeviceNode(const DeviceNode&) = delete;
  DeviceNode& operator=(const DeviceNode&) = delete;

  void compute(OrtKernelContext* context) const {
    int64_t dims[max_rank];
    size_t rank = 0;
    OnnxpruneCudaRun run{};
    run.x = input(context, 0, dims, &rank, "X");
    const size_t least = op_.conv ? 3 : 1;
    const size_t features = op_.conv ? 1 : rank - 1;  // their axis: (B, K, pixels...), else (..., K)
    if (rank < least || dims[features] != cols_)
      throw Refusal("X has shape " + text(dims, rank) + ", the weight takes " +
                    (op_.conv ? "[B, " + std::to_string(cols_) + ", pixels...]" : "[..., " + std::to_string(cols_) + "]"));
    run.m = run.pixels = 1;
    for (size_t i = 0; i < rank; ++i) {
      if (i == features) continue;
      if (dims[i] && run.m > most_rows / dims[i]) throw Refusal("X has shape " + text(dims, rank));
      run.m *= dims[i];
      if (i > features) run.pixels *= dims[i];
    }
    if (!run.m) run.pixels = 1;  // nothing to do
    int64_t bias[max_rank];
    size_t bias_rank = 0;
    run.bias = input(context, op_.bias(), bias, &bias_rank, "the bias");
    if (bias_rank != 1 || bias[0] != rows_)
      throw Refusal("the bias has shape " + text(bias, bias_rank) + ", wanted [" + std::to_string(rows_) + "]");
    dims[features] = rows_;
    OrtValue* output = nullptr;
    must(ort_.KernelContext_GetOutput(context, 0, dims, rank, &output), "the output");
    run.y = data(output, "the output");
    run.activation = static_cast<int32_t>(op_.activation);
    run.low = low_, run.high = high_;
    must(ort_.KernelContext_GetGPUComputeStream(context, &run.stream), "the stream");
    if (const char* error = op_.kernel->run(plan_, &run)) throw Refusal("onnxprune." + op_.name + ": " + error);
    if (many_rows_ > 0 && run.m >= many_rows_ && op_.kernel->many_missing) warn_without_library(context, run.m);
  }

 private:
  static constexpr int64_t most_rows = int64_t{1} << 40;
  // Where the file says nothing. Published measurements on an H100: level with dense there, 1.5 times as fast above
  static constexpr int64_t many_rows = 2048;

  // Once in a process, at the first product that is meant for the library. Such products run dense then, by cuBLAS, so
  // no file is slower than the dense model for want of it (ort_ops/cuda/dense_rows.h); but none is faster either, and a
  // weight takes more memory, which nothing else would tell. Not when a session is made: most files with 2:4 weights
  // never see so many rows.
  void warn_without_library(OrtKernelContext* context, int64_t rows) const {
    static std::atomic<bool> said{false};
    const char* missing = said.load(std::memory_order_relaxed) ? nullptr : op_.kernel->many_missing();
    if (!missing || said.exchange(true)) return;
    const std::string text = "onnxprune: 2:4 products with " + std::to_string(rows) + " rows of X (node '" + node_ +
                             "') are for cuSPARSELt, which cannot be used here: " + missing +
                             ". They run dense, by cuBLAS, with a dense copy of the weight. To change that: pip install "
                             "nvidia-cusparselt-cu13 (or -cu12), or name the library by ONNXPRUNE_CUSPARSELT";
    const OrtLogger* logger = nullptr;
    OrtStatus* status = ort_.KernelContext_GetLogger(context, &logger);
    if (!status) status = ort_.Logger_LogMessage(logger, ort::warning, text.c_str(), __FILE__, __LINE__, __func__);
    if (status) ort_.ReleaseStatus(status);  // a product is no worse for a warning that is lost
  }

  static std::string text(const int64_t* dims, size_t rank) {
    return to_string(std::vector<int64_t>(dims, dims + rank));
  }

  const void* input(OrtKernelContext* context, size_t index, int64_t* dims, size_t* rank, const char* what) const {
    const OrtValue* value = nullptr;
    must(ort_.KernelContext_GetInput(context, index, &value), what);
    if (!value) throw Refusal(std::string(what) + " is missing");
    OrtTensorTypeAndShapeInfo* info = nullptr;
    must(ort_.GetTensorTypeAndShape(value, &info), what);
    int type = 0;
    OrtStatus* status = ort_.GetTensorElementType(info, &type);
    if (!status) status = ort_.GetDimensionsCount(info, rank);
    const bool fits = !status && *rank <= max_rank && type == op_.type;
    if (fits) status = ort_.GetDimensions(info, dims, *rank);
    ort_.ReleaseTensorTypeAndShapeInfo(info);
    must(status, what);
    if (!fits) throw Refusal(std::string(what) + " has another type or too many dimensions");
    return data(value, what);
  }

  void* data(const OrtValue* value, const char* what) const {
    void* pointer = nullptr;
    must(ort_.GetTensorMutableData(value, &pointer), what);
    return pointer;
  }

  void must(OrtStatus* status, const char* what) const {
    if (!status) return;
    ort_.ReleaseStatus(status);
    throw Refusal(std::string("ONNX Runtime refuses access to ") + what);
  }

  const DeviceOp& op_;
  const ort::Functions ort_;
  void* plan_ = nullptr;
  int64_t rows_ = 0, cols_ = 0, many_rows_ = 0;
  std::string node_;
  float low_ = 0.f, high_ = 0.f;
};

const DeviceOp& self(const OrtCustomOp* op) { return *static_cast<const DeviceOp*>(op); }

OrtStatus* create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) noexcept {
  const ort::Functions ort(api);
  *kernel = nullptr;
  return guarded(ort, [&] {
    const Info reader(ort, info);
    try {
      *kernel = new Instance<DeviceNode>{ort, std::make_unique<DeviceNode>(self(op), ort, reader)};
    } catch (const Refusal& refusal) {
      throw Refusal("onnxprune." + self(op).name + " node '" + reader.name() + "': " + refusal.what());
    }
  });
}

int input_type(const OrtCustomOp* op, size_t index) noexcept {
  const DeviceOp& which = self(op);
  if (index == 0 || index >= which.bias()) return which.type;
  const int32_t type = which.kernel->tensor_types[index - 1];
  return type ? type : which.type;
}

}  // namespace

DeviceOp::DeviceOp(const OnnxpruneCudaOp* kernel, bool conv, Activation activation, int type)
    : OrtCustomOp{}, kernel(kernel), conv(conv), activation(activation), type(type),
      name(std::string(kernel->name) + (conv ? "Conv" : "MatMul") + text_of(activation)) {
  version = ort::api_version;
  set_common_slots<DeviceOp, DeviceNode>(*this);
  GetExecutionProviderType = [](const OrtCustomOp*) noexcept -> const char* { return provider().c_str(); };
  GetInputType = input_type;
  GetInputTypeCount = [](const OrtCustomOp* op) noexcept { return self(op).bias() + 1; };
  GetOutputType = [](const OrtCustomOp* op, size_t) noexcept { return self(op).type; };
  CreateKernelV2 = create;
  InferOutputShapeFn = infer_device_output_shape;
}

const std::deque<DeviceOp>& all_device_ops() {
  static const auto* ops = [] {
    auto* made = new std::deque<DeviceOp>;
    for (const OnnxpruneCudaOp* kernel : device_library().ops)
      for (const bool conv : {false, true})
        for (int activation = 0; activation <= static_cast<int>(Activation::hardswish); ++activation)
          for (const int type : {ort::float16, ort::bfloat16})
            if (!conv || kernel->images) made->emplace_back(kernel, conv, static_cast<Activation>(activation), type);
    return made;
  }();
  return *ops;
}

}  // namespace onnxprune

// Tests run the ops on the CPU provider, with a library of kernels that works on the host's memory
extern "C" __attribute__((visibility("default"))) void onnxprune_test_device_provider(const char* name) {
  onnxprune::provider() = name;
}
