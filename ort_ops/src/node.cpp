#include "node.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>

#include "conv_geometry.h"
#include "factory.h"
#include "ort_info.h"

namespace onnxprune {
namespace {

constexpr size_t max_rank = 16;

struct Shape {
  int64_t dims[max_rank];
  size_t rank = 0;

  bool operator==(const Shape& other) const {
    return rank == other.rank && std::equal(dims, dims + rank, other.dims);
  }
  std::string text() const { return to_string(std::vector<int64_t>(dims, dims + rank)); }
};

// One run of a node
class Run final : public Pool {
 public:
  Run(const ort::Functions& ort, OrtKernelContext* context) : ort_(ort), context_(context) {}

  const float* input(size_t index, Shape& shape, const char* what) const {
    const OrtValue* value = nullptr;
    must(ort_.KernelContext_GetInput(context_, index, &value), what);
    if (!value) throw Refusal(std::string(what) + " is missing");
    OrtTensorTypeAndShapeInfo* info = nullptr;
    must(ort_.GetTensorTypeAndShape(value, &info), what);
    OrtStatus* status = ort_.GetDimensionsCount(info, &shape.rank);
    const bool fits = !status && shape.rank <= max_rank;
    if (fits) status = ort_.GetDimensions(info, shape.dims, shape.rank);
    ort_.ReleaseTensorTypeAndShapeInfo(info);
    must(status, what);
    if (!fits) throw Refusal(std::string(what) + " has " + std::to_string(shape.rank) + " dimensions");
    return static_cast<const float*>(data(value, what));
  }

  float* output(const Shape& shape) const {
    OrtValue* value = nullptr;
    must(ort_.KernelContext_GetOutput(context_, 0, shape.dims, shape.rank, &value), "the output");
    if (!value) throw Refusal("the output is missing");
    return static_cast<float*>(data(value, "the output"));
  }

  void run(size_t tasks, const std::function<void(size_t)>& task) const override {
    if (tasks <= 1) {
      if (tasks) task(0);
      return;
    }
    Tasks shared{task};
    // As many batches as tasks, else the runtime deals them out beforehand, and one slow thread holds up all
    must(ort_.KernelContext_ParallelFor(context_, &Tasks::call, tasks, tasks, &shared), "the threads");
    if (shared.error) std::rethrow_exception(shared.error);
  }

 private:
  struct Tasks {  // no exception may cross the frames of the runtime
    const std::function<void(size_t)>& task;
    std::atomic<bool> failed{false};
    std::exception_ptr error{};

    static void call(void* self, size_t index) {
      auto& tasks = *static_cast<Tasks*>(self);
      try {
        tasks.task(index);
      } catch (...) {
        if (!tasks.failed.exchange(true)) tasks.error = std::current_exception();
      }
    }
  };

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

  const ort::Functions& ort_;
  OrtKernelContext* context_;
};

// What all ops have: bias, activation, residual, normalisation
struct Ending {
  std::vector<float> bias, gamma, beta;
  Epilogue epilogue;  // without the residual, which every run brings

