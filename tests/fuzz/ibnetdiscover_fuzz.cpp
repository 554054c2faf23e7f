// ibnetdiscover's output: a fabric that holds together, or a refusal.
#include "tests/fuzz/topology_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  r1::fuzz::try_reader(bytes, size, r1::launch::read_ibnetdiscover, r1::fuzz::check_fabric);
  return 0;
}

std::vector<std::string> r1::fuzz::seeds() {
  std::string small =
      "vendid=0x2c9\nSwitch\t4 \"S-1\"\t\t# \"MF0;leaf:MQM/L01/U1\" enhanced port 0 lid 1 lmc 0\n"
      "[1]\t\"H-1\"[1](1) \t\t# \"n1 mlx5_0\" lid 3 4xHDR\n[2]\t\"H-2\"[1](2) \t\t# \"localhost "
      "HCA-1\" lid 4 4xNDR\n"
      "[4]\t\"S-2\"[1]\t\t# \"spine\" lid 2 4xHDR\n\nSwitch\t4 \"S-2\"\t\t# \"spine\" base port 0 "
      "lid 2 lmc 0\n"
      "[1]\t\"S-1\"[4]\t\t# \"MF0;leaf:MQM/L01/U1\" lid 1 4xHDR\n\nCa\t1 \"H-1\"\t\t# \"n1 "
      "mlx5_0\"\n"
      "[1](1) \t\"S-1\"[1]\t\t# lid 3 lmc 0 \"leaf\" lid 1 4xHDR\n\nCa\t1 \"H-2\"\t\t# \"Mellanox "
      "Technologies Aggregation Node\"\n"
      "[1](2) \t\"S-1\"[2]\t\t# lid 4 lmc 0 \"leaf\" lid 1 4xHDR\n";
  return {small, data_file("ib/ibnetdiscover-truncated.out"),
          data_file("ib/ibnetdiscover-ndr-leafspine.out").substr(0, 20000)};
}
