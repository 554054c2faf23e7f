// Expected time of a training step from a job's shape and the rates of devices and links. Pure.
//
// What is counted (bytes: each tensor read and written once by fused kernels; a = bytes of an activation element):
//   GEMM       2·M·N·K / (rate · M/(M+96) · N/(N+96)) for each product and its two gradients: what a tile's edge loses.
//              96 was fitted to training rates of 0.5B to 7B models on H200, H100 and RTX 4090 (tests: within 4 %).
//   attention  4·q·S/2 FLOP a token forward, 10·q·S/2 backward (causal, the scores recomputed)
//   the rest   a·(8h/t + 2(q+2k) + 3f) bytes a token and layer forward, a·(8h/t + 2(q+2k) + 5f) backward; 4·V·a/2 for the
//              cross-entropy; optimizer bytes by dtype
//   tp         4 all-gathers or reduce-scatters a layer in the forward, as many in the backward, each a·T·h·(t-1)/t bytes
//              over the tp group's slowest link; not overlapped with computation
//   pp         a·T·h/t bytes a message; what the schedule does not hide shows as exposed
//   dp         gradients summed after the last backward: 2·(d-1)/d of their bytes
//   offload    optimizer state read and written once a step over the host link, both directions at once, while the update runs; the
//              input of every block but a stage's first, a·T·h/t bytes, written in the forward and read in the backward. What the
//              computation beside it does not hide shows as exposed
// and 5 % for launches and gaps between kernels (measured: r1run reaches 94-97 % of this floor on one H200).
#pragma once

#include <string>
#include <vector>

#include "parallel/cost/job_shape.h"

namespace r1::parallel {

/// What one rank's device sustains. Ranks that share a device each have their share here.
struct DeviceRates {
  double gemm = 0;                ///< FLOP/s of a very large product in the job's dtype
  double attention_forward = 0;   ///< FLOP/s of fused attention
  double attention_backward = 0;
  double bytes_per_s = 0;         ///< copy bandwidth of device memory, read plus write
  double overhead = 1.05;         ///< total over the sum of kernels: launches and gaps
  double kernel_s = 0;            ///< least time of one kernel: what small problems cost
  double host_bytes_per_s = 0;    ///< between device and host memory, one direction, both at once; 0: not known
  std::string host_link;          ///< "PCIe 5 x16"
};

/// The slowest link of a group: bytes per second and rank in one direction, as a collective reaches it.
struct GroupLink {
  double bytes_per_s = 0;
  double latency_s = 0;  ///< of one operation
  std::string name;      ///< "NVLink mesh", "HDR"
};
struct MeshLinks {
  GroupLink tp, pp, dp;
};

/// Seconds of one step, of the pipeline rank that works longest; they add up to `total`.
struct StepTime {
  double gemm = 0, attention = 0, elementwise = 0, head = 0;
  double recompute = 0;    ///< forward work done again
  double overhead = 0;     ///< launches and gaps
  double tp_comm = 0;      ///< exposed
  double pp_comm = 0;      ///< what the schedule does not hide
  double bubble = 0;       ///< waiting for other stages
  double dp_comm = 0;      ///< gradients (and weights, where the optimizer is sharded)
  double optimizer = 0;
  double offload = 0;      ///< transfers of --offload that computation does not hide
  double row_sums = 0;     ///< --deterministic: partial gradients of rows, added up and cleared
  double total = 0;

  double tokens_per_s = 0;       ///< of the whole job
  double model_flops_per_s = 0;  ///< per rank: 6N and causal attention
  double bubble_fraction = 0;    ///< idle share of all ranks' pipeline time

  ScheduleCosts costs;  ///< seconds per stage, for the Gantt picture
};

/// Estimates a step. `schedule` is schedule_of(job). `segment_tokens`: mean length of what attention sees; 0: seq_len.
[[nodiscard]] StepTime step_time(const ModelSpec& spec, const JobShape& job, const Schedule& schedule,
                                 const DeviceRates& rates, const MeshLinks& links, double segment_tokens = 0);

/// Bytes that one step moves, for placement: per rank and step.
struct StepTraffic {
  double tp_bytes = 0;       ///< each rank of a tp group sends in all its collectives
  double tp_operations = 0;
  double pp_bytes = 0;       ///< over one edge between stages, one direction
  double pp_operations = 0;
  double dp_bytes = 0;       ///< each rank of a dp group sends
};
[[nodiscard]] StepTraffic step_traffic(const ModelSpec& spec, const JobShape& job);

/// The sentences that go with a figure: what was assumed.
[[nodiscard]] std::vector<std::string> assumptions(const JobShape& job, const DeviceRates& rates, const MeshLinks& links);

}  // namespace r1::parallel
