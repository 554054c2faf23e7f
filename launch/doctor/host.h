// The parts of examine_host: each adds its rows to a report. What cannot be read is unknown.
#pragma once

#include <string>
#include <string_view>

#include "launch/doctor/doctor.h"
#include "launch/process.h"

namespace r1::launch::doctor {

/// Text of a small file below the root; nullopt when it cannot be read.
[[nodiscard]] std::optional<std::string> text_of(const DoctorOptions& o, const std::string& path);
/// Names in a directory below the root, sorted; empty when it cannot be read.
[[nodiscard]] std::vector<std::string> names_in(const DoctorOptions& o, const std::string& path);
[[nodiscard]] std::string trimmed(std::string_view text);
void add(HostReport* r, std::string name, Verdict verdict, std::string found,
         std::string remedy = "");

/// NVIDIA GPUs in the PCI list, whether or not there is a driver.
[[nodiscard]] std::vector<std::string> gpus_on_pci(const DoctorOptions& o);
/// InfiniBand or RoCE devices.
[[nodiscard]] std::vector<std::string> rdma_devices(const DoctorOptions& o);

/// driver, GPU health, persistence, clocks, peer access, GPUDirect RDMA; the lines of --query.
void examine_gpus(const DoctorOptions& o, HostReport* r);
/// IOMMU and ACS, memory limits, shared memory, huge pages, NUMA balancing, InfiniBand ports.
void examine_system(const DoctorOptions& o, HostReport* r);
/// r1run's programs and the libraries they find; versions of NCCL and cuDNN; digests for
/// comparison.
void examine_programs(const DoctorOptions& o, HostReport* r);
/// The model directory and how fast its disk is read.
void examine_model(const DoctorOptions& o, HostReport* r);

}  // namespace r1::launch::doctor
