// PTX ISA, 9.7.12: control flow instructions. What they do is in core/warp_execution.cpp.
#include "isa/lanes.h"

namespace ptx {

namespace {

template <Flow flow>
Execute flowing(const Form&, Instruction& in) {
  in.flow = flow;
  return [](Warp&, const Instruction&) {};
}

constexpr Opcode kOpcodes[] = {
    {"bra", "uni?", "l", Class::branch, flowing<Flow::branch>},
    {"ret", "uni?", "", Class::branch, flowing<Flow::exit>},
    {"exit", "", "", Class::branch, flowing<Flow::exit>},
};

}  // namespace

std::span<const Opcode> control() { return kOpcodes; }

}  // namespace ptx
