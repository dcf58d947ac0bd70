// Many rows of X times a 2:4 weight: by cuSPARSELt, where it is found.
//
// Everything it needs is made at the first run with so many rows that is not being captured: a second copy of the
// weight, compressed as the library wants it, and for each number of rows a plan with its workspace. A run with a known
// number of rows only launches, so it may be captured. Whatever is missing or fails leaves the rows to the caller.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common.cuh"
#include "cusparselt.h"

namespace onnxprune {

class ManyRows {
 public:
  // Writes W (rows, cols), row-major, to dense
  using Unpack = std::function<const char*(void* dense, cudaStream_t stream)>;

  // What `unpack` reads must outlive it; nothing is allocated yet
  ManyRows(const OnnxpruneCudaWeight& weight, int device, Unpack unpack);
  ~ManyRows();
  ManyRows(const ManyRows&) = delete;
  ManyRows& operator=(const ManyRows&) = delete;

  // Multiplies from the first row of X on and returns how many: all but seven at most, or none
  int64_t run(const OnnxpruneCudaRun& run);
  // Why the last run did nothing, empty when it did
  std::string problem() const;

 private:
  struct Weight;
  struct Product;
  struct Key {
    int64_t m;
    const void* bias;
    bool relu;
    cudaStream_t stream;  // runs on two streams at once must not share a workspace
    bool operator==(const Key& other) const {
      return m == other.m && bias == other.bias && relu == other.relu && stream == other.stream;
    }
  };

  std::string multiply(const Key& key, const OnnxpruneCudaRun& run);
  std::string unsuited(const Key& key, const OnnxpruneCudaRun& run) const;
  Product* find(const Key& key);
  std::string add(const Key& key, const OnnxpruneCudaRun& run, Product** made);
  std::string make_weight(cudaStream_t stream);
  std::string make_product(Product& product, const OnnxpruneCudaRun& run) const;

  const OnnxpruneCudaWeight weight_;
  const int device_;
  const Unpack unpack_;
  mutable std::mutex mutex_;
  std::unique_ptr<Weight> compressed_;
  std::vector<std::unique_ptr<Product>> products_;  // plans hold pointers, so products stay where they are
  uint64_t runs_ = 0;
  std::string never_;    // why no run will do anything
  std::string problem_;
};

}  // namespace onnxprune
