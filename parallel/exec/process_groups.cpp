#include "parallel/exec/process_groups.h"

#include <fmt/format.h>

namespace r1::parallel {

ProcessGroups::ProcessGroups(comm::Communicator& world, const MeshShape& mesh, bool tie_ends)
    : mesh_(mesh), coord_(coord_of(mesh, world.rank())), world_(world) {
  R1_CHECK(mesh.world() == world.size(), "mesh {} on {} ranks", mesh.str(), world.size());
  const MeshCoord& c = coord_;
  tp_ = world.split(c.pp * mesh.dp + c.dp, c.tp, fmt::format("tp (pp {} dp {})", c.pp, c.dp));
  dp_ = world.split(c.pp * mesh.tp + c.tp, c.dp, fmt::format("dp (pp {} tp {})", c.pp, c.tp));
  pp_ = world.split(c.dp * mesh.tp + c.tp, c.pp, fmt::format("pp (dp {} tp {})", c.dp, c.tp));
  replica_ = world.split(c.dp, c.pp * mesh.tp + c.tp, fmt::format("replica (dp {})", c.dp));
  if (tie_ends) {
    const bool end = c.pp == 0 || c.pp == mesh.pp - 1;
    // Ranks between the ends take part in the split with a group of their own.
    const int color = end ? c.dp * mesh.tp + c.tp : mesh.dp * mesh.tp + world.rank();
    auto group = world.split(color, c.pp, fmt::format("ends (dp {} tp {})", c.dp, c.tp));
    if (end && group->size() == 2) ends_ = std::move(group);
    else group->close();
  }
}

void ProcessGroups::close() {
  if (ends_) ends_->close();
  replica_->close();
  pp_->close();
  dp_->close();
  tp_->close();
}

}  // namespace r1::parallel
