#include "core/registers.h"

#include <algorithm>
#include <cstring>

namespace ptx {

namespace {

// The bytes of a register in the file: 32 values, or a word for a predicate.
uint32_t file_bytes(int bytes) { return bytes == 0 ? 8 : uint32_t(bytes) * kLanes; }

}  // namespace

void place_registers(Kernel& kernel, const Names& names) {
  const auto& registers = names.registers();
  std::vector<uint32_t> place(registers.size());
  uint32_t end = 0;
  const auto put = [&](size_t number) {
    const uint32_t bytes = file_bytes(registers[number].bytes), alignment = std::min(bytes, 64u);
    place[number] = (end + alignment - 1) / alignment * alignment;
    end = place[number] + bytes;
  };
  for (size_t i = 0; i < registers.size(); ++i)
    if (registers[i].constant) put(i);
  kernel.constants.assign((end + 63) / 64 * 64, 0);
  for (size_t i = 0; i < registers.size(); ++i) {
    if (!registers[i].constant) continue;
    const int bytes = registers[i].bytes;
    const int copies = bytes == 0 ? 1 : kLanes;
    for (int copy = 0; copy < copies; ++copy)
      std::memcpy(kernel.constants.data() + place[i] + copy * bytes, &*registers[i].constant,
                  bytes == 0 ? 4 : size_t(std::min(bytes, 8)));
  }
  end = uint32_t(kernel.constants.size());
  for (size_t i = 0; i < registers.size(); ++i)
    if (!registers[i].constant) put(i);
  kernel.register_bytes = (end + 63) / 64 * 64;
  for (size_t i = 0; i < registers.size(); ++i)
    if (registers[i].special) kernel.specials.push_back({place[i], *registers[i].special});
  const auto locate = [&](Operand& operand) { operand.at = place[operand.at]; };
  for (Instruction& instruction : kernel.code) {
    if (instruction.guarded) locate(instruction.guard);
    for (Operand& operand : instruction.d) locate(operand);
    for (Operand& operand : instruction.s) locate(operand);
  }
}

}  // namespace ptx