  Ending(const OpName& what, const Info& info, int64_t rows)
      : bias(info.vector(what.bias(), rows, "the bias")) {
    epilogue.bias = bias.data();
    epilogue.activation = what.activation;
    if (what.activation == Activation::clip) {
      epilogue.low = info.real("low", std::numeric_limits<float>::lowest());
      epilogue.high = info.real("high", std::numeric_limits<float>::max());
    }
    if (!what.norm) return;
    gamma = info.vector(what.gamma(), rows, "gamma");
    beta = info.vector(what.gamma() + 1, rows, "beta");
    epilogue.gamma = gamma.data();
    epilogue.beta = beta.data();
    epilogue.epsilon = info.real("epsilon", 1e-5f);
  }
};

Epilogue with_residual(const OpName& what, const Ending& ending, const Run& run, const Shape& output) {
  Epilogue epilogue = ending.epilogue;
  if (what.add) {
    Shape shape;
    epilogue.residual = run.input(what.residual(), shape, "the residual");
    if (!(shape == output))
      throw Refusal("the residual has shape " + shape.text() + ", the output " + output.text());
  }
  return epilogue;
}

Packed read_packed(const OpName& what, const Info& info) {
  Packed packed;
  packed.form = what.form;
  packed.code = info.initializer(1, what.form == Form::bitmap ? "mask" : "steps");
  packed.values = info.initializer(2, "values");
  packed.shape = info.integers("shape", {});
  const int64_t type = info.integer("dtype", ort::float32);
  if (type != ort::float32)
    throw Refusal("the weight has dtype " + std::to_string(type) + ", wanted 1 (float32)");
  if (what.form == Form::bitmap) return packed;
  const int64_t elements = checked_product(packed.shape, int64_t{1} << 40, "the weight");
  const std::vector<int64_t> wanted{elements - packed.values.count + 1};
  const std::vector<int64_t> span = info.integers("span", wanted);
  if (span != wanted)
    throw Refusal("attributes shape " + to_string(packed.shape) + " and span " + to_string(span) +
                  " contradict each other: with " + std::to_string(packed.values.count) + " values span is " +
                  to_string(wanted));
  return packed;
}

class MatMulNode final : public Node {
 public:
  MatMulNode(const OpName& what, const ort::Functions& ort, const Info& info)
      : what_(what), ort_(ort), packed_(read_matrix(what, info)), ending_(what, info, packed_.rows) {
    rows_ = packed_.rows;
    cols_ = packed_.cols;
    kernel_ = make_matmul(decode(packed_), known_tokens(info));
    packed_ = Packed{};
  }

  void compute(OrtKernelContext* context) const override {
    const Run run(ort_, context);
    Shape shape;
    const float* X = run.input(0, shape, "X");
    if (!shape.rank || (what_.consumer == Consumer::gemm && shape.rank != 2) ||
        shape.dims[shape.rank - 1] != cols_)
      throw Refusal("X has shape " + shape.text() + ", the weight takes [" +
                    (what_.consumer == Consumer::gemm ? "M, " : "..., ") + std::to_string(cols_) + "]");
    int64_t M = 1;
    for (size_t i = 0; i + 1 < shape.rank; ++i) {
      if (shape.dims[i] && M > max_tokens / shape.dims[i]) throw Refusal("X has shape " + shape.text());
      M *= shape.dims[i];
    }
    shape.dims[shape.rank - 1] = rows_;
    const Epilogue epilogue = with_residual(what_, ending_, run, shape);
    float* Y = run.output(shape);
    if (M && rows_) kernel_->run(X, Y, M, epilogue, run);
  }

 private:
  static constexpr int64_t max_tokens = int64_t{1} << 40;

  static Packed read_matrix(const OpName& what, const Info& info) {
    Packed packed = read_packed(what, info);
    if (packed.shape.size() != 2)
      throw Refusal("the weight has shape " + to_string(packed.shape) + ", wanted two dimensions");
    bool out_first = false;
    if (what.consumer == Consumer::gemm) {
      if (info.integer("transA", 0) || info.real("alpha", 1) != 1 || info.real("beta", 1) != 1)
        throw Refusal("transA, alpha and beta must have their defaults");
      out_first = info.integer("transB", 0) != 0;
    }
    packed.layout = out_first ? Layout::as_is : Layout::transposed;
    packed.rows = packed.shape[out_first ? 0 : 1];
    packed.cols = packed.shape[out_first ? 1 : 0];
    return packed;
  }

  static int64_t known_tokens(const Info& info) {
    const std::vector<int64_t> dims = info.known_shape(0);
    int64_t tokens = dims.empty() ? 0 : 1;
    for (size_t i = 0; i + 1 < dims.size(); ++i)
      tokens = dims[i] < 0 || (dims[i] && tokens > max_tokens / dims[i]) ? 0 : tokens * dims[i];
    return tokens;
  }

  const OpName what_;
  const ort::Functions ort_;
  Packed packed_;  // only while the node is made
  Ending ending_;
  int64_t rows_, cols_;
  std::unique_ptr<MatMulKernel> kernel_;
};

class ConvNode final : public Node {
 public:
  ConvNode(const OpName& what, const ort::Functions& ort, const Info& info)
      : what_(what), ort_(ort), ending_(make(what, info)) {}

