// Many rows of X times a 2:4 weight where cuSPARSELt does not multiply: dense, by cuBLAS.
//
// Our own kernel reads X and the weight anew for each 64 rows, so with thousands it would be slower than the dense model.
// A dense product is as fast as that by construction, which a warning would not be; it costs a dense copy of the weight
// and a workspace. Made at the first run that no graph captures, like what cuSPARSELt needs, and only where it is needed.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "common.cuh"
#include "held.h"

namespace onnxprune {

struct Blas;  // cuBLAS on one stream

class DenseRows {
 public:
  // Writes W (rows, cols), row-major, to dense
  using Unpack = std::function<const char*(void* dense, cudaStream_t stream)>;

  // What `unpack` reads must outlive it; nothing is allocated yet
  DenseRows(const OnnxpruneCudaWeight& weight, int device, Unpack unpack);
  ~DenseRows();
  DenseRows(const DenseRows&) = delete;
  DenseRows& operator=(const DenseRows&) = delete;

  // Returns why it did nothing, empty where Y is complete
  std::string run(const OnnxpruneCudaRun& run);

 private:
  std::string prepare(cudaStream_t stream);

  const OnnxpruneCudaWeight weight_;
  const int device_;
  const Unpack unpack_;
  std::mutex mutex_;
  std::unique_ptr<Room> dense_;
  std::map<cudaStream_t, std::shared_ptr<Blas>> blas_;
  std::string never_;  // why no run will do anything
};

}  // namespace onnxprune
