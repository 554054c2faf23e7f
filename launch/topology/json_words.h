// The words that the JSON form is written and read with.
#pragma once

#include <array>
#include <string_view>

namespace r1::launch {

inline constexpr int kTopologyVersion = 1;
/// By NvLink::Target.
inline constexpr std::array<std::string_view, 3> kLinkTargets = {"gpu", "switch", "cpu"};

}  // namespace r1::launch
