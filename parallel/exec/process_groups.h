// Mesh + communicators: the groups of one rank, created eagerly in one declared order on every rank.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "parallel/mesh/mesh.h"

namespace r1::parallel {

class ProcessGroups {
 public:
  /// Collective over `world`, which must outlive the groups. `tie_ends`: also make the group of first and last stage
  /// (tied embeddings).
  ProcessGroups(comm::Communicator& world, const MeshShape& mesh, bool tie_ends);

  [[nodiscard]] const MeshShape& mesh() const { return mesh_; }
  [[nodiscard]] const MeshCoord& coord() const { return coord_; }
  [[nodiscard]] comm::Communicator& world() const { return world_; }
  [[nodiscard]] comm::Communicator& tp() const { return *tp_; }
  [[nodiscard]] comm::Communicator& dp() const { return *dp_; }
  [[nodiscard]] comm::Communicator& pp() const { return *pp_; }
  /// All ranks of one model replica (pp x tp at one dp index).
  [[nodiscard]] comm::Communicator& replica() const { return *replica_; }
  /// First and last stage at the same (dp, tp); null on ranks between them, and when nothing is tied.
  [[nodiscard]] comm::Communicator* ends() const { return ends_.get(); }
  /// Collective end, in reverse order of creation.
  void close();

 private:
  MeshShape mesh_;
  MeshCoord coord_;
  comm::Communicator& world_;
  std::unique_ptr<comm::Communicator> tp_, dp_, pp_, replica_, ends_;
};

}  // namespace r1::parallel
