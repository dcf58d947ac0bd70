#include "decode.h"

#include <cstring>

#include "ort_abi.h"

namespace onnxprune {
namespace {

// What the forms allow (onnxprune/storage): ONNX Runtime folds no intermediate over 1 GiB, and a few bytes
// of a file must not be able to ask for any amount of memory.
constexpr int64_t max_elements_bitmap = int64_t{1} << 28;
constexpr int64_t max_elements_gaps = int64_t{1} << 27;

std::string describe(const Tensor& tensor) {
  return "type " + std::to_string(tensor.type) + " " + to_string(tensor.shape);
}

void check_values(const Packed& packed) {
  if (packed.values.type != ort::float32 && packed.values.type != ort::float16)
    throw Refusal("values have " + describe(packed.values) + ", wanted float32 or float16");
}

void check_code(const Packed& packed, int64_t wanted, const char* name) {
  if (packed.code.type != ort::uint8 || packed.code.count != wanted)
    throw Refusal(std::string(name) + " has " + describe(packed.code) + ", a weight of shape " +
                  to_string(packed.shape) + " with " + std::to_string(packed.values.count) +
                  " values needs " + std::to_string(wanted) + " bytes of uint8");
}

struct Float32 {
  const float* data;
  float operator()(int64_t i) const { return data[i]; }
  uint32_t bits(int64_t i) const {
    uint32_t word;
    std::memcpy(&word, data + i, sizeof word);
    return word;
  }
};

struct Float16 {
  const uint16_t* data;
  float operator()(int64_t i) const { return widen(data[i]); }
  uint32_t bits(int64_t i) const { return data[i]; }
};

// Calls entry(position, value) for each nonzero in order. Bits and values are known to agree in number.
template <class Values, class Entry>
void walk_bitmap(const Tensor& mask, Values values, Entry&& entry) {
  const auto* bytes = static_cast<const uint8_t*>(mask.data);
  int64_t next = 1;  // value 0 is what a clear bit reads
  for (int64_t i = 0; i < mask.count; ++i)
    for (unsigned byte = bytes[i]; byte;) {
      const int bit = __builtin_clz(byte) - 24;  // from the most significant one
      byte &= ~(0x80u >> bit);
      entry(i * 8 + bit, values(next++));
    }
}

// The steps of gaps4 lie as two halves, so that its decoding needs no interleaving.
struct Steps4 {
  const uint8_t* data;
  int64_t half;
  unsigned operator()(int64_t j) const { return j < half ? data[j] >> 4 : data[j - half] & 15u; }
};

struct Steps8 {
  const uint8_t* data;
  unsigned operator()(int64_t j) const { return data[j]; }
};

template <class Steps, class Values, class Entry>
void walk_gaps(Steps steps, int64_t count, Values values, Entry&& entry) {
  int64_t position = 0;
  for (int64_t j = 0; j < count; ++j) {
    const unsigned step = steps(j);
    if (!step && j) continue;  // the last entry once more
    position += step;
    entry(position, values(j));
  }
}

template <class Steps, class Values>
void check_gaps(Steps steps, int64_t count, Values values, int64_t elements) {
  int64_t position = 0;
  for (int64_t j = 0; j < count; ++j) {
    const unsigned step = steps(j);
    position += step;
    if (!step && j && (j + 1 != count || values.bits(j) != values.bits(j - 1)))
      throw Refusal("entry " + std::to_string(j) + " of the weight is at the position of the one before");
  }
  if (count && position >= elements)
    throw Refusal("entries of the weight end at position " + std::to_string(position) + " of " +
                  std::to_string(elements));
}

void check_bitmap(const Packed& packed, int64_t elements) {
  check_code(packed, (elements + 7) / 8, "mask");
  const auto* bytes = static_cast<const uint8_t*>(packed.code.data);
  int64_t set = 0;
  for (int64_t i = 0; i < packed.code.count; ++i) set += __builtin_popcount(bytes[i]);
  if (elements % 8 && (bytes[packed.code.count - 1] & (0xffu >> (elements % 8))))
    throw Refusal("mask has bits set behind the last element of the weight");
  if (packed.values.count != set + 1)
    throw Refusal("there are " + std::to_string(packed.values.count) + " values, the mask has " +
                  std::to_string(set) + " bits set, which needs one more than that");
}

// Splits positions into row and column of the stored tensor without a division: they ascend.
struct Place {
  int64_t width;
  int64_t line = 0, begin = 0;
  int64_t column(int64_t position) {
    for (; position - begin >= width; begin += width) ++line;
    return position - begin;
  }
};

// Runs walk twice: once to count the entries of each row of W, once to write them.
template <class Walk>
Csr build(const Packed& packed, Walk&& walk) {
  Csr csr;
  csr.rows = packed.rows;
  csr.cols = packed.cols;
  csr.start.assign(static_cast<size_t>(packed.rows) + 1, 0);
  const bool transposed = packed.layout == Layout::transposed;
  const int64_t width = transposed ? packed.rows : packed.cols;

  Place counted{width};
  walk([&](int64_t position, float value) {
    if (value == 0.f) return;
    const int64_t column = counted.column(position);
    ++csr.start[static_cast<size_t>(transposed ? column : counted.line) + 1];
  });
  for (size_t row = 0; row < static_cast<size_t>(packed.rows); ++row) csr.start[row + 1] += csr.start[row];
  csr.index.resize(csr.start.back());
  csr.value.resize(csr.start.back());

  // start[row] moves on while the row is filled, and in the end is where the next one starts
  Place placed{width};
  walk([&](int64_t position, float value) {
    if (value == 0.f) return;
    const int64_t column = placed.column(position);
    const uint32_t slot = csr.start[static_cast<size_t>(transposed ? column : placed.line)]++;
    csr.index[slot] = static_cast<uint32_t>(transposed ? placed.line : column);
    csr.value[slot] = value;
  });
  for (size_t row = static_cast<size_t>(packed.rows); row > 0; --row) csr.start[row] = csr.start[row - 1];
  csr.start[0] = 0;
  return csr;
}

template <class Values>
Csr decode_with(const Packed& packed, Values values, int64_t elements) {
  if (packed.form == Form::bitmap) {
    check_bitmap(packed, elements);
    if (values(0) != 0.f) throw Refusal("value 0 of the weight is not zero, which a clear bit stands for");
    return build(packed, [&](auto&& entry) { walk_bitmap(packed.code, values, entry); });
  }
  const int64_t count = packed.values.count;
  if ((count == 0) != (elements == 0))
    throw Refusal("there are " + std::to_string(count) + " entries for a weight of shape " +
                  to_string(packed.shape));
  const auto* bytes = static_cast<const uint8_t*>(packed.code.data);
  const auto run = [&](auto steps) {
    check_gaps(steps, count, values, elements);
    return build(packed, [&](auto&& entry) { walk_gaps(steps, count, values, entry); });
  };
  if (packed.form == Form::gap8) {
    check_code(packed, count, "steps");
    return run(Steps8{bytes});
  }
  if (count % 2) throw Refusal("there are " + std::to_string(count) + " values, gaps4 wants an even number");
  check_code(packed, count / 2, "steps");
  return run(Steps4{bytes, count / 2});
}

}  // namespace

int64_t checked_product(const std::vector<int64_t>& shape, int64_t limit, const char* what) {
  int64_t product = 1;
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim < 0) throw Refusal(std::string(what) + " has shape " + to_string(shape) + " with a negative dimension");
    empty |= dim == 0;
  }
  // A zero does not hide the other dimensions: [0, 2**62, 2**62] overflows somewhere.
  for (const int64_t dim : shape) {
    if (dim && product > limit / dim)
      throw Refusal(std::string(what) + " has shape " + to_string(shape) + ", more than " +
                    std::to_string(limit) + " elements");
    if (dim) product *= dim;
  }
  return empty ? 0 : product;
}

std::string to_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Csr decode(const Packed& packed) {
  const int64_t limit = packed.form == Form::bitmap ? max_elements_bitmap : max_elements_gaps;
  const int64_t elements = checked_product(packed.shape, limit, "the weight");
  checked_product({packed.rows, packed.cols}, limit, "the weight as a matrix");
  if (packed.rows * packed.cols != elements)
    throw Refusal("the weight of shape " + to_string(packed.shape) + " is no matrix of " +
                  std::to_string(packed.rows) + " x " + std::to_string(packed.cols));
  check_values(packed);
  if (packed.values.type == ort::float16)
    return decode_with(packed, Float16{static_cast<const uint16_t*>(packed.values.data)}, elements);
  return decode_with(packed, Float32{static_cast<const float*>(packed.values.data)}, elements);
}

float widen(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u, mantissa = half & 1023u;
  uint32_t bits;
  if (exponent == 0) {  // subnormal: exact in float, and no subnormal there, whatever the thread flushes
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &magnitude, sizeof bits);
  } else {
    bits = (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace onnxprune
