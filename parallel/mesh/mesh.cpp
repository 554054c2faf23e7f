#include "parallel/mesh/mesh.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <tuple>

#include "runtime/core/error.h"

namespace r1::parallel {
namespace {

/// Largest size of one axis that is taken from text: its cube still fits in int64.
constexpr int kMaxAxis = 1'000'000;
/// How many alternatives a message lists; more are hard to read.
constexpr size_t kMaxListed = 6;

int64_t world64(const MeshShape& m) { return int64_t{m.pp} * m.dp * m.tp; }

/// True when a tp group of this size never spans hosts that take `ranks_per_host` ranks each.
bool tp_stays_on_host(int tp, int ranks_per_host) {
  return ranks_per_host <= 0 || (tp <= ranks_per_host && ranks_per_host % tp == 0);
}

std::string flags(const MeshShape& m) {
  return fmt::format("--pp {} --dp {} --tp {}", m.pp, m.dp, m.tp);
}

}  // namespace

std::string MeshShape::str() const { return fmt::format("pp {} x dp {} x tp {}", pp, dp, tp); }
std::string MeshCoord::str() const { return fmt::format("pp {} dp {} tp {}", pp, dp, tp); }

MeshCoord coord_of(const MeshShape& mesh, int world_rank) {
  R1_CHECK(mesh.pp > 0 && mesh.dp > 0 && mesh.tp > 0, "mesh {}", mesh.str());
  R1_CHECK(world_rank >= 0 && world_rank < world64(mesh), "world rank {} of mesh {}", world_rank,
           mesh.str());
  return {.pp = world_rank / mesh.tp / mesh.dp,
          .dp = world_rank / mesh.tp % mesh.dp,
          .tp = world_rank % mesh.tp};
}

int rank_of(const MeshShape& mesh, const MeshCoord& c) {
  R1_CHECK(
      c.pp >= 0 && c.pp < mesh.pp && c.dp >= 0 && c.dp < mesh.dp && c.tp >= 0 && c.tp < mesh.tp,
      "coordinates {} of mesh {}", c.str(), mesh.str());
  return (c.pp * mesh.dp + c.dp) * mesh.tp + c.tp;
}

std::vector<MeshShape> factorisations(int world, int ranks_per_host) {
  std::vector<MeshShape> out;
  for (int pp = 1; pp <= world; ++pp) {
    if (world % pp != 0) continue;
    for (int tp = 1; tp <= world / pp; ++tp) {
      if (world / pp % tp == 0) out.push_back({.pp = pp, .dp = world / pp / tp, .tp = tp});
    }
  }
  // Few pipeline stages mean a small bubble; among equals, data parallelism communicates least.
  std::ranges::stable_sort(out, {}, [&](const MeshShape& m) {
    return std::tuple(!tp_stays_on_host(m.tp, ranks_per_host), m.pp, m.tp);
  });
  return out;
}

void check_mesh(const MeshShape& mesh, int world, int ranks_per_host) {
  for (const auto& [name, size] :
       {std::pair{"--pp", mesh.pp}, {"--dp", mesh.dp}, {"--tp", mesh.tp}}) {
    if (size < 1) throw UsageError("{} {}: an axis of the mesh has at least one rank", name, size);
  }
  R1_CHECK(world > 0, "world of {} ranks", world);
  if (world64(mesh) == world) return;

  auto fits = factorisations(world, ranks_per_host);
  // Nearest to what was asked for first: a kept tp or pp is worth more than the general order.
  std::ranges::stable_sort(fits, {}, [&](const MeshShape& m) {
    return std::tuple(!tp_stays_on_host(m.tp, ranks_per_host),
                      -(2 * (m.tp == mesh.tp) + 2 * (m.pp == mesh.pp) + (m.dp == mesh.dp)));
  });
  std::vector<std::string> lines;
  for (const auto& m : fits) {
    if (lines.size() == kMaxListed) break;
    lines.push_back(flags(m));
  }
  const auto more = fits.size() - lines.size();
  throw UsageError(
      "{} needs {} rank{}, but {} rank{} {} started. Start {} ranks, or choose sizes whose product "
      "is {}: {}{}",
      flags(mesh), world64(mesh), world64(mesh) == 1 ? "" : "s", world, world == 1 ? "" : "s",
      world == 1 ? "was" : "were", world64(mesh), world, fmt::join(lines, "; "),
      more > 0 ? fmt::format("; and {} more", more) : "");
}

MeshShape parse_layout(const std::string& text) {
  MeshShape m;
  int* const sizes[] = {&m.pp, &m.dp, &m.tp};
  const char* at = text.data();
  const char* const end = at + text.size();
  for (int i = 0; i < 3; ++i) {
    bool ok = i == 0 || (at != end && *at++ == 'x');
    if (ok) {
      // from_chars takes no sign but '-', which the range check below refuses.
      const auto [next, error] = std::from_chars(at, end, *sizes[i]);
      ok = error == std::errc{} && *sizes[i] >= 1 && *sizes[i] <= kMaxAxis;
      at = next;
    }
    if (!ok || (i == 2 && at != end)) {
      throw UsageError(
          "layout \"{}\": expected PPxDPxTP, three numbers from 1 to {} with x between them, for "
          "example 2x1x4 (pp 2, dp 1, tp 4)",
          text, kMaxAxis);
    }
  }
  return m;
}

}  // namespace r1::parallel
