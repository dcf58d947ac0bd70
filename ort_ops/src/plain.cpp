#include "plain.h"

#include <algorithm>
#include <cmath>

namespace onnxprune {
namespace {

float activate(float x, const Epilogue& e) {
  switch (e.activation) {
    case Activation::none: return x;
    case Activation::relu: return std::max(x, 0.f);
    case Activation::clip: return std::min(std::max(x, e.low), e.high);
    case Activation::gelu: return 0.5f * x * (1.f + std::erf(x * 0.70710678f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
    case Activation::silu: return x / (1.f + std::exp(-x));
    case Activation::hardswish: return x * std::min(std::max(x / 6.f + 0.5f, 0.f), 1.f);
  }
  return x;
}

void normalise(float* y, int64_t count, const Epilogue& e) {
  double mean = 0, variance = 0;
  for (int64_t i = 0; i < count; ++i) mean += y[i];
  mean /= static_cast<double>(count);
  for (int64_t i = 0; i < count; ++i) variance += (y[i] - mean) * (y[i] - mean);
  const double scale = 1 / std::sqrt(variance / static_cast<double>(count) + e.epsilon);
  for (int64_t i = 0; i < count; ++i)
    y[i] = static_cast<float>((y[i] - mean) * scale) * e.gamma[i] + (e.beta ? e.beta[i] : 0.f);
}

size_t bytes_of(const Csr& w) {
  return w.start.size() * sizeof w.start[0] + w.index.size() * sizeof w.index[0] +
         w.value.size() * sizeof w.value[0];
}

class PlainMatMul final : public MatMulKernel {
 public:
  explicit PlainMatMul(Csr&& weight) : w_(std::move(weight)) {}
  size_t bytes() const override { return bytes_of(w_); }

  void run(const float* X, float* Y, int64_t M, const Epilogue& e, const Pool& pool) const override {
    pool.run(static_cast<size_t>(M), [&](size_t m) {
      const float* x = X + static_cast<int64_t>(m) * w_.cols;
      const int64_t to = static_cast<int64_t>(m) * w_.rows;
      for (int64_t row = 0; row < w_.rows; ++row) {
        double sum = e.bias ? e.bias[row] : 0.f;
        for (uint32_t j = w_.start[row]; j < w_.start[row + 1]; ++j)
          sum += static_cast<double>(w_.value[j]) * x[w_.index[j]];
        if (e.residual) sum += e.residual[to + row];
        Y[to + row] = activate(static_cast<float>(sum), e);
      }
      if (e.gamma) normalise(Y + to, w_.rows, e);
    });
  }

 private:
  Csr w_;
};

class PlainConv final : public ConvKernel {
 public:
  explicit PlainConv(Csr&& weight) : w_(std::move(weight)) {}
  size_t bytes() const override { return bytes_of(w_); }

  void run(const float* X, float* Y, const ConvShape& s, const Epilogue& e, const Pool& pool) const override {
    pool.run(static_cast<size_t>(s.batch * s.out_channels), [&](size_t task) {
      const int64_t batch = static_cast<int64_t>(task) / s.out_channels;
      const int64_t row = static_cast<int64_t>(task) % s.out_channels;
      const int64_t plane = s.out_height * s.out_width, to = static_cast<int64_t>(task) * plane;
      const int64_t taps = s.kernel_h * s.kernel_w;
      const int64_t first = row / (s.out_channels / s.group) * (s.channels / s.group);
      for (int64_t p = 0; p < plane; ++p) {
        const int64_t top = p / s.out_width * s.stride_h - s.pad_top;
        const int64_t left = p % s.out_width * s.stride_w - s.pad_left;
        double sum = e.bias ? e.bias[row] : 0.f;
        for (uint32_t j = w_.start[row]; j < w_.start[row + 1]; ++j) {
          const int64_t channel = first + w_.index[j] / taps, tap = w_.index[j] % taps;
          const int64_t h = top + tap / s.kernel_w * s.dilation_h;
          const int64_t w = left + tap % s.kernel_w * s.dilation_w;
          if (h < 0 || w < 0 || h >= s.height || w >= s.width) continue;
          sum += static_cast<double>(w_.value[j]) *
                 X[((batch * s.channels + channel) * s.height + h) * s.width + w];
        }
        if (e.residual) sum += e.residual[to + p];
        Y[to + p] = activate(static_cast<float>(sum), e);
      }
    });
  }

 private:
  Csr w_;
};

}  // namespace

std::unique_ptr<MatMulKernel> plain_matmul(Csr&& weight) {
  return std::make_unique<PlainMatMul>(std::move(weight));
}

std::unique_ptr<ConvKernel> plain_conv(Csr&& weight) {
  return std::make_unique<PlainConv>(std::move(weight));
}

}  // namespace onnxprune
