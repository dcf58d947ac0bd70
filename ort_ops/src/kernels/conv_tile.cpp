#include "conv_tile.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "../levels.h"
#include "conv_functions.h"
#include "conv_input.h"
#include "conv_layout.h"
#include "conv_tasks.h"
#include "groups.h"
#include "scratch.h"
#include "tasks.h"
#include "tile.h"

namespace onnxprune {
namespace {

constexpr int64_t kChunkRows = 64;
// Packed tiles that tasks share: 8 MiB, what a core's part of the last cache holds
constexpr int64_t kSharedFloats = 1 << 21;

// Rows of one conv group: the weight without its empty columns
struct Panel {
  TileWeight weight;
  std::vector<uint32_t> channel, tap;  // of each column
  std::vector<std::vector<uint32_t>> rows;  // by chunk, counted from the panel's first
};

// A run of positions: one tile
struct Tile {
  int64_t position;
  int vectors;
};

// One call of run(), one image
struct Image {
  const float* X;  // channels
  int64_t channel; // floats from one to the next
  const std::vector<int64_t>& tap;
  const std::vector<Tile>& tiles;
  const PlaneLayout& layout;
  const ConvShape& shape;
  bool plain;      // positions lie in Y as they are counted
  Finish finish;
};

class ConvTile final : public ConvKernel {
 public:
  ConvTile(const Csr& weight, const ConvShape& shape, const Level& level);

  void run(const float* X, float* Y, const ConvShape& shape, const Epilogue& epilogue,
           const Pool& pool) const override;
  size_t bytes() const override;

 private:
  std::vector<Tile> tiles_of(int64_t positions, bool wide) const;
  int wide_vectors() const;
  void run_image(const Image& image, const Pool& pool) const;
  // All tiles of all groups, [group][tile][column][P], or null where that is too much
  const float* pack_all(const Image& image, std::vector<int64_t>& begin, const Pool& pool) const;
  void pack_block(const Image& image, const Panel& panel, const Tile& tile, int64_t block, float* T) const;
  // Chunks [first, last) of rows of one tile; packed: its columns, or null
  void run_tile(const Image& image, const Panel& panel, const Tile& tile, int64_t first, int64_t last,
                const float* packed) const;

