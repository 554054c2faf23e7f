#include "runtime/models/rope_table.h"

#include <cmath>

namespace r1::models {

std::vector<TensorSpec> arena_specs(const std::vector<parallel::PlannedTensor>& planned) {
  std::vector<TensorSpec> out;
  for (const auto& t : planned) out.push_back({t.name, Shape{std::span<const int64_t>(t.shape)}, t.dtype});
  return out;
}

void fill_rope_table(const parallel::ModelConfig& config, const Tensor& table, const Stream& s) {
  const std::vector<double> inv = rope_inverse_frequencies(config);
  const int64_t d = config.head_dim, half = d / 2;
  std::vector<float> host(static_cast<size_t>(table.numel()));
  for (int64_t p = 0; p < table.dim(0); ++p)
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * inv[static_cast<size_t>(i)];
      host[static_cast<size_t>(p * d + i)] = static_cast<float>(std::cos(angle));
      host[static_cast<size_t>(p * d + half + i)] = static_cast<float>(std::sin(angle));
    }
  DeviceBackend& backend = backend_of(s.device.kind);
  backend.copy(table.data, host.data(), table.bytes(), s);
  backend.synchronize(s);
}

}  // namespace r1::models