  void compute(OrtKernelContext* context) const override {
    const Run run(ort_, context);
    Shape shape;
    const float* X = run.input(0, shape, "X");
    if (shape.rank != spatial_ + 2 || shape.dims[1] != shape_.channels)
      throw Refusal("X has shape " + shape.text() + ", the weight takes [N, " +
                    std::to_string(shape_.channels) + (spatial_ == 1 ? ", L]" : ", H, W]"));
    ConvShape conv = shape_;
    conv.batch = shape.dims[0];
    conv.height = spatial_ == 1 ? 1 : shape.dims[2];
    conv.width = shape.dims[shape.rank - 1];
    if (!conv.height || !conv.width || !set_output_size(conv))
      throw Refusal("X has shape " + shape.text() + ", padded it is smaller than the kernel");
    shape.dims[1] = conv.out_channels;
    if (spatial_ == 2) shape.dims[2] = conv.out_height;
    shape.dims[shape.rank - 1] = conv.out_width;
    const Epilogue epilogue = with_residual(what_, ending_, run, shape);
    float* Y = run.output(shape);
    if (conv.batch) kernel_->run(X, Y, conv, epilogue, run);
  }

 private:
  Ending make(const OpName& what, const Info& info) {
    Packed packed;
    Tensor dense;
    const bool direct = what.consumer == Consumer::direct_conv;
    if (direct) {
      dense = info.initializer(1, "W");
      if (dense.type != ort::float32) throw Refusal("W has type " + std::to_string(dense.type) + ", wanted float32");
    } else {
      packed = read_packed(what, info);
    }
    const std::vector<int64_t>& weight = direct ? dense.shape : packed.shape;
    const std::string auto_pad = info.text("auto_pad", "NOTSET");
    if (auto_pad != "NOTSET") throw Refusal("auto_pad is " + auto_pad + ", wanted NOTSET");
    ConvAttributes attributes;
    attributes.group = info.integer("group", 1);
    attributes.kernel = info.integers("kernel_shape", {});
    attributes.strides = info.integers("strides", {});
    attributes.dilations = info.integers("dilations", {});
    attributes.pads = info.integers("pads", {});
    shape_ = conv_shape(weight, attributes);
    spatial_ = weight.size() - 2;

    // The bias first: its real size bounds what the shape of a corrupt file can ask for
    Ending ending(what, info, shape_.out_channels);
    ConvShape hint = shape_;
    const std::vector<int64_t> dims = info.known_shape(0);
    if (dims.size() == weight.size()) {
      hint.batch = std::max<int64_t>(dims[0], 0);
      hint.height = spatial_ == 1 ? 1 : std::max<int64_t>(dims[2], 0);
      hint.width = std::max<int64_t>(dims.back(), 0);
      if (!hint.height || !hint.width || !set_output_size(hint)) hint = shape_;
    }
    if (direct) {
      kernel_ = make_direct_conv(static_cast<const float*>(dense.data), hint);
    } else {
      packed.rows = shape_.out_channels;
      packed.cols = shape_.channels / shape_.group * shape_.kernel_h * shape_.kernel_w;
      kernel_ = make_conv(decode(packed), hint);
    }
    return ending;
  }

  const OpName what_;
  const ort::Functions ort_;
  ConvShape shape_{};  // batch, height, width and what follows from them: 0
  size_t spatial_ = 2;
  std::unique_ptr<ConvKernel> kernel_;
  Ending ending_;
};

}  // namespace

std::unique_ptr<Node> make_node(const OpName& what, const OrtApi* api, const OrtKernelInfo* info) {
  const ort::Functions ort(api);
  const Info reader(ort, info);
  try {
    if (reader.inputs() != what.inputs())
      throw Refusal("there are " + std::to_string(reader.inputs()) + " inputs, wanted " +
                    std::to_string(what.inputs()));
    if (what.conv()) return std::make_unique<ConvNode>(what, ort, reader);
    return std::make_unique<MatMulNode>(what, ort, reader);
  } catch (const std::exception& error) {
    const bool memory = dynamic_cast<const std::bad_alloc*>(&error);
    throw Refusal("onnxprune." + what.text() + " node '" + reader.name() +
                  "': " + (memory ? "not enough memory for its weight" : error.what()));
  }
}

}  // namespace onnxprune