  const Level& level_;
  int vectors_;  // of a tile, positions permitting
  int64_t nonzeros_, taps_, group_channels_;
  std::vector<Panel> panels_;
};

// Rows [first, last) without the columns that none of them uses
Csr panel_of(const Csr& weight, int64_t first, int64_t last, std::vector<uint32_t>* column) {
  Csr out;
  out.rows = last - first;
  const uint32_t begin = weight.start[static_cast<size_t>(first)], end = weight.start[static_cast<size_t>(last)];
  std::vector<uint32_t> place(static_cast<size_t>(weight.cols), 0);
  for (uint32_t e = begin; e < end; ++e) place[weight.index[e]] = 1;
  for (size_t c = 0; c < place.size(); ++c) {
    if (!place[c]) continue;
    place[c] = static_cast<uint32_t>(column->size());
    column->push_back(static_cast<uint32_t>(c));
  }
  out.cols = static_cast<int64_t>(column->size());
  for (int64_t r = first; r <= last; ++r) out.start.push_back(weight.start[static_cast<size_t>(r)] - begin);
  for (uint32_t e = begin; e < end; ++e) out.index.push_back(place[weight.index[e]]);
  out.value.assign(weight.value.begin() + begin, weight.value.begin() + end);
  return out;
}

// The activation as a last step of the sums, where it is no more than bounds
std::optional<TileStep> bounds_of(const Finish& finish) {
  TileStep step;
  if (finish.activation == Activation::none) return step;
  step.clamp = true;
  step.low = finish.low, step.high = finish.high;
  if (finish.activation == Activation::clip) return step;
  step.low = 0.f, step.high = std::numeric_limits<float>::infinity();
  if (finish.activation == Activation::relu) return step;
  return std::nullopt;
}

ConvTile::ConvTile(const Csr& weight, const ConvShape& shape, const Level& level)
    : level_(level),
      nonzeros_(static_cast<int64_t>(weight.value.size())),
      taps_(shape.kernel_h * shape.kernel_w),
      group_channels_(shape.channels / shape.group) {
  const int64_t rows = shape.out_channels / shape.group;
  size_t sets = 0;
  for (int64_t g = 0; g < shape.group; ++g) sets += equal_rows(weight, g * rows, (g + 1) * rows).size();
  const double mean = static_cast<double>(shape.out_channels) / static_cast<double>(std::max<size_t>(1, sets));
  vectors_ = mean < 1.5 ? level.single_vectors : level.group_vectors;
  for (int64_t g = 0; g < shape.group; ++g) {
    Panel panel;
    std::vector<uint32_t> column;  // of the whole weight
    const Csr part = panel_of(weight, g * rows, (g + 1) * rows, &column);
    for (uint32_t c : column) {  // divisions belong here, not into run()
      panel.channel.push_back(c / static_cast<uint32_t>(taps_));
      panel.tap.push_back(c % static_cast<uint32_t>(taps_));
    }
    panel.weight = TileWeight(part, level.lanes, kChunkRows, tile_columns(vectors_, level.lanes, mean));
    for (int64_t c = 0; c < panel.weight.chunks(); ++c) panel.rows.push_back(panel.weight.chunk_rows(c));
    panels_.push_back(std::move(panel));
  }
}

size_t ConvTile::bytes() const {
  size_t n = sizeof *this;
  for (const Panel& panel : panels_) n += panel.weight.bytes() + panel.channel.size() * 8;
  return n;
}

// Of a tile that fits into a part of L1 with all columns, or 0
int ConvTile::wide_vectors() const {
  constexpr int64_t kTileBytes = 24 * 1024;
  int64_t columns = 1;
  for (const Panel& panel : panels_) columns = std::max(columns, panel.weight.cols());
  for (const int width : {32, 24, 16, 12})
    if (width % vectors_ == 0 && width * level_.lanes * 4 * columns <= kTileBytes) return width;
  return 0;
}

// Wide ones first, then widths that the core has, about equal, so that no tile is much narrower than the best width
std::vector<Tile> ConvTile::tiles_of(int64_t positions, bool wide) const {
  std::vector<Tile> tiles;
  const int64_t vectors = (positions + level_.lanes - 1) / level_.lanes;
  int64_t begin = 0;
  if (const int width = wide ? wide_vectors() : 0; width > 0)
    for (; (begin + width) * level_.lanes <= positions; begin += width) tiles.push_back({begin * level_.lanes, width});
  int64_t left = (vectors - begin + vectors_ - 1) / vectors_;
  for (int64_t v = begin; v < vectors; --left) {
    int64_t width = (vectors - v + left - 1) / left;
    if (width == 5) width = 6;
    if (width == 7) width = 8;
    tiles.push_back({v * level_.lanes, static_cast<int>(width)});
    v += width;
  }
  return tiles;
}

void ConvTile::pack_block(const Image& image, const Panel& panel, const Tile& tile, int64_t block, float* T) const {
  const int64_t P = static_cast<int64_t>(tile.vectors) * level_.lanes;
  const int64_t begin = panel.weight.block_begin(block), columns = panel.weight.block_end(block) - begin;
  std::vector<int64_t> offset(static_cast<size_t>(columns));
  for (int64_t k = 0; k < columns; ++k) {
    const size_t column = static_cast<size_t>(begin + k);
    offset[static_cast<size_t>(k)] = panel.channel[column] * image.channel + image.tap[panel.tap[column]];
  }
  const float* X = image.X + (&panel - panels_.data()) * group_channels_ * image.channel + tile.position;
  level_.conv->pack_tile(X, offset.data(), columns, std::min(P, image.layout.positions - tile.position), P, T);
}

const float* ConvTile::pack_all(const Image& image, std::vector<int64_t>& begin, const Pool& pool) const {
  const int64_t tiles = static_cast<int64_t>(image.tiles.size());
  struct Block {
    int64_t panel, tile, block;
  };
  std::vector<Block> blocks;
  int64_t floats = 0;
  for (int64_t g = 0; g < static_cast<int64_t>(panels_.size()); ++g) {
    const TileWeight& weight = panels_[static_cast<size_t>(g)].weight;
    for (int64_t t = 0; t < tiles; ++t) {
      begin.push_back(floats);
      floats += weight.cols() * image.tiles[static_cast<size_t>(t)].vectors * level_.lanes;
      for (int64_t b = 0; b < weight.blocks(); ++b) blocks.push_back({g, t, b});
    }
  }
  if (floats > kSharedFloats) return nullptr;
  float* all = scratch(Scratch::tile, static_cast<size_t>(floats));
  constexpr int64_t kPack = 4;  // vector operations for each vector
  const int64_t count = static_cast<int64_t>(blocks.size());
  run_parts(pool, task_count(kPack * floats / level_.lanes, count), count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const auto [g, t, b] = blocks[static_cast<size_t>(i)];
      const Panel& panel = panels_[static_cast<size_t>(g)];
      const Tile& tile = image.tiles[static_cast<size_t>(t)];
      const int64_t P = static_cast<int64_t>(tile.vectors) * level_.lanes;
      pack_block(image, panel, tile, b, all + begin[static_cast<size_t>(g * tiles + t)] + panel.weight.block_begin(b) * P);
    }
  });
  return all;
}

