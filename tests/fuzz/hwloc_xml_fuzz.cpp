// hwloc's XML: a map that holds together, or a refusal.
#include "tests/fuzz/topology_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  r1::fuzz::try_reader(bytes, size, r1::launch::read_hwloc_xml, r1::fuzz::check_host);
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  // A small machine with all that the reader looks at: mutations reach more of it than of a file of
  // 100 kB.
  std::vector<std::string> out{
      R"(<topology version="2.0"><object type="Machine" os_index="0" cpuset="0xf" nodeset="0x3"><info name="HostName" value="h"/>
<object type="Package" os_index="0" cpuset="0xf" nodeset="0x3" gp_index="1"><info name="CPUModel" value="m"/>
<object type="NUMANode" os_index="0" cpuset="0x3" nodeset="0x1" local_memory="9" gp_index="2"/>
<object type="NUMANode" os_index="1" subtype="GPUMemory" cpuset="0xc" nodeset="0x2" gp_index="3"/>
<object type="Core" os_index="0" cpuset="0x3" nodeset="0x1"><object type="PU" os_index="0" cpuset="0x1"/></object>
<object type="Bridge" gp_index="4" bridge_type="0-1" bridge_pci="0000:[00-08]">
<object type="Bridge" bridge_type="1-1" pci_busid="0000:00:01.0" pci_type="0604 [8086:0001] [0000:0000] 00" pci_link_speed="15.75">
<object type="Bridge" bridge_type="1-1" pci_busid="0000:01:00.0" pci_type="0604 [10b5:8796] [0000:0000] 00" pci_link_speed="15.75">
<object type="PCIDev" gp_index="5" pci_busid="0000:04:00.0" pci_type="0302 [10de:20b2] [10de:1463] a1" pci_link_speed="31.507692">
<object type="OSDev" gp_index="6" name="nvml0" osdev_type="1"><info name="GPUModel" value="A"/><info name="NVIDIAUUID" value="GPU-1"/></object></object>
<object type="PCIDev" gp_index="7" subtype="NVSwitch" pci_busid="0000:05:00.0" pci_type="0680 [10de:1af1] [10de:0001] a1"/>
<object type="PCIDev" pci_busid="0000:08:00.0" pci_type="0207 [15b3:1017] [15b3:0003] 00" pci_link_speed="15.75">
<object type="OSDev" name="ib0" osdev_type="2"/><object type="OSDev" name="mlx5_0" osdev_type="3"><info name="NodeGUID" value="0:1:2:3"/>
<info name="Port1State" value="4"/><info name="Port2State" value="1"/></object></object>
</object></object></object></object></object>
<distances2hetero nbobjs="2" kind="25" name="NVLinkBandwidth"><indexes length="15">OSDev:6 PCIDev:7 </indexes><u64values length="20">0 300000 300000 0 </u64values></distances2hetero></topology>)"};
  for (std::string& file :
       data_files({"one-h200-vm/h200-vm-hwloc.xml", "hwloc/24em64t-2n6c2t-pci.xml",
                   "hwloc/nvidiaDGX2-xmlv3.xml"}))
    out.push_back(std::move(file));
  return out;
}
