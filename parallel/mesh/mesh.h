// The mesh of ranks: axes outer to inner pp, dp, tp. Pure integers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace r1::parallel {

/// Sizes of the axes. World rank = (pp_rank * dp + dp_rank) * tp + tp_rank: tp innermost, on the fastest links.
struct MeshShape {
  int pp = 1, dp = 1, tp = 1;
  [[nodiscard]] int world() const { return pp * dp * tp; }
  /// "pp 2 x dp 1 x tp 4".
  [[nodiscard]] std::string str() const;
  friend bool operator==(const MeshShape&, const MeshShape&) = default;
};

struct MeshCoord {
  int pp = 0, dp = 0, tp = 0;
  /// "pp 1 dp 0 tp 3".
  [[nodiscard]] std::string str() const;
  friend bool operator==(const MeshCoord&, const MeshCoord&) = default;
};

[[nodiscard]] MeshCoord coord_of(const MeshShape& mesh, int world_rank);
[[nodiscard]] int rank_of(const MeshShape& mesh, const MeshCoord& c);

/// All factorisations pp*dp*tp == world, most useful first (tp within `ranks_per_host`, then small pp): for messages.
[[nodiscard]] std::vector<MeshShape> factorisations(int world, int ranks_per_host);

/// Checks sizes against the world MPI sees. Throws UsageError that lists factorisations that would fit.
void check_mesh(const MeshShape& mesh, int world, int ranks_per_host);

/// Parses "PPxDPxTP" (as in --layouts). Throws UsageError.
[[nodiscard]] MeshShape parse_layout(const std::string& text);

}  // namespace r1::parallel