void ConvTile::run_tile(const Image& image, const Panel& panel, const Tile& tile, int64_t first, int64_t last,
                        const float* packed) const {
  const TileWeight& weight = panel.weight;
  const int64_t P = static_cast<int64_t>(tile.vectors) * level_.lanes;
  const int64_t count = std::min(P, image.layout.positions - tile.position);
  const int64_t panel_index = &panel - panels_.data();
  const int64_t first_row = panel_index * weight.rows();
  float* own = packed ? nullptr : scratch(Scratch::tile, static_cast<size_t>(weight.block_columns() * P));

  // In place where a tile covers whole vectors of Y, else by way of accumulators. A residual may lie where Y does: in
  // place it is read before anything is written, else when all is.
  Finish finish = image.finish;
  finish.Y += first_row * finish.plane;
  if (finish.bias) finish.bias += first_row;
  if (finish.residual) finish.residual += first_row * finish.plane;
  const bool in_place = image.plain && count == P;
  float* C = in_place ? finish.Y + tile.position : scratch(Scratch::accumulators, static_cast<size_t>(weight.rows() * P));
  const int64_t ldc = in_place ? finish.plane : P;
  const std::optional<TileStep> bounds = in_place ? bounds_of(finish) : std::nullopt;

  for (int64_t b = 0; b < weight.blocks(); ++b) {
    if (own) pack_block(image, panel, tile, b, own);
    const float* T = own ? own : packed + weight.block_begin(b) * P;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t row = weight.row_base(chunk);
      TileStep step = bounds && b + 1 == weight.blocks() ? *bounds : TileStep{};
      step.first = b == 0;
      if (in_place && step.first) {
        step.bias = finish.bias ? finish.bias + row : nullptr;
        step.residual = finish.residual ? finish.residual + tile.position + row * ldc : nullptr;
      }
      level_.tile_accumulate(tile.vectors, weight.block(chunk, b), T, C + row * ldc, ldc, step);
    }
  }
  if (bounds) return;
  if (in_place) finish.bias = finish.residual = nullptr;
  const std::vector<Segment> segments =
      segments_of(tile.position, count, image.layout.pitch, image.shape.out_width, image.shape.out_height);
  finish.segments = segments.data();
  finish.segment_count = static_cast<int64_t>(segments.size());
  for (int64_t chunk = first; chunk < last; ++chunk) {
    const std::vector<uint32_t>& rows = panel.rows[static_cast<size_t>(chunk)];
    level_.conv->finish_rows(C, ldc, rows.data(), static_cast<int64_t>(rows.size()), finish);
  }
}

void ConvTile::run_image(const Image& image, const Pool& pool) const {
  const int64_t tiles = static_cast<int64_t>(image.tiles.size()), groups = static_cast<int64_t>(panels_.size());
  const int64_t chunks = panels_[0].weight.chunks();
  const int64_t vectors = (image.layout.positions + level_.lanes - 1) / level_.lanes;
  const int64_t tasks = task_count(nonzeros_ * vectors, groups * tiles * chunks);
  // Tiles are dealt out first; where several tasks do rows of one tile, all are packed before
  const int64_t tile_parts = std::min(groups * tiles, tasks);
  const int64_t chunk_parts = std::min(chunks, (tasks + tile_parts - 1) / tile_parts);
  std::vector<int64_t> begin;  // of each tile in what is packed
  const float* packed = chunk_parts > 1 ? pack_all(image, begin, pool) : nullptr;
  run_tasks(pool, tile_parts * chunk_parts, [&](size_t task) {
    const int64_t part = static_cast<int64_t>(task) / chunk_parts, chunk_part = static_cast<int64_t>(task) % chunk_parts;
    for (int64_t t = part_begin(groups * tiles, tile_parts, part); t < part_begin(groups * tiles, tile_parts, part + 1);
         ++t) {
      run_tile(image, panels_[static_cast<size_t>(t / tiles)], image.tiles[static_cast<size_t>(t % tiles)],
               part_begin(chunks, chunk_parts, chunk_part), part_begin(chunks, chunk_parts, chunk_part + 1),
               packed ? packed + begin[static_cast<size_t>(t)] : nullptr);
    }
  });
}

void ConvTile::run(const float* X, float* Y, const ConvShape& s, const Epilogue& epilogue, const Pool& pool) const {
  const PlaneLayout layout(s);
  const bool copied = !is_pointwise(s);
  std::vector<int64_t> tap;
  for (int64_t t = 0; t < taps_; ++t) tap.push_back(layout.offset(s, t / s.kernel_w, t % s.kernel_w));
  constexpr int64_t kPageFloats = 1024;
  const int64_t plane = s.out_height * s.out_width, slack = kMaxTileVectors * level_.lanes;
  const std::vector<Tile> tiles = tiles_of(layout.positions, !copied && plane >= kPageFloats);
  for (int64_t n = 0; n < s.batch; ++n) {
    const float* input = X + n * s.channels * s.height * s.width;
    if (copied) input = padded_image(*level_.conv, input, s, layout, slack, pool);
    const int64_t image = n * s.out_channels * plane;
    const Finish finish{epilogue.bias, epilogue.residual ? epilogue.residual + image : nullptr, Y + image, plane,
                        epilogue.activation, epilogue.low, epilogue.high, nullptr, 0};
    run_image({input, copied ? layout.channel : plane, tap, tiles, layout, s, layout.pitch == s.out_width, finish}, pool);
  }
}

}  // namespace

std::unique_ptr<ConvKernel> make_conv_tile(const Csr& weight, const ConvShape& shape, const Level& level) {
  return std::make_unique<ConvTile>(weight, shape, level);
}

}  // namespace onnxprune
